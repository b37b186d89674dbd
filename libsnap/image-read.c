/*
 * Reading guest memory out of an image. See "images" in libsnap.h.
 *
 * A chunk's checksum covers all its stored pages, so the first read of any of them reads them all; that it was
 * right is remembered in a bit, and later reads take just the pages they want. Pages recorded as zero, or not in
 * the image, are never read from the file.
 *
 * Thread: any, several at once: all file access is by position, the bits are atomic.
 */
#include "image-open.h"

#include "image-file.h"
#include "index-read.h"

#include <errno.h>
#include <string.h>

/* Where in a chunk, and where to. */
typedef struct {
    const SnapImage *image;
    SnapOpenRegion *region;
    SnapOpenFiles *files;
    SnapIndexCursor *cursor;
} Source;

static gboolean is_checked(SnapOpenRegion *region, uint64_t chunk) {
    return ((guint)g_atomic_int_get(&region->checked[chunk / 32]) >> (chunk % 32) & 1) != 0;
}

static void set_checked(SnapOpenRegion *region, uint64_t chunk) {
    g_atomic_int_or(&region->checked[chunk / 32], 1u << (chunk % 32));
}

/* Read the @pages of a chunk, which are stored; @data is where page @first of it goes. */
static gboolean read_pages(Source *source, uint64_t chunk, uint64_t pages, unsigned first, uint8_t *data,
                           GError **error) {
    uint64_t page_bytes = source->region->header.page_bytes;
    unsigned at = 0, count = 0;
    while (snap_chunk_take_run(&pages, &at, &count)) {
        int result = snap_file_read(source->files->data_fd, data + (at - first) * page_bytes, count * page_bytes,
                                    (chunk * SNAP_CHUNK_PAGES + at) * page_bytes);
        if (result < 0)
            return snap_image_fail(source->image, source->region->data_path, -result, error);
    }
    return TRUE;
}

/* Read all @stored pages of a chunk and check them; @data is where page @first goes, which none is before. */
static gboolean read_checked(Source *source, uint64_t chunk, const SnapChunkRecord *record, unsigned first,
                             uint8_t *data, GError **error) {
    uint64_t stored = record->present & ~record->zero;
    if (!read_pages(source, chunk, stored, first, data, error))
        return FALSE;
    if (snap_chunk_hash(data, source->region->header.page_bytes, stored >> first) != record->xxh3)
        return snap_image_corrupt_chunk(source->image, source->region->data_path, chunk, "its checksum is wrong",
                                        error);
    set_checked(source->region, chunk);
    return TRUE;
}

static gboolean read_by_way_of_buffer(Source *source, uint64_t chunk, const SnapChunkRecord *record,
                                      uint64_t wanted, unsigned first, uint8_t *ret_data, GError **error) {
    uint64_t page_bytes = source->region->header.page_bytes;
    g_autofree uint8_t *all = g_malloc(SNAP_CHUNK_PAGES * page_bytes);
    unsigned at = 0, count = 0;
    if (!read_checked(source, chunk, record, 0, all, error))
        return FALSE;
    while (snap_chunk_take_run(&wanted, &at, &count))
        memcpy(ret_data + (at - first) * page_bytes, all + at * page_bytes, count * page_bytes);
    return TRUE;
}

static void clear_pages(uint64_t pages, unsigned first, uint64_t page_bytes, uint8_t *ret_data) {
    unsigned at = 0, count = 0;
    while (snap_chunk_take_run(&pages, &at, &count))
        memset(ret_data + (at - first) * page_bytes, 0, count * page_bytes);
}

/* Pages @first to @first + @count - 1 of a chunk. */
static gboolean read_chunk(Source *source, uint64_t chunk, unsigned first, unsigned count, uint8_t *ret_data,
                           GError **error) {
    SnapChunkRecord record;
    int result = snap_index_cursor_get(source->cursor, chunk, &record);
    if (result < 0)
        return snap_image_fail(source->image, source->region->index_path, -result, error);
    const char *wrong = snap_chunk_record_check(&record, &source->region->header, chunk);
    if (wrong)
        return snap_image_corrupt_chunk(source->image, source->region->index_path, chunk, wrong, error);
    uint64_t asked = (count >= SNAP_CHUNK_PAGES ? UINT64_MAX : (UINT64_C(1) << count) - 1) << first;
    uint64_t stored = record.present & ~record.zero, wanted = asked & stored;
    clear_pages(asked & ~stored, first, source->region->header.page_bytes, ret_data);
    if (wanted == 0)
        return TRUE;
    if (is_checked(source->region, chunk))
        return read_pages(source, chunk, wanted, first, ret_data, error);
    return wanted == stored ? read_checked(source, chunk, &record, first, ret_data, error)
                            : read_by_way_of_buffer(source, chunk, &record, wanted, first, ret_data, error);
}

