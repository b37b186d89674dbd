/*
 * The tracker: life, modes, switches.
 *
 *     from \ to   OFF     ASYNC   SYNC
 *     OFF         -       start   start     all is clean
 *     ASYNC       stop    -       move      what is dirty is kept; when the guest runs, all else becomes dirty too
 *     SYNC        stop    move    -
 *
 * Why a move of a running guest makes all dirty: a mapping belongs to one userfaultfd, whose features are fixed
 * when it is made. Between its UNREGISTER and the other's arming there is no protection, and afterwards nothing
 * that tells what was written in between.
 *
 * Failure modes: an engine that cannot be opened, or an area that it cannot take: the mode is OFF, nothing is
 * registered, and the views are void.
 */
#include "track.h"

static const char *const names[] = {
    [SNAP_TRACK_OFF] = "off",
    [SNAP_TRACK_ASYNC] = "async",
    [SNAP_TRACK_SYNC] = "sync",
};
_Static_assert(G_N_ELEMENTS(names) == SNAP_TRACK_MAX, "a name for each mode");

const char *snap_track_mode_name(SnapTrackMode mode) {
    return mode < SNAP_TRACK_MAX ? names[mode] : NULL;
}

/* ---- life ------------------------------------------------------------------------------------------------ */

SnapTracker *snap_tracker_new(SnapGuest *guest, const char *region_glob) {
    SnapTracker *tracker = g_new0(SnapTracker, 1);
    tracker->guest = guest;
    tracker->region_glob = g_strdup(region_glob);
    tracker->glob = region_glob ? g_pattern_spec_new(region_glob) : NULL;
    tracker->areas = g_ptr_array_new_with_free_func((GDestroyNotify)snap_tracked_free);
    tracker->watches = g_ptr_array_new();
    tracker->unseen = g_array_new(FALSE, FALSE, sizeof(SnapRange));
    tracker->alone = true;
    snap_lock_init(&tracker->lock);
    snap_guest_set_tracker(guest, tracker);
    return tracker;
}

void snap_tracker_free(SnapTracker *tracker) {
    if (!tracker) {
        return;
    }
    snap_guest_set_tracker(tracker->guest, NULL);
    snap_lock(&tracker->lock);
    g_assert(tracker->watches->len == 0);
    snap_engine_close(tracker);
    snap_unlock(&tracker->lock);
    g_ptr_array_unref(tracker->areas);
    g_ptr_array_unref(tracker->watches);
    g_array_unref(tracker->unseen);
    g_clear_pointer(&tracker->glob, g_pattern_spec_free);
    g_free(tracker->region_glob);
    snap_lock_clear(&tracker->lock);
    g_free(tracker);
}

/* ---- switches -------------------------------------------------------------------------------------------- */

/* The log begins. */
static gboolean start(SnapTracker *tracker, SnapTrackMode to, gboolean stands, GError **error)
    SNAP_REQUIRES(tracker->lock) {
    (void)stands;
    tracker->mode = to;
    tracker->maps_hash = 0;
    return snap_engine_open(tracker, error) && snap_regions_refresh(tracker, true, SNAP_TAKE_CLEAN, error);
}

static gboolean stop(SnapTracker *tracker, SnapTrackMode to, gboolean stands, GError **error)
    SNAP_REQUIRES(tracker->lock) {
    (void)stands;
    (void)error;
    snap_engine_close(tracker);
    g_ptr_array_set_size(tracker->areas, 0);
    tracker->mode = to;
    return TRUE;
}

/* All that is dirty into the views. What cannot be pulled is gone, or taken over: the engine to come will tell. */
static void pull_all(SnapTracker *tracker) SNAP_REQUIRES(tracker->lock) {
    tracker->round_due = true;
    for (guint i = 0; i < tracker->areas->len; i++) {
        SnapTracked *tracked = snap_tracker_area(tracker, i);
        (void)snap_engine_pull(tracker, tracked, tracked->region->host_address, snap_tracked_end(tracked), NULL,
                               NULL);
    }
}

