/*
 * Verifying an image: everything is read. See snap_image_verify() in libsnap.h.
 *
 * Happy path, once an image of the chain: the checks of opening once more → for every chunk that has stored pages
 * or data in the file: the stored pages have the record's checksum, all others read as zeros. What has neither is
 * jumped over, so an image of much memory and few pages is verified as fast as it was written.
 *
 * A page that is recorded as zero or absent is usually a hole, but a copy of the image may have filled it with
 * zeros, and a file system may allocate more at once than a page: what counts is what it reads as.
 */
#include "image-open.h"

#include "image-file.h"
#include "index-read.h"

#include <errno.h>

typedef struct {
    const SnapImage *image; /* the one of the chain that is looked at now */
    SnapProgressFunc progress;
    void *opaque;
    uint64_t done_bytes;
    uint64_t total_bytes;
} Verify;

static gboolean report(Verify *verify, uint64_t region_bytes, GError **error) {
    if (!verify->progress ||
        verify->progress(verify->done_bytes + region_bytes, verify->total_bytes, verify->opaque))
        return TRUE;
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_CANCELLED, "%s: verifying was cancelled", verify->image->dir);
    return FALSE;
}

/*
 * Pages of a chunk that are known: all; of an image that is being merged into its child those that it has, since
 * the others are being written, or are not there yet.
 */
static uint64_t known_pages(const Verify *verify, const SnapIndexHeader *header, uint64_t chunk,
                            const SnapChunkRecord *record) {
    return verify->image->manifest->folding_into
               ? record->present
               : snap_chunk_pages(header->region_bytes, header->page_bytes, chunk);
}

static gboolean check_chunk(Verify *verify, SnapOpenRegion *region, const SnapOpenFiles *files, uint64_t chunk,
                            const SnapChunkRecord *record, uint8_t *data, GError **error) {
    const SnapIndexHeader *header = &region->header;
    const char *wrong = snap_chunk_record_check(record, header, chunk);
    if (wrong)
        return snap_image_corrupt_chunk(verify->image, region->index_path, chunk, wrong, error);
    uint64_t pages = known_pages(verify, header, chunk, record);
    uint64_t stored = record->present & ~record->zero, others = pages & ~stored;
    if (pages == 0)
        return TRUE;
    uint64_t n_bytes = (SNAP_CHUNK_PAGES - (uint64_t)__builtin_clzll(pages)) * header->page_bytes;
    int result = snap_file_read(files->data_fd, data, n_bytes, chunk * SNAP_CHUNK_PAGES * header->page_bytes);
    if (result < 0)
        return snap_image_fail(verify->image, region->data_path, -result, error);
    if (stored != 0 && snap_chunk_hash(data, header->page_bytes, stored) != record->xxh3)
        wrong = "its checksum is wrong";
    else if (snap_chunk_find_zero(data, header->page_bytes, others) != others)
        wrong = "a page recorded as zero or absent has data";
    return !wrong || snap_image_corrupt_chunk(verify->image, region->data_path, chunk, wrong, error);
}

/* A walk over the chunks of one region that need reading: those with stored pages, or with data in the file. */
typedef struct {
    SnapOpenRegion *region;
    const SnapOpenFiles *files;
    SnapIndexCursor cursor;
    uint64_t stored; /* the next chunk with stored pages; looked for again once the walk is beyond it */
} Walk;

/* The next chunk from *@chunk on; n_chunks when there is none. */
static gboolean find_chunk(Verify *verify, Walk *walk, uint64_t *chunk, SnapChunkRecord *ret_record,
                           GError **error) {
    const SnapIndexHeader *header = &walk->region->header;
    uint64_t chunk_bytes = SNAP_CHUNK_PAGES * header->page_bytes, start = 0;
    int result = 1;
    if (walk->stored < *chunk || *chunk == 0) {
        walk->stored = *chunk;
        result = snap_index_cursor_next(&walk->cursor, &walk->stored, ret_record);
    }
    if (result >= 0 && walk->stored != *chunk) {
        int sought = snap_file_seek_data(walk->files->data_fd, *chunk * chunk_bytes, &start);
        if (sought < 0 && sought != -ENXIO)
            return snap_image_fail(verify->image, walk->region->data_path, -sought, error);
        *chunk = sought == 0 ? MIN(walk->stored, start / chunk_bytes) : walk->stored;
    }
    if (result >= 0 && *chunk < header->n_chunks)
        result = snap_index_cursor_get(&walk->cursor, *chunk, ret_record);
    return result >= 0 || snap_image_fail(verify->image, walk->region->index_path, -result, error);
}

static gboolean verify_open(Verify *verify, SnapOpenRegion *region, const SnapOpenFiles *files, GError **error) {
    uint64_t chunk_bytes = SNAP_CHUNK_PAGES * region->header.page_bytes;
    g_autofree uint8_t *data = g_malloc(chunk_bytes);
    SnapChunkRecord record;
    Walk walk = {.region = region, .files = files};
    snap_index_cursor_init(&walk.cursor, files->index_fd, &region->header);
    for (uint64_t chunk = 0; chunk < region->header.n_chunks; chunk++) {
        if (!find_chunk(verify, &walk, &chunk, &record, error))
            return FALSE;
        if (chunk >= region->header.n_chunks)
            break;
        if (!check_chunk(verify, region, files, chunk, &record, data, error) ||
            !report(verify, MIN((chunk + 1) * chunk_bytes, region->header.region_bytes), error))
            return FALSE;
    }
    verify->done_bytes += region->header.region_bytes;
    return report(verify, 0, error);
}

static gboolean verify_region(Verify *verify, SnapOpenRegion *region, GError **error) {
    SnapOpenFiles files;
    if (!snap_image_take_files(verify->image, region, &files, error))
        return FALSE;
    gboolean good = verify_open(verify, region, &files, error);
    snap_image_release_files(&files);
    return good;
}

/* One image of the chain. */
static gboolean verify_alone(Verify *verify, GError **error) {
    if (!snap_image_check_files(verify->image, NULL, error))
        return FALSE;
    for (guint i = 0; i < verify->image->info.n_regions; i++) {
        if (!verify_region(verify, &verify->image->regions[i], error))
            return FALSE;
    }
    return TRUE;
}

gboolean snap_image_verify(const SnapImage *image, SnapProgressFunc progress, void *opaque, GError **error) {
    Verify verify = {.progress = progress, .opaque = opaque};
    for (const SnapImage *at = image; at; at = at->parent) {
        for (guint i = 0; i < at->info.n_regions; i++)
            verify.total_bytes += at->regions[i].header.region_bytes;
    }
    for (verify.image = image; verify.image; verify.image = verify.image->parent) {
        if (!verify_alone(&verify, error))
            return FALSE;
    }
    return TRUE;
}
