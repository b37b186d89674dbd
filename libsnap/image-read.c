/*
 * Reading guest memory out of an image. See "images" in libsnap.h.
 *
 * Happy path: a read is done in windows of at most WINDOW chunks. For each, the images of the chain are asked from
 * the top down: what an image holds of the pages still wanted is taken from it, the rest is left to the one below.
 * So one image's files are in use at a time, however long the chain.
 *
 * A chunk's checksum covers all its stored pages, so the first read of any of them reads them all; that it was
 * right is remembered in a bit, and later reads take just the pages they want. Pages recorded as zero, or in no
 * image, are never read from a file.
 *
 * Failure modes: what cannot be read, or has a wrong checksum, is reported with the image, the file and the chunk.
 *
 * Thread: any, several at once: all file access is by position, the bits are atomic.
 */
#include "image-open.h"

#include "image-file.h"
#include "index-read.h"

#include <errno.h>
#include <string.h>

#define WINDOW 64u

/* Where the pages come from, one image of the chain at a time. */
typedef struct {
    SnapOpenRegion *region;
    SnapOpenFiles files;
    SnapIndexCursor cursor;
} Source;

/* What is wanted, and where it goes. */
typedef struct {
    uint64_t first;          /* chunk */
    uint64_t n;              /* chunks */
    uint64_t wanted[WINDOW]; /* pages that no image had so far */
    unsigned start;          /* the page of chunk @first that goes to @data */
    uint8_t *data;
} Window;

static gboolean is_checked(SnapOpenRegion *region, uint64_t chunk) {
    return ((guint)g_atomic_int_get(&region->checked[chunk / 32]) >> (chunk % 32) & 1) != 0;
}

static void set_checked(SnapOpenRegion *region, uint64_t chunk) {
    g_atomic_int_or(&region->checked[chunk / 32], 1u << (chunk % 32));
}

/* Read the @pages of a chunk, which are stored; @data is where page @first of it goes. */
static gboolean read_pages(SnapOpenRegion *region, const SnapOpenFiles *files, uint64_t chunk, uint64_t pages,
                           unsigned first, uint8_t *data, GError **error) {
    uint64_t page_bytes = region->header.page_bytes;
    unsigned at = 0, count = 0;
    while (snap_chunk_take_run(&pages, &at, &count)) {
        int result = snap_file_read(files->data_fd, data + (at - first) * page_bytes, count * page_bytes,
                                    (chunk * SNAP_CHUNK_PAGES + at) * page_bytes);
        if (result < 0)
            return snap_image_fail(region->image, region->data_path, -result, error);
    }
    return TRUE;
}

/* Read all stored pages of a chunk and check them; @data is where page @first goes, which none is before. */
static gboolean read_checked(SnapOpenRegion *region, const SnapOpenFiles *files, uint64_t chunk,
                             const SnapChunkRecord *record, unsigned first, uint8_t *data, GError **error) {
    uint64_t stored = record->present & ~record->zero;
    if (!read_pages(region, files, chunk, stored, first, data, error))
        return FALSE;
    if (snap_chunk_hash(data, region->header.page_bytes, stored >> first) != record->xxh3)
        return snap_image_corrupt_chunk(region->image, region->data_path, chunk, "its checksum is wrong", error);
    set_checked(region, chunk);
    return TRUE;
}

gboolean snap_image_read_stored(SnapOpenRegion *region, const SnapOpenFiles *files, uint64_t chunk,
                                const SnapChunkRecord *record, uint8_t *ret_data, GError **error) {
    return read_checked(region, files, chunk, record, 0, ret_data, error);
}

