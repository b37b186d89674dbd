/*
 * query-migrate: what a migration is at, with QEMU's fields.
 *
 * Happy path: figures are asked of what runs, or are those it ended with; which of them are given depends on the
 * status, by a table that is QEMU's.
 */
#include "incoming.h"
#include "migration-end.h"
#include "schema-handlers.h"

#include <string.h>

enum { SHOWS_TIMES = 1, SHOWS_RAM = 2, SHOWS_DOWNTIME = 4, SHOWS_EXPECTED = 8, SHOWS_ERROR = 16 };
#define SHOWS_PROGRESS (SHOWS_TIMES | SHOWS_RAM | SHOWS_EXPECTED)

static const unsigned shown[] = {
    [MIGRATION_ACTIVE] = SHOWS_PROGRESS,
    [MIGRATION_CANCELLING] = SHOWS_PROGRESS,
    [MIGRATION_POSTCOPY_ACTIVE] = SHOWS_PROGRESS,
    [MIGRATION_POSTCOPY_PAUSED] = SHOWS_PROGRESS | SHOWS_ERROR,
    [MIGRATION_POSTCOPY_RECOVER] = SHOWS_PROGRESS,
    [MIGRATION_COMPLETED] = SHOWS_TIMES | SHOWS_RAM | SHOWS_DOWNTIME,
    [MIGRATION_FAILED] = SHOWS_ERROR,
    [MIGRATION_COLO] = SHOWS_PROGRESS,
    [MIGRATION_PRE_SWITCHOVER] = SHOWS_PROGRESS,
    [MIGRATION_DEVICE] = SHOWS_PROGRESS,
};

/* ---- ram ------------------------------------------------------------------------------------------------- */

/* At the end there is no rate but that of all of it. */
static double bytes_per_second(const SnapMigrationStats *stats) {
    double seconds = (double)(stats->total_ns - MIN(stats->setup_ns, stats->total_ns)) / 1e9;
    if (stats->bytes_per_second > 0 || seconds <= 0)
        return (double)stats->bytes_per_second;
    return (double)stats->sent_bytes / seconds;
}

static json_object *ram_to_json(const SnapMigrationStats *stats) {
    const struct {
        const char *name;
        uint64_t value;
    } numbers[] = {
        {"transferred", stats->sent_bytes},
        {"remaining", stats->remaining_bytes},
        {"total", stats->total_bytes},
        {"duplicate", stats->pages_zero},
        {"skipped", 0},
        {"normal", stats->pages_normal},
        {"normal-bytes", stats->pages_normal * stats->page_bytes},
        {"dirty-pages-rate", stats->dirty_pages_per_second},
        {"dirty-sync-count", stats->rounds},
        {"postcopy-requests", stats->postcopy_requests},
        {"page-size", stats->page_bytes},
        {"multifd-bytes", stats->multifd_bytes},
        {"pages-per-second", stats->pages_per_second},
        {"precopy-bytes", stats->precopy_bytes},
        {"downtime-bytes", stats->downtime_bytes},
        {"postcopy-bytes", stats->postcopy_bytes},
        {"dirty-sync-missed-zero-copy", 0},
    };
    json_object *ram = json_object_new_object();
    for (guint i = 0; i < G_N_ELEMENTS(numbers); i++)
        qapi_json_add(ram, numbers[i].name, json_object_new_int64((int64_t)numbers[i].value));
    qapi_json_add_double(ram, "mbps", bytes_per_second(stats) * 8 / 1e6);
    return ram;
}

/* ---- where a destination listens ------------------------------------------------------------------------- */

/* "HOST:PORT", "[HOST]:PORT". */
static void add_inet(json_object *object, const char *address) {
    const char *colon = strrchr(address, ':');
    if (!colon)
        return;
    gsize length = (gsize)(colon - address);
    gboolean bracketed = length >= 2 && address[0] == '[';
    g_autofree char *host = g_strndup(address + bracketed, length - (bracketed ? 2 : 0));
    qapi_json_add_string(object, "host", host);
    qapi_json_add_string(object, "port", colon + 1);
}

static void add_path(json_object *object, const char *address) {
    qapi_json_add_string(object, "path", address);
}

