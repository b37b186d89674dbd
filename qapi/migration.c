/* Migration: see migration.h. */
#include "migration.h"

#include "call.h"
#include "jobs.h"
#include "migration-uri.h"
#include "qemu/qemu.h"
#include "schema-handlers.h"
#include "scratch-image.h"

#include <string.h>
#include <unistd.h>

typedef enum {
    MIGRATION_NONE,
    MIGRATION_SETUP,
    MIGRATION_CANCELLING,
    MIGRATION_CANCELLED,
    MIGRATION_ACTIVE,
    MIGRATION_COMPLETED,
    MIGRATION_FAILED,
} MigrationStatus;

static const char *const statuses[] = {"none",   "setup",     "cancelling", "cancelled",
                                       "active", "completed", "failed"};

enum { DOWNTIME_LIMIT_MAX_MS = 2000 * 1000, DOWNTIME_LIMIT_DEFAULT_MS = 300 };

static const char *const capabilities[] = {
    "xbzrle",           "rdma-pin-all",  "auto-converge",       "zero-blocks",
    "compress",         "events",        "postcopy-ram",        "x-colo",
    "release-ram",      "block",         "return-path",         "pause-before-switchover",
    "multifd",          "dirty-bitmaps", "postcopy-blocktime",  "late-block-activate",
    "x-ignore-shared",  "validate-uuid", "background-snapshot", "zero-copy-send",
    "postcopy-preempt",
};

/* All under the helper's lock. */
struct Migration {
    gboolean events;              /* capability */
    gboolean background_snapshot; /* capability */
    uint64_t max_bandwidth;       /* bytes a second; 0: no limit */
    uint64_t downtime_limit_ms;

    MigrationStatus status;
    QapiJob *job; /* (nullable) while it runs */
    gint64 start_us;
    gint64 active_us;
    gint64 end_us;
    uint64_t total_bytes; /* of memory */
    uint64_t done_bytes;
    uint64_t sent_bytes;
    uint64_t data_bytes; /* of memory, not zero; 0 while that is not known */
    uint64_t pause_ns;
    char *error; /* (nullable) */
};

Migration *qapi_migration_new(void) {
    Migration *migration = g_new0(Migration, 1);
    migration->downtime_limit_ms = DOWNTIME_LIMIT_DEFAULT_MS;
    return migration;
}

void qapi_migration_free(Migration *migration) {
    g_free(migration->error);
    g_free(migration);
}

static gboolean runs(const Migration *migration) {
    return migration->job != NULL;
}

static void set_status_locked(QapiTarget *target, Migration *migration, MigrationStatus status) {
    migration->status = status;
    if (!migration->events)
        return;
    json_object *data = json_object_new_object();
    qapi_json_add_string(data, "status", statuses[status]);
    qapi_json_add_string(data, "target", qapi_target_id(target));
    qapi_emit_locked(qapi_target_helper(target), "MIGRATION", data);
}

/* ---- the job --------------------------------------------------------------------------------------------- */

typedef struct {
    QapiTarget *target;
    QapiJob *job;
    QapiStreamOutput *output;
} MigrationJob;

static gboolean on_progress(uint64_t done_bytes, uint64_t total_bytes, void *opaque) {
    MigrationJob *task = opaque;
    QapiHelper *helper = qapi_target_helper(task->target);
    Migration *migration = qapi_target_parts(task->target)->migration;
    g_mutex_lock(&helper->lock);
    migration->done_bytes = done_bytes;
    migration->total_bytes = total_bytes;
    migration->sent_bytes = *qapi_stream_output_sent_bytes(task->output);
    g_mutex_unlock(&helper->lock);
    return qapi_job_go_on(task->job, done_bytes, total_bytes);
}

/* Return: the limit that holds for it. */
static uint64_t begin_active(MigrationJob *task) {
    QapiHelper *helper = qapi_target_helper(task->target);
    Migration *migration = qapi_target_parts(task->target)->migration;
    g_mutex_lock(&helper->lock);
    migration->active_us = g_get_monotonic_time();
    if (migration->status == MIGRATION_SETUP)
        set_status_locked(task->target, migration, MIGRATION_ACTIVE);
    uint64_t max_bandwidth = migration->max_bandwidth;
    g_mutex_unlock(&helper->lock);
    return max_bandwidth;
}

