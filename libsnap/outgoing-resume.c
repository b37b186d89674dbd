/*
 * Connecting again, where the connection was lost when the other side may have had the guest. See outgoing.h.
 *
 * Happy path: the owner names where to connect; the other side says where it is. It waits for GO: it gets it once
 * more. It has started: STARTED follows. A post-copy: what it says is missing is what is sent.
 *
 * Failure modes: every one leads back to UNCONNECTED, and only the owner ends it: by free(), or by taking the
 * guest back. Where the other side answers GO with FAILED, it is ours again too. The migration has failed then.
 */
#include "outgoing.h"

/* ---- what is missing ------------------------------------------------------------------------------------- */

static gboolean fail_missing(const char *wrong, GError **error) {
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_PROTOCOL, "MISSING: %s", wrong);
    return FALSE;
}

static gboolean add_missing(SnapOutgoing *outgoing, const SnapWireMissing *missing, const uint64_t *masks,
                            GError **error) {
    if (missing->region >= outgoing->sources->len) {
        return fail_missing("there is no such region", error);
    }
    SnapSource *source = snap_outgoing_source(outgoing, missing->region);
    uint64_t n_chunks = source->area->n_chunks;
    if (missing->first_chunk > n_chunks || missing->n_masks > n_chunks - missing->first_chunk) {
        return fail_missing("there are no such chunks", error);
    }
    for (uint32_t i = 0; i < missing->n_masks; i++) {
        uint64_t chunk = missing->first_chunk + i;
        if (masks[i] & ~snap_area_chunk_mask(source->area, chunk)) {
            return fail_missing("there are no such pages", error);
        }
        snap_pageset_add(&source->pages, chunk, masks[i]);
    }
    return TRUE;
}

/* It is the truth: what was on its way is lost. */
static gboolean hear_missing(SnapOutgoing *outgoing, uint64_t n, GError **error) {
    g_autofree uint64_t *masks = g_new(uint64_t, SNAP_WIRE_MAX_MASKS);
    for (guint i = 0; i < outgoing->sources->len; i++) {
        snap_pageset_empty(&snap_outgoing_source(outgoing, i)->pages);
    }
    for (uint64_t i = 0; i < n; i++) {
        SnapWireHead head;
        SnapWireMissing missing;
        if (!snap_outgoing_await(outgoing, SNAP_WIRE_MISSING, &head, error)) {
            return FALSE;
        }
        const char *wrong = snap_wire_decode_missing(&head, outgoing->body, &missing, masks);
        if (wrong ? !fail_missing(wrong, error) : !add_missing(outgoing, &missing, masks, error)) {
            return FALSE;
        }
    }
    return TRUE;
}

/* ---- going on -------------------------------------------------------------------------------------------- */

/* GO was under way, or may have been; or it had started long ago, and says so again. */
static gboolean hand_over(SnapOutgoing *outgoing, const SnapWireWelcome *welcome, GError **error) {
    if (welcome->at == SNAP_WIRE_AT_READY) {
        return snap_outgoing_let_go(outgoing, error);
    }
    if (!snap_outgoing_await_id(outgoing, SNAP_WIRE_STARTED, error)) {
        return FALSE;
    }
    if (outgoing->since != SNAP_MIGRATION_POSTCOPY) {
        snap_outgoing_handed_over(outgoing);
    }
    return TRUE;
}

/* What is missing comes before the other side looks at further channels. Where it has not started, it has not got
 * any of what it lacked, and the sets say what that is. */
static gboolean try(SnapOutgoing *outgoing, GError **error) {
    SnapWireWelcome welcome;
    g_atomic_int_set(&outgoing->halt, 0);
    snap_pace_stop(&outgoing->pace, false);
    if (!snap_outgoing_connect(outgoing, true, &welcome, error)) {
        return FALSE;
    }
    bool started = welcome.at == SNAP_WIRE_AT_STARTED;
    if (outgoing->since == SNAP_MIGRATION_POSTCOPY && !started) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_PROTOCOL,
                    "WELCOME: the other side has forgotten that it started");
        return FALSE;
    }
    if (outgoing->postcopy) {
        if ((started && !hear_missing(outgoing, welcome.n_missing, error)) ||
            !snap_outgoing_connect_urgent(outgoing, true, error)) {
            return FALSE;
        }
        snap_outgoing_start_answering(outgoing);
    }
    return hand_over(outgoing, &welcome, error) &&
           (!outgoing->postcopy || snap_outgoing_send_rest(outgoing, error));
}

/* ---- without a connection -------------------------------------------------------------------------------- */

static void lose(SnapOutgoing *outgoing, GError *error) {
    snap_outgoing_explain(outgoing, &error);
    snap_outgoing_stop_answering(outgoing);
    snap_outgoing_stop_lanes(outgoing);
    snap_outgoing_disconnect(outgoing);
    snap_lock(&outgoing->lock);
    g_clear_error(&outgoing->error);
    outgoing->error = error;
    if (outgoing->wishes.cut) {
        outgoing->wishes.cut = false;
        g_clear_error(&outgoing->error);
        g_set_error(&outgoing->error, SNAP_ERROR, SNAP_ERROR_IO, "the connection was cut, as was asked for");
    }
    snap_outgoing_enter_locked(outgoing, SNAP_MIGRATION_UNCONNECTED);
    snap_unlock(&outgoing->lock);
    snap_outgoing_tell(outgoing);
}

/* FALSE: there will be none. It was let go of; or taken back (*error), and is not committed any more. */
static bool wait_for_transport(SnapOutgoing *outgoing, GError **error) {
    const SnapWishes *wishes = &outgoing->wishes;
    snap_lock(&outgoing->lock);
    while (!wishes->transport && !wishes->ended && !wishes->reclaim) {
        snap_cond_wait(&outgoing->changed, &outgoing->lock);
    }
    bool connect = !wishes->ended && !wishes->reclaim;
    if (connect) {
        outgoing->transport = g_steal_pointer(&outgoing->wishes.transport);
    } else if (!wishes->ended) {
        outgoing->committed = false;
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "taken back by its owner, after: %s",
                    outgoing->error->message);
    }
    snap_unlock(&outgoing->lock);
    return connect;
}

static bool was_let_go(SnapOutgoing *outgoing) {
    snap_lock(&outgoing->lock);
    bool ended = outgoing->wishes.ended;
    snap_unlock(&outgoing->lock);
    return ended;
}

gboolean snap_outgoing_recover(SnapOutgoing *outgoing, GError **error) {
    bool done = false;
    while (!done && outgoing->committed) {
        if (was_let_go(outgoing)) {
            return FALSE;
        }
        lose(outgoing, g_steal_pointer(error));
        if (!wait_for_transport(outgoing, error)) {
            return FALSE;
        }
        snap_outgoing_tell(outgoing);
        done = try(outgoing, error);
    }
    return done;
}
