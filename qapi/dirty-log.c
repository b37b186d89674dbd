/* The dirty log of a target: see dirty-log.h. */
#include "dirty-log.h"

#include "call.h"
#include "rounds.h"
#include "schema-handlers.h"

/* Who has the guest's log: nobody, a client or a measurement, a migration. */
enum { LOG_FREE, LOG_TAKEN, LOG_RESERVED };

struct DirtyLog {
    /* atomic: one of LOG_; whoever sets it from FREE has the guest's log */
    gint taken;
    /* atomic: of the round collected last, -1 without; nothing else hangs on it */
    gint pages_per_second;

    GMutex lock; /* held while the log is asked; the helper's lock may be taken with it, not the other way round */

    /* under lock */
    SnapTracker *tracker; /* (nullable) of clients */
    QapiTrackRounds *rounds;
};

DirtyLog *qapi_dirty_log_new(void) {
    DirtyLog *log = g_new0(DirtyLog, 1);
    log->pages_per_second = -1;
    g_mutex_init(&log->lock);
    return log;
}

static void end_locked(DirtyLog *log) {
    g_clear_pointer(&log->rounds, qapi_track_rounds_free);
    g_clear_pointer(&log->tracker, snap_tracker_free);
    g_atomic_int_set(&log->pages_per_second, -1);
    g_atomic_int_set(&log->taken, LOG_FREE);
}

void qapi_dirty_log_free(DirtyLog *log) {
    end_locked(log);
    g_mutex_clear(&log->lock);
    g_free(log);
}

gboolean qapi_dirty_log_is_on(const DirtyLog *log) {
    return g_atomic_int_get(&log->taken) == LOG_TAKEN;
}

int qapi_dirty_log_rate(const DirtyLog *log) {
    return g_atomic_int_get(&log->pages_per_second);
}

static QapiTrackLog log_by_name(const char *name) {
    if (g_strcmp0(name, "async") == 0)
        return QAPI_TRACK_LOG_ASYNC;
    return g_strcmp0(name, "sync") == 0 ? QAPI_TRACK_LOG_SYNC : QAPI_TRACK_LOG_AUTO;
}

static gboolean check_here(QapiTarget *target, GError **error) {
    QapiHelper *helper = qapi_target_helper(target);
    g_mutex_lock(&helper->lock);
    QapiPlace place = qapi_target_place_locked(target);
    g_mutex_unlock(&helper->lock);
    return qapi_place_check(place, error);
}

static gboolean take(QapiTarget *target, gint user, GError **error) {
    DirtyLog *log = qapi_target_parts(target)->dirty_log;
    if (g_atomic_int_compare_and_exchange(&log->taken, LOG_FREE, user))
        return TRUE;
    if (g_atomic_int_get(&log->taken) == LOG_RESERVED)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_REFUSED,
                    "target %s is logged by a migration; migrate_cancel ends it", qapi_target_id(target));
    else
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_REFUSED,
                    "target %s is logged already; dirty-log-stop ends that, a measurement ends by itself",
                    qapi_target_id(target));
    return FALSE;
}

gboolean qapi_dirty_log_reserve(QapiTarget *target, GError **error) {
    return take(target, LOG_RESERVED, error);
}

void qapi_dirty_log_release(QapiTarget *target) {
    g_atomic_int_set(&qapi_target_parts(target)->dirty_log->taken, LOG_FREE);
}

SnapTracker *qapi_dirty_log_open(QapiTarget *target, const char *mode, const char *region,
                                 char **ret_why_not_async, GError **error) {
    if (!qapi_target_check(target, error) || !check_here(target, error) || !take(target, LOG_TAKEN, error))
        return NULL;
    SnapTracker *tracker = snap_tracker_new(qapi_target_guest(target), region);
    if (qapi_track_begin(tracker, log_by_name(mode), ret_why_not_async, error))
        return tracker;
    qapi_dirty_log_close(target, tracker);
    return NULL;
}

void qapi_dirty_log_close(QapiTarget *target, SnapTracker *tracker) {
    snap_tracker_free(tracker);
    g_atomic_int_set(&qapi_target_parts(target)->dirty_log->taken, LOG_FREE);
}

/* ---- commands -------------------------------------------------------------------------------------------- */

json_object *qmp_dirty_log_start(QapiCall *call, GError **error) {
    g_autoptr(QapiTarget) target = qapi_call_target(call, error);
    if (!target)
        return NULL;
    DirtyLog *log = qapi_target_parts(target)->dirty_log;
    g_autofree char *why_not_async = NULL;
    SnapTracker *tracker =
        qapi_dirty_log_open(target, qapi_string(call, "mode"), qapi_string(call, "region"), &why_not_async, error);
    if (!tracker)
        return NULL;
    json_object *result = json_object_new_object();
    qapi_json_add_string(result, "log", snap_track_mode_name(snap_tracker_mode(tracker)));
    qapi_json_add_string(result, "why-not-async", why_not_async);
    g_mutex_lock(&log->lock);
    log->tracker = tracker;
    log->rounds = qapi_track_rounds_new(tracker, qapi_string(call, "region"));
    g_mutex_unlock(&log->lock);
    return result;
}

static gboolean check_on_locked(const DirtyLog *log, const QapiTarget *target, GError **error) {
    if (!log->tracker)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "target %s is not logged; dirty-log-start begins",
                    qapi_target_id(target));
    return log->tracker != NULL;
}

/* A log that has failed is void: nothing it could tell later would be true. */
static json_object *collect_locked(DirtyLog *log, gboolean with_ranges, GError **error) {
    QapiTrackRound round;
    if (!qapi_track_rounds_next(log->rounds, &round, error)) {
        end_locked(log);
        return NULL;
    }
    g_atomic_int_set(&log->pages_per_second, (gint)MIN(round.pages_per_second, G_MAXINT));
    json_object *result = qapi_track_round_to_json(&round);
    if (!with_ranges)
        qapi_json_add(result, "ranges", json_object_new_array());
    return result;
}

json_object *qmp_dirty_log_collect(QapiCall *call, GError **error) {
    g_autoptr(QapiTarget) target = qapi_call_target(call, error);
    if (!target)
        return NULL;
    DirtyLog *log = qapi_target_parts(target)->dirty_log;
    g_mutex_lock(&log->lock);
    json_object *result =
        check_on_locked(log, target, error) ? collect_locked(log, qapi_bool(call, "ranges", TRUE), error) : NULL;
    g_mutex_unlock(&log->lock);
    return result;
}

json_object *qmp_dirty_log_stop(QapiCall *call, GError **error) {
    g_autoptr(QapiTarget) target = qapi_call_target(call, error);
    if (!target)
        return NULL;
    DirtyLog *log = qapi_target_parts(target)->dirty_log;
    g_mutex_lock(&log->lock);
    if (check_on_locked(log, target, error))
        end_locked(log);
    g_mutex_unlock(&log->lock);
    return NULL;
}
