/* One end of a migration: see migration-end.h. */
#include "migration-end.h"

#include "dirty-log.h"

/* ---- both kinds ------------------------------------------------------------------------------------------ */

static gboolean outgoing_wait(void *handle, int timeout_ms, GError **error) {
    return snap_outgoing_wait(handle, timeout_ms, error);
}
static gboolean outgoing_cancel(void *handle, GError **error) {
    return snap_outgoing_cancel(handle, error);
}
static void outgoing_get_stats(void *handle, SnapMigrationStats *ret_stats) {
    snap_outgoing_get_stats(handle, ret_stats);
}
static void outgoing_free(void *handle) {
    snap_outgoing_free(handle);
}
static gboolean incoming_wait(void *handle, int timeout_ms, GError **error) {
    return snap_incoming_wait(handle, timeout_ms, error);
}
static gboolean incoming_cancel(void *handle, GError **error) {
    return snap_incoming_cancel(handle, error);
}
static void incoming_get_stats(void *handle, SnapMigrationStats *ret_stats) {
    snap_incoming_get_stats(handle, ret_stats);
}
static void incoming_free(void *handle) {
    snap_incoming_free(handle);
}

const MigrationEndOps qapi_outgoing_ops = {
    .wait = outgoing_wait, .cancel = outgoing_cancel, .get_stats = outgoing_get_stats, .free = outgoing_free};
const MigrationEndOps qapi_incoming_ops = {.arrives = TRUE,
                                           .wait = incoming_wait,
                                           .cancel = incoming_cancel,
                                           .get_stats = incoming_get_stats,
                                           .free = incoming_free};

/* ---- phases ---------------------------------------------------------------------------------------------- */

/* Of each phase: what QEMU calls it, and where the guest is then, seen from either end. */
static const struct {
    MigrationStatus status;
    gboolean is_end;
    QapiPlace leaving, arriving;
} phases[] = {
    [SNAP_MIGRATION_SETUP] = {MIGRATION_SETUP, FALSE, QAPI_PLACE_AS_IT_WAS, QAPI_PLACE_AS_IT_WAS},
    [SNAP_MIGRATION_ACTIVE] = {MIGRATION_ACTIVE, FALSE, QAPI_PLACE_AS_IT_WAS, QAPI_PLACE_AS_IT_WAS},
    [SNAP_MIGRATION_PRE_SWITCHOVER] = {MIGRATION_PRE_SWITCHOVER, FALSE, QAPI_PLACE_LEAVING, QAPI_PLACE_AS_IT_WAS},
    [SNAP_MIGRATION_DEVICE] = {MIGRATION_DEVICE, FALSE, QAPI_PLACE_LEAVING, QAPI_PLACE_AS_IT_WAS},
    [SNAP_MIGRATION_POSTCOPY] = {MIGRATION_POSTCOPY_ACTIVE, FALSE, QAPI_PLACE_ELSEWHERE, QAPI_PLACE_HERE},
    [SNAP_MIGRATION_UNCONNECTED] = {MIGRATION_POSTCOPY_PAUSED, FALSE, QAPI_PLACE_AS_IT_WAS, QAPI_PLACE_AS_IT_WAS},
    [SNAP_MIGRATION_RECOVER] = {MIGRATION_POSTCOPY_RECOVER, FALSE, QAPI_PLACE_AS_IT_WAS, QAPI_PLACE_AS_IT_WAS},
    [SNAP_MIGRATION_STANDBY] = {MIGRATION_COLO, FALSE, QAPI_PLACE_AS_IT_WAS, QAPI_PLACE_AS_IT_WAS},
    [SNAP_MIGRATION_COMPLETED] = {MIGRATION_COMPLETED, TRUE, QAPI_PLACE_ELSEWHERE, QAPI_PLACE_HERE},
    [SNAP_MIGRATION_FAILED] = {MIGRATION_FAILED, TRUE, QAPI_PLACE_HERE, QAPI_PLACE_AS_IT_WAS},
    [SNAP_MIGRATION_CANCELLED] = {MIGRATION_CANCELLED, TRUE, QAPI_PLACE_HERE, QAPI_PLACE_AS_IT_WAS},
};
G_STATIC_ASSERT(G_N_ELEMENTS(phases) == SNAP_MIGRATION_MAX);

