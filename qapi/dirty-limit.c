/*
 * set-vcpu-dirty-limit: how much a guest may write while it is moved or replicated.
 *
 * QEMU has a limit for each processor, at any time; here a guest is throttled as a whole, and only while a
 * migration runs, by whose log it is known what it writes.
 */
#include "migration-end.h"
#include "migration-state.h"
#include "schema-handlers.h"

static gboolean check_limit(const QapiCall *call, QapiTarget *target, GError **error) {
    const SnapMoveOps *ops = snap_guest_move_ops(qapi_target_guest(target));
    if (!ops || !ops->throttle)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED,
                    "target %s has no processors that can be throttled", qapi_target_id(target));
    else if (qapi_has(call, "cpu-index"))
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED,
                    "Parameter 'cpu-index' is not supported here: the limit is the whole guest's");
    else
        return TRUE;
    return FALSE;
}

static void set_dirty_limit(QapiTarget *target, uint64_t mib) {
    QapiHelper *helper = qapi_target_helper(target);
    g_mutex_lock(&helper->lock);
    qapi_target_parts(target)->migration->settings.dirty_limit_mib = MIN(mib, UINT64_MAX >> 20);
    g_mutex_unlock(&helper->lock);
    qapi_migration_apply_limits(target);
}

json_object *qmp_set_vcpu_dirty_limit(QapiCall *call, GError **error) {
    g_autoptr(QapiTarget) target = qapi_call_target(call, error);
    if (target && check_limit(call, target, error))
        set_dirty_limit(target, qapi_uint(call, "dirty-rate", 0));
    return NULL;
}

json_object *qmp_cancel_vcpu_dirty_limit(QapiCall *call, GError **error) {
    g_autoptr(QapiTarget) target = qapi_call_target(call, error);
    if (target)
        set_dirty_limit(target, 0);
    return NULL;
}

json_object *qmp_query_vcpu_dirty_limit(QapiCall *call, GError **error) {
    g_autoptr(QapiTarget) target = NULL;
    Migration *migration = qapi_migration_call(call, &target, error);
    if (!migration)
        return NULL;
    g_mutex_lock(&migration->lock);
    SnapMigrationStats stats = qapi_migration_stats_locked(call->helper, migration);
    g_mutex_unlock(&migration->lock);
    g_mutex_lock(&call->helper->lock);
    uint64_t limit_mib = migration->settings.dirty_limit_mib;
    g_mutex_unlock(&call->helper->lock);
    json_object *list = json_object_new_array();
    if (limit_mib == 0)
        return list;
    json_object *limit = json_object_new_object();
    qapi_json_add(limit, "cpu-index", json_object_new_int64(0));
    qapi_json_add_uint(limit, "limit-rate", limit_mib);
    qapi_json_add_uint(limit, "current-rate", stats.dirty_pages_per_second * stats.page_bytes >> 20);
    json_object_array_add(list, limit);
    return list;
}
