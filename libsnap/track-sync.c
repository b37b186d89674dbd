/*
 * The tracker: registering, pre-arm rounds, the point in time, release. See track-sync.h.
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
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "faults.h"
#include "holes.h"
#include "image-write.h"
#include "lazy.h"
#include "pagemap.h"
#include "uffd.h"

enum {
    PIECE_BLOCKS = 16,  /* page tables protected, or unregistered, by one call */
    EVENT_STEP_US = 50, /* between tries while an event of the guest is pending */
    EVENT_WAIT_US = 10000000,
    POINT_ROUNDS_MAX = 64, /* a stopped guest needs two */
};

/* What sync tracking asks of the kernel, all of it: Linux 6.4. Each is a required row of probe.c. */
static const struct {
    uint64_t bit;
    const char *name;
} features[] = {
    {UFFD_FEATURE_PAGEFAULT_FLAG_WP, "write-protection (Linux 5.7)"},
    {UFFD_FEATURE_WP_HUGETLBFS_SHMEM, "write-protection of shared memory and hugetlb (Linux 5.19)"},
    {UFFD_FEATURE_WP_UNPOPULATED, "write-protection of untouched pages (Linux 6.4)"},
    {UFFD_FEATURE_EVENT_REMOVE, "the madvise event (Linux 4.11)"},
    {UFFD_FEATURE_EVENT_REMAP, "the mremap event (Linux 4.11)"},
    {UFFD_FEATURE_EVENT_UNMAP, "the munmap event (Linux 4.11)"},
};

/* ---- life ------------------------------------------------------------------------------------------------ */

static gboolean handshake(int uffd, GError **error) {
    uint64_t has = 0, want = 0;
    int result = snap_uffd_probe(&has);
    if (result < 0) {
        snap_set_errno(error, -result, "userfaultfd");
        return FALSE;
    }
    for (guint i = 0; i < G_N_ELEMENTS(features); i++) {
        want |= features[i].bit;
        if (!(has & features[i].bit)) {
            g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED,
                        "this kernel's userfaultfd lacks %s; see: vmsnap probe", features[i].name);
            return FALSE;
        }
    }
    result = snap_uffd_api(uffd, want);
    if (result < 0) {
        snap_set_errno(error, -result, "userfaultfd handshake");
        return FALSE;
    }
    return TRUE;
}

static void *map_zeros(size_t length) {
    void *p = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    g_assert(p != MAP_FAILED);
    return p;
}

static SnapSync *tracker_alloc(int pid, int uffd, uint32_t pool_pages, SnapAtCap at_cap) {
    SnapSync *tracker = g_new0(SnapSync, 1);
    tracker->pid = pid;
    tracker->uffd = uffd;
    tracker->at_cap = at_cap;
    tracker->page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
    tracker->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    tracker->room_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    tracker->fdinfo = snap_uffd_open_fdinfo(uffd);
    tracker->pagemap = -1;
    snap_lock_init(&tracker->lock);
    tracker->areas = g_ptr_array_new_with_free_func((GDestroyNotify)snap_area_free);
    tracker->pool = snap_pool_new(tracker->page_bytes, pool_pages);
    tracker->touched = map_zeros(SNAP_TOUCHED_MAX * sizeof *tracker->touched);
    tracker->hot = map_zeros(SNAP_HOT_MAX * sizeof *tracker->hot);
    tracker->queued = map_zeros(SNAP_QUEUED_MAX * sizeof *tracker->queued);
    tracker->failure.code = -1;
    tracker->backlog = g_array_new(FALSE, FALSE, sizeof(SnapUnit));
    return tracker;
}

SnapSync *snap_sync_new(int pid, int uffd, uint32_t pool_pages, SnapAtCap at_cap, GError **error) {
    SnapSync *tracker = tracker_alloc(pid, uffd, pool_pages, at_cap);
    int result = tracker->pagemap = snap_pagemap_open(pid);
    if (result >= 0) {
        result = snap_memory_reader_init(&tracker->reader, pid);
    }
    if (result < 0) {
        snap_set_errno(error, -result, "cannot open the memory of process %d", pid);
    }
    if (result < 0 || !handshake(uffd, error)) {
        snap_sync_free(tracker);
        return NULL;
    }
    return tracker;
}