static QapiPlace place_in(const MigrationEnd *end, SnapMigrationPhase phase) {
    return end->ops->arrives ? phases[phase].arriving : phases[phase].leaving;
}

/* Whether its clients want it to run: without the helper's lock, as the VMM is asked. */
static gboolean would_run(const MigrationEnd *end, SnapMigrationPhase phase) {
    return end->target && place_in(end, phase) != QAPI_PLACE_AS_IT_WAS && qapi_target_would_run(end->target);
}

/* It stops, or runs, by our doing: clients of the VMM are told as of their own. */
static void set_place_locked(MigrationEnd *end, SnapMigrationPhase phase, gboolean runs) {
    QapiPlace place = place_in(end, phase);
    if (!end->target || place == QAPI_PLACE_AS_IT_WAS)
        return;
    QapiPlace before = qapi_target_set_place_locked(end->target, place);
    if (runs && (before == QAPI_PLACE_HERE) != (place == QAPI_PLACE_HERE))
        qapi_migration_event_locked(end->helper, end->target, place == QAPI_PLACE_HERE ? "RESUME" : "STOP",
                                    json_object_new_object());
}

/* The first round is told of by ACTIVE itself, before it is counted. */
static void tell_round_locked(const MigrationEnd *end, uint64_t round) {
    if (end->ops->arrives || !end->migration->settings.on[MIGRATION_CAPABILITY_EVENTS])
        return;
    json_object *data = json_object_new_object();
    qapi_json_add(data, "pass", json_object_new_int64((int64_t)MAX(round, 1)));
    qapi_migration_event_locked(end->helper, end->target, "MIGRATION_PASS", data);
}

/* The order of events is QEMU's. */
static void enter_locked(MigrationEnd *end, SnapMigrationPhase phase, uint64_t round, gboolean runs) {
    Migration *migration = end->migration;
    MigrationStatus status = phases[phase].status;
    gboolean place_first = place_in(end, phase) != QAPI_PLACE_HERE || phase == SNAP_MIGRATION_COMPLETED;
    if (place_first)
        set_place_locked(end, phase, runs);
    if (migration->status != status && (migration->status != MIGRATION_CANCELLING || phases[phase].is_end))
        qapi_migration_set_status_locked(end->helper, end->target, migration, status);
    if (!place_first)
        set_place_locked(end, phase, runs);
    if (phase == SNAP_MIGRATION_ACTIVE)
        tell_round_locked(end, round);
}

/* An end is told when all is let go of: see finish(). */
void qapi_migration_end_on_phase(SnapMigrationPhase phase, uint64_t round, void *opaque) {
    MigrationEnd *end = opaque;
    if (phase == SNAP_MIGRATION_SETUP)
        return; /* begin tells of that one */
    gboolean runs = !phases[phase].is_end && would_run(end, phase);
    g_mutex_lock(&end->helper->lock);
    while (!end->begun)
        g_cond_wait(&end->changed, &end->helper->lock);
    if (!phases[phase].is_end)
        enter_locked(end, phase, round, runs);
    end->loaded = end->loaded || phase == SNAP_MIGRATION_DEVICE || phase == SNAP_MIGRATION_POSTCOPY;
    end->phase = phase;
    g_cond_broadcast(&end->changed);
    g_mutex_unlock(&end->helper->lock);
}

/* ---- the job --------------------------------------------------------------------------------------------- */

static void cancel(void *opaque) {
    MigrationEnd *end = opaque;
    end->cancelled = TRUE;
    g_cond_broadcast(&end->changed);
}

/* Return: FALSE when the helper ends, and it cannot be cancelled any more. */
static gboolean await_end(MigrationEnd *end) {
    gboolean asked = FALSE;
    g_mutex_lock(&end->helper->lock);
    while (!phases[end->phase].is_end) {
        if (!end->cancelled || asked) {
            g_cond_wait(&end->changed, &end->helper->lock);
            continue;
        }
        asked = TRUE;
        g_mutex_unlock(&end->helper->lock);
        if (!end->ops->cancel(end->handle, NULL))
            return FALSE;
        g_mutex_lock(&end->helper->lock);
    }
    g_mutex_unlock(&end->helper->lock);
    return TRUE;
}

