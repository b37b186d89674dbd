/*
 * The two ways to log, behind one table: the kernel's own (track-async.h), and a thread of ours that serves the
 * first write of every page (track-sync.h in LOG), for kernels before 6.7.
 *
 * The sync engine reports whole blocks of what one page table maps when they come up, holes included, and cannot
 * protect mappings of ordinary files; neither can protect droppable memory. Those are dirty as a whole in every
 * collection, and have no area.
 */
#include "track.h"

#include <errno.h>

#include "chunk.h"
#include "spared.h"
#include "uffd.h"

enum { REGISTER_TRIES = 3 };

/* What an engine does with one area. */
typedef struct {
    gboolean (*open)(SnapTracker *tracker, int uffd, GError **error);
    void (*close)(SnapTracker *tracker);
    int (*add)(SnapTracker *tracker, SnapTracked *tracked, uint64_t start, uint64_t end, SnapTake take);
    void (*drop)(SnapTracker *tracker, SnapTracked *tracked);
    int (*pull)(SnapTracker *tracker, SnapTracked *tracked, uint64_t start, uint64_t end, SnapAddressFunc func,
                void *opaque);
} Engine;

void snap_engine_spare(SnapTracker *tracker) {
    if (tracker->mode == SNAP_TRACK_SYNC) {
        g_autoptr(GArray) addresses = g_array_new(FALSE, FALSE, sizeof(uint64_t));
        snap_guest_list_spared(tracker->guest, FALSE, addresses);
        snap_spared_add(tracker->sync, addresses);
    }
}

static void share_all(SnapTracker *tracker, const GArray *ranges) {
    for (guint i = 0; i < ranges->len; i++) {
        SnapRange range = g_array_index(ranges, SnapRange, i);
        snap_tracker_share(tracker, range.address, range.address + range.length_bytes);
    }
}

/* What was unseen the last time too: it may have been written after that, and is seen since. */
void snap_engine_mark_unseen(SnapTracker *tracker) {
    share_all(tracker, tracker->unseen);
    g_array_set_size(tracker->unseen, 0);
    snap_guest_list_unseen(tracker->guest, tracker->unseen);
    share_all(tracker, tracker->unseen);
}

/*
 * Anonymous memory that is mapped and cannot be protected: the kernel may drop its pages at any moment
 * (MAP_DROPPABLE, Linux 6.11; glibc 2.41 has a few pages of it for getrandom).
 */
static bool is_droppable(const SnapTracked *tracked) {
    return tracked->region->memory == SNAP_MEMORY_ANON;
}

/* ---- async ----------------------------------------------------------------------------------------------- */

static gboolean async_open(SnapTracker *tracker, int uffd, GError **error) {
    int result = snap_async_init(&tracker->async, snap_guest_pid(tracker->guest), uffd);
    if (result == -EOPNOTSUPP) {
        g_set_error(
            error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED,
            "this kernel cannot log writes by itself (async write-protection, Linux 6.7): use the sync log");
    } else if (result < 0) {
        snap_set_errno(error, -result, "process %d: cannot log its writes", snap_guest_pid(tracker->guest));
    }
    if (result < 0) {
        snap_async_clear(&tracker->async);
    }
    return result == 0;
}

static void async_drop(SnapTracker *tracker, SnapTracked *tracked) {
    snap_async_forget(&tracker->async, tracked->region->host_address, snap_tracked_end(tracked));
    g_clear_pointer(&tracked->area, snap_area_free);
}

static void async_close(SnapTracker *tracker) {
    for (guint i = 0; i < tracker->areas->len; i++) {
        async_drop(tracker, snap_tracker_area(tracker, i));
    }
    snap_async_clear(&tracker->async);
}

typedef struct {
    uint64_t base;
    SnapAddressFunc func;
    void *opaque;
} Report;

static void report_async(void *opaque, uint64_t start, uint64_t end) {
    const Report *report = opaque;
    report->func(report->opaque, report->base + start, report->base + end);
}

static int async_pull(SnapTracker *tracker, SnapTracked *tracked, uint64_t start, uint64_t end,
                      SnapAddressFunc func, void *opaque) {
    if (!tracked->area) {
        func(opaque, start, end);
        return 0;
    }
    uint64_t base = tracked->region->host_address, next = 0;
    Report report = {.base = base, .func = func, .opaque = opaque};
    return snap_async_collect(&tracker->async, tracked->area, start - base, end - base, SNAP_COLLECT_CLEAR, 0,
                              report_async, &report, &next);
}

