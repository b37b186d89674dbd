/*
 * What is protected, and when: registering, pre-arm rounds, the point in time, release. See track-sync.h.
 *
 * Pre-arm, the happy path: add() protects what a region holds while the guest runs; faults are un-protected and
 * remembered; round() protects what was remembered, and what was filled since, again and again until that is
 * little; the guest stops; point() does one more such round, finds nothing left, and switches to SYNC under the
 * lock. What point() has to do depends on what the guest touched during the last round, not on how much memory it
 * has.
 *
 * Everything is done in pieces of at most PIECE_BLOCKS page tables, because the kernel holds mmap_lock meanwhile.
 */
#include "track-sync.h"

#include <errno.h>
#include <unistd.h>

#include "holes.h"
#include "image-write.h"
#include "lazy.h"
#include "spared.h"
#include "uffd.h"

enum {
    PIECE_BLOCKS = 16,  /* page tables protected, or unregistered, by one call */
    EVENT_STEP_US = 50, /* between tries while an event of the guest is pending */
    EVENT_WAIT_US = 10000000,
    POINT_ROUNDS_MAX = 64, /* a stopped guest needs two */
};

/* ---- protecting ------------------------------------------------------------------------------------------ */

static gboolean range_error(GError **error, int result, const SnapRegion *region, const char *what) {
    SnapErrorCode code = result == -EBUSY    ? SNAP_ERROR_REFUSED
                         : result == -EINVAL ? SNAP_ERROR_NOT_SUPPORTED
                         : result == -ESRCH  ? SNAP_ERROR_GUEST_GONE
                                             : snap_error_from_errno(-result);
    const char *why = result == -EBUSY ? "another userfaultfd already watches it; leave it out with --region, or "
                                         "end the other one"
                      : result == -EINVAL
                          ? "userfaultfd cannot write-protect this kind of mapping (MAP_DROPPABLE?); leave "
                            "it out with --region"
                      : result == -ESRCH ? "the guest ended"
                                         : g_strerror(-result);
    g_set_error(error, SNAP_ERROR, (gint)code, "region %s: cannot %s: %s", region->name, what, why);
    return FALSE;
}

/* Protect bytes [start, end) of an area, waiting while the guest's own mapping calls are served. */
static int protect_bytes(const SnapSync *tracker, const SnapArea *area, uint64_t start, uint64_t end) {
    uint64_t base = area->region->host_address;
    uint64_t piece = PIECE_BLOCKS * area->block_bytes;
    uint64_t waited_us = 0;
    while (start < end) {
        /* Cut at multiples of a block in the address space, so that no huge page is split. */
        uint64_t next = MIN(end, (base + start) / piece * piece + piece - base);
        uint64_t spared = tracker->spared->len > 0 ? snap_spared_next(tracker, area, base + start) : UINT64_MAX;
        if (spared == base + start) {
            start += area->region->granule_bytes;
            continue;
        }
        next = MIN(next, spared - base);
        int result = snap_uffd_protect(tracker->uffd, base + start, next - start);
        if (result == -EAGAIN && waited_us < EVENT_WAIT_US) {
            usleep(EVENT_STEP_US);
            waited_us += EVENT_STEP_US;
            continue;
        }
        if (result < 0) {
            return result;
        }
        start = next;
    }
    return 0;
}

static int protect_run(const SnapSync *tracker, const SnapArea *area, SnapRun run) {
    uint64_t start, end;
    snap_area_bytes(area, run, &start, &end);
    return start < end ? protect_bytes(tracker, area, start, end) : 0;
}