static gboolean read_by_way_of_buffer(Source *source, uint64_t chunk, const SnapChunkRecord *record,
                                      uint64_t wanted, unsigned first, uint8_t *ret_data, GError **error) {
    uint64_t page_bytes = source->region->header.page_bytes;
    g_autofree uint8_t *all = g_malloc(SNAP_CHUNK_PAGES * page_bytes);
    unsigned at = 0, count = 0;
    if (!read_checked(source->region, &source->files, chunk, record, 0, all, error))
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

/* Take from @source what it holds of the pages @wanted of a chunk, and those out of *@wanted. */
static gboolean read_chunk(Source *source, uint64_t chunk, uint64_t *wanted, unsigned first, uint8_t *ret_data,
                           GError **error) {
    SnapChunkRecord record;
    SnapOpenRegion *region = source->region;
    int result = snap_index_cursor_get(&source->cursor, chunk, &record);
    if (result < 0)
        return snap_image_fail(region->image, region->index_path, -result, error);
    const char *wrong = snap_chunk_record_check(&record, &region->header, chunk);
    if (wrong)
        return snap_image_corrupt_chunk(region->image, region->index_path, chunk, wrong, error);
    uint64_t stored = record.present & ~record.zero, mine = *wanted & stored;
    clear_pages(*wanted & record.zero, first, region->header.page_bytes, ret_data);
    *wanted &= ~record.present;
    if (mine == 0)
        return TRUE;
    if (is_checked(region, chunk))
        return read_pages(region, &source->files, chunk, mine, first, ret_data, error);
    return mine == stored ? read_checked(region, &source->files, chunk, &record, first, ret_data, error)
                          : read_by_way_of_buffer(source, chunk, &record, mine, first, ret_data, error);
}

/* Where page 0 of chunk @i of the window goes, or for the first chunk page ->start. */
static uint8_t *window_data(const Window *window, uint64_t i, uint64_t page_bytes, unsigned *ret_first) {
    *ret_first = i == 0 ? window->start : 0;
    return window->data + (i == 0 ? 0 : i * SNAP_CHUNK_PAGES - window->start) * page_bytes;
}

/* Clear what is still wanted of chunk @i. */
static void clear_wanted(Window *window, uint64_t i, uint64_t pages, uint64_t page_bytes) {
    unsigned first = 0;
    uint8_t *data = window_data(window, i, page_bytes, &first);
    clear_pages(window->wanted[i] & pages, first, page_bytes, data);
    window->wanted[i] &= ~pages;
}

static gboolean read_open_level(Source *source, Window *window, GError **error) {
    const SnapIndexHeader *header = &source->region->header;
    for (uint64_t i = 0; i < window->n; i++) {
        uint64_t chunk = window->first + i, inside = 0;
        unsigned first = 0;
        if (chunk < header->n_chunks)
            inside = snap_chunk_pages(header->region_bytes, header->page_bytes, chunk);
        clear_wanted(window, i, ~inside, header->page_bytes); /* beyond its end: zeros, whatever is below */
        uint8_t *data = window_data(window, i, header->page_bytes, &first);
        if (window->wanted[i] != 0 && !read_chunk(source, chunk, &window->wanted[i], first, data, error))
            return FALSE;
    }
    return TRUE;
}

/* What one image of the chain has of the window. */
static gboolean read_level(SnapOpenRegion *region, Window *window, GError **error) {
    Source source = {.region = region};
    if (!snap_image_take_files(region->image, region, &source.files, error))
        return FALSE;
    snap_index_cursor_init(&source.cursor, source.files.index_fd, &region->header);
    source.cursor.most = window->n;
    gboolean good = read_open_level(&source, window, error);
    snap_image_release_files(&source.files);
    return good;
}

static gboolean is_done(const Window *window) {
    uint64_t left = 0;
    for (uint64_t i = 0; i < window->n; i++)
        left |= window->wanted[i];
    return left == 0;
}

static gboolean read_window(SnapOpenRegion *region, Window *window, GError **error) {
    uint64_t page_bytes = region->header.page_bytes;
    for (; region && !is_done(window); region = region->below) {
        if (!read_level(region, window, error))
            return FALSE;
    }
    for (uint64_t i = 0; i < window->n; i++)
        clear_wanted(window, i, UINT64_MAX, page_bytes);
    return TRUE;
}

/* Pages from @page to before @end, or as many as a window has room for. Return: how many. */
static uint64_t set_window(Window *window, uint64_t page, uint64_t end, uint8_t *data) {
    window->first = page / SNAP_CHUNK_PAGES;
    window->start = (unsigned)(page % SNAP_CHUNK_PAGES);
    window->data = data;
    end = MIN(end, (window->first + WINDOW) * SNAP_CHUNK_PAGES);
    window->n = (end - 1) / SNAP_CHUNK_PAGES + 1 - window->first;
    for (uint64_t i = 0; i < window->n; i++) {
        uint64_t left = end - (window->first + i) * SNAP_CHUNK_PAGES;
        window->wanted[i] = left >= SNAP_CHUNK_PAGES ? UINT64_MAX : (UINT64_C(1) << left) - 1;
    }
    window->wanted[0] &= UINT64_MAX << window->start;
    return end - page;
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
    if (!check_range(image, region, offset_bytes, length_bytes, error))
        return FALSE;
    uint64_t page_bytes = image->regions[region].header.page_bytes;
    uint64_t page = offset_bytes / page_bytes, end = page + length_bytes / page_bytes;
    uint8_t *at = ret_data;
    while (page < end) {
        Window window = {0};
        uint64_t count = set_window(&window, page, end, at);
        if (!read_window(&image->regions[region], &window, error))
            return FALSE;
        page += count;
        at += count * page_bytes;
    }
    return TRUE;
}
