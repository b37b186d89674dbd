/*
 * Which pages of an image are data, all images of its chain taken together. See snap_image_next_data().
 *
 * Happy path: for a window of chunks the records of every image are laid over each other, the top one first; the
 * outcome is kept with the region, since a caller who asks for one run asks for the next one too. What no image
 * has a record of is jumped over by the holes of the indexes.
 *
 * Failure modes: an index that cannot be read: all the rest may be data, and reading it will say what is wrong.
 *
 * Thread: any; the kept window is copied out and in under the lock, all else happens without it.
 */
#include "image-open.h"

#include "index-read.h"

#include <errno.h>

/* ---- one window ------------------------------------------------------------------------------------------ */

/* Pages that no image has decided about yet, along with those that are data. */
typedef struct {
    uint64_t open[SNAP_FLAT_CHUNKS];
    SnapFlat *flat;
} Overlay;

static int overlay_open_level(const SnapIndexHeader *header, int index_fd, Overlay *overlay) {
    SnapIndexCursor cursor;
    SnapChunkRecord record;
    SnapFlat *flat = overlay->flat;
    snap_index_cursor_init(&cursor, index_fd, header);
    for (uint64_t i = 0; i < flat->n; i++) {
        uint64_t chunk = flat->first + i;
        if (chunk >= header->n_chunks)
            overlay->open[i] = 0; /* beyond the end: zeros, whatever is below */
        if (overlay->open[i] == 0)
            continue;
        int result = snap_index_cursor_get(&cursor, chunk, &record);
        if (result < 0)
            return result;
        flat->data[i] |= overlay->open[i] & record.present & ~record.zero;
        overlay->open[i] &= ~record.present;
        overlay->open[i] &= snap_chunk_pages(header->region_bytes, header->page_bytes, chunk);
    }
    return 0;
}

static int overlay_level(SnapOpenRegion *region, Overlay *overlay) {
    SnapOpenFiles files;
    if (!snap_image_take_files(region->image, region, &files, NULL))
        return -EIO;
    int result = overlay_open_level(&region->header, files.index_fd, overlay);
    snap_image_release_files(&files);
    return result;
}

static gboolean is_decided(const Overlay *overlay) {
    uint64_t open = 0;
    for (uint64_t i = 0; i < overlay->flat->n; i++)
        open |= overlay->open[i];
    return open == 0;
}

/* The window from @chunk on. */
static int flatten(SnapOpenRegion *region, uint64_t chunk, SnapFlat *ret_flat) {
    Overlay overlay = {.flat = ret_flat};
    ret_flat->first = chunk;
    ret_flat->n = MIN(region->header.n_chunks - chunk, SNAP_FLAT_CHUNKS);
    for (uint64_t i = 0; i < ret_flat->n; i++) {
        overlay.open[i] = UINT64_MAX;
        ret_flat->data[i] = 0;
    }
    for (; region && !is_decided(&overlay); region = region->below) {
        int result = overlay_level(region, &overlay);
        if (result < 0)
            return result;
    }
    return 0;
}

/* ---- windows, kept and skipped --------------------------------------------------------------------------- */

static gboolean recall(SnapOpenRegion *region, uint64_t chunk, SnapFlat *ret_flat) {
    SnapKept *kept = region->image->kept;
    snap_lock(&kept->lock);
    gboolean known = region->flat && chunk >= region->flat->first && chunk - region->flat->first < region->flat->n;
    if (known)
        *ret_flat = *region->flat;
    snap_unlock(&kept->lock);
    return known;
}

static void keep(SnapOpenRegion *region, const SnapFlat *flat) {
    SnapKept *kept = region->image->kept;
    snap_lock(&kept->lock);
    if (!region->flat)
        region->flat = g_new(SnapFlat, 1);
    *region->flat = *flat;
    snap_unlock(&kept->lock);
}

