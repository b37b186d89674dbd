/*
 * The sweep.
 *
 * The happy path: claim all pages of the unit that no fault has claimed; copy them from the guest; ask the kernel
 * whether they are all still protected (then the copy is what they held at the point, see track-sync.h); take over
 * the pre-images; un-protect the unit with one call; copy the pre-images in behind the guest's back.
 *
 * What fails: some page is not protected any more, or cannot be read. While an event of the guest is pending that
 * can mean that it is just being moved: the claim is given back, the fault thread serves the event, and the unit
 * is done again at its new place. Without an event it is lost, and the snapshot fails by name.
 */
#include "sweep.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "chunk.h"
#include "holes.h"
#include "pagemap.h"
#include "uffd.h"

enum {
    UNIT_MAX = 1024,     /* chunks: a hugetlb page of 256 MiB */
    SETTLE_US = 100,     /* between looks at a unit the guest is moving */
    SETTLE_TRIES = 3,    /* looks without any event pending before it is called lost */
    SETTLE_MAX = 100000, /* looks in all: 10 s */
    VERIFY_RUNS = 64,
};

gboolean snap_sweep_next_hot(SnapSync *tracker, SnapUnit *ret_unit) {
    gboolean found = FALSE;
    snap_lock(&tracker->lock);
    while (!found && tracker->n_hot > 0) {
        SnapUnit unit = tracker->hot[tracker->first_hot];
        tracker->first_hot = (tracker->first_hot + 1) % SNAP_HOT_MAX;
        tracker->n_hot--;
        SnapChunkState *state = &snap_sync_area(tracker, unit.area)->chunks[unit.first];
        state->hot = 0;
        found = state->phase == SNAP_CHUNK_PROTECTED;
        if (found) {
            *ret_unit = unit;
        }
    }
    snap_unlock(&tracker->lock);
    return found;
}

/* ---- units ----------------------------------------------------------------------------------------------- */

/* Whether one huge page of the page-table level maps the whole block at @address. */
static bool is_huge(const SnapSync *tracker, uint64_t address, uint64_t length) {
    struct page_region run;
    return snap_pagemap_find(tracker->pagemap, PAGE_IS_HUGE, address, address + length, &run) == 1 &&
           run.start == address && run.end == address + length;
}

SnapUnit snap_sweep_unit(SnapSync *tracker, uint32_t area_index, uint64_t chunk, uint32_t max_chunks) {
    const SnapArea *area = snap_sync_area(tracker, area_index);
    SnapUnit unit = {.area = area_index, .first = chunk, .n_chunks = 1};
    uint64_t span = MAX(area->region->granule_bytes / area->chunk_bytes, 1);
    if (span > 1) {
        unit.first = chunk / span * span;
        unit.n_chunks = (uint32_t)MIN(span, area->n_chunks - unit.first);
    } else {
        uint64_t per_block = area->block_bytes / area->chunk_bytes;
        uint64_t address = area->region->host_address + chunk * area->chunk_bytes;
        /* Where pages stay protected there is nothing to split. */
        if (!tracker->keep && per_block > 1 && per_block <= max_chunks && address % area->block_bytes == 0 &&
            chunk + per_block <= area->n_chunks && is_huge(tracker, address, area->block_bytes)) {
            unit.n_chunks = (uint32_t)per_block;
        }
    }
    snap_lock(&tracker->lock);
    uint64_t dirty = 0;
    for (uint32_t i = 0; i < unit.n_chunks; i++) {
        dirty |= area->chunks[unit.first + i].dirty;
        if (area->chunks[unit.first + i].phase != SNAP_CHUNK_PROTECTED) {
            /* A part was taken on its own before: go on chunk by chunk. */
            unit.n_chunks = area->chunks[chunk].phase == SNAP_CHUNK_PROTECTED ? 1 : 0;
            unit.first = chunk;
            dirty = area->chunks[chunk].dirty;
            break;
        }
    }
    snap_unlock(&tracker->lock);
    if (dirty == 0) {
        unit.n_chunks = 0; /* the image before this one has it all */
    }
    return unit;
}

/* ---- copying --------------------------------------------------------------------------------------------- */

/* The extent at @offset, as it is now. */
static bool locate(SnapSync *tracker, uint32_t area, uint64_t offset, SnapExtent *ret_extent) {
    snap_lock(&tracker->lock);
    const SnapExtent *extent = snap_layout_locate(&tracker->layout, area, offset);
    if (extent) {
        *ret_extent = *extent;
    }
    snap_unlock(&tracker->lock);
    return extent != NULL;
}