/* Nobody can ask it anything any more; nobody may begin another one yet. What has brought the guest stays, for a
 * source that asks; it has told us all that it will. A guest arrives once. */
static void let_go(MigrationEnd *end, SnapMigrationPhase phase) {
    SnapMigrationStats stats;
    gboolean arrived = end->ops->arrives && end->target && phase == SNAP_MIGRATION_COMPLETED;
    end->ops->get_stats(end->handle, &stats);
    g_mutex_lock(&end->migration->lock);
    end->migration->end = NULL;
    g_assert(!arrived || !end->migration->arrived);
    if (arrived)
        end->migration->arrived = end->handle;
    g_mutex_lock(&end->helper->lock);
    end->migration->stats = stats;
    g_mutex_unlock(&end->helper->lock);
    g_mutex_unlock(&end->migration->lock);
    if (!arrived)
        end->ops->free(end->handle);
    snap_incoming_free(end->images);
    if (end->target)
        qapi_dirty_log_release(end->target);
}

static gboolean may_come_again_locked(const MigrationEnd *end, SnapMigrationPhase phase) {
    Migration *migration = end->migration;
    gboolean again = phase != SNAP_MIGRATION_COMPLETED && migration->deferred && !end->loaded;
    if (again)
        migration->awaits = MIGRATION_AWAITS_COMMAND;
    return again;
}

/* Who reads the events may begin the next one at once. */
static void finish(MigrationEnd *end, SnapMigrationPhase phase, const GError *failure) {
    Migration *migration = end->migration;
    gboolean runs = would_run(end, phase);
    g_mutex_lock(&end->helper->lock);
    migration->job = NULL;
    g_clear_pointer(&migration->error, g_free);
    if (phase == SNAP_MIGRATION_FAILED)
        migration->error = g_strdup(failure ? failure->message : "it was given up");
    qapi_job_release_locked(end->job);
    enter_locked(end, phase, 0, runs);
    gboolean hopeless = end->ops->arrives && end->target && phase != SNAP_MIGRATION_COMPLETED &&
                        !may_come_again_locked(end, phase);
    g_mutex_unlock(&end->helper->lock);
    if (hopeless && migration->on_incoming_failed && !end->helper->closing)
        migration->on_incoming_failed(failure ? failure->message : "it was given up", migration->failed_opaque);
}

/* The helper ends; what is to become of the guest is not known here. */
static void forget(MigrationEnd *end) {
    g_mutex_lock(&end->helper->lock);
    end->migration->job = NULL;
    g_mutex_unlock(&end->helper->lock);
}

static json_object *run(QapiJob *job, void *opaque, GError **error) {
    MigrationEnd *end = opaque;
    GError *failure = NULL;
    (void)job;
    gboolean ended = await_end(end);
    SnapMigrationPhase phase = ended ? end->phase : SNAP_MIGRATION_UNCONNECTED;
    gboolean ok = end->ops->wait(end->handle, ended ? -1 : 0, &failure);
    let_go(end, phase);
    if (ended)
        finish(end, phase, failure);
    else
        forget(end);
    qapi_target_unref(g_steal_pointer(&end->target));
    if (ended && end->again)
        end->again(end->helper);
    if (ok)
        return json_object_new_object();
    g_propagate_error(error, failure);
    return NULL;
}

static void end_free(void *opaque) {
    MigrationEnd *end = opaque;
    qapi_target_unref(end->target);
    g_cond_clear(&end->changed);
    g_free(end);
}

static const QapiJobKind outgoing_kind = {.run = run, .cancel = cancel, .free = end_free};
static const QapiJobKind incoming_kind = {.brings_guest = TRUE, .run = run, .cancel = cancel, .free = end_free};

/* ---- begin ----------------------------------------------------------------------------------------------- */