static gboolean move(SnapTracker *tracker, SnapTrackMode to, gboolean stands, GError **error)
    SNAP_REQUIRES(tracker->lock) {
    pull_all(tracker);
    snap_engine_close(tracker);
    tracker->mode = to;
    return snap_engine_open(tracker, error) &&
           snap_regions_renew(tracker, stands ? SNAP_TAKE_CLEAN : SNAP_TAKE_DIRTY, error);
}

typedef gboolean (*Switch)(SnapTracker *tracker, SnapTrackMode to, gboolean stands, GError **error);

static const Switch switches[SNAP_TRACK_MAX][SNAP_TRACK_MAX] = {
    [SNAP_TRACK_OFF] = {[SNAP_TRACK_ASYNC] = start, [SNAP_TRACK_SYNC] = start},
    [SNAP_TRACK_ASYNC] = {[SNAP_TRACK_OFF] = stop, [SNAP_TRACK_SYNC] = move},
    [SNAP_TRACK_SYNC] = {[SNAP_TRACK_OFF] = stop, [SNAP_TRACK_ASYNC] = move},
};

gboolean snap_tracker_set_mode(SnapTracker *tracker, SnapTrackMode mode, gboolean stands, GError **error) {
    g_assert(mode < SNAP_TRACK_MAX);
    snap_lock(&tracker->lock);
    gboolean done = TRUE;
    if (tracker->suspended) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_REFUSED, "a snapshot of the guest is being taken");
        done = FALSE;
    } else if (switches[tracker->mode][mode]) {
        done = switches[tracker->mode][mode](tracker, mode, stands, error);
        if (done) {
            snap_engine_spare(tracker);
        } else {
            stop(tracker, SNAP_TRACK_OFF, FALSE, NULL);
        }
    }
    snap_unlock(&tracker->lock);
    return done;
}

SnapTrackMode snap_tracker_mode(SnapTracker *tracker) {
    snap_lock(&tracker->lock);
    SnapTrackMode mode = tracker->mode;
    snap_unlock(&tracker->lock);
    return mode;
}

/* ---- beside a snapshot ----------------------------------------------------------------------------------- */

void snap_tracker_suspend(SnapTracker *tracker) {
    snap_lock(&tracker->lock);
    if (tracker->mode != SNAP_TRACK_OFF) {
        pull_all(tracker);
        snap_engine_close(tracker);
        tracker->suspended = true;
    }
    snap_unlock(&tracker->lock);
}

/* An error shows at the next collection or watch: the mode is OFF then. */
void snap_tracker_resume(SnapTracker *tracker) {
    snap_lock(&tracker->lock);
    if (tracker->suspended) {
        tracker->suspended = false;
        if (!snap_engine_open(tracker, NULL) || !snap_regions_renew(tracker, SNAP_TAKE_DIRTY, NULL)) {
            stop(tracker, SNAP_TRACK_OFF, FALSE, NULL);
        }
    }
    snap_unlock(&tracker->lock);
}

/* ---- views ----------------------------------------------------------------------------------------------- */

void snap_tracker_share(void *opaque, uint64_t start_address, uint64_t end_address) {
    SnapTracker *tracker = opaque;
    tracker->alone = false;
    for (guint i = 0; i < tracker->watches->len; i++) {
        SnapWatch *watch = g_ptr_array_index(tracker->watches, i);
        snap_view_mark(&watch->view, start_address, end_address);
    }
    for (guint i = snap_regions_find(tracker, start_address); i < tracker->areas->len; i++) {
        SnapTracked *tracked = snap_tracker_area(tracker, i);
        if (tracked->region->host_address >= end_address) {
            break;
        }
        if (tracked->listed) {
            snap_view_mark(&tracked->own, start_address, end_address);
        }
    }
}

void snap_tracker_mark_dirty(SnapTracker *tracker, uint64_t address, uint64_t length_bytes) {
    snap_lock(&tracker->lock);
    snap_tracker_share(tracker, address, address + length_bytes);
    snap_unlock(&tracker->lock);
}