/*
 * All of [address, end) is still protected. What is protected is present, swapped or marked, and not "written";
 * what is unmapped, never touched or let go is not found so.
 */
static int verify(const SnapSync *tracker, uint64_t address, uint64_t end) {
    struct page_region runs[VERIFY_RUNS];
    SnapScan scan = {
        .fd = tracker->pagemap,
        .filter = {.none = PAGE_IS_WRITTEN, .any = PAGE_IS_PRESENT | PAGE_IS_SWAPPED, .report = PAGE_IS_WRITTEN},
        .next = address,
        .end = end,
    };
    while (address < end) {
        int n = snap_pagemap_step(&scan, runs, VERIFY_RUNS);
        if (n < 0) {
            return n;
        }
        for (int i = 0; i < n && address < end; i++) {
            if (runs[i].start > address) {
                return -EFAULT;
            }
            address = runs[i].end;
        }
        if (n < VERIFY_RUNS) {
            break;
        }
    }
    return address < end ? -EFAULT : 0;
}

/*
 * A guard page (MADV_GUARD_INSTALL, as newer C libraries put below stacks) can be neither read nor protected, and
 * holds nothing; the guest could not have written it without a fault of its own.
 */
static bool is_guard(const SnapSync *tracker, uint64_t address, uint64_t page_bytes) {
    struct page_region run;
    return snap_pagemap_find(tracker->pagemap, PAGE_IS_GUARD, address, address + page_bytes, &run) == 1;
}

/* Copy pages [offset, offset + length), mapped at @address, and see that the copy is good. */
static int copy_run(const SnapSync *tracker, const SnapArea *area, uint64_t offset, uint64_t address,
                    uint8_t *data, uint64_t length) {
    int result = snap_memory_read(&tracker->reader, area->region, offset, address, data, length);
    if (result == 0) {
        result = verify(tracker, address, address + length);
    }
    if (result == 0 && !snap_holes_check(area, offset, data, length)) {
        result = -EFAULT;
    }
    if (result != -EFAULT || area->region->memory != SNAP_MEMORY_ANON) {
        return result;
    }
    uint64_t page_bytes = area->region->page_bytes;
    if (length == page_bytes) {
        memset(data, 0, length);
        return is_guard(tracker, address, page_bytes) ? 0 : -EFAULT;
    }
    result = 0;
    for (uint64_t at = 0; at < length && result == 0; at += page_bytes) {
        result = copy_run(tracker, area, offset + at, address + at, data + at, page_bytes);
    }
    return result;
}

/* Copy the pages of @mask in one chunk into @data, page i at i * page_bytes, and verify each copied piece. */
static int copy_pages(SnapSync *tracker, uint32_t area_index, uint64_t chunk, uint64_t mask, uint8_t *data) {
    const SnapArea *area = snap_sync_area(tracker, area_index);
    uint64_t page_bytes = area->region->page_bytes;
    for (unsigned i = 0; i < SNAP_CHUNK_PAGES;) {
        if (!(mask >> i & 1)) {
            i++;
            continue;
        }
        uint64_t offset = (chunk * SNAP_CHUNK_PAGES + i) * page_bytes;
        SnapExtent extent;
        if (!locate(tracker, area_index, offset, &extent)) {
            return -EFAULT;
        }
        uint64_t room = (extent.length - (offset - extent.offset)) / page_bytes;
        unsigned n = 1;
        while (n < room && i + n < SNAP_CHUNK_PAGES && (mask >> (i + n) & 1)) {
            n++;
        }
        uint64_t address = extent.address + (offset - extent.offset);
        int result = copy_run(tracker, area, offset, address, data + i * page_bytes, n * page_bytes);
        if (result < 0) {
            return result;
        }
        i += n;
    }
    return 0;
}

/* ---- claiming and releasing ------------------------------------------------------------------------------ */

static gboolean claim(SnapSync *tracker, SnapUnit unit, uint64_t *ret_mine, GError **error) {
    if (snap_sync_failed(tracker, error)) {
        return FALSE;
    }
    const SnapArea *area = snap_sync_area(tracker, unit.area);
    snap_lock(&tracker->lock);
    for (uint32_t i = 0; i < unit.n_chunks; i++) {
        SnapChunkState *chunk = &area->chunks[unit.first + i];
        ret_mine[i] = snap_area_chunk_mask(area, unit.first + i) & chunk->dirty & ~chunk->claimed;
        chunk->phase = SNAP_CHUNK_SWEEPING;
    }
    snap_unlock(&tracker->lock);
    return TRUE;
}