static gboolean send_snapshot(MigrationJob *task, GError **error) {
    QapiHelper *helper = qapi_target_helper(task->target);
    Migration *migration = qapi_target_parts(task->target)->migration;
    uint64_t max_bandwidth = begin_active(task);
    g_autoptr(QapiScratchImage) scratch =
        qapi_scratch_image_take(task->target, max_bandwidth, on_progress, task, error);
    if (!scratch)
        return FALSE;
    g_mutex_lock(&helper->lock);
    migration->pause_ns = scratch->pause_ns;
    migration->total_bytes = scratch->length_bytes;
    migration->data_bytes = scratch->data_bytes;
    g_mutex_unlock(&helper->lock);
    return qemu_export_stream(scratch->image, qapi_stream_output_fd(task->output),
                              qapi_stream_output_sent_bytes(task->output), on_progress, task, error) &&
           qapi_stream_output_end(task->output, scratch->length_bytes, on_progress, task, error) &&
           qapi_job_commit(task->job, error) && qapi_stream_output_keep(task->output, error);
}

/* Who reads the event may begin the next one at once. */
static void end(MigrationJob *task, uint64_t sent_bytes, const GError *failure) {
    QapiHelper *helper = qapi_target_helper(task->target);
    Migration *migration = qapi_target_parts(task->target)->migration;
    g_mutex_lock(&helper->lock);
    migration->job = NULL;
    migration->end_us = g_get_monotonic_time();
    migration->sent_bytes = sent_bytes;
    qapi_job_release_locked(task->job);
    if (!failure)
        migration->done_bytes = migration->total_bytes;
    else if (migration->status != MIGRATION_CANCELLING)
        migration->error = g_strdup(failure->message);
    set_status_locked(task->target, migration,
                      !failure                                    ? MIGRATION_COMPLETED
                      : migration->status == MIGRATION_CANCELLING ? MIGRATION_CANCELLED
                                                                  : MIGRATION_FAILED);
    g_mutex_unlock(&helper->lock);
}

static json_object *run(QapiJob *job, void *opaque, GError **error) {
    MigrationJob *task = opaque;
    GError *failure = NULL;
    task->job = job;
    send_snapshot(task, &failure);
    uint64_t sent_bytes = *qapi_stream_output_sent_bytes(task->output);
    qapi_stream_output_free(task->output);
    end(task, sent_bytes, failure);
    qapi_target_unref(task->target);
    if (!failure)
        return json_object_new_object();
    g_propagate_error(error, failure);
    return NULL;
}

static const QapiJobKind kind = {.run = run, .free = g_free};

/* ---- migrate --------------------------------------------------------------------------------------------- */

static gboolean is_uri(const char *uri) {
    static const char *const known[] = {"exec:", "fd:", "file:", "tcp:", "unix:", "vsock:", "rdma:"};
    gboolean ok = FALSE;
    for (guint i = 0; i < G_N_ELEMENTS(known); i++)
        ok = ok || g_str_has_prefix(uri, known[i]);
    return ok;
}

static gboolean check_locked(const Migration *migration, const QapiTarget *target, const char *uri,
                             GError **error) {
    if (runs(migration))
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "There's a migration process in progress");
    else if (!is_uri(uri))
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "Parameter 'uri' expects a valid migration protocol");
    else if (!migration->background_snapshot)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED,
                    "set the capability background-snapshot first: other migration is not supported here");
    else if (!g_str_equal(qapi_target_driver(target), "qemu"))
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED,
                    "target %s is no QEMU, and has no migration stream; snapshot-save saves it",
                    qapi_target_id(target));
    else
        return TRUE;
    return FALSE;
}

static gboolean check(QapiCall *call, QapiTarget *target, GError **error) {
    static const char *const refused[] = {"blk", "inc"};
    if (qapi_bool(call, "resume", FALSE)) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "Cannot resume if there is no paused migration");
        return FALSE;
    }
    for (guint i = 0; i < G_N_ELEMENTS(refused); i++) {
        if (qapi_bool(call, refused[i], FALSE)) {
            g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED, "'%s' is not supported here", refused[i]);
            return FALSE;
        }
    }
    g_mutex_lock(&call->helper->lock);
    gboolean ok = check_locked(qapi_target_parts(target)->migration, target, qapi_string(call, "uri"), error);
    g_mutex_unlock(&call->helper->lock);
    return ok;
}

/* Another client may have been quicker. */
static gboolean begin_setup(QapiTarget *target, QapiJob *job, const char *uri, GError **error) {
    QapiHelper *helper = qapi_target_helper(target);
    Migration *migration = qapi_target_parts(target)->migration;
    g_mutex_lock(&helper->lock);
    gboolean ok = check_locked(migration, target, uri, error);
    if (ok) {
        migration->job = job;
        migration->start_us = g_get_monotonic_time();
        migration->active_us = migration->end_us = 0;
        migration->total_bytes = migration->done_bytes = migration->sent_bytes = 0;
        migration->data_bytes = migration->pause_ns = 0;
        g_clear_pointer(&migration->error, g_free);
        set_status_locked(target, migration, MIGRATION_SETUP);
    }
    g_mutex_unlock(&helper->lock);
    return ok;
}