/* Arm what is filled in the gaps between the armed runs. */
static int arm_gaps(SnapSync *tracker, SnapArea *area, uint64_t *ret_pages) {
    SnapRun gap;
    uint64_t chunk = 0;
    while (snap_area_next_gap(area, chunk, &gap)) {
        uint64_t from, end, start, stop;
        snap_area_bytes(area, gap, &from, &end);
        int found = snap_area_next_data(area, tracker->pagemap, from, end, &start, &stop);
        if (found < 0) {
            return found;
        }
        if (found == 0) {
            chunk = gap.end;
            continue;
        }
        SnapRun run = snap_area_blocks(area, start, stop);
        snap_lock(&tracker->lock);
        snap_area_arm(area, run);
        snap_unlock(&tracker->lock);
        int result = protect_run(tracker, area, run);
        if (result == 0) {
            result = snap_holes_record_run(area, &tracker->reader, tracker->pagemap, run);
        }
        if (result < 0) {
            return result;
        }
        *ret_pages += (stop - start) / area->region->page_bytes;
        chunk = run.end;
    }
    return 0;
}

static int register_area(const SnapSync *tracker, const SnapArea *area) {
    return snap_uffd_register(tracker->uffd, area->region->host_address, area->region->length_bytes);
}

gboolean snap_sync_add(SnapSync *tracker, SnapRegion *region, bool stands, GError **error) {
    SnapArea *area = snap_area_new(region);
    snap_lock(&tracker->lock);
    g_ptr_array_add(tracker->areas, area);
    snap_layout_add(&tracker->layout, tracker->areas->len - 1, 0, region->host_address, region->length_bytes);
    snap_unlock(&tracker->lock);

    int result = register_area(tracker, area);
    if (!stands && (result == -ENOMEM || result == -ENOENT || result == -EINVAL)) {
        /* Most likely unmapped since it was listed (EINVAL says that too). The listing at the point will tell. */
        snap_sync_drop(tracker, tracker->areas->len - 1);
        return TRUE;
    }
    if (result < 0) {
        return range_error(error, result, region, "track it");
    }
    if (stands) { /* there is no time to look what was done to it */
        snap_lazy_note_all(tracker, tracker->areas->len - 1);
    }
    uint64_t pages = 0;
    result = arm_gaps(tracker, area, &pages);
    if (result == -ENOENT) {
        area->stale = true;
        return TRUE;
    }
    return result < 0 ? range_error(error, result, region, "protect it") : TRUE;
}

/* ---- rounds ---------------------------------------------------------------------------------------------- */

/* Take the remembered chunks: an array of SnapPageRef (chunk numbers), their words still set. */
static GArray *take_touched(SnapSync *tracker) {
    GArray *taken = g_array_new(FALSE, FALSE, sizeof(SnapPageRef));
    snap_lock(&tracker->lock);
    g_array_append_vals(taken, tracker->touched, tracker->n_touched);
    bool all = tracker->touched_overflow;
    tracker->n_touched = 0;
    tracker->touched_overflow = false;
    snap_unlock(&tracker->lock);
    if (!all) {
        return taken;
    }
    g_array_set_size(taken, 0);
    for (guint i = 0; i < tracker->areas->len; i++) {
        const SnapArea *area = snap_sync_area(tracker, i);
        for (guint r = 0; r < area->armed->len; r++) {
            SnapRun run = g_array_index(area->armed, SnapRun, r);
            for (uint64_t chunk = run.first; chunk < run.end; chunk++) {
                if (area->chunks[chunk].claimed) {
                    SnapPageRef ref = (SnapPageRef)i << SNAP_PAGE_REF_BITS | chunk;
                    g_array_append_val(taken, ref);
                }
            }
        }
    }
    return taken;
}

/* Protect some pages of one chunk again, run by run. */
static int protect_pages(const SnapSync *tracker, const SnapArea *area, uint64_t chunk, uint64_t mask) {
    uint64_t granule_pages = MAX(area->region->granule_bytes / area->region->page_bytes, 1);
    while (mask) {
        unsigned first = (unsigned)__builtin_ctzll(mask);
        uint64_t rest = ~(mask >> first);
        unsigned n = rest ? (unsigned)__builtin_ctzll(rest) : 64u - first;
        n = MIN(n, SNAP_CHUNK_PAGES - first);
        mask &= n == SNAP_CHUNK_PAGES ? 0 : ~(((UINT64_C(1) << n) - 1) << first);
        uint64_t from = chunk * SNAP_CHUNK_PAGES + first, to = from + n;
        from -= from % granule_pages;
        to = (to + granule_pages - 1) / granule_pages * granule_pages;
        uint64_t end = MIN(to * area->region->page_bytes, area->region->length_bytes);
        uint64_t start = from * area->region->page_bytes;
        int result = start < end ? protect_bytes(tracker, area, start, end) : 0;
        if (result < 0) {
            return result;
        }
    }
    return 0;
}