/* To what has gone since it was listed the kernel says EINVAL, as to what cannot be logged; and it may be back. */
static int async_register(SnapTracker *tracker, uint64_t start, uint64_t end) {
    int result = -EINVAL;
    for (int i = 0; i < REGISTER_TRIES && result == -EINVAL; i++) {
        result = snap_async_register(&tracker->async, start, end - start);
        if (result == -EINVAL && snap_coverage_check(&tracker->async.coverage, start, end) == -ENOENT) {
            return -ENOENT;
        }
    }
    return result;
}

static int async_add(SnapTracker *tracker, SnapTracked *tracked, uint64_t start, uint64_t end, SnapTake take) {
    int result = async_register(tracker, start, end);
    if (result == -EINVAL && is_droppable(tracked)) {
        return 0;
    }
    if (result < 0) {
        return result;
    }
    tracked->area = snap_area_new(snap_region_copy(tracked->region));
    if (tracker->watch_drops) {
        snap_async_watch_drops(&tracker->async, tracked->area);
    }
    if (take == SNAP_TAKE_CLEAN) {
        return snap_async_arm(&tracker->async, tracked->area);
    }
    return async_pull(tracker, tracked, tracked->region->host_address, snap_tracked_end(tracked),
                      snap_tracker_share, tracker);
}

/* ---- sync ------------------------------------------------------------------------------------------------ */

static gboolean sync_open(SnapTracker *tracker, int uffd, GError **error) SNAP_REQUIRES(tracker->lock) {
    tracker->sync = snap_sync_new(snap_guest_pid(tracker->guest), uffd, 0, SNAP_AT_CAP_BLOCK, error);
    if (!tracker->sync) {
        return FALSE;
    }
    tracker->sync->keep = true;
    snap_sync_start(tracker->sync);
    snap_engine_spare(tracker);
    return TRUE;
}

static void sync_close(SnapTracker *tracker) {
    for (guint i = 0; i < tracker->areas->len; i++) {
        snap_tracker_area(tracker, i)->area = NULL;
    }
    g_clear_pointer(&tracker->sync, snap_sync_free);
}

/* Return: 0; -ENOENT, a part of [start, end) is not mapped; -ESRCH, the guest is gone; or another -errno. */
static int check_mapped(const SnapTracker *tracker, uint64_t start, uint64_t end) {
    SnapCoverage coverage;
    int result = snap_coverage_init(&coverage, snap_guest_pid(tracker->guest));
    if (result < 0) {
        return result == -ENOENT ? -ESRCH : result;
    }
    result = snap_coverage_check(&coverage, start, end);
    snap_coverage_clear(&coverage);
    return result;
}

/* Return: 0; -ENOENT, it has gone; -EINVAL, it had gone, and is back, or cannot be logged; or another -errno. */
static int sync_register(SnapTracker *tracker, SnapTracked *tracked) {
    g_autoptr(GError) error = NULL;
    if (!snap_sync_add(tracker->sync, snap_region_copy(tracked->region), false, &error)) {
        return error->code == SNAP_ERROR_REFUSED         ? -EBUSY
               : error->code == SNAP_ERROR_NOT_SUPPORTED ? -EINVAL
               : error->code == SNAP_ERROR_GUEST_GONE    ? -ESRCH
                                                         : -EIO;
    }
    SnapArea *area = snap_sync_area(tracker->sync, tracker->sync->areas->len - 1);
    if (area->dropped) {
        int result = check_mapped(tracker, tracked->region->host_address, snap_tracked_end(tracked));
        return result < 0 ? result : -EINVAL;
    }
    tracked->area = area;
    return 0;
}

static int sync_add(SnapTracker *tracker, SnapTracked *tracked, uint64_t start, uint64_t end, SnapTake take) {
    (void)start;
    (void)end;
    if (tracked->region->memory == SNAP_MEMORY_COPIED) {
        return 0;
    }
    int result = -EINVAL;
    for (int i = 0; i < REGISTER_TRIES && result == -EINVAL; i++) {
        result = sync_register(tracker, tracked);
    }
    if (result == -EINVAL && is_droppable(tracked)) {
        return 0;
    }
    if (result == 0 && take == SNAP_TAKE_CLEAN) {
        snap_area_wipe(tracked->area);
    }
    return result;
}

static void sync_drop(SnapTracker *tracker, SnapTracked *tracked) {
    for (guint i = 0; i < tracker->sync->areas->len && tracked->area; i++) {
        if (snap_sync_area(tracker->sync, i) == tracked->area) {
            snap_sync_drop(tracker->sync, i);
        }
    }
    tracked->area = NULL;
}

