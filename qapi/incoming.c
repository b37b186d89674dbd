/*
 * Destinations: see incoming.h.
 *
 * Happy path: a VMM is started with "defer"; migrate-incoming starts a SnapIncoming, whose end brings the guest.
 * Or it is started with a URI, and the same is done at once.
 *
 * Failure modes: it cannot listen: another migrate-incoming may do better. It ends without a guest before the
 * guest's state was touched: the same, where the VMM was started with "defer". Otherwise the VMM is told that no
 * guest will come.
 *
 * Into images: a SnapIncoming without a guest takes one replication; when it has ended, by whatever, the next one
 * is listened for, in a folder of its own.
 */
#include "incoming.h"

#include "migration-end.h"
#include "schema-handlers.h"

#include <string.h>

void qapi_incoming_tell_uri(QapiHelper *helper, Migration *migration, SnapIncoming *incoming) {
    char *uri = snap_incoming_uri(incoming);
    g_mutex_lock(&helper->lock);
    g_free(migration->uri);
    migration->uri = uri;
    g_mutex_unlock(&helper->lock);
}

/* ---- a guest --------------------------------------------------------------------------------------------- */

static MigrationEnd *end_new(QapiTarget *target, GError **error) {
    Migration *migration = qapi_target_parts(target)->migration;
    return qapi_migration_end_new(qapi_target_helper(target), &qapi_incoming_ops, target, migration, FALSE, error);
}

/* @end: (take). @uri: (nullable) there is none, and *error is set. */
static gboolean start(QapiTarget *target, MigrationEnd *end, const char *uri, GError **error) {
    QapiHelper *helper = qapi_target_helper(target);
    Migration *migration = qapi_target_parts(target)->migration;
    SnapIncomingOptions options = {.uri = uri, .silence_ms = migration->silence_ms};
    SnapIncoming *incoming =
        uri ? snap_incoming_start(qapi_target_guest(target), &options, qapi_migration_end_on_phase, end, error)
            : NULL;
    if (!incoming) {
        qapi_migration_end_drop(end);
        return FALSE;
    }
    g_mutex_lock(&helper->lock);
    migration->awaits = MIGRATION_AWAITS_INCOMING;
    g_mutex_unlock(&helper->lock);
    qapi_migration_end_begin(end, incoming, NULL);
    return TRUE;
}

static gboolean check_await(Migration *migration, QapiHelper *helper, GError **error) {
    g_mutex_lock(&helper->lock);
    MigrationAwaits awaits = migration->awaits;
    g_mutex_unlock(&helper->lock);
    if (awaits == MIGRATION_AWAITS_NONE)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "'-incoming' was not specified on the command line");
    else if (awaits == MIGRATION_AWAITS_INCOMING)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "The incoming migration has already been started");
    return awaits == MIGRATION_AWAITS_COMMAND;
}

static gboolean check_protocol(const char *uri, GError **error) {
    if (qapi_migration_check_uri(uri, NULL))
        return TRUE;
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "unknown migration protocol: %s", uri);
    return FALSE;
}

json_object *qmp_migrate_incoming(QapiCall *call, GError **error) {
    g_autoptr(QapiTarget) target = NULL;
    Migration *migration = qapi_migration_call(call, &target, error);
    if (!migration || !check_await(migration, call->helper, error) ||
        !check_protocol(qapi_string(call, "uri"), error))
        return NULL;
    MigrationEnd *end = end_new(target, error);
    g_autofree char *uri = end ? qapi_migration_uri(call, error) : NULL; /* takes a descriptor: not sooner */
    if (end)
        start(target, end, uri, error);
    return NULL;
}

static gboolean check_guest(const QapiTarget *target, GError **error) {
    const SnapMoveOps *ops = snap_guest_move_ops(qapi_target_guest(target));
    if (ops && ops->load_state && ops->start)
        return TRUE;
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_REFUSED, "the guest has no move_ops to arrive with");
    return FALSE;
}