static gboolean check_range(const SnapImage *image, guint region, uint64_t offset_bytes, uint64_t length_bytes,
                            GError **error) {
    const SnapIndexHeader *header = region < image->info.n_regions ? &image->regions[region].header : NULL;
    if (header && offset_bytes % header->page_bytes == 0 && length_bytes % header->page_bytes == 0 &&
        offset_bytes <= header->region_bytes && length_bytes <= header->region_bytes - offset_bytes)
        return TRUE;
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_USAGE,
                "%s: region %u: %" G_GUINT64_FORMAT " bytes at %" G_GUINT64_FORMAT
                " are not whole pages inside the region",
                image->dir, region, (guint64)length_bytes, (guint64)offset_bytes);
    return FALSE;
}

gboolean snap_image_read(const SnapImage *image, guint region, uint64_t offset_bytes, void *ret_data,
                         size_t length_bytes, GError **error) {
    SnapOpenFiles files;
    SnapIndexCursor cursor;
    if (!check_range(image, region, offset_bytes, length_bytes, error) ||
        !snap_image_take_files(image, &image->regions[region], &files, error))
        return FALSE;
    Source source = {image, &image->regions[region], &files, &cursor};
    uint64_t page_bytes = source.region->header.page_bytes;
    snap_index_cursor_init(&cursor, files.index_fd, &source.region->header);
    uint8_t *at = ret_data;
    uint64_t page = offset_bytes / page_bytes, end = page + length_bytes / page_bytes;
    gboolean good = TRUE;
    while (good && page < end) {
        unsigned first = (unsigned)(page % SNAP_CHUNK_PAGES);
        unsigned count = (unsigned)MIN(end - page, SNAP_CHUNK_PAGES - first);
        good = read_chunk(&source, page / SNAP_CHUNK_PAGES, first, count, at, error);
        page += count;
        at += count * page_bytes;
    }
    snap_image_release_files(&files);
    return good;
}

/* ---- runs of data ---------------------------------------------------------------------------------------- */

/* The first page from @page on that is stored, or the region's number of pages. */
static int find_stored(SnapIndexCursor *cursor, uint64_t page, uint64_t *ret_page) {
    SnapChunkRecord record;
    const uint64_t first = page / SNAP_CHUNK_PAGES;
    *ret_page = cursor->header->region_bytes / cursor->header->page_bytes;
    for (uint64_t chunk = first; chunk < cursor->header->n_chunks; chunk++) {
        int result = snap_index_cursor_next(cursor, &chunk, &record);
        if (result <= 0)
            return result;
        uint64_t stored = record.present & ~record.zero;
        if (chunk == first)
            stored &= UINT64_MAX << page % SNAP_CHUNK_PAGES;
        if (stored != 0) {
            *ret_page = chunk * SNAP_CHUNK_PAGES + (uint64_t)__builtin_ctzll(stored);
            return 0;
        }
    }
    return 0;
}

/* The first page from @page on that is not stored. */
static int find_not_stored(SnapIndexCursor *cursor, uint64_t page, uint64_t *ret_page) {
    SnapChunkRecord record;
    uint64_t n_pages = cursor->header->region_bytes / cursor->header->page_bytes;
    while (page < n_pages) {
        uint64_t chunk = page / SNAP_CHUNK_PAGES, skip = page % SNAP_CHUNK_PAGES;
        int result = snap_index_cursor_get(cursor, chunk, &record);
        if (result < 0)
            return result;
        uint64_t missing = ~(record.present & ~record.zero) & (UINT64_MAX << skip);
        if (missing != 0) {
            page = chunk * SNAP_CHUNK_PAGES + (uint64_t)__builtin_ctzll(missing);
            break;
        }
        page = (chunk + 1) * SNAP_CHUNK_PAGES;
    }
    *ret_page = MIN(page, n_pages);
    return 0;
}

gboolean snap_image_next_data(const SnapImage *image, guint region, uint64_t from_bytes, uint64_t *ret_start_bytes,
                              uint64_t *ret_end_bytes) {
    SnapOpenFiles files;
    SnapIndexCursor cursor;
    g_assert(region < image->info.n_regions);
    SnapOpenRegion *source = &image->regions[region];
    uint64_t page_bytes = source->header.page_bytes, n_pages = source->header.region_bytes / page_bytes;
    uint64_t start = from_bytes / page_bytes, end = n_pages;
    if (start >= n_pages)
        return FALSE;
    /* An index that cannot be read: all the rest may be data, and reading it will say what is wrong. */
    if (snap_image_take_files(image, source, &files, NULL)) {
        uint64_t found = start;
        snap_index_cursor_init(&cursor, files.index_fd, &source->header);
        if (find_stored(&cursor, start, &found) == 0)
            start = found;
        if (start < n_pages && find_not_stored(&cursor, start, &found) == 0)
            end = found;
        snap_image_release_files(&files);
    }
    if (start >= n_pages)
        return FALSE;
    *ret_start_bytes = start * page_bytes;
    *ret_end_bytes = end * page_bytes;
    return TRUE;
}