static void report_chunks(SnapArea *area, SnapAddressFunc func, void *opaque) {
    const SnapRegion *region = area->region;
    for (guint r = 0; r < area->armed->len; r++) {
        SnapRun run = g_array_index(area->armed, SnapRun, r);
        for (uint64_t chunk = run.first; chunk < MIN(run.end, area->n_chunks); chunk++) {
            uint64_t dirty = area->chunks[chunk].dirty, base = region->host_address + chunk * area->chunk_bytes;
            unsigned first, n;
            area->chunks[chunk].dirty = 0;
            while (snap_chunk_take_run(&dirty, &first, &n)) {
                func(opaque, base + first * region->page_bytes, base + (first + n) * region->page_bytes);
            }
        }
    }
}

/*
 * A round, one a call, protects whatever was touched anywhere; the words of an area are what was written since
 * they were read.
 */
static int sync_pull(SnapTracker *tracker, SnapTracked *tracked, uint64_t start, uint64_t end,
                     SnapAddressFunc func, void *opaque) SNAP_REQUIRES(tracker->lock) {
    if (!tracked->area) {
        func(opaque, start, end);
        return 0;
    }
    uint64_t pages;
    g_autoptr(GError) error = NULL;
    bool due = tracker->round_due;
    tracker->round_due = false;
    if (due && !snap_sync_round(tracker->sync, &pages, &error)) {
        return error->code == SNAP_ERROR_GUEST_GONE ? -ESRCH : error->code == SNAP_ERROR_REFUSED ? -EBUSY : -EIO;
    }
    if (due) {
        snap_engine_spare(tracker);
    }
    if (tracked->area->stale) {
        return -EPERM;
    }
    /* A hole in the middle neither registering nor protecting complains of. */
    int result = check_mapped(tracker, start, end);
    if (result < 0) {
        return result == -ENOENT ? -EPERM : result;
    }
    report_chunks(tracked->area, func, opaque);
    return 0;
}

/* ---- the table ------------------------------------------------------------------------------------------- */

static const Engine engines[] = {
    [SNAP_TRACK_OFF] = {0},
    [SNAP_TRACK_ASYNC] = {async_open, async_close, async_add, async_drop, async_pull},
    [SNAP_TRACK_SYNC] = {sync_open, sync_close, sync_add, sync_drop, sync_pull},
};
_Static_assert(G_N_ELEMENTS(engines) == SNAP_TRACK_MAX, "an engine for each mode");

gboolean snap_engine_open(SnapTracker *tracker, GError **error) {
    int uffd = snap_guest_open_uffd(tracker->guest, error);
    return uffd >= 0 && engines[tracker->mode].open(tracker, uffd, error);
}

void snap_engine_close(SnapTracker *tracker) {
    bool open = tracker->mode == SNAP_TRACK_SYNC ? tracker->sync != NULL : tracker->async.vector != NULL;
    if (engines[tracker->mode].close && open) {
        engines[tracker->mode].close(tracker);
    }
}

gboolean snap_engine_fail(int result, const SnapRegion *region, GError **error) {
    switch (result) {
    case -EBUSY:
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_REFUSED,
                    "region %s: another userfaultfd already watches it; leave it out, or end the other one",
                    region->name);
        return FALSE;
    case -EINVAL:
    case -EPERM:
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED,
                    "region %s: writes to this kind of mapping cannot be logged in this mode", region->name);
        return FALSE;
    case -ESRCH:
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_GUEST_GONE, "the guest ended");
        return FALSE;
    default:
        snap_set_errno(error, -result, "region %s: cannot log its writes", region->name);
        return FALSE;
    }
}

gboolean snap_engine_add(SnapTracker *tracker, SnapTracked *tracked, uint64_t register_start,
                         uint64_t register_end, SnapTake take, GError **error) {
    int result = engines[tracker->mode].add(tracker, tracked, register_start, register_end, take);
    if (result == 0) {
        return TRUE;
    }
    snap_engine_drop(tracker, tracked);
    bool gone = result == -ENOMEM || result == -ENOENT || result == -EPERM;
    return gone ? FALSE : snap_engine_fail(result, tracked->region, error);
}

void snap_engine_drop(SnapTracker *tracker, SnapTracked *tracked) {
    if (engines[tracker->mode].drop && tracked->area) {
        engines[tracker->mode].drop(tracker, tracked);
    }
}

int snap_engine_pull(SnapTracker *tracker, SnapTracked *tracked, uint64_t start, uint64_t end,
                     SnapAddressFunc func, void *opaque) {
    return engines[tracker->mode].pull(tracker, tracked, start, end, func ? func : snap_tracker_share,
                                       func ? opaque : tracker);
}