static gboolean await(QapiTarget *target, const SnapQmpOptions *options, GError **error) {
    QapiHelper *helper = qapi_target_helper(target);
    Migration *migration = qapi_target_parts(target)->migration;
    gboolean deferred = g_str_equal(options->incoming, "defer");
    if (!check_guest(target, error))
        return FALSE;
    g_mutex_lock(&helper->lock);
    qapi_target_set_place_locked(target, QAPI_PLACE_AWAITED);
    migration->awaits = MIGRATION_AWAITS_COMMAND;
    migration->deferred = deferred;
    g_mutex_unlock(&helper->lock);
    MigrationEnd *end = deferred ? NULL : end_new(target, error);
    return deferred || (end && start(target, end, options->incoming, error));
}

gboolean qapi_incoming_set_up(QapiHelper *helper, const SnapQmpOptions *options, GError **error) {
    g_autoptr(QapiTarget) target = qapi_target_find(helper, "embedded", error);
    if (!target)
        return FALSE;
    Migration *migration = qapi_target_parts(target)->migration;
    migration->silence_ms = options->migration_silence_ms;
    migration->on_incoming_failed = options->on_incoming_failed;
    migration->failed_opaque = options->vm_opaque;
    return !options->incoming || await(target, options, error);
}

/* ---- images ---------------------------------------------------------------------------------------------- */

enum { PAUSE_US = 100000 }; /* before it listens again: what has failed at once may do so again */

/* Of one thread at a time: who starts it, then the job of what runs. */
struct QapiImages {
    Migration *migration;
    char *uri;
    guint keep; /* images of each; 0: all */
};

static char *free_dir(const QapiHelper *helper) {
    for (guint i = 1;; i++) {
        g_autofree char *name = g_strdup_printf("incoming-%u", i);
        g_autofree char *dir = g_build_filename(helper->snapshot_dir, name, NULL);
        if (!g_file_test(dir, G_FILE_TEST_EXISTS))
            return g_steal_pointer(&dir);
    }
}

static gboolean start_images(QapiHelper *helper, GError **error);

static void fail_images(QapiHelper *helper, const GError *error) {
    Migration *migration = helper->images->migration;
    g_mutex_lock(&helper->lock);
    g_free(migration->error);
    migration->error = g_strdup(error->message);
    qapi_migration_set_status_locked(helper, NULL, migration, MIGRATION_FAILED);
    g_mutex_unlock(&helper->lock);
}

/* One has ended. What can be listened at is listened at again. */
static void take_next(QapiHelper *helper) {
    g_autoptr(GError) error = NULL;
    if (!g_str_has_prefix(helper->images->uri, "unix:") && !g_str_has_prefix(helper->images->uri, "tcp:"))
        return;
    g_usleep(PAUSE_US);
    if (!start_images(helper, &error) && !g_error_matches(error, SNAP_ERROR, SNAP_ERROR_CANCELLED))
        fail_images(helper, error);
}

static gboolean start_images(QapiHelper *helper, GError **error) {
    QapiImages *images = helper->images;
    MigrationEnd *end = qapi_migration_end_new(helper, &qapi_incoming_ops, NULL, images->migration, TRUE, error);
    if (!end)
        return FALSE;
    g_autofree char *dir = free_dir(helper);
    end->again = take_next;
    SnapIncomingOptions options = {.uri = images->uri, .image_dir = dir, .image_keep = images->keep};
    SnapIncoming *incoming = snap_incoming_start(NULL, &options, qapi_migration_end_on_phase, end, error);
    if (!incoming) {
        qapi_migration_end_drop(end);
        return FALSE;
    }
    g_free(images->uri);
    images->uri = snap_incoming_uri(incoming); /* with the port that it has now */
    qapi_migration_end_begin(end, incoming, NULL);
    return TRUE;
}

/* There is no target whose capabilities could be set. */
gboolean qapi_incoming_into_images(QapiHelper *helper, const char *uri, guint keep, GError **error) {
    g_assert(!helper->images);
    helper->images = g_new0(QapiImages, 1);
    helper->images->migration = qapi_migration_new();
    helper->images->migration->settings.on[MIGRATION_CAPABILITY_EVENTS] = TRUE;
    helper->images->uri = g_strdup(uri);
    helper->images->keep = keep;
    return start_images(helper, error);
}

Migration *qapi_incoming_images(const QapiHelper *helper) {
    return helper->images ? helper->images->migration : NULL;
}

void qapi_incoming_images_free(QapiHelper *helper) {
    if (!helper->images)
        return;
    qapi_migration_free(helper->images->migration);
    g_free(helper->images->uri);
    g_clear_pointer(&helper->images, g_free);
}
