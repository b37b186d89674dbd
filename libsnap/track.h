/*
 * The tracker, inside the library: see libsnap.h.
 *
 *     track.c           life, modes and switches
 *     track-engine.c    the two ways to log, behind one table
 *     track-regions.c   which regions are logged, as the guest maps and unmaps
 *     watch.c           collections and watches
 *
 * Areas are disjoint. What the kernel reports goes to every consumer whose range it is in, as bits of its view;
 * who asks gets its own bits. So nobody takes anything from another, and the kernel is asked with get-and-clear
 * only.
 *
 * Locks: the tracker's, held by every call; above the sync engine's.
 */
#pragma once

#include "guest.h"
#include "track-async.h"
#include "track-sync.h"
#include "view.h"

/* One area that is logged. */
typedef struct {
    SnapRegion *region; /* owned */
    SnapArea *area; /* ASYNC: owned; SYNC: the engine's; NULL: cannot be protected, all of it is always dirty */
    SnapView own;   /* what snap_tracker_collect() has to tell and has not */
    bool listed;    /* one of the guest's regions; else only some watch's range */
    int64_t file_bytes; /* the length of the file behind it, when regions were listed last; 0: none */
    uint64_t serial;    /* of all that were ever taken up */
} SnapTracked;

struct SnapTracker {
    /* set before use */
    SnapGuest *guest;
    char *region_glob;
    GPatternSpec *glob;
    bool watch_drops; /* ASYNC: also of what loses its content without a write, and is not anonymous: async-drops.h
                       */

    SnapLock lock;
    /* under lock */
    SnapTrackMode mode;
    bool suspended; /* a snapshot has the guest's memory: everything is dirty */
    bool alone;     /* nothing was ever put into a view: what the kernel says goes straight to the caller */
    SnapAsync async;
    SnapSync *sync;
    bool round_due;     /* SYNC: nothing was protected again since this call began */
    GPtrArray *areas;   /* of SnapTracked, by address */
    GPtrArray *watches; /* of SnapWatch, borrowed */
    GArray *unseen;     /* of SnapRange: what was written past the page tables when it was last asked */
    uint64_t n_taken;   /* areas ever taken up */
    uint64_t maps_hash; /* of the guest's /proc/PID/maps when regions were listed last */
};

struct SnapWatch {
    SnapTracker *tracker;
    SnapView view; /* under the tracker's lock */
};

/* Called for dirty bytes, by address. */
typedef void (*SnapAddressFunc)(void *opaque, uint64_t start, uint64_t end);

/* ---- track.c --------------------------------------------------------------------------------------------- */

/* A snapshot begins, and needs the guest's memory for itself; and is over. */
void snap_tracker_suspend(SnapTracker *tracker) SNAP_EXCLUDES(tracker->lock);
void snap_tracker_resume(SnapTracker *tracker) SNAP_EXCLUDES(tracker->lock);

/* Put dirty bytes into every view they are in. A SnapAddressFunc. */
void snap_tracker_share(void *tracker, uint64_t start, uint64_t end);

/* ---- track-engine.c -------------------------------------------------------------------------------------- */

/* What is dirty when an area is taken up. */
typedef enum {
    SNAP_TAKE_CLEAN, /* nothing */
    SNAP_TAKE_DIRTY, /* all that is filled: told to snap_tracker_share() */
} SnapTake;

gboolean snap_engine_open(SnapTracker *tracker, GError **error) SNAP_REQUIRES(tracker->lock);
void snap_engine_close(SnapTracker *tracker) SNAP_REQUIRES(tracker->lock);

/*
 * Log @tracked. @register_start, @register_end: what is registered for it, at least its region. Return: FALSE
 * without an error when it is not there any more.
 */
gboolean snap_engine_add(SnapTracker *tracker, SnapTracked *tracked, uint64_t register_start,
                         uint64_t register_end, SnapTake take, GError **error) SNAP_REQUIRES(tracker->lock);
void snap_engine_drop(SnapTracker *tracker, SnapTracked *tracked) SNAP_REQUIRES(tracker->lock);

/*
 * Get and clear what was written in [start, end) of an area, addresses; the sync engine looks everywhere. @func:
 * NULL for snap_tracker_share(). Return: 0; -EPERM, the area is not (any more) registered as a whole; -ESRCH;
 * -errno.
 */
int snap_engine_pull(SnapTracker *tracker, SnapTracked *tracked, uint64_t start, uint64_t end,
                     SnapAddressFunc func, void *opaque) SNAP_REQUIRES(tracker->lock);

/* What the kernel writes for the guest is not left protected (spared.h); called once areas are. */
void snap_engine_spare(SnapTracker *tracker) SNAP_REQUIRES(tracker->lock);

/* What is written past the page tables is dirty again. */
void snap_engine_mark_unseen(SnapTracker *tracker) SNAP_REQUIRES(tracker->lock);

/* Set @error for what an engine said about @region. Return: FALSE. */
gboolean snap_engine_fail(int result, const SnapRegion *region, GError **error);

/* ---- track-regions.c ------------------------------------------------------------------------------------- */

void snap_tracked_free(SnapTracked *tracked);

/*
 * Bring the areas in line with what the guest maps now. @force: even where its mappings read the same. @take: for
 * what is new.
 */
gboolean snap_regions_refresh(SnapTracker *tracker, bool force, SnapTake take, GError **error)
    SNAP_REQUIRES(tracker->lock);

/* Take up all areas again, with another engine. What is gone is dropped. */
gboolean snap_regions_renew(SnapTracker *tracker, SnapTake take, GError **error) SNAP_REQUIRES(tracker->lock);

/* Drop the areas that are neither listed nor watched. */
void snap_regions_drop_unwatched(SnapTracker *tracker) SNAP_REQUIRES(tracker->lock);

/* Index of the first area that ends behind @address. */
guint snap_regions_find(const SnapTracker *tracker, uint64_t address);

/*
 * Which mapping @region is: a number that is another one where it was unmapped, mapped anew or changed since a
 * collection before, and so what it holds has no more to do with what it held. 0: it is not logged. Up to date as
 * of the last collection.
 */
uint64_t snap_tracker_serial(SnapTracker *tracker, const SnapRegion *region) SNAP_EXCLUDES(tracker->lock);

/* See that areas cover [start, end). Errors: as of snap_watch_new(). */
gboolean snap_regions_cover(SnapTracker *tracker, uint64_t start, uint64_t end, uint64_t *ret_granule_bytes,
                            GError **error) SNAP_REQUIRES(tracker->lock);

static inline SnapTracked *snap_tracker_area(const SnapTracker *tracker, guint i) {
    return g_ptr_array_index(tracker->areas, i);
}

static inline uint64_t snap_tracked_end(const SnapTracked *tracked) {
    return tracked->region->host_address + tracked->region->length_bytes;
}