static void unclaim(SnapSync *tracker, SnapUnit unit) {
    const SnapArea *area = snap_sync_area(tracker, unit.area);
    snap_lock(&tracker->lock);
    for (uint32_t i = 0; i < unit.n_chunks; i++) {
        area->chunks[unit.first + i].phase = SNAP_CHUNK_PROTECTED;
    }
    snap_unlock(&tracker->lock);
}

/* Un-protect bytes of an area wherever they are now; FALSE while an event is pending. */
static bool unprotect_locked(SnapSync *tracker, uint32_t area_index, uint64_t offset, uint64_t end)
    SNAP_REQUIRES(tracker->lock) {
    const SnapArea *area = snap_sync_area(tracker, area_index);
    while (offset < end) {
        const SnapExtent *extent = snap_layout_locate(&tracker->layout, area_index, offset);
        if (!extent) {
            offset += area->region->granule_bytes; /* unmapped since it was saved */
            continue;
        }
        uint64_t length = MIN(end - offset, extent->length - (offset - extent->offset));
        int result = snap_uffd_unprotect(tracker->uffd, extent->address + (offset - extent->offset), length);
        if (result == -EAGAIN) {
            return false;
        }
        offset += length;
    }
    return true;
}

/* Un-protect what was written meanwhile: whoever waits for the chunk has been noted there. */
static bool release_written_locked(SnapSync *tracker, uint32_t area_index, uint64_t chunk)
    SNAP_REQUIRES(tracker->lock) {
    const SnapArea *area = snap_sync_area(tracker, area_index);
    uint64_t page_bytes = area->region->page_bytes, granule = area->region->granule_bytes;
    uint64_t written = area->chunks[chunk].since;
    unsigned first, n;
    while (snap_chunk_take_run(&written, &first, &n)) {
        uint64_t offset = chunk * area->chunk_bytes + first * page_bytes, end = offset + n * page_bytes;
        offset -= offset % granule;
        end = (end + granule - 1) / granule * granule;
        if (!unprotect_locked(tracker, area_index, offset, end)) {
            return false;
        }
    }
    return true;
}

/*
 * The unit is captured: un-protect all of it, or where the log is kept, what was written; FALSE while an event is
 * pending. Under the lock, so that a fault is served either before (it is in the kernel's queue, and woken here)
 * or after (it is answered by the fault thread).
 */
static bool release_locked(SnapSync *tracker, SnapUnit unit) SNAP_REQUIRES(tracker->lock) {
    const SnapArea *area = snap_sync_area(tracker, unit.area);
    uint64_t offset, end;
    snap_area_bytes(area, (SnapRun){unit.first, unit.first + unit.n_chunks}, &offset, &end);
    bool done = tracker->keep || unprotect_locked(tracker, unit.area, offset, end);
    for (uint32_t i = 0; i < unit.n_chunks && done && tracker->keep; i++) {
        done = release_written_locked(tracker, unit.area, unit.first + i);
    }
    for (uint32_t i = 0; i < unit.n_chunks && done; i++) {
        area->chunks[unit.first + i].phase = tracker->keep ? SNAP_CHUNK_KEPT : SNAP_CHUNK_RELEASED;
    }
    return done;
}

gboolean snap_sweep_release(SnapSync *tracker) {
    while (tracker->backlog->len > 0) {
        SnapUnit unit = g_array_index(tracker->backlog, SnapUnit, tracker->backlog->len - 1);
        snap_lock(&tracker->lock);
        bool done = release_locked(tracker, unit);
        snap_unlock(&tracker->lock);
        if (!done) {
            return FALSE;
        }
        g_array_set_size(tracker->backlog, tracker->backlog->len - 1);
    }
    return TRUE;
}

/* The copy is good: take the pre-images over and let the guest go on. @ret_lists: their pool indices, by chunk. */
static void settle(SnapSync *tracker, SnapUnit unit, uint32_t *ret_lists) {
    const SnapArea *area = snap_sync_area(tracker, unit.area);
    snap_lock(&tracker->lock);
    for (uint32_t i = 0; i < unit.n_chunks; i++) {
        SnapChunkState *chunk = &area->chunks[unit.first + i];
        ret_lists[i] = chunk->claimed ? chunk->preimages : SNAP_POOL_NONE;
        chunk->claimed = UINT64_MAX;
        chunk->phase = SNAP_CHUNK_CAPTURED;
        tracker->n_waiting -= chunk->waiting;
        chunk->waiting = 0;
    }
    bool released = release_locked(tracker, unit);
    snap_unlock(&tracker->lock);
    if (!released) {
        g_array_append_val(tracker->backlog, unit);
    }
}

