/*
 * Pages out of the guest, zero pages left out. See outgoing.h.
 *
 * The guest may run: a page that is read while it is written may be torn, and a page that was zeros a moment ago
 * may be not. Both were written after they had been taken out of the set, so the log has them, and they are sent
 * again.
 *
 * Failure modes: nothing is mapped there (NOT_FOUND); the guest is gone. Where it stands, its regions are compared
 * with what is mapped (outgoing-layout.c), so that is a mapping behind the end of its file, which the guest cannot
 * read either: zeros.
 */
#include "outgoing.h"

#include "chunk.h"

#include <errno.h>
#include <string.h>

static void copy_runs(const uint8_t *chunk, uint64_t page_bytes, uint64_t mask, uint8_t *ret_pages) {
    unsigned first, n;
    while (snap_chunk_take_run(&mask, &first, &n)) {
        memcpy(ret_pages, chunk + first * page_bytes, n * page_bytes);
        ret_pages += n * page_bytes;
    }
}

uint64_t snap_outgoing_drop_zeros(uint8_t *pages, uint64_t page_bytes, uint64_t mask) {
    uint64_t zero = 0;
    uint8_t *to = pages;
    for (uint64_t left = mask; left != 0; left &= left - 1, pages += page_bytes) {
        if (snap_bytes_are_zero(pages, page_bytes)) {
            zero |= left & -left;
            continue;
        }
        if (to != pages) {
            memmove(to, pages, page_bytes);
        }
        to += page_bytes;
    }
    return zero;
}

/* @n pages, of which some cannot be read. */
static int read_single(const SnapOutgoing *outgoing, const SnapRegion *region, uint64_t offset, uint8_t *ret_pages,
                       unsigned n) {
    int result = 0;
    for (unsigned i = 0; i < n && result == 0; i++) {
        result = snap_memory_read(&outgoing->reader, region, offset, region->host_address + offset, ret_pages,
                                  region->page_bytes);
        if (result == -EFAULT) {
            memset(ret_pages, 0, region->page_bytes);
            result = 0;
        }
        offset += region->page_bytes;
        ret_pages += region->page_bytes;
    }
    return result;
}

static int read_runs(const SnapOutgoing *outgoing, const SnapRegion *region, uint64_t chunk, uint64_t mask,
                     uint8_t *ret_pages) {
    unsigned first, n;
    int result = 0;
    while (result == 0 && snap_chunk_take_run(&mask, &first, &n)) {
        uint64_t offset = (chunk * SNAP_CHUNK_PAGES + first) * region->page_bytes, length = n * region->page_bytes;
        result =
            snap_memory_read(&outgoing->reader, region, offset, region->host_address + offset, ret_pages, length);
        if (result == -EFAULT && outgoing->stands) {
            result = read_single(outgoing, region, offset, ret_pages, n);
        }
        ret_pages += length;
    }
    return result;
}

static gboolean fail_to_read(const SnapOutgoing *outgoing, const SnapRegion *region, SnapPosition place,
                             int result, GError **error) {
    if (result == -ESRCH) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_GUEST_GONE, "process %d: the guest ended",
                    snap_guest_pid(outgoing->guest));
    } else if (result == -EFAULT) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_FOUND, "%s: nothing is mapped at page %" G_GUINT64_FORMAT,
                    region->name, (guint64)(place.chunk * SNAP_CHUNK_PAGES));
    } else {
        snap_set_errno(error, -result, "%s: cannot be read at page %" G_GUINT64_FORMAT, region->name,
                       (guint64)(place.chunk * SNAP_CHUNK_PAGES));
    }
    return FALSE;
}

/* Its first page. */
static const uint8_t *direct_chunk(const SnapSource *source, uint64_t chunk) {
    return (const uint8_t *)(uintptr_t)(source->area->region->host_address + chunk * source->area->chunk_bytes);
}

gboolean snap_outgoing_copy(const SnapOutgoing *outgoing, SnapPosition place, uint64_t mask, uint8_t *ret_pages,
                            GError **error) {
    const SnapSource *source = snap_outgoing_source(outgoing, place.region);
    const SnapRegion *region = source->area->region;
    if (source->direct) {
        copy_runs(direct_chunk(source, place.chunk), region->page_bytes, mask, ret_pages);
        return TRUE;
    }
    int result = read_runs(outgoing, region, place.chunk, mask, ret_pages);
    return result == 0 || fail_to_read(outgoing, region, place, result, error);
}

/* Where that is quick, zeros are looked for before anything is copied. */
gboolean snap_outgoing_read(const SnapOutgoing *outgoing, SnapPosition place, uint64_t mask, uint8_t *ret_pages,
                            uint64_t *ret_zero, GError **error) {
    const SnapSource *source = snap_outgoing_source(outgoing, place.region);
    uint64_t page_bytes = source->area->region->page_bytes;
    if (source->direct) {
        const uint8_t *chunk = direct_chunk(source, place.chunk);
        *ret_zero = snap_chunk_find_zero(chunk, page_bytes, mask);
        copy_runs(chunk, page_bytes, mask & ~*ret_zero, ret_pages);
        return TRUE;
    }
    if (!snap_outgoing_copy(outgoing, place, mask, ret_pages, error)) {
        return FALSE;
    }
    *ret_zero = snap_outgoing_drop_zeros(ret_pages, page_bytes, mask);
    return TRUE;
}
