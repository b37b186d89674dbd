/*
 * Command family track: see track.h.
 *
 * Happy path: attach; start the log; then again and again: wait until a round is due, collect, hand the round out.
 *
 * Failure modes: whatever ends it, the tracker is freed before the guest, and the kernel forgets what was
 * registered with the descriptor. A guest that ends is seen by its pidfd, so that nobody waits for the rest of a
 * long round.
 *
 * Invariant: ranges and names of a round are the round's own, as regions may go while it is collected.
 */
#include "track.h"

#include <errno.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LOOK_US 50000 /* at go_on(), while waiting */

typedef struct {
    const QapiTrackOptions *options;
    const QapiTrackFuncs *funcs;
    void *opaque;
    SnapGuest *guest;
    SnapTracker *tracker;
    int pidfd;        /* readable when the guest has ended; -1 where there is none */
    gint64 since_us;  /* the collection before, or the start */
    GArray *ranges;   /* of QapiTrackRange */
    GPtrArray *names; /* of the regions in it, owned */
    uint64_t n_bytes;
} Track;

/* ---- one round ------------------------------------------------------------------------------------------- */

/* A round's own copy of the name; ranges come region by region. */
static const char *keep_name(Track *track, const char *name) {
    const char *last = track->names->len ? g_ptr_array_index(track->names, track->names->len - 1) : NULL;
    if (last && g_str_equal(last, name))
        return last;
    char *copy = g_strdup(name);
    g_ptr_array_add(track->names, copy);
    return copy;
}

/* A SnapDirtyFunc. */
static void add_range(const SnapRegion *region, uint64_t offset_bytes, uint64_t length_bytes, void *opaque) {
    Track *track = opaque;
    QapiTrackRange range = {.region = keep_name(track, region->name),
                            .offset_bytes = offset_bytes,
                            .address = region->host_address + offset_bytes,
                            .length_bytes = length_bytes};
    g_array_append_val(track->ranges, range);
    track->n_bytes += length_bytes;
}

static gboolean fail_unmatched(const Track *track, GError **error) {
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_FOUND, "no region of the guest matches \"%s\"",
                track->options->region_glob ? track->options->region_glob : "*");
    return FALSE;
}

/* @ret_go_on: what who asked for it says. */
static gboolean collect(Track *track, guint number, gboolean *ret_go_on, GError **error) {
    g_array_set_size(track->ranges, 0);
    g_ptr_array_set_size(track->names, 0);
    track->n_bytes = 0;
    QapiTrackRound round = {.number = number, .log = snap_tracker_mode(track->tracker), .ranges = track->ranges};
    if (!snap_tracker_collect(track->tracker, add_range, track, &round.stats, error))
        return FALSE;
    if (number == 1 && round.stats.pages_total == 0)
        return fail_unmatched(track, error);
    /* Behind it: where regions were listed anew, that came first and took most of the time. */
    gint64 now_us = g_get_monotonic_time();
    round.dirty_bytes = track->n_bytes;
    round.pages_per_second = (double)round.stats.n_pages * 1e6 / (double)MAX(now_us - track->since_us, 1);
    track->since_us = now_us;
    *ret_go_on = track->funcs->round(&round, track->opaque);
    return TRUE;
}

/* ---- round after round ----------------------------------------------------------------------------------- */

static gboolean has_ended(const Track *track, gint64 wait_us) {
    struct pollfd wanted = {.fd = track->pidfd, .events = POLLIN};
    return poll(&wanted, 1, (int)((wait_us + 999) / 1000)) > 0;
}

/* Until @due_us. @ret_go_on: FALSE when somebody wants it to end. */
static gboolean wait_until(const Track *track, gint64 due_us, gboolean *ret_go_on, GError **error) {
    while ((*ret_go_on = track->funcs->go_on(track->opaque))) {
        gint64 left_us = MAX(due_us - g_get_monotonic_time(), 0);
        if (has_ended(track, MIN(left_us, LOOK_US))) {
            g_set_error(error, SNAP_ERROR, SNAP_ERROR_GUEST_GONE, "process %d has ended",
                        snap_guest_pid(track->guest));
            return FALSE;
        }
        if (left_us == 0)
            return TRUE;
    }
    return TRUE;
}

