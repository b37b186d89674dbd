/*
 * The end of an image: state blobs, fsync of everything, the manifest. See image-write.h.
 *
 * Happy path of a commit: all writes finished → every region's last records written and its index checksummed →
 * an fsync of every file, many at once, so that hundreds of small files cost a few journal commits → fsync of
 * ram/ and state/ → manifest, by fsync and rename → fsync of the directory and its parent.
 *
 * Failure modes: any error before the rename leaves no manifest, and one after it takes the manifest away again.
 * Either way snap_image_writer_free() removes the rest.
 */
#include "image-writer.h"

#include "hash.h"
#include "image-file.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

/* ---- state blobs ----------------------------------------------------------------------------------------- */

static gboolean check_state(SnapImageWriter *writer, const SnapState *state, GError **error) {
    gboolean twice = g_hash_table_contains(writer->state_names, state->name);
    if (!twice && state->name[0] && g_utf8_validate(state->name, -1, NULL))
        return TRUE;
    g_autofree char *file = snap_file_base_name(state->name); /* the name may have line breaks in it */
    g_set_error(error, SNAP_ERROR, twice ? SNAP_ERROR_EXISTS : SNAP_ERROR_USAGE, "state \"%s\": %s", file,
                twice ? "there is one of that name" : "the name is empty or not UTF-8");
    return FALSE;
}

static gboolean write_state(SnapImageWriter *writer, const char *path, GBytes *data, GError **error) {
    int fd = snap_image_dir_create_file(&writer->dir, path, FALSE, error);
    if (fd < 0)
        return FALSE;
    size_t length_bytes = 0;
    const void *bytes = g_bytes_get_data(data, &length_bytes);
    int result = snap_file_write(fd, bytes, length_bytes, 0);
    close(fd); /* nothing is known to be written before the fsync at commit anyway */
    if (result < 0)
        snap_image_dir_fail(&writer->dir, path, -result, error);
    return result == 0;
}

gboolean snap_image_writer_add_state(SnapImageWriter *writer, const SnapState *state, GError **error) {
    GError *failure = NULL;
    if (writer->failure)
        return snap_image_writer_refuse(writer, error);
    if (!check_state(writer, state, error))
        return FALSE;
    size_t length_bytes = 0;
    const void *bytes = g_bytes_get_data(state->data, &length_bytes);
    SnapManifestState *entry = snap_manifest_add_state(writer->manifest, state->name, length_bytes);
    g_hash_table_add(writer->state_names, entry->name);
    g_autofree char *path = g_strconcat(SNAP_DIR_STATE "/", entry->file, NULL);
    uint64_t xxh3 = XXH3_64bits(bytes ? bytes : "", length_bytes);
    snap_manifest_add_file(writer->manifest, path, length_bytes, &xxh3);
    if (write_state(writer, path, state->data, &failure))
        return TRUE;
    snap_image_writer_keep(writer, failure);
    return snap_image_writer_refuse(writer, error);
}

/* ---- commit ---------------------------------------------------------------------------------------------- */

static void start_sync(SnapImageWriter *writer, GPtrArray *syncs, int fd, const char *path,
                       SnapRegionFiles *files) {
    SnapFsync *sync = g_new0(SnapFsync, 1);
    sync->request.op = SNAP_SINK_FSYNC;
    sync->request.fd = fd;
    sync->request.opaque = sync;
    sync->path = path;
    sync->files = files;
    if (files)
        files->busy++;
    g_ptr_array_add(syncs, sync);
    writer->n_under_way++;
    snap_sink_submit(writer->sink, &sync->request);
}

static gboolean sync_states(SnapImageWriter *writer, GPtrArray *syncs, GError **error) {
    const GPtrArray *files = writer->manifest->files; /* only state blobs are listed so far */
    for (guint i = 0; i < files->len; i++) {
        const SnapManifestFile *file = files->pdata[i];
        int fd = snap_image_dir_open_file(&writer->dir, file->path, FALSE, error);
        if (fd < 0)
            return FALSE;
        start_sync(writer, syncs, fd, file->path, NULL);
    }
    return TRUE;
}

static gboolean sync_regions(SnapImageWriter *writer, GPtrArray *syncs, GError **error) {
    for (guint i = 0; i < writer->regions->len; i++) {
        SnapRegionFiles *files = writer->regions->pdata[i];
        if (!snap_image_writer_use(writer, files, error) ||
            !snap_region_files_finish(files, &writer->dir, writer->manifest, error))
            return FALSE;
        start_sync(writer, syncs, files->data_fd, files->data_path, files);
        start_sync(writer, syncs, files->index_fd, files->index_path, files);
    }
    return TRUE;
}

/* Everything but the manifest on disk. */
static gboolean sync_all(SnapImageWriter *writer, GError **error) {
    g_autoptr(GPtrArray) syncs = g_ptr_array_new_with_free_func(g_free);
    GError *failure = NULL;
    gboolean started = sync_states(writer, syncs, &failure) && sync_regions(writer, syncs, &failure);
    if (!started)
        snap_image_writer_keep(writer, failure);
    /* Even then: what is under way uses @syncs. */
    return snap_image_writer_drain(writer, error) && snap_image_dir_sync(&writer->dir, error);
}

static gboolean close_all(SnapImageWriter *writer, GError **error) {
    for (GList *link; (link = g_queue_pop_head_link(&writer->open));) {
        if (!snap_region_files_close(link->data, &writer->dir, error))
            return FALSE;
    }
    return TRUE;
}

static gboolean commit(SnapImageWriter *writer, GError **error) {
    if (!snap_image_writer_drain(writer, error) || !sync_all(writer, error) || !close_all(writer, error))
        return FALSE;
    size_t length_bytes = 0;
    g_autofree char *text = snap_manifest_encode(writer->manifest, &length_bytes);
    return snap_image_dir_publish(&writer->dir, text, length_bytes, error);
}

gboolean snap_image_writer_commit(SnapImageWriter *writer, int64_t created_us, const SnapStatistic *statistics,
                                  guint n_statistics, GError **error) {
    GError *failure = NULL;
    if (!writer->manifest->created)
        writer->manifest->created = snap_manifest_format_time(created_us);
    if (writer->parent_created && strcmp(writer->manifest->created, writer->parent_created) < 0) {
        g_free(writer->manifest->created);
        writer->manifest->created = g_strdup(writer->parent_created);
    }
    for (guint i = 0; i < n_statistics; i++)
        snap_manifest_add_statistic(writer->manifest, statistics[i].name, statistics[i].value);
    writer->committed = commit(writer, &failure);
    if (writer->committed)
        return TRUE;
    snap_image_writer_keep(writer, failure);
    return snap_image_writer_refuse(writer, error);
}