json_object *qmp_migrate(QapiCall *call, GError **error) {
    g_autoptr(QapiTarget) target = qapi_call_target(call, error);
    if (!target || !check(call, target, error))
        return NULL;
    QapiStreamOutput *output = qapi_stream_output_open(call, qapi_string(call, "uri"), error);
    QapiJob *job = output ? qapi_job_new(call->helper, &kind, NULL, target, NULL, error) : NULL;
    if (!job || !begin_setup(target, job, qapi_string(call, "uri"), error)) {
        if (job)
            qapi_job_drop(job);
        qapi_stream_output_free(output);
        return NULL;
    }
    MigrationJob *task = g_new(MigrationJob, 1);
    *task = (MigrationJob){.target = qapi_target_ref(target), .output = output};
    qapi_job_begin(job, task);
    return NULL;
}

json_object *qmp_migrate_cancel(QapiCall *call, GError **error) {
    g_autoptr(QapiTarget) target = qapi_call_target(call, error);
    if (!target)
        return NULL;
    Migration *migration = qapi_target_parts(target)->migration;
    g_mutex_lock(&call->helper->lock);
    if (runs(migration) && migration->status != MIGRATION_CANCELLING && qapi_job_cancel_locked(migration->job))
        set_status_locked(target, migration, MIGRATION_CANCELLING);
    g_mutex_unlock(&call->helper->lock);
    return NULL;
}

/* ---- query-migrate --------------------------------------------------------------------------------------- */

static json_object *ram_to_json_locked(const Migration *migration) {
    uint64_t page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
    gint64 end_us = migration->end_us ? migration->end_us : g_get_monotonic_time();
    double seconds = (double)MAX(end_us - migration->start_us, 1) / 1e6;
    /* Pages of zeros are nine bytes each in the stream: what was sent tells how many were not, until all is known.
     */
    gboolean complete = migration->status == MIGRATION_COMPLETED;
    uint64_t sent = MIN(migration->sent_bytes, migration->done_bytes);
    uint64_t normal = (complete ? migration->data_bytes : MIN(sent, migration->data_bytes)) / page_bytes;
    const struct {
        const char *name;
        uint64_t value;
    } numbers[] = {
        {"transferred", migration->sent_bytes},
        {"remaining", migration->total_bytes - migration->done_bytes},
        {"total", migration->total_bytes},
        {"duplicate", migration->done_bytes / page_bytes - normal},
        {"skipped", 0},
        {"normal", normal},
        {"normal-bytes", normal * page_bytes},
        {"dirty-pages-rate", 0},
        {"dirty-sync-count", 0},
        {"postcopy-requests", 0},
        {"page-size", page_bytes},
        {"multifd-bytes", 0},
        {"pages-per-second", (uint64_t)((double)migration->done_bytes / (double)page_bytes / seconds)},
        {"precopy-bytes", migration->sent_bytes},
        {"downtime-bytes", 0},
        {"postcopy-bytes", 0},
        {"dirty-sync-missed-zero-copy", 0},
    };
    json_object *ram = json_object_new_object();
    for (guint i = 0; i < G_N_ELEMENTS(numbers); i++)
        qapi_json_add(ram, numbers[i].name, json_object_new_int64((int64_t)numbers[i].value));
    qapi_json_add_double(ram, "mbps", (double)migration->sent_bytes * 8 / 1e6 / seconds);
    return ram;
}

static void add_ms(json_object *object, const char *name, gint64 us) {
    qapi_json_add(object, name, json_object_new_int64(us / 1000));
}

static json_object *migration_to_json_locked(const QapiTargetParts *parts) {
    const Migration *migration = parts->migration;
    json_object *object = json_object_new_object();
    if (migration->status == MIGRATION_NONE)
        return object;
    qapi_json_add_string(object, "status", statuses[migration->status]);
    qapi_json_add_string(object, "error-desc", migration->error);
    if (migration->status == MIGRATION_ACTIVE || migration->status == MIGRATION_COMPLETED) {
        gint64 end_us = migration->end_us ? migration->end_us : g_get_monotonic_time();
        add_ms(object, "total-time", end_us - migration->start_us);
        add_ms(object, "setup-time", migration->active_us - migration->start_us);
        qapi_json_add(object, "ram", ram_to_json_locked(migration));
    }
    if (migration->status == MIGRATION_ACTIVE)
        add_ms(object, "expected-downtime", (gint64)migration->downtime_limit_ms * 1000);
    if (migration->status == MIGRATION_COMPLETED)
        add_ms(object, "downtime", (gint64)((migration->pause_ns + 999999) / 1000000 * 1000));
    return object;
}