static void add_fd(json_object *object, const char *address) {
    qapi_json_add_string(object, "str", address);
}

/* Other kinds have no address in QEMU. */
static const struct {
    const char *prefix, *type;
    void (*add)(json_object *object, const char *address);
} address_kinds[] = {{"unix:", "unix", add_path}, {"tcp:", "inet", add_inet}, {"fd:", "fd", add_fd}};

static void add_address(json_object *object, const char *uri) {
    for (guint i = 0; uri && i < G_N_ELEMENTS(address_kinds); i++) {
        if (!g_str_has_prefix(uri, address_kinds[i].prefix))
            continue;
        json_object *address = json_object_new_object(), *list = json_object_new_array();
        qapi_json_add_string(address, "type", address_kinds[i].type);
        address_kinds[i].add(address, uri + strlen(address_kinds[i].prefix));
        json_object_array_add(list, address);
        qapi_json_add(object, "socket-address", list);
    }
}

/* ---------------------------------------------------------------------------------------------------------- */

/* What has begun is not over in no time. */
static void add_ms(json_object *object, const char *name, uint64_t ns) {
    qapi_json_add(object, name, json_object_new_int64((int64_t)((ns + 999999) / 1000000)));
}

static void add_replication(json_object *object, const Migration *migration, const SnapMigrationStats *stats) {
    if (!migration->replicates && stats->epoch == 0)
        return;
    qapi_json_add_uint(object, "epoch", stats->epoch);
    add_ms(object, "epoch-pause", stats->epoch_pause_ns);
}

static void add_figures(json_object *object, MigrationStatus status, const Migration *migration,
                        const SnapMigrationStats *stats) {
    unsigned shows = shown[status];
    if (shows & SHOWS_TIMES) {
        add_ms(object, "total-time", stats->total_ns);
        add_ms(object, "setup-time", stats->setup_ns);
        add_replication(object, migration, stats);
    }
    if (shows & SHOWS_EXPECTED && !migration->incoming)
        add_ms(object, "expected-downtime", stats->expected_downtime_ns);
    if (shows & SHOWS_DOWNTIME)
        add_ms(object, "downtime", stats->downtime_ns);
    if (shows & SHOWS_RAM)
        qapi_json_add(object, "ram", ram_to_json(stats));
    if (shows & SHOWS_RAM && stats->throttle_percent > 0)
        qapi_json_add(object, "cpu-throttle-percentage", json_object_new_int64(stats->throttle_percent));
    if (shows & SHOWS_ERROR)
        qapi_json_add_string(object, "error-desc", migration->error);
}

/* The figures are asked of it after its status: newer than that they may be, but not older, when there was less of
 * them. */
static json_object *to_json(QapiHelper *helper, Migration *migration) {
    json_object *object = json_object_new_object();
    g_mutex_lock(&migration->lock);
    SnapIncoming *incoming = migration->end ? qapi_migration_incoming_locked(migration) : migration->arrived;
    if (incoming)
        qapi_incoming_tell_uri(helper, migration, incoming); /* the port may be known only now */
    MigrationStatus status = qapi_migration_status(helper, migration);
    SnapMigrationStats stats = qapi_migration_stats_locked(helper, migration);
    g_mutex_lock(&helper->lock);
    if (status != MIGRATION_NONE) {
        qapi_json_add_string(object, "status", qapi_migration_status_name(status));
        add_figures(object, status, migration, &stats);
        if (migration->incoming) /* what has arrived may have gone on since, and still listens */
            add_address(object, migration->uri);
    }
    g_mutex_unlock(&helper->lock);
    g_mutex_unlock(&migration->lock);
    return object;
}

static gboolean has_targets(QapiHelper *helper) {
    g_mutex_lock(&helper->lock);
    gboolean any = helper->targets->len > 0;
    g_mutex_unlock(&helper->lock);
    return any;
}

json_object *qmp_query_migrate(QapiCall *call, GError **error) {
    Migration *images = qapi_incoming_images(call->helper);
    if (images && !qapi_has(call, "target") && !has_targets(call->helper))
        return to_json(call->helper, images);
    g_autoptr(QapiTarget) target = NULL;
    Migration *migration = qapi_migration_call(call, &target, error);
    return migration ? to_json(call->helper, migration) : NULL;
}
