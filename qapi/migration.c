/*
 * Migration: the commands that begin, steer and end one. See migration.h.
 *
 * Happy path: migrate starts a SnapOutgoing of the target's guest with what capabilities and parameters say, and
 * returns; clients follow it by events or query-migrate. Wishes go to whatever runs.
 *
 * Failure modes: what is refused has not begun, and has changed nothing. A wish at the wrong time is refused, in
 * QEMU's words where it refuses it as well.
 */
#include "descriptors.h"
#include "incoming.h"
#include "migration-end.h"
#include "schema-handlers.h"

#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- where to -------------------------------------------------------------------------------------------- */

/* In QEMU's words, before anything is done about it. */
gboolean qapi_migration_check_uri(const char *uri, GError **error) {
    static const char *const known[] = {"exec:", "fd:", "file:", "tcp:", "unix:"};
    for (guint i = 0; i < G_N_ELEMENTS(known); i++)
        if (g_str_has_prefix(uri, known[i]))
            return TRUE;
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "Parameter 'uri' expects a valid migration protocol");
    return FALSE;
}

/* libsnap takes sockets only, and leaves alone what is none. */
static char *take_socket(QapiCall *call, const char *name, GError **error) {
    struct stat about;
    int fd = qapi_descriptors_take(call->descriptors, name, error);
    if (fd < 0)
        return NULL;
    if (fstat(fd, &about) == 0 && S_ISSOCK(about.st_mode))
        return g_strdup_printf("fd:%d", fd);
    close(fd);
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "File descriptor named '%s' is no socket", name);
    return NULL;
}

char *qapi_migration_uri(QapiCall *call, GError **error) {
    const char *uri = qapi_string(call, "uri");
    if (!qapi_migration_check_uri(uri, error))
        return NULL;
    if (g_str_has_prefix(uri, "file:")) {
        g_autofree char *path = qapi_path(call->helper, uri + strlen("file:"));
        return g_strconcat("file:", path, NULL);
    }
    return g_str_has_prefix(uri, "fd:") ? take_socket(call, uri + strlen("fd:"), error) : g_strdup(uri);
}

/* ---- migrate --------------------------------------------------------------------------------------------- */

static gboolean check_place_locked(const QapiTarget *target, GError **error) {
    QapiPlace place = qapi_target_place_locked(target);
    if (place == QAPI_PLACE_AWAITED)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "Guest is waiting for an incoming migration");
    else if (place == QAPI_PLACE_ELSEWHERE)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED,
                    "Can't migrate the vm that was paused due to previous migration");
    else
        return TRUE;
    return FALSE;
}

static gboolean check_unsupported(const QapiCall *call, GError **error) {
    static const char *const refused[] = {"blk", "inc"};
    for (guint i = 0; i < G_N_ELEMENTS(refused); i++) {
        if (qapi_bool(call, refused[i], FALSE)) {
            g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED, "'%s' is not supported here", refused[i]);
            return FALSE;
        }
    }
    return TRUE;
}

gboolean qapi_migration_check(const QapiCall *call, const QapiTarget *target, MigrationSettings *ret_settings,
                              GError **error) {
    const Migration *migration = qapi_target_parts(target)->migration;
    g_mutex_lock(&call->helper->lock);
    gboolean ok = qapi_migration_check_locked(migration, error) && check_place_locked(target, error);
    *ret_settings = migration->settings;
    g_mutex_unlock(&call->helper->lock);
    return ok;
}

static gboolean check(const QapiCall *call, const QapiTarget *target, MigrationSettings *ret_settings,
                      GError **error) {
    return qapi_migration_check(call, target, ret_settings, error) && check_unsupported(call, error) &&
           qapi_migration_check_uri(qapi_string(call, "uri"), error);
}

static gboolean check_movable(const QapiTarget *target, GError **error) {
    const SnapMoveOps *ops = snap_guest_move_ops(qapi_target_guest(target));
    if (ops && ops->hand_over)
        return TRUE;
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED,
                "target %s is a guest that cannot be handed over. The capability background-snapshot has migrate "
                "write the stream of a QEMU, and replicate keeps a copy of any guest up to date",
                qapi_target_id(target));
    return FALSE;
}