static gboolean run(Track *track, GError **error) {
    gint64 due_us = track->since_us = g_get_monotonic_time();
    gboolean go_on = TRUE;
    guint rounds = track->options->rounds;
    for (guint number = 1; go_on && (rounds == 0 || number <= rounds); number++) {
        due_us = MAX(due_us + (gint64)track->options->interval_us, g_get_monotonic_time());
        if (!wait_until(track, due_us, &go_on, error))
            return FALSE;
        if (go_on && !collect(track, number, &go_on, error))
            return FALSE;
    }
    return TRUE;
}

/* ---- start ----------------------------------------------------------------------------------------------- */

static gboolean start(Track *track, GError **error) {
    g_autoptr(GError) failure = NULL;
    SnapTrackMode mode = track->options->log == QAPI_TRACK_LOG_SYNC ? SNAP_TRACK_SYNC : SNAP_TRACK_ASYNC;
    gboolean done = snap_tracker_set_mode(track->tracker, mode, FALSE, &failure);
    if (!done && track->options->log == QAPI_TRACK_LOG_AUTO &&
        g_error_matches(failure, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED)) {
        if (!snap_tracker_set_mode(track->tracker, SNAP_TRACK_SYNC, FALSE, error))
            return FALSE;
    } else if (!done) {
        g_propagate_error(error, g_steal_pointer(&failure));
        return FALSE;
    }
    track->funcs->started(snap_tracker_mode(track->tracker), failure ? failure->message : NULL, track->opaque);
    return TRUE;
}

gboolean qapi_track(const QapiTrackOptions *options, const QapiTrackFuncs *funcs, void *opaque, GError **error) {
    Track track = {.options = options, .funcs = funcs, .opaque = opaque};
    track.guest = qapi_open_guest(&options->target, error);
    if (!track.guest)
        return FALSE;
    track.pidfd = (int)syscall(SYS_pidfd_open, snap_guest_pid(track.guest), 0);
    track.tracker = snap_tracker_new(track.guest, options->region_glob);
    track.ranges = g_array_new(FALSE, FALSE, sizeof(QapiTrackRange));
    track.names = g_ptr_array_new_with_free_func(g_free);
    gboolean ok = start(&track, error) && run(&track, error);
    snap_tracker_free(track.tracker);
    snap_guest_free(track.guest);
    g_array_unref(track.ranges);
    g_ptr_array_unref(track.names);
    if (track.pidfd >= 0)
        close(track.pidfd);
    return ok;
}

/* ---- as JSON --------------------------------------------------------------------------------------------- */

static json_object *range_to_json(const QapiTrackRange *range) {
    json_object *object = json_object_new_object();
    qapi_json_add_string(object, "region", range->region);
    qapi_json_add_uint(object, "offset", range->offset_bytes);
    qapi_json_add_uint(object, "address", range->address);
    qapi_json_add_uint(object, "length", range->length_bytes);
    return object;
}

json_object *qapi_track_round_to_json(const QapiTrackRound *round) {
    json_object *ranges = json_object_new_array();
    for (guint i = 0; i < round->ranges->len; i++)
        json_object_array_add(ranges, range_to_json(&g_array_index(round->ranges, QapiTrackRange, i)));

    json_object *object = json_object_new_object();
    qapi_json_add_uint(object, "round", round->number);
    qapi_json_add_uint(object, "dirty-pages", round->stats.n_pages);
    qapi_json_add(object, "ranges", ranges);
    qapi_json_add_double(object, "scan-us", (double)round->stats.scan_ns / 1e3);
    qapi_json_add_double(object, "rate-pages-per-second", round->pages_per_second);
    qapi_json_add_uint(object, "pages-total", round->stats.pages_total);
    qapi_json_add_string(object, "log", snap_track_mode_name(round->log));
    return object;
}
