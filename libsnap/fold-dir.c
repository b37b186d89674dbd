/*
 * The two directories that a merge exchanges the images for. See image-fold.h and fold-merge.h.
 *
 * Happy path, region by region of the child: its data file is a hard link of the parent's, or where the parent has
 * no such region of the child's own. A region that changes gets new indexes, one in each directory; of the others
 * the indexes are links too, so that the work is as much as the child changed and not as much as there is. Then
 * the manifests: of the child as it was but without a parent; of the parent one that says what becomes of it.
 *
 * Failure modes: any error leaves directories to be removed; the images have not been touched.
 */
#include "image-fold.h"

#include "fold-merge.h"
#include "image-dir.h"
#include "image-file.h"
#include "sink.h"

#include <errno.h>
#include <unistd.h>

/* ---- fsyncs ---------------------------------------------------------------------------------------------- */

#define SYNCS 32u

struct SnapSyncs {
    SnapSink *sink;
    guint n;
    SnapSinkRequest requests[SYNCS];
    char *paths[SYNCS];
};

SnapSyncs *snap_syncs_new(void) {
    static const SnapSinkArea none = {0};
    SnapSyncs *syncs = g_new0(SnapSyncs, 1);
    syncs->sink = snap_sink_new(&none);
    return syncs;
}

gboolean snap_syncs_finish(SnapSyncs *syncs, GError **error) {
    int result = 0;
    const char *path = NULL;
    for (guint i = 0; i < syncs->n; i++) {
        SnapSinkRequest *request = snap_sink_reap(syncs->sink, -1);
        if (request->result < 0) {
            result = request->result;
            path = request->opaque;
        }
        close(request->fd);
    }
    if (result < 0)
        snap_set_errno(error, -result, "%s", path);
    for (; syncs->n > 0; syncs->n--)
        g_free(syncs->paths[syncs->n - 1]);
    return result == 0;
}

gboolean snap_syncs_add(SnapSyncs *syncs, int fd, const char *path, GError **error) {
    if (syncs->n == SYNCS && !snap_syncs_finish(syncs, error)) {
        close(fd);
        return FALSE;
    }
    syncs->paths[syncs->n] = g_strdup(path);
    SnapSinkRequest *request = &syncs->requests[syncs->n];
    *request = (SnapSinkRequest){.op = SNAP_SINK_FSYNC, .fd = fd, .opaque = syncs->paths[syncs->n]};
    syncs->n++;
    snap_sink_submit(syncs->sink, request);
    return TRUE;
}

void snap_syncs_free(SnapSyncs *syncs) {
    if (!syncs)
        return;
    snap_syncs_finish(syncs, NULL);
    snap_sink_free(syncs->sink);
    g_free(syncs);
}

/* ---- which regions --------------------------------------------------------------------------------------- */

SnapOpenRegion *snap_fold_parent_region(const SnapFold *fold, guint i) {
    int found = snap_image_find_region(fold->parent, fold->child->regions[i].public.name);
    return found < 0 ? NULL : &fold->parent->regions[found];
}

gboolean snap_fold_changes(const SnapFold *fold, guint i) {
    struct stat status;
    const SnapOpenRegion *child = &fold->child->regions[i], *parent = snap_fold_parent_region(fold, i);
    /* The length of the file, which says whether that has been changed already; the parent's manifest does not. */
    return child->held > 0 || stat(parent->raw_path, &status) != 0 ||
           (uint64_t)status.st_size != child->header.region_bytes;
}

/* ---- one directory --------------------------------------------------------------------------------------- */

typedef struct {
    gboolean wanted;
    SnapImageDir dir;
    SnapManifest *manifest;
} Made;

static void made_clear(Made *made) {
    if (made->wanted)
        snap_image_dir_clear(&made->dir);
    snap_manifest_free(made->manifest);
}

