/* The data file and the index of a region that is being written. See region-files.h. */
#include "region-files.h"

#include "image-file.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

void snap_region_files_init(SnapRegionFiles *files, const SnapManifestRegion *region) {
    *files = (SnapRegionFiles){.data_fd = -1, .index_fd = -1};
    files->header.page_bytes = region->page_bytes;
    files->header.region_bytes = region->length_bytes;
    files->header.n_chunks = snap_chunk_count(region->length_bytes, region->page_bytes);
    files->data_path = g_strconcat(SNAP_DIR_RAM "/", region->file, SNAP_SUFFIX_DATA, NULL);
    files->index_path = g_strconcat(SNAP_DIR_RAM "/", region->file, SNAP_SUFFIX_INDEX, NULL);
    files->recorded = g_malloc0(files->header.n_chunks / 8 + 1);
    files->link.data = files;
}

static void close_now(SnapRegionFiles *files) {
    if (files->data_fd >= 0)
        close(files->data_fd);
    if (files->index_fd >= 0)
        close(files->index_fd);
    files->data_fd = files->index_fd = -1;
    g_clear_pointer(&files->batch, g_free);
}

void snap_region_files_clear(SnapRegionFiles *files) {
    close_now(files);
    g_clear_pointer(&files->recorded, g_free);
    g_clear_pointer(&files->data_path, g_free);
    g_clear_pointer(&files->index_path, g_free);
}

gboolean snap_region_files_is_open(const SnapRegionFiles *files) {
    return files->batch != NULL;
}

static gboolean fail(const SnapImageDir *dir, const char *path, int errnum, GError **error) {
    snap_image_dir_fail(dir, path, errnum, error);
    return FALSE;
}

/* Both files at their full length: what is not written later is a hole. */
static gboolean make(SnapRegionFiles *files, SnapImageDir *dir, GError **error) {
    files->data_fd = snap_image_dir_create_file(dir, files->data_path, TRUE, error);
    if (files->data_fd < 0)
        return FALSE;
    if (ftruncate(files->data_fd, (off_t)files->header.region_bytes) != 0)
        return fail(dir, files->data_path, errno, error);
    files->index_fd = snap_image_dir_create_file(dir, files->index_path, FALSE, error);
    if (files->index_fd < 0)
        return FALSE;
    int result = snap_index_begin(files->index_fd, &files->header);
    files->made = result == 0;
    return result == 0 || fail(dir, files->index_path, -result, error);
}

static gboolean reopen(SnapRegionFiles *files, SnapImageDir *dir, GError **error) {
    files->data_fd = snap_image_dir_open_file(dir, files->data_path, TRUE, error);
    if (files->data_fd < 0)
        return FALSE;
    files->index_fd = snap_image_dir_open_file(dir, files->index_path, FALSE, error);
    return files->index_fd >= 0;
}

gboolean snap_region_files_open(SnapRegionFiles *files, SnapImageDir *dir, GError **error) {
    g_assert(!files->batch);
    if (!(files->made ? reopen(files, dir, error) : make(files, dir, error))) {
        close_now(files);
        return FALSE;
    }
    files->batch = g_new(SnapRecordBatch, 1);
    files->batch->n = 0;
    return TRUE;
}

static gboolean flush(SnapRegionFiles *files, SnapImageDir *dir, GError **error) {
    int result = snap_index_flush(files->index_fd, files->batch);
    return result == 0 || fail(dir, files->index_path, -result, error);
}

gboolean snap_region_files_close(SnapRegionFiles *files, SnapImageDir *dir, GError **error) {
    g_assert(files->batch && files->busy == 0);
    gboolean good = flush(files, dir, error);
    /* O_DIRECT has reported its errors; buffered pages may yet fail: only open descriptors are told. */
    int flags = fcntl(files->data_fd, F_GETFL);
    if (good && flags >= 0 && (flags & O_DIRECT) == 0 && fdatasync(files->data_fd) != 0)
        good = fail(dir, files->data_path, errno, error);
    close_now(files);
    return good;
}

gboolean snap_region_files_record(SnapRegionFiles *files, SnapImageDir *dir, uint64_t index,
                                  const SnapChunkRecord *record, GError **error) {
    uint8_t bit = (uint8_t)(1u << index % 8);
    g_assert(!(files->recorded[index / 8] & bit));
    files->recorded[index / 8] |= bit;
    int result = snap_index_put(files->index_fd, files->batch, index, record);
    return result == 0 || fail(dir, files->index_path, -result, error);
}

gboolean snap_region_files_finish(SnapRegionFiles *files, SnapImageDir *dir, SnapManifest *manifest,
                                  GError **error) {
    if (!flush(files, dir, error))
        return FALSE;
    uint64_t xxh3 = 0, length_bytes = 0;
    int result = snap_file_hash(files->index_fd, &xxh3, &length_bytes);
    if (result < 0)
        return fail(dir, files->index_path, -result, error);
    snap_manifest_add_file(manifest, files->data_path, files->header.region_bytes, NULL);
    snap_manifest_add_file(manifest, files->index_path, length_bytes, &xxh3);
    return TRUE;
}
