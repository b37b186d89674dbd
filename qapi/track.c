/*
 * Command family track: see track.h.
 *
 * Happy path: attach; start the log; then again and again: wait until a round is due, collect, hand the round out.
 *
 * Failure modes: whatever ends it, the tracker is freed before the guest, and the kernel forgets what was
 * registered with the descriptor. A guest that ends is seen by its pidfd, so that nobody waits for the rest of a
 * long round.
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
    int pidfd; /* readable when the guest has ended; -1 where there is none */
} Track;

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

static gboolean run(const Track *track, QapiTrackRounds *rounds, GError **error) {
    gint64 due_us = g_get_monotonic_time();
    gboolean go_on = TRUE;
    guint n_rounds = track->options->rounds;
    for (guint n = 0; go_on && (n_rounds == 0 || n < n_rounds); n++) {
        QapiTrackRound round;
        due_us = MAX(due_us + (gint64)track->options->interval_us, g_get_monotonic_time());
        if (!wait_until(track, due_us, &go_on, error))
            return FALSE;
        if (go_on && !qapi_track_rounds_next(rounds, &round, error))
            return FALSE;
        go_on = go_on && track->funcs->round(&round, track->opaque);
    }
    return TRUE;
}

static gboolean start(const Track *track, GError **error) {
    g_autofree char *why_not_async = NULL;
    if (!qapi_track_begin(track->tracker, track->options->log, &why_not_async, error))
        return FALSE;
    track->funcs->started(snap_tracker_mode(track->tracker), why_not_async, track->opaque);
    return TRUE;
}

/* Who sees the end first does not know whose it is. */
static void name_guest(const Track *track, GError *failure) {
    if (!g_error_matches(failure, SNAP_ERROR, SNAP_ERROR_GUEST_GONE))
        return;
    int pid = snap_guest_pid(track->guest);
    g_autofree char *message = g_steal_pointer(&failure->message);
    failure->message = has_ended(track, 0) ? g_strdup_printf("process %d has ended", pid)
                                           : g_strdup_printf("process %d: %s", pid, message);
}

gboolean qapi_track(const QapiTrackOptions *options, const QapiTrackFuncs *funcs, void *opaque, GError **error) {
    Track track = {.options = options, .funcs = funcs, .opaque = opaque};
    track.guest = qapi_open_guest(&options->target, error);
    if (!track.guest)
        return FALSE;
    track.pidfd = (int)syscall(SYS_pidfd_open, snap_guest_pid(track.guest), 0);
    track.tracker = snap_tracker_new(track.guest, options->region_glob);
    GError *failure = NULL;
    gboolean ok = start(&track, &failure);
    if (ok) {
        QapiTrackRounds *rounds = qapi_track_rounds_new(track.tracker, options->region_glob);
        ok = run(&track, rounds, &failure);
        qapi_track_rounds_free(rounds);
    }
    if (!ok) {
        name_guest(&track, failure);
        g_propagate_error(error, failure);
    }
    snap_tracker_free(track.tracker);
    snap_guest_free(track.guest);
    if (track.pidfd >= 0)
        close(track.pidfd);
    return ok;
}