/* Move *@chunk to the next one that any image may have a record of. */
static int skip(SnapOpenRegion *top, uint64_t *chunk) {
    uint64_t found = top->header.n_chunks;
    for (SnapOpenRegion *region = top; region && found > *chunk; region = region->below) {
        SnapOpenFiles files;
        SnapIndexCursor cursor;
        uint64_t next = *chunk;
        if (next >= region->header.n_chunks)
            break;
        if (!snap_image_take_files(region->image, region, &files, NULL))
            return -EIO;
        snap_index_cursor_init(&cursor, files.index_fd, &region->header);
        int result = snap_index_cursor_skip(&cursor, &next);
        snap_image_release_files(&files);
        if (result < 0)
            return result;
        if (next < region->header.n_chunks)
            found = MIN(found, next);
    }
    *chunk = found;
    return 0;
}

/* The window that *@chunk is in, or the next one that may have data; *@chunk moves there. Its end: n_chunks. */
static int find_window(SnapOpenRegion *region, uint64_t *chunk, SnapFlat *ret_flat) {
    if (recall(region, *chunk, ret_flat))
        return 0;
    int result = skip(region, chunk);
    if (result < 0 || *chunk >= region->header.n_chunks)
        return result;
    result = flatten(region, *chunk, ret_flat);
    if (result == 0)
        keep(region, ret_flat);
    return result;
}

/* ---- runs of data ---------------------------------------------------------------------------------------- */

static uint64_t count_pages(const SnapOpenRegion *region) {
    return region->header.region_bytes / region->header.page_bytes;
}

/* The first page from @page on that is data, or the region's number of pages. */
static int find_data(SnapOpenRegion *region, uint64_t page, SnapFlat *flat, uint64_t *ret_page) {
    uint64_t chunk = page / SNAP_CHUNK_PAGES, skip_pages = UINT64_MAX << page % SNAP_CHUNK_PAGES;
    const uint64_t first = chunk;
    *ret_page = count_pages(region);
    while (chunk < region->header.n_chunks) {
        int result = find_window(region, &chunk, flat);
        if (result < 0)
            return result;
        for (; chunk < region->header.n_chunks && chunk - flat->first < flat->n; chunk++) {
            uint64_t data = flat->data[chunk - flat->first] & (chunk == first ? skip_pages : UINT64_MAX);
            if (data == 0)
                continue;
            *ret_page = chunk * SNAP_CHUNK_PAGES + (uint64_t)__builtin_ctzll(data);
            return 0;
        }
    }
    return 0;
}

/* The first page behind @page, which is data, that is none. */
static int find_end(SnapOpenRegion *region, uint64_t page, SnapFlat *flat, uint64_t *ret_page) {
    uint64_t chunk = page / SNAP_CHUNK_PAGES, behind = UINT64_MAX << page % SNAP_CHUNK_PAGES;
    *ret_page = count_pages(region);
    while (chunk < region->header.n_chunks) {
        uint64_t wanted = chunk;
        int result = find_window(region, &chunk, flat);
        if (result < 0)
            return result;
        if (chunk > wanted) { /* what lies between has no record */
            *ret_page = wanted * SNAP_CHUNK_PAGES;
            return 0;
        }
        for (; chunk < region->header.n_chunks && chunk - flat->first < flat->n; chunk++) {
            uint64_t none = ~flat->data[chunk - flat->first] & behind;
            behind = UINT64_MAX;
            if (none == 0)
                continue;
            *ret_page = MIN(*ret_page, chunk * SNAP_CHUNK_PAGES + (uint64_t)__builtin_ctzll(none));
            return 0;
        }
    }
    return 0;
}

gboolean snap_image_next_data(const SnapImage *image, guint region, uint64_t from_bytes, uint64_t *ret_start_bytes,
                              uint64_t *ret_end_bytes) {
    SnapFlat flat = {.n = 0};
    g_assert(region < image->info.n_regions);
    SnapOpenRegion *source = &image->regions[region];
    uint64_t page_bytes = source->header.page_bytes, n_pages = count_pages(source);
    uint64_t start = from_bytes / page_bytes, end = n_pages, found = start;
    if (start >= n_pages)
        return FALSE;
    if (find_data(source, start, &flat, &found) == 0)
        start = found;
    if (start >= n_pages)
        return FALSE;
    if (find_end(source, start, &flat, &found) == 0)
        end = found;
    *ret_start_bytes = start * page_bytes;
    *ret_end_bytes = end * page_bytes;
    return TRUE;
}