static int protect_touched(SnapSync *tracker, SnapArea *area, uint64_t chunk, uint64_t *ret_pages) {
    snap_lock(&tracker->lock);
    uint64_t mask = area->chunks[chunk].claimed;
    area->chunks[chunk].claimed = 0;
    area->chunks[chunk].dirty |= mask;
    snap_unlock(&tracker->lock);
    *ret_pages += (uint64_t)__builtin_popcountll(mask);
    int result = snap_lazy_settle(tracker, area, chunk, mask);
    if (result == 0) {
        result = protect_pages(tracker, area, chunk, mask);
    }
    return result < 0 ? result : snap_holes_record_pages(area, &tracker->reader, chunk, mask);
}

/* After a munmap or mremap in it: the mapping may be a new one, never registered. */
static int renew_area(SnapSync *tracker, guint number, uint64_t *ret_pages) {
    SnapArea *area = snap_sync_area(tracker, number);
    snap_lock(&tracker->lock);
    bool stale = area->stale;
    area->stale = false;
    if (stale) {
        snap_area_forget(area);
        snap_layout_remove(&tracker->layout, number);
        snap_layout_add(&tracker->layout, number, 0, area->region->host_address, area->region->length_bytes);
        snap_lazy_note_locked(tracker, number, 0, area->region->length_bytes);
    }
    snap_unlock(&tracker->lock);
    if (!stale) {
        return 0;
    }
    int result = register_area(tracker, area);
    for (guint i = 0; i < area->armed->len && result == 0; i++) {
        SnapRun run = g_array_index(area->armed, SnapRun, i);
        *ret_pages += (run.end - run.first) * SNAP_CHUNK_PAGES;
        result = protect_run(tracker, area, run);
        if (result == 0) {
            result = snap_holes_record_run(area, &tracker->reader, tracker->pagemap, run);
        }
    }
    if (result < 0) {
        /* Not all of it is mapped now. The listing at the point will tell what is left of it. */
        snap_lock(&tracker->lock);
        area->stale = true;
        snap_unlock(&tracker->lock);
    }
    return result == -ESRCH ? result : 0;
}

static gboolean touch_lazy(SnapSync *tracker, GError **error) {
    int result = tracker->keep ? snap_lazy_touch(tracker) : 0;
    if (result < 0) {
        g_set_error(error, SNAP_ERROR, (gint)(result == -ESRCH ? SNAP_ERROR_GUEST_GONE : SNAP_ERROR_IO),
                    "cannot look for memory that the guest has freed: %s", g_strerror(-result));
    }
    return result == 0;
}

static gboolean protect_again(SnapSync *tracker, uint64_t *ret_pages, GError **error) {
    if (!touch_lazy(tracker, error)) {
        return FALSE;
    }
    g_autoptr(GArray) touched = take_touched(tracker);
    uint64_t pages = 0;
    for (guint i = 0; i < touched->len; i++) {
        SnapPageRef ref = g_array_index(touched, SnapPageRef, i);
        SnapArea *area = snap_sync_area(tracker, (guint)(ref >> SNAP_PAGE_REF_BITS));
        uint64_t chunk = ref & ((UINT64_C(1) << SNAP_PAGE_REF_BITS) - 1);
        int result = area->dropped || chunk >= area->n_chunks ? 0 : protect_touched(tracker, area, chunk, &pages);
        if (result == -ENOENT) {
            area->stale = true;
        } else if (result < 0) {
            return range_error(error, result, area->region, "protect it again");
        }
    }
    for (guint i = 0; i < tracker->areas->len; i++) {
        SnapArea *area = snap_sync_area(tracker, i);
        int result = area->dropped ? 0 : renew_area(tracker, i, &pages);
        if (result == 0 && !area->dropped && !area->stale) {
            result = arm_gaps(tracker, area, &pages);
        }
        if (result == -ENOENT) {
            area->stale = true;
        } else if (result < 0) {
            return range_error(error, result, area->region, "protect it");
        }
    }
    *ret_pages = pages;
    return TRUE;
}

