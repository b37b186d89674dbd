/*
 * Capabilities and parameters of migrations.
 *
 * Happy path: what is set is checked as a whole, and holds from the next migration on; limits hold at once for the
 * one that runs.
 *
 * Failure modes: what has no effect here is refused by name, and what QEMU refuses in its words. All of a command
 * is in force, or nothing.
 */
#include "migration-end.h"
#include "migration-state.h"
#include "schema-handlers.h"

#include <string.h>

/* ---- capabilities ---------------------------------------------------------------------------------------- */

enum { NOT_HERE = -1 };

/* In the order of the schema. */
static const struct {
    const char *name;
    int which; /* MigrationCapability, or NOT_HERE */
} capabilities[] = {
    {"xbzrle", NOT_HERE},
    {"rdma-pin-all", NOT_HERE},
    {"auto-converge", MIGRATION_CAPABILITY_AUTO_CONVERGE},
    {"zero-blocks", NOT_HERE},
    {"compress", NOT_HERE},
    {"events", MIGRATION_CAPABILITY_EVENTS},
    {"postcopy-ram", MIGRATION_CAPABILITY_POSTCOPY_RAM},
    {"x-colo", NOT_HERE},
    {"release-ram", NOT_HERE},
    {"block", NOT_HERE},
    {"return-path", MIGRATION_CAPABILITY_RETURN_PATH},
    {"pause-before-switchover", MIGRATION_CAPABILITY_PAUSE_BEFORE_SWITCHOVER},
    {"multifd", MIGRATION_CAPABILITY_MULTIFD},
    {"dirty-bitmaps", NOT_HERE},
    {"postcopy-blocktime", NOT_HERE},
    {"late-block-activate", NOT_HERE},
    {"x-ignore-shared", NOT_HERE},
    {"validate-uuid", NOT_HERE},
    {"background-snapshot", MIGRATION_CAPABILITY_BACKGROUND_SNAPSHOT},
    {"zero-copy-send", NOT_HERE},
    {"postcopy-preempt", MIGRATION_CAPABILITY_POSTCOPY_PREEMPT},
};

/* In the order in which QEMU looks at them. */
static const char *const not_with_snapshots[] = {
    "postcopy-ram",
    "dirty-bitmaps",
    "postcopy-blocktime",
    "late-block-activate",
    "return-path",
    "multifd",
    "pause-before-switchover",
    "auto-converge",
    "release-ram",
    "rdma-pin-all",
    "compress",
    "xbzrle",
    "x-colo",
    "validate-uuid",
    "zero-copy-send",
};

/* What would be on; also those that are not supported, for QEMU's checks come first. */
typedef struct {
    gboolean on[G_N_ELEMENTS(capabilities)];
} Wanted;

static guint capability_index(const char *name) {
    for (guint i = 0; i < G_N_ELEMENTS(capabilities); i++)
        if (g_str_equal(capabilities[i].name, name))
            return i;
    g_assert_not_reached();
}

static gboolean is_wanted(const Wanted *wanted, const char *name) {
    return wanted->on[capability_index(name)];
}

static Wanted wanted_locked(const Migration *migration, json_object *list) {
    Wanted wanted = {0};
    for (guint i = 0; i < G_N_ELEMENTS(capabilities); i++)
        wanted.on[i] = capabilities[i].which != NOT_HERE && migration->settings.on[capabilities[i].which];
    for (gsize i = 0; i < json_object_array_length(list); i++) {
        json_object *status = json_object_array_get_idx(list, i);
        const char *name = json_object_get_string(json_object_object_get(status, "capability"));
        wanted.on[capability_index(name)] = json_object_get_boolean(json_object_object_get(status, "state"));
    }
    return wanted;
}

static gboolean check_snapshot(const Wanted *wanted, GError **error) {
    if (!is_wanted(wanted, "background-snapshot"))
        return TRUE;
    for (guint i = 0; i < G_N_ELEMENTS(not_with_snapshots); i++) {
        if (is_wanted(wanted, not_with_snapshots[i])) {
            g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "Background-snapshot is not compatible with %s",
                        not_with_snapshots[i]);
            return FALSE;
        }
    }
    return TRUE;
}

