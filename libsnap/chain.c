/*
 * Finding, checking and linking the parents of an image. See chain.h.
 *
 * Happy path, once a parent: the hint in the child's manifest leads to a directory whose image has the id that the
 * child names → driver, guest, time and page sizes fit → each region of the child gets the one below it.
 *
 * Failure modes: nothing at the hint, or another image: the directories beside the child are looked through,
 * once a folder; one that does not open says itself what is wrong with it, and whose parent it is. A circle is
 * found by its ids. All of it is a loop, not a recursion: a chain may be long.
 *
 * Invariants: an image's directory stays locked against being merged away (see image-fold.c) until its parent's
 * is, the last one's for as long as it is open; so nothing of a chain is gone while it is looked for. All of them
 * share the descriptors that the first one may keep.
 */
#include "chain.h"

#include "image-file.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- looking for a parent -------------------------------------------------------------------------------- */

static void free_listed(void *opaque) {
    SnapListed *listed = opaque;
    g_free(listed->dir);
    snap_manifest_free(listed->manifest);
    g_free(listed);
}

GPtrArray *snap_chain_list_folder(const char *folder, const char *but) {
    GPtrArray *found = g_ptr_array_new_with_free_func(free_listed);
    GDir *dir = g_dir_open(folder, 0, NULL);
    for (const char *name; dir && (name = g_dir_read_name(dir));) {
        g_autofree char *named = g_build_filename(folder, name, NULL);
        g_autofree char *path = name[0] == '.' ? NULL : realpath(named, NULL);
        gboolean wanted = path && g_strcmp0(path, but) != 0;
        SnapManifest *manifest = wanted ? snap_image_read_manifest(path, NULL) : NULL;
        if (!manifest)
            continue;
        SnapListed *listed = g_new(SnapListed, 1);
        *listed = (SnapListed){g_steal_pointer(&path), manifest};
        g_ptr_array_add(found, listed);
    }
    if (dir)
        g_dir_close(dir);
    return found;
}

/* What lies in a folder: id → directory, both owned. */
static void scan(const char *folder, GHashTable *dirs) {
    g_autoptr(GPtrArray) found = snap_chain_list_folder(folder, NULL);
    for (guint i = 0; i < found->len; i++) {
        const SnapListed *listed = found->pdata[i];
        /* Of two with the same content rather the one that needs no other. */
        if (!listed->manifest->parent_id || !g_hash_table_contains(dirs, listed->manifest->id))
            g_hash_table_insert(dirs, g_strdup(listed->manifest->id), g_strdup(listed->dir));
    }
}

/* Where beside @child the image @id is, or NULL. @folders: what has been scanned, folder → (id → directory). */
static const char *find_beside(GHashTable *folders, const SnapImage *child, const char *id) {
    g_autofree char *folder = g_path_get_dirname(child->dir);
    GHashTable *dirs = g_hash_table_lookup(folders, folder);
    if (!dirs) {
        dirs = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
        scan(folder, dirs);
        g_hash_table_insert(folders, g_steal_pointer(&folder), dirs);
    }
    return g_hash_table_lookup(dirs, id);
}

/* The image at @dir if it is image @id; otherwise NULL, with *error where it cannot be told or is damaged. */
static SnapImage *open_if(const char *dir, const char *id, GError **error) {
    GError *failure = NULL;
    g_autoptr(SnapImage) image = snap_image_open_alone(dir, &failure);
    if (image)
        return g_str_equal(image->manifest->id, id) ? g_steal_pointer(&image) : NULL;
    if (g_error_matches(failure, SNAP_ERROR, SNAP_ERROR_NOT_FOUND))
        g_error_free(failure);
    else
        g_propagate_error(error, failure);
    return NULL;
}