void snap_sync_start(SnapSync *tracker) {
    tracker->mode = SNAP_SYNC_LOG;
    tracker->thread = g_thread_new("snap-faults", snap_faults_run, tracker);
}

static void close_if_open(int fd) {
    if (fd >= 0) {
        close(fd);
    }
}

void snap_sync_free(SnapSync *tracker) {
    if (!tracker) {
        return;
    }
    snap_sync_release(tracker);
    if (tracker->thread) {
        eventfd_write(tracker->stop_fd, 1);
        g_thread_join(tracker->thread);
    }
    close_if_open(tracker->uffd);
    close_if_open(tracker->fdinfo);
    close_if_open(tracker->pagemap);
    close_if_open(tracker->stop_fd);
    close_if_open(tracker->room_fd);
    snap_memory_reader_clear(&tracker->reader);
    g_ptr_array_unref(tracker->areas);
    snap_pool_free(tracker->pool);
    snap_layout_clear(&tracker->layout);
    munmap(tracker->touched, SNAP_TOUCHED_MAX * sizeof *tracker->touched);
    munmap(tracker->hot, SNAP_HOT_MAX * sizeof *tracker->hot);
    munmap(tracker->queued, SNAP_QUEUED_MAX * sizeof *tracker->queued);
    g_array_unref(tracker->backlog);
    snap_lock_clear(&tracker->lock);
    g_free(tracker);
}

/* ---- small things the fault thread shares ---------------------------------------------------------------- */

static void tell_room_locked(SnapSync *tracker) SNAP_REQUIRES(tracker->lock) {
    if (tracker->tell_room) {
        tracker->tell_room = false;
        eventfd_write(tracker->room_fd, 1);
    }
}

static bool lacks_room_locked(const SnapSync *tracker) SNAP_REQUIRES(tracker->lock) {
    uint32_t taken = snap_pool_taken(tracker->pool);
    return tracker->n_waiting > 0 || (taken > 0 && taken >= snap_pool_available(tracker->pool));
}

bool snap_sync_lacks_room(SnapSync *tracker) {
    snap_lock(&tracker->lock);
    bool lacks = lacks_room_locked(tracker);
    tracker->tell_room = !lacks && tracker->failure.code < 0;
    snap_unlock(&tracker->lock);
    return lacks;
}

void snap_sync_look_room_locked(SnapSync *tracker) {
    if (tracker->tell_room && lacks_room_locked(tracker)) {
        tell_room_locked(tracker);
    }
}

void snap_sync_fail_locked(SnapSync *tracker, SnapSyncFailure failure) {
    if (tracker->failure.code < 0) {
        tracker->failure = failure;
    }
    tracker->mode = SNAP_SYNC_OFF;
    tell_room_locked(tracker);
}

gboolean snap_sync_failed(SnapSync *tracker, GError **error) {
    snap_lock(&tracker->lock);
    SnapSyncFailure failure = tracker->failure;
    snap_unlock(&tracker->lock);
    if (failure.code < 0) {
        return FALSE;
    }
    const SnapRegion *region = snap_sync_area(tracker, failure.area)->region;
    g_set_error(error, SNAP_ERROR, failure.code, "region %s, page at 0x%" G_GINT64_MODIFIER "x: %s%s%s",
                region->name, region->host_address + failure.offset, failure.what, failure.errnum ? ": " : "",
                failure.errnum ? g_strerror(failure.errnum) : "");
    return TRUE;
}

uint64_t snap_sync_lost_bytes(SnapSync *tracker) {
    snap_lock(&tracker->lock);
    SnapSyncFailure failure = tracker->failure;
    snap_unlock(&tracker->lock);
    return failure.code == SNAP_ERROR_LOST ? snap_sync_area(tracker, failure.area)->region->length_bytes : 0;
}

void snap_sync_touch_locked(SnapSync *tracker, uint32_t area, uint64_t chunk, uint64_t mask) {
    SnapChunkState *state = &snap_sync_area(tracker, area)->chunks[chunk];
    /* One entry a chunk: its word says which pages. */
    if (state->claimed == 0) {
        if (tracker->n_touched < SNAP_TOUCHED_MAX) {
            tracker->touched[tracker->n_touched++] = (SnapPageRef)area << SNAP_PAGE_REF_BITS | chunk;
        } else {
            tracker->touched_overflow = true;
        }
    }
    state->claimed |= mask;
}