static gboolean check_support(const Wanted *wanted, GError **error) {
    for (guint i = 0; i < G_N_ELEMENTS(capabilities); i++) {
        if (wanted->on[i] && capabilities[i].which == NOT_HERE) {
            g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED, "Capability '%s' is not supported here",
                        capabilities[i].name);
            return FALSE;
        }
    }
    return TRUE;
}

static gboolean check_wanted(const Wanted *wanted, GError **error) {
    if (!check_snapshot(wanted, error))
        return FALSE;
    if (is_wanted(wanted, "postcopy-preempt") && !is_wanted(wanted, "postcopy-ram")) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "Postcopy preempt requires postcopy-ram");
        return FALSE;
    }
    return check_support(wanted, error);
}

/* A destination has none of them but events, which may be wanted late: it may listen from the beginning. */
static void set_capabilities_locked(Migration *migration, json_object *list, GError **error) {
    if (!migration->incoming && !qapi_migration_check_locked(migration, error))
        return;
    Wanted wanted = wanted_locked(migration, list);
    if (!check_wanted(&wanted, error))
        return;
    for (guint i = 0; i < G_N_ELEMENTS(capabilities); i++)
        if (capabilities[i].which != NOT_HERE)
            migration->settings.on[capabilities[i].which] = wanted.on[i];
}

json_object *qmp_migrate_set_capabilities(QapiCall *call, GError **error) {
    g_autoptr(QapiTarget) target = NULL;
    Migration *migration = qapi_migration_call(call, &target, error);
    if (!migration)
        return NULL;
    g_mutex_lock(&call->helper->lock);
    set_capabilities_locked(migration, qapi_argument(call, "capabilities"), error);
    g_mutex_unlock(&call->helper->lock);
    return NULL;
}

static json_object *capabilities_to_json_locked(const QapiTargetParts *parts) {
    const MigrationSettings *settings = &parts->migration->settings;
    json_object *list = json_object_new_array();
    for (guint i = 0; i < G_N_ELEMENTS(capabilities); i++) {
        int which = capabilities[i].which;
        json_object *status = json_object_new_object();
        qapi_json_add_bool(status, "state", which != NOT_HERE && settings->on[which]);
        qapi_json_add_string(status, "capability", capabilities[i].name);
        json_object_array_add(list, status);
    }
    return list;
}

json_object *qmp_query_migrate_capabilities(QapiCall *call, GError **error) {
    return qapi_target_query(call, capabilities_to_json_locked, error);
}

/* ---- parameters ------------------------------------------------------------------------------------------ */

/* Each a uint64_t of MigrationSettings. */
typedef struct {
    const char *name;
    gsize offset;
    uint64_t min, max, initial;
    const char *qemus_name; /* in errors */
    const char *expects;    /* (nullable) where anything will do */
} Parameter;

#define FIELD(member) offsetof(MigrationSettings, member)

/* max-cpu-throttle is looked at once more, as QEMU does: it is not below cpu-throttle-initial. */
static const Parameter parameters[] = {
    {"cpu-throttle-initial", FIELD(throttle_initial), 1, 99, 20, "cpu_throttle_initial",
     "an integer in the range of 1 to 99"},
    {"cpu-throttle-increment", FIELD(throttle_increment), 1, 99, 10, "cpu_throttle_increment",
     "an integer in the range of 1 to 99"},
    {"max-bandwidth", FIELD(max_bandwidth_bytes), 0, UINT64_MAX, 0, NULL, NULL},
    {"downtime-limit", FIELD(downtime_limit_ms), 0, 2000 * 1000, 300, "downtime_limit",
     "an integer in the range of 0 to (2000 * 1000) ms"},
    {"multifd-channels", FIELD(channels), 1, 8, 2, "multifd_channels", "a value between 1 and 8"},
    {"max-postcopy-bandwidth", FIELD(max_postcopy_bandwidth_bytes), 0, UINT64_MAX, 0, NULL, NULL},
    {"max-cpu-throttle", FIELD(throttle_max), 0, 99, 99, "max_cpu_throttle",
     "an integer in the range of cpu_throttle_initial to 99"},
    {"multifd-zstd-level", FIELD(zstd_level), 0, 19, 1, "multifd_zstd_level", "a value between 0 and 19"},
};