/* @like: whose manifest's head it gets. */
static gboolean made_begin(Made *made, const SnapFold *fold, const char *name, const SnapImage *like,
                           GError **error) {
    g_autofree char *path = g_build_filename(fold->folder, name, NULL);
    if (!snap_image_dir_make(&made->dir, path, error))
        return FALSE;
    made->wanted = TRUE;
    made->manifest = snap_manifest_new();
    made->manifest->id = g_strdup(like->manifest->id);
    made->manifest->driver = g_strdup(like->manifest->driver);
    made->manifest->guest = g_strdup(like->manifest->guest);
    made->manifest->created = g_strdup(like->manifest->created);
    made->manifest->page_bytes = fold->child->manifest->page_bytes;
    return TRUE;
}

static gboolean made_publish(Made *made, GError **error) {
    size_t length_bytes = 0;
    if (!made->wanted)
        return TRUE;
    g_autofree char *text = snap_manifest_encode(made->manifest, &length_bytes);
    return snap_image_dir_sync(&made->dir, error) && snap_image_dir_publish(&made->dir, text, length_bytes, error);
}

/* File @from of @image, as it is, as file @path. */
static gboolean made_link(Made *made, const SnapImage *image, const char *from, const char *path, GError **error) {
    const SnapManifestFile *file = snap_image_find_file(image, from);
    g_autofree char *absolute = g_strconcat(image->dir, "/", from, NULL);
    if (!made->wanted)
        return TRUE;
    snap_manifest_add_file(made->manifest, path, file->length_bytes, file->has_xxh3 ? &file->xxh3 : NULL);
    return snap_image_dir_link_file(&made->dir, absolute, path, error);
}

/* The data file of @image, in the length that the child's region has. */
static gboolean made_link_data(Made *made, const SnapOpenRegion *from, const SnapOpenRegion *child,
                               GError **error) {
    g_autofree char *absolute = g_strconcat(from->image->dir, "/", from->data_path, NULL);
    if (!made->wanted)
        return TRUE;
    snap_manifest_add_file(made->manifest, child->data_path, child->header.region_bytes, NULL);
    return snap_image_dir_link_file(&made->dir, absolute, child->data_path, error);
}

/* A new index; -1 in *@ret_fd where it is not wanted. */
static gboolean made_open_index(Made *made, const SnapOpenRegion *child, int *ret_fd, GError **error) {
    *ret_fd = made->wanted ? snap_image_dir_create_file(&made->dir, child->index_path, FALSE, error) : -1;
    return !made->wanted || *ret_fd >= 0;
}

/* List an index that has been written, and get it to disk. @fd: (take). */
static gboolean made_close_index(Made *made, const SnapOpenRegion *child, int fd, SnapSyncs *syncs,
                                 GError **error) {
    uint64_t xxh3 = 0, length_bytes = 0;
    if (fd < 0)
        return TRUE;
    int result = snap_file_hash(fd, &xxh3, &length_bytes);
    if (result < 0) {
        close(fd);
        snap_image_dir_fail(&made->dir, child->index_path, -result, error);
        return FALSE;
    }
    g_autofree char *path = g_strconcat(made->dir.path, "/", child->index_path, NULL);
    snap_manifest_add_file(made->manifest, child->index_path, length_bytes, &xxh3);
    return snap_syncs_add(syncs, fd, path, error);
}

/* A region as the child has it. */
static void made_add_region(Made *made, const SnapOpenRegion *child) {
    const SnapRegion region = {
        .name = child->entry->name,
        .memory = child->entry->memory,
        .guest_address = child->entry->guest_address,
        .host_address = child->entry->host_address,
        .length_bytes = child->entry->length_bytes,
        .page_bytes = child->entry->page_bytes,
        .granule_bytes = child->entry->granule_bytes,
        .fd = -1,
    };
    if (made->wanted) {
        SnapManifestRegion *added = snap_manifest_add_region(made->manifest, &region);
        g_free(added->file);
        added->file = g_strdup(child->entry->file);
    }
}

/* ---- both ------------------------------------------------------------------------------------------------ */