void snap_sync_note_locked(SnapSync *tracker, uint32_t area_index, uint64_t offset, uint64_t end) {
    const SnapArea *area = snap_sync_area(tracker, area_index);
    while (offset < end) {
        uint64_t page = offset / area->region->page_bytes, chunk = page / SNAP_CHUNK_PAGES;
        uint64_t next = MIN(end, (chunk + 1) * area->chunk_bytes);
        uint64_t n = (next - offset) / area->region->page_bytes;
        uint64_t mask = n >= SNAP_CHUNK_PAGES ? UINT64_MAX : (UINT64_C(1) << n) - 1;
        area->chunks[chunk].since |= mask << page % SNAP_CHUNK_PAGES & snap_area_chunk_mask(area, chunk);
        offset = next;
    }
}

void snap_sync_heat_locked(SnapSync *tracker, uint32_t area, uint64_t chunk, bool waiting) {
    SnapChunkState *state = &snap_sync_area(tracker, area)->chunks[chunk];
    SnapUnit unit = {.area = area, .first = chunk, .n_chunks = 1};
    if (waiting && !state->waiting) {
        state->waiting = 1;
        tracker->n_waiting++;
        tell_room_locked(tracker);
    }
    if (tracker->n_hot == SNAP_HOT_MAX || (state->hot && !waiting)) {
        return;
    }
    uint32_t at = (tracker->first_hot + tracker->n_hot) % SNAP_HOT_MAX;
    if (waiting) {
        at = tracker->first_hot = (tracker->first_hot + SNAP_HOT_MAX - 1) % SNAP_HOT_MAX;
    }
    state->hot = 1;
    tracker->hot[at] = unit;
    tracker->n_hot++;
}

/* ---- protecting ------------------------------------------------------------------------------------------ */

static gboolean range_error(GError **error, int result, const SnapRegion *region, const char *what) {
    SnapErrorCode code = result == -EBUSY    ? SNAP_ERROR_REFUSED
                         : result == -EINVAL ? SNAP_ERROR_NOT_SUPPORTED
                         : result == -ESRCH  ? SNAP_ERROR_GUEST_GONE
                                             : snap_error_from_errno(-result);
    const char *why = result == -EBUSY ? "another userfaultfd already watches it; leave it out with --region, or "
                                         "end the other one"
                      : result == -EINVAL ? "userfaultfd cannot write-protect this kind of mapping"
                      : result == -ESRCH  ? "the guest ended"
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
    return protect_again(tracker, ret_pages, error);
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
    for (int i = 0; i < POINT_ROUNDS_MAX; i++) {
        uint64_t pages;
        if (!protect_again(tracker, &pages, error)) {
            return FALSE;
        }
        if (switch_to_sync(tracker)) {
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

/* ---- from one point to the next -------------------------------------------------------------------------- */

/* What was written since the point is touched, and everything else is what the image has. */
static void turn_chunks(SnapArea *area) {
    for (guint r = 0; r < area->armed->len; r++) {
        SnapRun run = g_array_index(area->armed, SnapRun, r);
        for (uint64_t i = run.first; i < MIN(run.end, area->n_chunks); i++) {
            area->chunks[i] = (SnapChunkState){.claimed = area->chunks[i].since, .lazy = area->chunks[i].lazy};
        }
    }
    area->logged = true;
}

void snap_sync_go_on_logging(SnapSync *tracker) {
    g_assert(tracker->keep && tracker->backlog->len == 0);
    snap_lock(&tracker->lock);
    if (tracker->mode == SNAP_SYNC_SYNC) {
        for (guint i = 0; i < tracker->areas->len; i++) {
            turn_chunks(snap_sync_area(tracker, i));
        }
        tracker->n_hot = tracker->n_touched = tracker->n_waiting = 0;
        tracker->touched_overflow = true; /* look through all */
        tracker->latency = (SnapLatency){0};
        tracker->pages_by_fault = 0;
        snap_pool_restart(tracker->pool);
        tracker->mode = SNAP_SYNC_LOG;
    }
    snap_unlock(&tracker->lock);
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
