/*
 * Where a migration is: its phases, its end, its figures. See outgoing.h.
 *
 * Failure modes: none; a step that the table does not have is a bug.
 */
#include "outgoing.h"

#include "stats.h"

#define TO(phase) (1u << SNAP_MIGRATION_##phase)
#define ENDS (TO(FAILED) | TO(CANCELLED))

static const unsigned follows[] = {
    [SNAP_MIGRATION_SETUP] = TO(ACTIVE) | ENDS,
    [SNAP_MIGRATION_ACTIVE] = TO(PRE_SWITCHOVER) | TO(DEVICE) | TO(STANDBY) | ENDS,
    [SNAP_MIGRATION_PRE_SWITCHOVER] = TO(DEVICE) | ENDS,
    [SNAP_MIGRATION_DEVICE] = TO(COMPLETED) | TO(POSTCOPY) | TO(UNCONNECTED) | ENDS,
    [SNAP_MIGRATION_POSTCOPY] = TO(COMPLETED) | TO(UNCONNECTED),
    [SNAP_MIGRATION_UNCONNECTED] = TO(RECOVER),
    [SNAP_MIGRATION_RECOVER] = TO(UNCONNECTED) | TO(POSTCOPY) | TO(COMPLETED) | ENDS,
    [SNAP_MIGRATION_STANDBY] = TO(PRE_SWITCHOVER) | TO(DEVICE) | ENDS,
    [SNAP_MIGRATION_COMPLETED] = 0,
    [SNAP_MIGRATION_FAILED] = 0,
    [SNAP_MIGRATION_CANCELLED] = 0,
};
G_STATIC_ASSERT(G_N_ELEMENTS(follows) == SNAP_MIGRATION_MAX);

bool snap_outgoing_is_over(SnapMigrationPhase phase) {
    return follows[phase] == 0;
}

void snap_outgoing_enter_locked(SnapOutgoing *outgoing, SnapMigrationPhase phase) {
    g_assert(follows[outgoing->phase] & (1u << phase));
    if (phase == SNAP_MIGRATION_UNCONNECTED && outgoing->phase != SNAP_MIGRATION_RECOVER) {
        outgoing->since = outgoing->phase;
    }
    outgoing->phase = phase;
    snap_cond_broadcast(&outgoing->changed);
}

void snap_outgoing_tell(SnapOutgoing *outgoing) {
    snap_lock(&outgoing->lock);
    SnapMigrationPhase phase = outgoing->phase;
    outgoing->stats.rounds = outgoing->rounds;
    snap_unlock(&outgoing->lock);
    if (outgoing->func) {
        outgoing->func(phase, outgoing->rounds, outgoing->opaque);
    }
}

void snap_outgoing_enter(SnapOutgoing *outgoing, SnapMigrationPhase phase) {
    snap_lock(&outgoing->lock);
    snap_outgoing_enter_locked(outgoing, phase);
    snap_unlock(&outgoing->lock);
    snap_outgoing_tell(outgoing);
}

/* Who waits is woken last: everything has been let go of by then. */
void snap_outgoing_end(SnapOutgoing *outgoing, SnapMigrationPhase phase, GError *error) {
    if (outgoing->func) {
        outgoing->func(phase, outgoing->rounds, outgoing->opaque);
    }
    snap_lock(&outgoing->lock);
    g_clear_error(&outgoing->error);
    outgoing->error = error;
    outgoing->stats.total_ns = snap_now_ns() - outgoing->start_ns;
    snap_outgoing_enter_locked(outgoing, phase);
    snap_unlock(&outgoing->lock);
}

static gboolean fail_cancelled(GError **error) {
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_CANCELLED, "cancelled; the guest stays here");
    return FALSE;
}

gboolean snap_outgoing_is_cancelled(SnapOutgoing *outgoing, GError **error) {
    return g_atomic_int_get(&outgoing->cancelled) && !fail_cancelled(error);
}

gboolean snap_outgoing_commit(SnapOutgoing *outgoing, GError **error) {
    snap_lock(&outgoing->lock);
    gboolean may = !g_atomic_int_get(&outgoing->cancelled);
    outgoing->committed = may;
    snap_unlock(&outgoing->lock);
    return may || fail_cancelled(error);
}

/* ---- figures --------------------------------------------------------------------------------------------- */

static uint64_t load(const uint64_t *count) {
    return __atomic_load_n(count, __ATOMIC_RELAXED);
}

static void count_rates(SnapOutgoing *outgoing, SnapMigrationStats *stats) SNAP_REQUIRES(outgoing->lock) {
    uint64_t now_ns = snap_now_ns();
    uint64_t pages = stats->pages_normal + stats->pages_zero;
    stats->bytes_per_second = snap_rate_look(&outgoing->byte_rate, now_ns, stats->sent_bytes);
    stats->pages_per_second = snap_rate_look(&outgoing->page_rate, now_ns, pages);
}

void snap_outgoing_get_stats(SnapOutgoing *outgoing, SnapMigrationStats *ret_stats) {
    snap_lock(&outgoing->lock);
    SnapMigrationStats stats = outgoing->stats;
    stats.phase = outgoing->phase;
    stats.since = outgoing->since;
    stats.precopy_bytes = load(&outgoing->part_bytes[SNAP_PART_PRECOPY]);
    stats.downtime_bytes = load(&outgoing->part_bytes[SNAP_PART_DOWNTIME]);
    stats.postcopy_bytes = load(&outgoing->part_bytes[SNAP_PART_POSTCOPY]);
    stats.sent_bytes = stats.precopy_bytes + stats.downtime_bytes + stats.postcopy_bytes;
    stats.multifd_bytes = load(&outgoing->multifd_bytes);
    stats.pages_zero = load(&outgoing->pages_zero);
    stats.pages_normal = load(&outgoing->pages_normal);
    stats.postcopy_requests = load(&outgoing->n_requests);
    if (outgoing->may_read) {
        stats.remaining_bytes = snap_outgoing_remaining(outgoing);
    }
    if (!snap_outgoing_is_over(outgoing->phase)) {
        stats.total_ns = snap_now_ns() - outgoing->start_ns;
        count_rates(outgoing, &stats);
    }
    snap_unlock(&outgoing->lock);
    *ret_stats = stats;
}