typedef struct {
    const SnapFold *fold;
    Made parent;
    Made child;
    SnapSyncs *syncs;
} Build;

/* A region that changes: one data file for both, an index for each. */
static gboolean add_changed(Build *build, SnapOpenRegion *parent, SnapOpenRegion *child, GError **error) {
    int parent_fd = -1, child_fd = -1;
    if (!made_link_data(&build->parent, parent, child, error) ||
        !made_link_data(&build->child, parent, child, error) ||
        !made_open_index(&build->parent, child, &parent_fd, error))
        return FALSE;
    gboolean good = made_open_index(&build->child, child, &child_fd, error) &&
                    snap_fold_merge_indexes(parent, child, parent_fd, child_fd, error);
    if (good)
        good = made_close_index(&build->parent, child, g_steal_fd(&parent_fd), build->syncs, error) &&
               made_close_index(&build->child, child, g_steal_fd(&child_fd), build->syncs, error);
    if (parent_fd >= 0)
        close(parent_fd);
    if (child_fd >= 0)
        close(child_fd);
    return good;
}

/* A region that does not: both files of @from. */
static gboolean add_same(Made *made, const SnapOpenRegion *from, const SnapOpenRegion *child, GError **error) {
    return made_link(made, from->image, from->data_path, child->data_path, error) &&
           made_link(made, from->image, from->index_path, child->index_path, error);
}

static gboolean add_region(Build *build, guint i, GError **error) {
    SnapOpenRegion *child = &build->fold->child->regions[i], *parent = snap_fold_parent_region(build->fold, i);
    made_add_region(&build->child, child);
    if (!parent)
        return add_same(&build->child, child, child, error);
    made_add_region(&build->parent, child);
    if (snap_fold_changes(build->fold, i))
        return add_changed(build, parent, child, error);
    return add_same(&build->parent, parent, child, error) && add_same(&build->child, parent, child, error);
}

/* What of the child is not memory; what the parent becomes needs none of it. */
static gboolean add_rest(Build *build, GError **error) {
    const SnapImage *child = build->fold->child;
    SnapManifest *manifest = build->child.manifest;
    for (guint i = 0; i < child->manifest->states->len; i++) {
        const SnapManifestState *state = child->manifest->states->pdata[i];
        g_autofree char *path = g_strconcat(SNAP_DIR_STATE "/", state->file, NULL);
        SnapManifestState *added = snap_manifest_add_state(manifest, state->name, state->length_bytes);
        g_free(added->file);
        added->file = g_strdup(state->file);
        if (!made_link(&build->child, child, path, path, error))
            return FALSE;
    }
    for (guint i = 0; i < child->manifest->statistics->len; i++) {
        const SnapManifestStatistic *statistic = child->manifest->statistics->pdata[i];
        snap_manifest_add_statistic(manifest, statistic->name, statistic->value);
    }
    return TRUE;
}

static gboolean build_both(Build *build, GError **error) {
    const SnapFold *fold = build->fold;
    if (!fold->parent->manifest->folding_into) {
        if (!made_begin(&build->parent, fold, SNAP_FOLD_PARENT, fold->parent, error))
            return FALSE;
        build->parent.manifest->folding_into = g_strdup(fold->child->manifest->id);
    }
    if (!made_begin(&build->child, fold, SNAP_FOLD_CHILD, fold->child, error))
        return FALSE;
    for (guint i = 0; i < fold->child->info.n_regions; i++) {
        if (!add_region(build, i, error))
            return FALSE;
    }
    return add_rest(build, error) && snap_syncs_finish(build->syncs, error) &&
           made_publish(&build->child, error) && made_publish(&build->parent, error);
}

gboolean snap_fold_make_dirs(const SnapFold *fold, GError **error) {
    Build build = {.fold = fold, .syncs = snap_syncs_new()};
    gboolean good = build_both(&build, error);
    snap_syncs_free(build.syncs);
    made_clear(&build.child);
    made_clear(&build.parent);
    return good;
}
