/*
 * Continuous replication: a guest's memory and state, epoch after epoch, into a standby or into images.
 *
 * Happy path: replicate starts a SnapOutgoing with epochs, to a standby that listens at a URI; or it starts a
 * SnapIncoming without a guest as well, and joins the two by a socket pair. From then on it is as any migration:
 * see migration-end.h. migrate_cancel ends it.
 *
 * Failure modes: whatever ends it, the guest runs on, and standby or images hold the last epoch that was complete.
 */
#include "migration-end.h"
#include "schema-handlers.h"

#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

enum { INTERVAL_DEFAULT_MS = 1000, INTERVAL_MAX_MS = 24 * 3600 * 1000 };

/* Where epochs go. */
typedef struct {
    char *uri;            /* (nullable) of the other end */
    SnapIncoming *images; /* (nullable) the other end, where it is here */
} Sink;

static void sink_clear(Sink *sink) {
    snap_incoming_free(sink->images);
    g_free(sink->uri);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Sink, sink_clear)

/* ---- checks ---------------------------------------------------------------------------------------------- */

static gboolean check_arguments(const QapiCall *call, GError **error) {
    uint64_t interval_ms = qapi_uint(call, "interval", INTERVAL_DEFAULT_MS);
    if (qapi_has(call, "uri") == qapi_has(call, "path"))
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "either uri or path can be specified.");
    else if (qapi_has(call, "keep") && !qapi_has(call, "path"))
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "Parameter 'keep' is for images, which 'path' is for");
    else if (interval_ms < 1 || interval_ms > INTERVAL_MAX_MS)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "Parameter 'interval' expects 1 to %d milliseconds",
                    INTERVAL_MAX_MS);
    else
        return qapi_has(call, "uri") ? qapi_migration_check_uri(qapi_string(call, "uri"), error)
                                     : qapi_check_path(call, "path", error);
    return FALSE;
}

/* ---- replicate ------------------------------------------------------------------------------------------- */

static gboolean open_images(Sink *sink, const char *dir, guint keep, GError **error) {
    int fds[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0) {
        snap_set_errno(error, errno, "%s", dir);
        return FALSE;
    }
    g_autofree char *uri = g_strdup_printf("fd:%d", fds[0]);
    SnapIncomingOptions options = {.uri = uri, .image_dir = dir, .image_keep = keep};
    sink->images = snap_incoming_start(NULL, &options, NULL, NULL, error);
    if (!sink->images) {
        close(fds[1]);
        return FALSE;
    }
    sink->uri = g_strdup_printf("fd:%d", fds[1]);
    return TRUE;
}

static gboolean open_sink(QapiCall *call, Sink *sink, GError **error) {
    g_autofree char *dir = qapi_call_path(call, "path");
    if (dir)
        return open_images(sink, dir, (guint)qapi_uint(call, "keep", 0), error);
    sink->uri = qapi_migration_uri(call, error);
    return sink->uri != NULL;
}

/* What is for the end of a move has no place here. */
static SnapOutgoingOptions options_of(const QapiCall *call, const Migration *migration,
                                      const MigrationSettings *settings, const Sink *sink) {
    SnapOutgoingOptions options = qapi_migration_options(migration, settings);
    options.uri = sink->uri;
    options.epoch_ms = qapi_uint(call, "interval", INTERVAL_DEFAULT_MS);
    options.region_glob = qapi_string(call, "region");
    options.pause_before_switchover = options.may_postcopy = options.auto_converge = FALSE;
    if (!sink->images)
        return options;
    options.n_channels = 1;
    options.compress = SNAP_COMPRESS_NONE;
    return options;
}

static void start(QapiCall *call, QapiTarget *target, const MigrationSettings *settings, GError **error) {
    Migration *migration = qapi_target_parts(target)->migration;
    MigrationEnd *end = qapi_migration_end_new(call->helper, &qapi_outgoing_ops, target, migration, TRUE, error);
    g_auto(Sink) sink = {0};
    SnapOutgoing *outgoing = NULL;
    if (end && open_sink(call, &sink, error)) {
        SnapOutgoingOptions options = options_of(call, migration, settings, &sink);
        outgoing =
            snap_outgoing_start(qapi_target_guest(target), &options, qapi_migration_end_on_phase, end, error);
    }
    if (outgoing)
        qapi_migration_end_begin(end, outgoing, g_steal_pointer(&sink.images));
    else if (end)
        qapi_migration_end_drop(end);
}

json_object *qmp_replicate(QapiCall *call, GError **error) {
    g_autoptr(QapiTarget) target = qapi_call_target(call, error);
    MigrationSettings settings;
    if (target && qapi_migration_check(call, target, &settings, error) && check_arguments(call, error))
        start(call, target, &settings, error);
    return NULL;
}

/* ---- its end --------------------------------------------------------------------------------------------- */

static void hand_over_locked(QapiCall *call, QapiTarget *target, Migration *migration, GError **error) {
    (void)call;
    SnapOutgoing *outgoing = qapi_migration_outgoing_locked(migration);
    if (outgoing)
        snap_outgoing_hand_over(outgoing, error);
    else
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_REFUSED, "target %s is not being replicated",
                    qapi_target_id(target));
}

json_object *qmp_replicate_hand_over(QapiCall *call, GError **error) {
    return qapi_migration_ask(call, hand_over_locked, error);
}

static void promote_locked(QapiCall *call, QapiTarget *target, Migration *migration, GError **error) {
    SnapIncoming *incoming = qapi_migration_incoming_locked(migration);
    if (incoming)
        snap_incoming_promote(incoming, qapi_bool(call, "force", FALSE), error);
    else
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_REFUSED, "target %s is no standby", qapi_target_id(target));
}

json_object *qmp_replicate_promote(QapiCall *call, GError **error) {
    return qapi_migration_ask(call, promote_locked, error);
}