json_object *qmp_query_migrate(QapiCall *call, GError **error) {
    return qapi_target_query(call, migration_to_json_locked, error);
}

/* ---- capabilities and parameters ------------------------------------------------------------------------- */

static const char *member_string(json_object *object, const char *name) {
    json_object *value = NULL;
    return json_object_object_get_ex(object, name, &value) ? json_object_get_string(value) : NULL;
}

static gboolean is_on(json_object *status) {
    json_object *value = NULL;
    return json_object_object_get_ex(status, "state", &value) && json_object_get_boolean(value);
}

/* All or nothing: @ret_after: what it would be. */
static gboolean apply_locked(const Migration *migration, json_object *list, Migration *ret_after, GError **error) {
    *ret_after = *migration;
    const char *other = NULL;
    for (gsize i = 0; i < json_object_array_length(list); i++) {
        json_object *status = json_object_array_get_idx(list, i);
        const char *name = member_string(status, "capability");
        if (g_str_equal(name, "events"))
            ret_after->events = is_on(status);
        else if (g_str_equal(name, "background-snapshot"))
            ret_after->background_snapshot = is_on(status);
        else if (is_on(status))
            other = other ? other : name;
    }
    if (runs(migration))
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "There's a migration process in progress");
    else if (other && ret_after->background_snapshot)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "Background-snapshot is not compatible with %s", other);
    else if (other)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED, "Capability '%s' is not supported here", other);
    else
        return TRUE;
    return FALSE;
}

json_object *qmp_migrate_set_capabilities(QapiCall *call, GError **error) {
    g_autoptr(QapiTarget) target = qapi_call_target(call, error);
    if (!target)
        return NULL;
    Migration *migration = qapi_target_parts(target)->migration, after;
    g_mutex_lock(&call->helper->lock);
    if (apply_locked(migration, qapi_argument(call, "capabilities"), &after, error))
        *migration = after;
    g_mutex_unlock(&call->helper->lock);
    return NULL;
}

static json_object *capabilities_to_json_locked(const QapiTargetParts *parts) {
    const Migration *migration = parts->migration;
    json_object *list = json_object_new_array();
    for (guint i = 0; i < G_N_ELEMENTS(capabilities); i++) {
        const char *name = capabilities[i];
        json_object *status = json_object_new_object();
        qapi_json_add_bool(status, "state",
                           (migration->events && g_str_equal(name, "events")) ||
                               (migration->background_snapshot && g_str_equal(name, "background-snapshot")));
        qapi_json_add_string(status, "capability", name);
        json_object_array_add(list, status);
    }
    return list;
}

json_object *qmp_query_migrate_capabilities(QapiCall *call, GError **error) {
    return qapi_target_query(call, capabilities_to_json_locked, error);
}

/* What is not supported is refused by name. */
static gboolean check_parameters(QapiCall *call, GError **error) {
    static const char *const known[] = {"max-bandwidth", "downtime-limit", "target", NULL};
    json_object_object_foreach(call->arguments, name, value) {
        (void)value;
        if (!g_strv_contains(known, name)) {
            g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED, "Parameter '%s' is not supported here", name);
            return FALSE;
        }
    }
    if (qapi_uint(call, "downtime-limit", 0) > DOWNTIME_LIMIT_MAX_MS) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED,
                    "Parameter 'downtime_limit' expects an integer in the range of 0 to (2000 * 1000) ms");
        return FALSE;
    }
    return TRUE;
}

json_object *qmp_migrate_set_parameters(QapiCall *call, GError **error) {
    g_autoptr(QapiTarget) target = check_parameters(call, error) ? qapi_call_target(call, error) : NULL;
    if (!target)
        return NULL;
    Migration *migration = qapi_target_parts(target)->migration;
    g_mutex_lock(&call->helper->lock);
    migration->max_bandwidth = qapi_uint(call, "max-bandwidth", migration->max_bandwidth);
    migration->downtime_limit_ms = qapi_uint(call, "downtime-limit", migration->downtime_limit_ms);
    g_mutex_unlock(&call->helper->lock);
    return NULL;
}

static json_object *parameters_to_json_locked(const QapiTargetParts *parts) {
    json_object *object = json_object_new_object();
    qapi_json_add_uint(object, "max-bandwidth", parts->migration->max_bandwidth);
    qapi_json_add_uint(object, "downtime-limit", parts->migration->downtime_limit_ms);
    return object;
}

json_object *qmp_query_migrate_parameters(QapiCall *call, GError **error) {
    return qapi_target_query(call, parameters_to_json_locked, error);
}
