/*
 * The dirty log of a guest that a helper keeps: see track-remote.h.
 *
 * Happy path: make the guest a target, start its log; wait until a round is due, collect it, hand it out; stop the
 * log, let go of the guest.
 *
 * Failure modes: somebody else has the guest's log; the guest ends, which an event tells; the helper ends, and the
 * log with it. When this process is killed the log stays on, until dirty-log-stop.
 */
#include "track-remote.h"

#include "command.h"
#include "target.h"

#define LOOK_US 50000 /* at go_on(), while waiting */

typedef struct {
    Client *client;
    const QapiTrackOptions *options;
    const QapiTrackFuncs *funcs;
    void *opaque;
    const char *target;
} Track;

static json_object *command(const Track *track, const char *name, json_object *arguments, GError **error) {
    qapi_json_add_string(arguments, "target", track->target);
    return client_command(track->client, name, arguments, error);
}

/* ---- a round --------------------------------------------------------------------------------------------- */

static SnapTrackMode log_of(json_object *object) {
    return g_strcmp0(result_string(object, "log"), "sync") == 0 ? SNAP_TRACK_SYNC : SNAP_TRACK_ASYNC;
}

/* @object: (borrow) for as long as the round is used. @ranges: what its ranges are put into. */
static QapiTrackRound round_of(json_object *object, GArray *ranges) {
    json_object *list = result_object(object, "ranges");
    QapiTrackRound round = {.number = (guint)result_uint(object, "round"),
                            .log = log_of(object),
                            .pages_per_second = result_double(object, "rate-pages-per-second"),
                            .ranges = ranges};
    round.stats.n_pages = result_uint(object, "dirty-pages");
    round.stats.pages_total = result_uint(object, "pages-total");
    round.stats.scan_ns = (uint64_t)(result_double(object, "scan-us") * 1e3 + 0.5);
    for (gsize i = 0; i < json_object_array_length(list); i++) {
        json_object *entry = json_object_array_get_idx(list, i);
        QapiTrackRange range = {.region = result_string(entry, "region"),
                                .offset_bytes = result_uint(entry, "offset"),
                                .address = result_uint(entry, "address"),
                                .length_bytes = result_uint(entry, "length")};
        g_array_append_val(ranges, range);
        round.dirty_bytes += range.length_bytes;
    }
    return round;
}

/* @ret_go_on: FALSE when somebody wants it to end. */
static gboolean collect(const Track *track, gboolean *ret_go_on, GError **error) {
    g_autoptr(json_object) object = command(track, "dirty-log-collect", json_object_new_object(), error);
    if (!object)
        return FALSE;
    g_autoptr(GArray) ranges = g_array_new(FALSE, FALSE, sizeof(QapiTrackRange));
    QapiTrackRound round = round_of(object, ranges);
    *ret_go_on = track->funcs->round(&round, track->opaque);
    return TRUE;
}

/* ---- round after round ----------------------------------------------------------------------------------- */

static gboolean check_guest(const Track *track, GError **error) {
    g_autoptr(json_object) targets = client_command(track->client, "query-targets", NULL, error);
    for (gsize i = 0; targets && i < json_object_array_length(targets); i++) {
        json_object *target = json_object_array_get_idx(targets, i);
        if (g_str_equal(result_string(target, "id"), track->target) &&
            g_str_equal(result_string(target, "state"), "gone")) {
            g_set_error(error, SNAP_ERROR, SNAP_ERROR_GUEST_GONE, "process %d has ended",
                        (int)result_uint(target, "pid"));
            return FALSE;
        }
    }
    return targets != NULL;
}

/* Until @due_us. @ret_go_on: as above. */
static gboolean wait_until(const Track *track, gint64 due_us, gboolean *ret_go_on, GError **error) {
    while ((*ret_go_on = track->funcs->go_on(track->opaque))) {
        gint64 left_us = MAX(due_us - g_get_monotonic_time(), 0);
        if (client_wait(track->client, (int)((MIN(left_us, LOOK_US) + 999) / 1000)) && !check_guest(track, error))
            return FALSE;
        if (left_us == 0)
            return TRUE;
    }
    return TRUE;
}

static gboolean run(const Track *track, GError **error) {
    gint64 due_us = g_get_monotonic_time();
    gboolean go_on = TRUE;
    guint n_rounds = track->options->rounds;
    for (guint n = 0; go_on && (n_rounds == 0 || n < n_rounds); n++) {
        due_us = MAX(due_us + (gint64)track->options->interval_us, g_get_monotonic_time());
        if (!wait_until(track, due_us, &go_on, error) || (go_on && !collect(track, &go_on, error)))
            return FALSE;
    }
    return TRUE;
}

static gboolean start(const Track *track, GError **error) {
    static const char *const modes[] = {
        [QAPI_TRACK_LOG_AUTO] = "auto",
        [QAPI_TRACK_LOG_ASYNC] = "async",
        [QAPI_TRACK_LOG_SYNC] = "sync",
    };
    json_object *arguments = json_object_new_object();
    qapi_json_add_string(arguments, "mode", modes[track->options->log]);
    qapi_json_add_string(arguments, "region", track->options->region_glob);
    g_autoptr(json_object) log = command(track, "dirty-log-start", arguments, error);
    if (log)
        track->funcs->started(log_of(log), result_string(log, "why-not-async"), track->opaque);
    return log != NULL;
}

gboolean track_remote(Client *client, const QapiTrackOptions *options, const QapiTrackFuncs *funcs, void *opaque,
                      GError **error) {
    g_autofree char *target = target_acquire(client, &options->target, error);
    if (!target)
        return FALSE;
    const Track track = {.client = client, .options = options, .funcs = funcs, .opaque = opaque, .target = target};
    gboolean ok = start(&track, error);
    if (ok) {
        ok = run(&track, error);
        json_object_put(command(&track, "dirty-log-stop", json_object_new_object(), NULL));
    }
    target_release(client, target);
    return ok;
}
