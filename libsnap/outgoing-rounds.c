/*
 * The first copy, and the rounds after it, until it is time to switch over. See outgoing.h and converge.h.
 *
 * Happy path: send what is in the sets; collect what was written meanwhile; ask whether that is little enough;
 * again. Failure modes: it does not converge: FAILED, with the figures and what would help; and those of the
 * parts.
 */
#include "outgoing.h"

#include "stats.h"

void snap_outgoing_throttle(SnapOutgoing *outgoing, unsigned percent) {
    const SnapMoveOps *ops = outgoing->guest->move_ops;
    if (percent == outgoing->throttled_percent || !ops || !ops->throttle) {
        return;
    }
    ops->throttle(outgoing->guest->opaque, percent);
    outgoing->throttled_percent = percent;
    snap_lock(&outgoing->lock);
    outgoing->stats.throttle_percent = percent;
    snap_unlock(&outgoing->lock);
}

static SnapConvergeOptions converge_options(SnapOutgoing *outgoing) {
    const SnapOutgoingOptions *options = &outgoing->options;
    snap_lock(&outgoing->lock);
    SnapMigrationLimits limits = outgoing->limits;
    snap_unlock(&outgoing->lock);
    return (SnapConvergeOptions){.downtime_limit_ns = limits.downtime_limit_ms * 1000000,
                                 .dirty_limit_bytes = limits.dirty_limit_bytes,
                                 .auto_converge = options->auto_converge,
                                 .throttle_initial = options->throttle_initial,
                                 .throttle_increment = options->throttle_increment,
                                 .throttle_max = options->throttle_max,
                                 .max_useless_rounds = options->may_postcopy ? 0 : options->max_useless_rounds};
}

static void write_down(SnapOutgoing *outgoing) {
    const SnapConverge *converge = &outgoing->converge;
    snap_lock(&outgoing->lock);
    SnapMigrationStats *stats = &outgoing->stats;
    stats->dirty_pages_per_second = converge->dirty_bytes_per_second / stats->page_bytes;
    stats->expected_downtime_ns =
        converge->expected_downtime_ns == UINT64_MAX ? 0 : converge->expected_downtime_ns;
    snap_unlock(&outgoing->lock);
}

static gboolean fail_to_converge(const SnapOutgoing *outgoing, GError **error) {
    const SnapConverge *converge = &outgoing->converge;
    const char *throttled = outgoing->throttled_percent ? ", throttled as far as it may be" : "";
    const char *remedy = outgoing->options.auto_converge ? "" : "auto-converge, ";
    g_set_error(
        error, SNAP_ERROR, SNAP_ERROR_FAILED,
        "the migration does not converge: the guest dirties %.1f MB/s%s, the connection takes %.1f MB/s; set "
        "%sa higher downtime-limit, or post-copy",
        (double)converge->dirty_bytes_per_second / 1e6, throttled, (double)converge->bytes_per_second / 1e6,
        remedy);
    return FALSE;
}

static gboolean announce(SnapOutgoing *outgoing, GError **error) {
    uint8_t body[32];
    uint64_t page_bytes = outgoing->stats.page_bytes;
    outgoing->rounds++;
    SnapWireRound round = {.round = outgoing->rounds,
                           .dirty_pages = snap_outgoing_remaining(outgoing) / page_bytes,
                           .pages_per_second = outgoing->converge.dirty_bytes_per_second / page_bytes};
    if (outgoing->rounds > 1) { /* entering ACTIVE told of the first */
        snap_outgoing_tell(outgoing);
    } else {
        snap_lock(&outgoing->lock);
        outgoing->stats.rounds = outgoing->rounds;
        snap_unlock(&outgoing->lock);
    }
    return snap_outgoing_send(outgoing, SNAP_WIRE_ROUND, 0, body, snap_wire_encode_round(&round, body), error);
}

static uint64_t normal_bytes(const SnapOutgoing *outgoing) {
    return __atomic_load_n(&outgoing->normal_bytes, __ATOMIC_RELAXED);
}

/* @ret_since_ns: (in, out) of the collection before this round. */
static gboolean run_round(SnapOutgoing *outgoing, uint64_t *ret_since_ns, SnapConvergeRound *ret_round,
                          GError **error) {
    SnapDirtyStats dirty;
    uint64_t start_ns = snap_now_ns(), before = normal_bytes(outgoing);
    if (!announce(outgoing, error) || !snap_outgoing_sweep(outgoing, error)) {
        return FALSE;
    }
    uint64_t sent_ns = snap_now_ns();
    uint64_t sent_bytes = normal_bytes(outgoing) - before;
    uint64_t rest_bytes = snap_outgoing_remaining(outgoing); /* where the sweep was ended early */
    if (!snap_outgoing_collect(outgoing, false, &dirty, error)) {
        return FALSE;
    }
    uint64_t now_ns = snap_now_ns();
    *ret_round =
        (SnapConvergeRound){.sent_bytes = sent_bytes,
                            .send_ns = sent_ns - start_ns,
                            .dirty_bytes = snap_outgoing_remaining(outgoing) - rest_bytes + outgoing->late_bytes,
                            .round_ns = now_ns - *ret_since_ns,
                            .fixed_ns = dirty.scan_ns};
    *ret_since_ns = now_ns;
    return TRUE;
}

gboolean snap_outgoing_iterate(SnapOutgoing *outgoing, GError **error) {
    uint64_t since_ns = snap_now_ns();
    for (;;) {
        SnapConvergeRound round;
        g_atomic_int_set(&outgoing->halt, 0);
        if (g_atomic_int_get(&outgoing->want_postcopy)) {
            return TRUE;
        }
        if (!run_round(outgoing, &since_ns, &round, error)) {
            return FALSE;
        }
        SnapConvergeOptions options = converge_options(outgoing);
        SnapConvergeVerdict verdict = snap_converge_round(&outgoing->converge, &options, &round);
        write_down(outgoing);
        snap_outgoing_throttle(outgoing, outgoing->converge.throttle_percent);
        if (verdict == SNAP_CONVERGE_FAIL && !outgoing->options.epoch_ms) {
            return fail_to_converge(outgoing, error);
        }
        if (verdict == SNAP_CONVERGE_FAIL) { /* a guest that is replicated stands while it is copied, no longer */
            return TRUE;
        }
        if (verdict == SNAP_CONVERGE_SWITCH || g_atomic_int_get(&outgoing->want_postcopy)) {
            return TRUE;
        }
    }
}