static SnapImage *find_parent(GHashTable *folders, const SnapImage *child, GError **error) {
    const char *id = child->manifest->parent_id, *hint = child->manifest->parent_path;
    g_autofree char *hinted = hint ? g_canonicalize_filename(hint, child->dir) : NULL;
    g_autoptr(GError) problem = NULL;
    SnapImage *parent = hinted ? open_if(hinted, id, &problem) : NULL;
    if (parent)
        return parent;
    const char *beside = find_beside(folders, child, id);
    if (beside && (!hinted || !g_str_equal(beside, hinted))) {
        g_clear_error(&problem);
        parent = open_if(beside, id, &problem);
    }
    if (parent)
        return parent;
    if (problem) {
        g_propagate_prefixed_error(error, g_steal_pointer(&problem), "parent of %s: ", child->dir);
        return NULL;
    }
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_FOUND,
                "%s: its parent, image %s, is missing: it is neither at %s nor beside it; put it back", child->dir,
                id, hinted ? hinted : "a place that is known");
    return NULL;
}

/* ---- does it fit? ---------------------------------------------------------------------------------------- */

static gboolean unfit(const SnapImage *child, const SnapImage *parent, const char *why, GError **error) {
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_CORRUPT, "%s: its parent %s %s", child->dir, parent->dir, why);
    return FALSE;
}

/* The region of @parent below a region of its child, or NULL. */
static SnapOpenRegion *region_below(const SnapImage *parent, const SnapOpenRegion *region) {
    int below = snap_image_find_region(parent, region->public.name);
    return below < 0 ? NULL : &parent->regions[below];
}

static gboolean check_page_sizes(const SnapImage *child, const SnapImage *parent, GError **error) {
    for (guint i = 0; i < child->info.n_regions; i++) {
        const SnapOpenRegion *below = region_below(parent, &child->regions[i]);
        if (below && below->header.page_bytes != child->regions[i].header.page_bytes) {
            g_autofree char *why = g_strdup_printf("has other page sizes in region \"%s\"", below->entry->file);
            return unfit(child, parent, why, error);
        }
    }
    return TRUE;
}

gboolean snap_chain_check_pair(const SnapImage *child, const SnapImage *parent, GError **error) {
    const SnapManifest *of_child = child->manifest, *of_parent = parent->manifest;
    if (!g_str_equal(of_child->driver, of_parent->driver))
        return unfit(child, parent, "is of another kind of guest", error);
    if (of_child->guest && of_parent->guest && !g_str_equal(of_child->guest, of_parent->guest))
        return unfit(child, parent, "is of another guest", error);
    if (strcmp(of_parent->created, of_child->created) > 0)
        return unfit(child, parent, "is newer than it", error);
    if (of_parent->folding_into && !g_str_equal(of_parent->folding_into, of_child->id))
        return snap_image_refuse_folding(parent, error);
    return check_page_sizes(child, parent, error);
}

/* ---- the chain ------------------------------------------------------------------------------------------- */

/* @parent (take) becomes @child's. */
static void link_parent(const SnapImage *head, SnapImage *child, SnapImage *parent) {
    child->parent = parent;
    child->info.parent_dir = parent->dir;
    for (guint i = 0; i < child->info.n_regions; i++)
        child->regions[i].below = region_below(parent, &child->regions[i]);
    snap_image_share_kept(parent, head);
    close(child->fd);
    child->fd = -1;
}

static gboolean complete(SnapImage *head, GHashTable *ids, GHashTable *folders, GError **error) {
    for (SnapImage *child = head; child->manifest->parent_id; child = child->parent) {
        g_hash_table_add(ids, child->manifest->id);
        if (g_hash_table_contains(ids, child->manifest->parent_id)) {
            g_set_error(error, SNAP_ERROR, SNAP_ERROR_CORRUPT,
                        "%s: its chain of parents is a circle, it leads back to image %s", child->dir,
                        child->manifest->parent_id);
            return FALSE;
        }
        g_autoptr(SnapImage) parent = find_parent(folders, child, error);
        if (!parent || !snap_chain_check_pair(child, parent, error))
            return FALSE;
        link_parent(head, child, g_steal_pointer(&parent));
        head->info.n_parents++;
    }
    return TRUE;
}

gboolean snap_chain_complete(SnapImage *image, GError **error) {
    g_autoptr(GHashTable) ids = g_hash_table_new(g_str_hash, g_str_equal);
    g_autoptr(GHashTable) folders =
        g_hash_table_new_full(g_str_hash, g_str_equal, g_free, (GDestroyNotify)g_hash_table_unref);
    return complete(image, ids, folders, error);
}