/* Nobody else looks at a captured chunk's pre-images: copied without the lock, given back with it. */
static void take_preimages(SnapSync *tracker, const SnapArea *area, uint32_t list, uint8_t *data) {
    uint32_t last = SNAP_POOL_NONE;
    for (uint32_t i = list; i != SNAP_POOL_NONE; i = *snap_pool_link(tracker->pool, i)) {
        uint64_t page = snap_pool_page(tracker->pool, i) % SNAP_CHUNK_PAGES;
        memcpy(data + page * area->region->page_bytes, snap_pool_data(tracker->pool, i), area->region->page_bytes);
        last = i;
    }
    if (last == SNAP_POOL_NONE) {
        return;
    }
    snap_lock(&tracker->lock);
    for (uint32_t i = list, next; i != SNAP_POOL_NONE; i = next) {
        next = *snap_pool_link(tracker->pool, i);
        snap_pool_give(tracker->pool, i);
    }
    snap_unlock(&tracker->lock);
}

static gboolean lost(SnapSync *tracker, SnapUnit unit, int result, GError **error) {
    const SnapArea *area = snap_sync_area(tracker, unit.area);
    snap_lock(&tracker->lock);
    snap_sync_fail_locked(
        tracker, (SnapSyncFailure){.code = result == -ESRCH ? SNAP_ERROR_GUEST_GONE : SNAP_ERROR_LOST,
                                   .what = result == -ESRCH    ? "the guest ended"
                                           : result == -EFAULT ? "the guest discarded it (munmap or hole punching)"
                                                               : "cannot read it",
                                   .errnum = result == -ESRCH || result == -EFAULT ? 0 : -result,
                                   .area = unit.area,
                                   .offset = unit.first * area->chunk_bytes});
    snap_unlock(&tracker->lock);
    return !snap_sync_failed(tracker, error);
}

gboolean snap_sweep_check_holes(SnapSync *tracker, uint32_t area_index, uint64_t chunk, GError **error) {
    const SnapArea *area = snap_sync_area(tracker, area_index);
    if (!area->filled) {
        return TRUE;
    }
    uint64_t kept = area->filled[chunk] & ~area->chunks[chunk].dirty & snap_area_chunk_mask(area, chunk);
    uint64_t punched = 0;
    int result = kept ? snap_holes_find(area, &tracker->reader, chunk, kept, &punched) : 0;
    snap_lock(&tracker->lock);
    punched &= ~area->chunks[chunk].since; /* the fault thread has looked at what was written since */
    snap_unlock(&tracker->lock);
    SnapUnit unit = {.area = area_index, .first = chunk, .n_chunks = 1};
    return result == 0 && punched == 0 ? TRUE : lost(tracker, unit, result ? result : -EFAULT, error);
}

gboolean snap_sweep_capture(SnapSync *tracker, SnapUnit unit, SnapChunk **buffers, GError **error) {
    const SnapArea *area = snap_sync_area(tracker, unit.area);
    g_assert(unit.n_chunks <= UNIT_MAX);
    uint64_t mine[UNIT_MAX];
    uint32_t lists[UNIT_MAX];
    int calm = 0;
    for (int looks = 0;; looks++) {
        if (!claim(tracker, unit, mine, error)) {
            return FALSE;
        }
        int result = 0;
        for (uint32_t i = 0; i < unit.n_chunks && result == 0; i++) {
            result = copy_pages(tracker, unit.area, unit.first + i, mine[i], buffers[i]->data);
        }
        if (result == 0) {
            break;
        }
        unclaim(tracker, unit);
        calm += snap_uffd_event_pending(tracker->uffd) ? 0 : 1;
        if (result == -ESRCH || calm > SETTLE_TRIES || looks > SETTLE_MAX) {
            return lost(tracker, unit, result, error);
        }
        usleep(SETTLE_US);
    }
    settle(tracker, unit, lists);
    for (uint32_t i = 0; i < unit.n_chunks; i++) {
        take_preimages(tracker, area, lists[i], buffers[i]->data);
        buffers[i]->index = unit.first + i;
        buffers[i]->present = snap_area_chunk_mask(area, unit.first + i) & area->chunks[unit.first + i].dirty;
    }
    return TRUE;
}