SnapOutgoingOptions qapi_migration_options(const Migration *migration, const MigrationSettings *settings) {
    return (SnapOutgoingOptions){
        .limits = qapi_migration_limits(settings),
        .n_channels = settings->on[MIGRATION_CAPABILITY_MULTIFD] ? (guint)settings->channels : 1,
        .compress = settings->compress,
        .compress_level = (int)MAX(settings->zstd_level, 1),
        .pause_before_switchover = settings->on[MIGRATION_CAPABILITY_PAUSE_BEFORE_SWITCHOVER],
        .may_postcopy = settings->on[MIGRATION_CAPABILITY_POSTCOPY_RAM],
        .auto_converge = settings->on[MIGRATION_CAPABILITY_AUTO_CONVERGE],
        .throttle_initial = (unsigned)settings->throttle_initial,
        .throttle_increment = (unsigned)settings->throttle_increment,
        .throttle_max = (unsigned)settings->throttle_max,
        .silence_ms = migration->silence_ms,
    };
}

static void move(QapiCall *call, QapiTarget *target, const MigrationSettings *settings, GError **error) {
    Migration *migration = qapi_target_parts(target)->migration;
    MigrationEnd *end = qapi_migration_end_new(call->helper, &qapi_outgoing_ops, target, migration, FALSE, error);
    g_autofree char *uri = end ? qapi_migration_uri(call, error) : NULL;
    SnapOutgoingOptions options = qapi_migration_options(migration, settings);
    options.uri = uri;
    SnapOutgoing *outgoing =
        uri ? snap_outgoing_start(qapi_target_guest(target), &options, qapi_migration_end_on_phase, end, error)
            : NULL;
    if (outgoing)
        qapi_migration_end_begin(end, outgoing, NULL);
    else if (end)
        qapi_migration_end_drop(end);
}

/* The phase is set by whoever asks, and by the thread that connects. */
static void tell_recovery(QapiHelper *helper, QapiTarget *target) {
    Migration *migration = qapi_target_parts(target)->migration;
    g_mutex_lock(&helper->lock);
    if (migration->status == MIGRATION_POSTCOPY_PAUSED)
        qapi_migration_set_status_locked(helper, target, migration, MIGRATION_POSTCOPY_RECOVER);
    g_mutex_unlock(&helper->lock);
}

static void resume_locked(QapiCall *call, QapiTarget *target, Migration *migration, GError **error) {
    SnapOutgoing *outgoing = qapi_migration_outgoing_locked(migration);
    if (!outgoing || qapi_migration_status(call->helper, migration) != MIGRATION_POSTCOPY_PAUSED) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "Cannot resume if there is no paused migration");
        return;
    }
    g_autofree char *uri = qapi_migration_uri(call, error);
    if (uri && snap_outgoing_resume(outgoing, uri, error))
        tell_recovery(call->helper, target);
}

json_object *qmp_migrate(QapiCall *call, GError **error) {
    MigrationSettings settings;
    if (qapi_bool(call, "resume", FALSE))
        return qapi_migration_ask(call, resume_locked, error);
    g_autoptr(QapiTarget) target = qapi_call_target(call, error);
    if (!target || !check(call, target, &settings, error))
        return NULL;
    if (settings.on[MIGRATION_CAPABILITY_BACKGROUND_SNAPSHOT])
        qapi_background_start(call, target, error);
    else if (check_movable(target, error))
        move(call, target, &settings, error);
    return NULL;
}

/* ---- cancel ---------------------------------------------------------------------------------------------- */

static void cancel_background(QapiHelper *helper, QapiTarget *target, Migration *migration) {
    g_mutex_lock(&helper->lock);
    if (migration->job && migration->status != MIGRATION_CANCELLING && qapi_job_cancel_locked(migration->job))
        qapi_migration_set_status_locked(helper, target, migration, MIGRATION_CANCELLING);
    g_mutex_unlock(&helper->lock);
}

/* Its end is told after this, as that takes Migration.lock first. */
static void cancel_end_locked(QapiHelper *helper, QapiTarget *target, Migration *migration, GError **error) {
    MigrationEnd *end = migration->end;
    if (!end->ops->cancel(end->handle, error))
        return;
    g_mutex_lock(&helper->lock);
    if (migration->status != MIGRATION_CANCELLING)
        qapi_migration_set_status_locked(helper, target, migration, MIGRATION_CANCELLING);
    g_mutex_unlock(&helper->lock);
}

