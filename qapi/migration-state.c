/* What is known of one guest's migrations: see migration-state.h. */
#include "migration-state.h"

static const char *const statuses[] = {
    [MIGRATION_NONE] = "none",
    [MIGRATION_SETUP] = "setup",
    [MIGRATION_CANCELLING] = "cancelling",
    [MIGRATION_CANCELLED] = "cancelled",
    [MIGRATION_ACTIVE] = "active",
    [MIGRATION_POSTCOPY_ACTIVE] = "postcopy-active",
    [MIGRATION_POSTCOPY_PAUSED] = "postcopy-paused",
    [MIGRATION_POSTCOPY_RECOVER] = "postcopy-recover",
    [MIGRATION_COMPLETED] = "completed",
    [MIGRATION_FAILED] = "failed",
    [MIGRATION_COLO] = "colo",
    [MIGRATION_PRE_SWITCHOVER] = "pre-switchover",
    [MIGRATION_DEVICE] = "device",
};
G_STATIC_ASSERT(G_N_ELEMENTS(statuses) == MIGRATION_STATUS_MAX);

const char *qapi_migration_status_name(MigrationStatus status) {
    return statuses[status];
}

Migration *qapi_migration_new(void) {
    Migration *migration = g_new0(Migration, 1);
    qapi_migration_settings_init(&migration->settings);
    g_mutex_init(&migration->lock);
    return migration;
}

void qapi_migration_free(Migration *migration) {
    if (!migration)
        return;
    g_assert(!migration->end);
    snap_incoming_free(migration->arrived);
    g_mutex_clear(&migration->lock);
    g_free(migration->error);
    g_free(migration->uri);
    g_free(migration);
}

void qapi_migration_event_locked(QapiHelper *helper, QapiTarget *target, const char *event, json_object *data) {
    if (target)
        qapi_json_add_string(data, "target", qapi_target_id(target));
    qapi_emit_locked(helper, event, data);
}

void qapi_migration_set_status_locked(QapiHelper *helper, QapiTarget *target, Migration *migration,
                                      MigrationStatus status) {
    migration->status = status;
    if (!migration->settings.on[MIGRATION_CAPABILITY_EVENTS])
        return;
    json_object *data = json_object_new_object();
    qapi_json_add_string(data, "status", statuses[status]);
    qapi_migration_event_locked(helper, target, "MIGRATION", data);
}

void qapi_migration_begin_locked(QapiHelper *helper, QapiTarget *target, Migration *migration, QapiJob *job) {
    migration->job = job;
    migration->incoming = migration->replicates = FALSE;
    migration->stats = (SnapMigrationStats){0};
    g_clear_pointer(&migration->error, g_free);
    g_clear_pointer(&migration->uri, g_free);
    qapi_migration_set_status_locked(helper, target, migration, MIGRATION_SETUP);
}

Migration *qapi_migration_call(QapiCall *call, QapiTarget **ret_target, GError **error) {
    *ret_target = qapi_call_target(call, error);
    return *ret_target ? qapi_target_parts(*ret_target)->migration : NULL;
}

json_object *qapi_migration_ask(QapiCall *call,
                                void (*ask_locked)(QapiCall *call, QapiTarget *target, Migration *migration,
                                                   GError **error),
                                GError **error) {
    g_autoptr(QapiTarget) target = NULL;
    Migration *migration = qapi_migration_call(call, &target, error);
    if (!migration)
        return NULL;
    g_mutex_lock(&migration->lock);
    ask_locked(call, target, migration, error);
    g_mutex_unlock(&migration->lock);
    return NULL;
}

MigrationStatus qapi_migration_status(QapiHelper *helper, const Migration *migration) {
    g_mutex_lock(&helper->lock);
    MigrationStatus status = migration->status;
    g_mutex_unlock(&helper->lock);
    return status;
}

gboolean qapi_migration_check_locked(const Migration *migration, GError **error) {
    if (migration->job)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "There's a migration process in progress");
    return !migration->job;
}