MigrationEnd *qapi_migration_end_new(QapiHelper *helper, const MigrationEndOps *ops, QapiTarget *target,
                                     Migration *migration, gboolean replicates, GError **error) {
    QapiJob *job = qapi_job_new(helper, ops->arrives ? &incoming_kind : &outgoing_kind, NULL, target, NULL, error);
    if (!job)
        return NULL;
    if (target && !qapi_dirty_log_reserve(target, error)) {
        qapi_job_drop(job);
        return NULL;
    }
    MigrationEnd *end = g_new0(MigrationEnd, 1);
    *end = (MigrationEnd){.ops = ops,
                          .helper = helper,
                          .target = target ? qapi_target_ref(target) : NULL,
                          .migration = migration,
                          .job = job,
                          .replicates = replicates};
    g_cond_init(&end->changed);
    return end;
}

void qapi_migration_end_drop(MigrationEnd *end) {
    qapi_job_drop(end->job);
    if (end->target)
        qapi_dirty_log_release(end->target);
    end_free(end);
}

/* QEMU tells of this even where events are not wanted: who starts a destination cannot want them before. */
static void tell_listening_locked(const MigrationEnd *end) {
    if (!end->ops->arrives || end->migration->settings.on[MIGRATION_CAPABILITY_EVENTS])
        return;
    json_object *data = json_object_new_object();
    qapi_json_add_string(data, "status", qapi_migration_status_name(MIGRATION_SETUP));
    qapi_migration_event_locked(end->helper, end->target, "MIGRATION", data);
}

void qapi_migration_end_begin(MigrationEnd *end, void *handle, SnapIncoming *images) {
    Migration *migration = end->migration;
    char *uri = end->ops->arrives ? snap_incoming_uri(handle) : NULL;
    end->handle = handle;
    end->images = images;
    g_mutex_lock(&migration->lock);
    g_mutex_lock(&end->helper->lock);
    qapi_migration_begin_locked(end->helper, end->target, migration, end->job);
    migration->end = end;
    migration->incoming = end->ops->arrives;
    migration->replicates = end->replicates;
    migration->uri = uri;
    tell_listening_locked(end);
    end->begun = TRUE;
    g_cond_broadcast(&end->changed);
    g_mutex_unlock(&end->helper->lock);
    g_mutex_unlock(&migration->lock);
    qapi_job_begin(end->job, end);
}

/* ---- asked meanwhile ------------------------------------------------------------------------------------- */

SnapOutgoing *qapi_migration_outgoing_locked(const Migration *migration) {
    return migration->end && !migration->end->ops->arrives ? migration->end->handle : NULL;
}

SnapIncoming *qapi_migration_incoming_locked(const Migration *migration) {
    return migration->end && migration->end->ops->arrives ? migration->end->handle : NULL;
}

/* Why it waits to be resumed. */
static void note_lost_connection(const MigrationEnd *end) {
    g_autoptr(GError) error = NULL;
    if (end->ops->wait(end->handle, 0, &error) || g_error_matches(error, SNAP_ERROR, SNAP_ERROR_TIMED_OUT))
        return; /* it has gone on meanwhile */
    g_mutex_lock(&end->helper->lock);
    g_free(end->migration->error);
    end->migration->error = g_strdup(error->message);
    g_mutex_unlock(&end->helper->lock);
}

SnapMigrationStats qapi_migration_stats_locked(QapiHelper *helper, Migration *migration) {
    SnapMigrationStats stats;
    if (migration->end) {
        migration->end->ops->get_stats(migration->end->handle, &stats);
        if (stats.phase == SNAP_MIGRATION_UNCONNECTED)
            note_lost_connection(migration->end);
        return stats;
    }
    g_mutex_lock(&helper->lock);
    stats = migration->stats;
    g_mutex_unlock(&helper->lock);
    return stats;
}

void qapi_migration_apply_limits(QapiTarget *target) {
    QapiHelper *helper = qapi_target_helper(target);
    Migration *migration = qapi_target_parts(target)->migration;
    g_mutex_lock(&migration->lock);
    g_mutex_lock(&helper->lock);
    SnapMigrationLimits limits = qapi_migration_limits(&migration->settings);
    g_mutex_unlock(&helper->lock);
    SnapOutgoing *outgoing = qapi_migration_outgoing_locked(migration);
    if (outgoing)
        snap_outgoing_set_limits(outgoing, &limits, NULL); /* a dirty limit was looked at when it was set */
    g_mutex_unlock(&migration->lock);
}