/* QEMU leaves a destination alone: whoever wants no guest there ends it. */
static void cancel_locked(QapiCall *call, QapiTarget *target, Migration *migration, GError **error) {
    if (qapi_migration_outgoing_locked(migration))
        cancel_end_locked(call->helper, target, migration, error);
    else if (!migration->end)
        cancel_background(call->helper, target, migration);
}

json_object *qmp_migrate_cancel(QapiCall *call, GError **error) {
    return qapi_migration_ask(call, cancel_locked, error);
}

/* ---- wishes ---------------------------------------------------------------------------------------------- */

static void continue_locked(QapiCall *call, QapiTarget *target, Migration *migration, GError **error) {
    (void)target;
    const char *expected = qapi_string(call, "state");
    const char *status = qapi_migration_status_name(qapi_migration_status(call->helper, migration));
    SnapOutgoing *outgoing = qapi_migration_outgoing_locked(migration);
    if (!g_str_equal(expected, status))
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "Migration not in expected state: %s", status);
    else if (outgoing)
        snap_outgoing_continue(outgoing, error);
    else
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_REFUSED, "no migration waits before its switch-over");
}

json_object *qmp_migrate_continue(QapiCall *call, GError **error) {
    return qapi_migration_ask(call, continue_locked, error);
}

static void start_postcopy_locked(QapiCall *call, QapiTarget *target, Migration *migration, GError **error) {
    (void)target;
    SnapOutgoing *outgoing = qapi_migration_outgoing_locked(migration);
    g_mutex_lock(&call->helper->lock);
    gboolean on = migration->settings.on[MIGRATION_CAPABILITY_POSTCOPY_RAM];
    g_mutex_unlock(&call->helper->lock);
    if (!on)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED,
                    "Enable postcopy with migrate_set_capability before the start of migration");
    else if (!outgoing)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED,
                    "Postcopy must be started after migration has been started");
    else
        snap_outgoing_start_postcopy(outgoing, error);
}

json_object *qmp_migrate_start_postcopy(QapiCall *call, GError **error) {
    return qapi_migration_ask(call, start_postcopy_locked, error);
}

static void pause_locked(QapiCall *call, QapiTarget *target, Migration *migration, GError **error) {
    (void)target;
    SnapOutgoing *outgoing = qapi_migration_outgoing_locked(migration);
    if (qapi_migration_status(call->helper, migration) != MIGRATION_POSTCOPY_ACTIVE)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED,
                    "migrate-pause is currently only supported during postcopy-active state");
    else if (outgoing)
        snap_outgoing_pause(outgoing, error);
    else
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED, "migrate-pause is for the source of a migration");
}

json_object *qmp_migrate_pause(QapiCall *call, GError **error) {
    return qapi_migration_ask(call, pause_locked, error);
}

static void reclaim_locked(QapiCall *call, QapiTarget *target, Migration *migration, GError **error) {
    SnapOutgoing *outgoing = qapi_migration_outgoing_locked(migration);
    if (!outgoing)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "No guest of target %s is on its way",
                    qapi_target_id(target));
    else if (snap_outgoing_reclaim(outgoing, error))
        tell_recovery(call->helper, target);
}

json_object *qmp_migrate_reclaim(QapiCall *call, GError **error) {
    return qapi_migration_ask(call, reclaim_locked, error);
}

static void recover_locked(QapiCall *call, QapiTarget *target, Migration *migration, GError **error) {
    (void)target;
    gboolean paused = qapi_migration_status(call->helper, migration) == MIGRATION_POSTCOPY_PAUSED;
    SnapIncoming *incoming = paused ? qapi_migration_incoming_locked(migration) : NULL;
    if (!migration->end)
        incoming = migration->arrived;
    if (!incoming) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED,
                    "Migrate recover can only be run when postcopy is paused.");
        return;
    }
    g_autofree char *uri = qapi_migration_uri(call, error);
    if (uri && snap_incoming_recover(incoming, uri, error))
        qapi_incoming_tell_uri(call->helper, migration, incoming);
}

json_object *qmp_migrate_recover(QapiCall *call, GError **error) {
    return qapi_migration_ask(call, recover_locked, error);
}