static const char *const compressions[] = {[SNAP_COMPRESS_NONE] = "none", [SNAP_COMPRESS_ZSTD] = "zstd"};

static uint64_t *parameter_in(MigrationSettings *settings, const Parameter *parameter) {
    return (uint64_t *)(void *)((char *)settings + parameter->offset);
}

void qapi_migration_settings_init(MigrationSettings *ret_settings) {
    *ret_settings = (MigrationSettings){0};
    for (guint i = 0; i < G_N_ELEMENTS(parameters); i++)
        *parameter_in(ret_settings, &parameters[i]) = parameters[i].initial;
}

SnapMigrationLimits qapi_migration_limits(const MigrationSettings *settings) {
    return (SnapMigrationLimits){
        .max_bandwidth_bytes = settings->max_bandwidth_bytes,
        .max_postcopy_bandwidth_bytes = settings->max_postcopy_bandwidth_bytes,
        .downtime_limit_ms = MAX(settings->downtime_limit_ms, 1), /* 0 would be the default */
        .dirty_limit_bytes = settings->dirty_limit_mib << 20,
    };
}

static const Parameter *find_parameter(const char *name) {
    for (guint i = 0; i < G_N_ELEMENTS(parameters); i++)
        if (g_str_equal(parameters[i].name, name))
            return &parameters[i];
    return NULL;
}

static gboolean fail_expects(const Parameter *parameter, GError **error) {
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "Parameter '%s' expects %s", parameter->qemus_name,
                parameter->expects);
    return FALSE;
}

static gboolean set_compression(MigrationSettings *settings, const char *name, GError **error) {
    for (guint i = 0; i < G_N_ELEMENTS(compressions); i++) {
        if (g_str_equal(compressions[i], name)) {
            settings->compress = (SnapCompress)i;
            return TRUE;
        }
    }
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED,
                "multifd-compression '%s' is not supported here: none, zstd", name);
    return FALSE;
}

static gboolean set_one(MigrationSettings *settings, const char *name, json_object *value, GError **error) {
    const Parameter *parameter = find_parameter(name);
    if (g_str_equal(name, "target"))
        return TRUE;
    if (g_str_equal(name, "multifd-compression"))
        return set_compression(settings, json_object_get_string(value), error);
    if (!parameter) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED, "Parameter '%s' is not supported here", name);
        return FALSE;
    }
    uint64_t number = qapi_json_get_uint(value);
    if (number < parameter->min || number > parameter->max)
        return fail_expects(parameter, error);
    *parameter_in(settings, parameter) = number;
    return TRUE;
}

static gboolean set_all(const QapiCall *call, MigrationSettings *settings, GError **error) {
    json_object_object_foreach(call->arguments, name,
                               value) if (!set_one(settings, name, value, error)) return FALSE;
    return settings->throttle_max >= settings->throttle_initial ||
           fail_expects(find_parameter("max-cpu-throttle"), error);
}

json_object *qmp_migrate_set_parameters(QapiCall *call, GError **error) {
    g_autoptr(QapiTarget) target = NULL;
    Migration *migration = qapi_migration_call(call, &target, error);
    if (!migration)
        return NULL;
    g_mutex_lock(&call->helper->lock);
    MigrationSettings settings = migration->settings;
    gboolean ok = set_all(call, &settings, error);
    if (ok)
        migration->settings = settings;
    g_mutex_unlock(&call->helper->lock);
    if (ok)
        qapi_migration_apply_limits(target);
    return NULL;
}

static json_object *parameters_to_json_locked(const QapiTargetParts *parts) {
    MigrationSettings settings = parts->migration->settings;
    json_object *object = json_object_new_object();
    for (guint i = 0; i < G_N_ELEMENTS(parameters); i++)
        qapi_json_add_uint(object, parameters[i].name, *parameter_in(&settings, &parameters[i]));
    qapi_json_add_string(object, "multifd-compression", compressions[settings.compress]);
    return object;
}

json_object *qmp_query_migrate_parameters(QapiCall *call, GError **error) {
    return qapi_target_query(call, parameters_to_json_locked, error);
}