gboolean snap_sync_round(SnapSync *tracker, uint64_t *ret_pages, GError **error) {
    snap_sync_forget_dropped(tracker);
    int result = tracker->keep ? snap_lazy_look_back(tracker) : 0;
    if (result < 0) {
        g_set_error(error, SNAP_ERROR, (gint)(result == -ESRCH ? SNAP_ERROR_GUEST_GONE : SNAP_ERROR_IO),
                    "/proc/%d/smaps: %s", tracker->pid, g_strerror(-result));
        return FALSE;
    }
    if (!protect_again(tracker, ret_pages, error)) {
        return FALSE;
    }
    snap_spared_serve(tracker);
    return TRUE;
}

/* Nothing was touched since the last round, and nothing is half mapped. */
static bool switch_to_sync(SnapSync *tracker) {
    snap_lock(&tracker->lock);
    bool quiet = tracker->n_touched == 0 && !tracker->touched_overflow && tracker->mode == SNAP_SYNC_LOG;
    for (guint i = 0; i < tracker->areas->len && quiet; i++) {
        const SnapArea *area = snap_sync_area(tracker, i);
        quiet = area->dropped || !area->stale;
    }
    if (quiet) {
        tracker->mode = SNAP_SYNC_SYNC;
    }
    snap_unlock(&tracker->lock);
    return quiet;
}

gboolean snap_sync_point(SnapSync *tracker, GError **error) {
    snap_spared_fit(tracker);
    for (int i = 0; i < POINT_ROUNDS_MAX; i++) {
        uint64_t pages;
        if (!protect_again(tracker, &pages, error)) {
            return FALSE;
        }
        if (switch_to_sync(tracker)) {
            snap_spared_serve(tracker);
            return TRUE;
        }
        if (snap_sync_failed(tracker, error)) {
            return FALSE;
        }
    }
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_TIMED_OUT,
                "the guest's memory is still written although it is stopped; is another process mapping it?");
    return FALSE;
}

/* ---- release --------------------------------------------------------------------------------------------- */

static void unregister_bytes(const SnapSync *tracker, uint64_t start, uint64_t end, uint64_t piece) {
    uint64_t waited_us = 0;
    while (start < end) {
        uint64_t next = piece == UINT64_MAX ? end : MIN(end, start / piece * piece + piece);
        int result = snap_uffd_unregister(tracker->uffd, start, next - start);
        if (result == -EAGAIN && waited_us < EVENT_WAIT_US) {
            usleep(EVENT_STEP_US);
            waited_us += EVENT_STEP_US;
            continue;
        }
        if (result == -ESRCH) {
            return;
        }
        start = next;
    }
}

void snap_sync_release(SnapSync *tracker) {
    snap_lock(&tracker->lock);
    tracker->mode = SNAP_SYNC_OFF;
    g_autofree SnapExtent *extents =
        g_memdup2(tracker->layout.extents, tracker->layout.n_extents * sizeof *tracker->layout.extents);
    uint32_t n = tracker->layout.n_extents;
    tracker->layout.n_extents = 0;
    snap_unlock(&tracker->lock);
    for (uint32_t i = 0; i < n; i++) {
        const SnapArea *area = snap_sync_area(tracker, extents[i].area);
        /* A cut mapping grows together again when all is done, but for hugetlb, whose mappings never merge. */
        bool whole = area->region->granule_bytes > area->region->page_bytes;
        uint64_t piece = whole ? UINT64_MAX : PIECE_BLOCKS * area->block_bytes;
        unregister_bytes(tracker, extents[i].address, extents[i].address + extents[i].length, piece);
    }
}
