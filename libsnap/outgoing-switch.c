/*
 * Switching over: the guest stops, the rest of it goes, and then it is the other side's. See outgoing.h.
 *
 *     pause          the guest stands; that its memory is laid out as it was announced
 *     collect        what was written since the last round
 *     sweep          send it; in a post-copy: tell of it (MISSING)
 *     state          STATE records; END
 *     READY          the other side has everything, and has loaded the state
 *     commit         from here on it may have the guest
 *     GO, STARTED    it has
 *
 * Failure modes: everything before commit leaves the guest here, and the job lets it run again. After it, an error
 * means that the connection was lost, or as good as: the guest stands here until it is known who has it
 * (outgoing-resume.c).
 *
 * One-way: nobody says READY or STARTED; that the file is complete and has its name is the confirmation, and what
 * fails until then is no more than a failed file.
 */
#include "outgoing.h"

#include "stats.h"

#define LONG_NS UINT64_C(5000000)

/* ---- the guest ------------------------------------------------------------------------------------------- */

gboolean snap_outgoing_get_ready(SnapOutgoing *outgoing, GError **error) {
    const SnapGuest *guest = outgoing->guest;
    outgoing->paused = true;
    return guest->ops->pause(guest->opaque, SNAP_PAUSE_READY, error);
}

gboolean snap_outgoing_stop_guest(SnapOutgoing *outgoing, GError **error) {
    const SnapGuest *guest = outgoing->guest;
    outgoing->stop_ns = snap_now_ns();
    gboolean stopped = guest->ops->pause(guest->opaque, SNAP_PAUSE_STOP, error);
    outgoing->stands = stopped;
    snap_outgoing_throttle(outgoing, 0);
    return stopped;
}

gboolean snap_outgoing_resume_guest(SnapOutgoing *outgoing, uint64_t *ret_pause_ns, GError **error) {
    const SnapGuest *guest = outgoing->guest;
    uint64_t pause_ns = 0;
    if (!outgoing->paused) {
        return TRUE;
    }
    outgoing->paused = outgoing->stands = false;
    gboolean done = guest->ops->resume(guest->opaque, &pause_ns, error);
    if (ret_pause_ns) {
        *ret_pause_ns = pause_ns;
    }
    return done;
}

/* ---- state ----------------------------------------------------------------------------------------------- */

static gboolean send_state(SnapOutgoing *outgoing, const SnapState *state, GError **error) {
    gsize total, sent = 0;
    const uint8_t *data = g_bytes_get_data(state->data, &total);
    g_autofree uint8_t *body = g_malloc(SNAP_WIRE_MAX_BODY_BYTES);
    do {
        SnapWireState part = {.total_bytes = total,
                              .offset_bytes = sent,
                              .name = state->name,
                              .name_bytes = (uint16_t)strlen(state->name),
                              .data = data + sent,
                              .data_bytes = (uint32_t)MIN(total - sent, SNAP_WIRE_STATE_PART_BYTES)};
        if (!snap_outgoing_send(outgoing, SNAP_WIRE_STATE, 0, body, snap_wire_encode_state(&part, body), error)) {
            return FALSE;
        }
        sent += part.data_bytes;
    } while (sent < total);
    return TRUE;
}

static gboolean check_states(const GPtrArray *states, GError **error) {
    uint64_t total = 0;
    bool names = true;
    for (guint i = 0; i < states->len; i++) {
        const SnapState *state = g_ptr_array_index(states, i);
        total += g_bytes_get_size(state->data);
        names = names && *state->name && strlen(state->name) <= SNAP_WIRE_MAX_STATE_NAME &&
                g_utf8_validate(state->name, -1, NULL);
    }
    if (names && states->len <= SNAP_WIRE_MAX_STATES && total <= SNAP_WIRE_MAX_STATE_BYTES) {
        return TRUE;
    }
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_REFUSED,
                "the guest's device state cannot be sent: %u blobs of %" G_GUINT64_FORMAT " bytes in all",
                states->len, (guint64)total);
    return FALSE;
}

GPtrArray *snap_outgoing_get_states(SnapOutgoing *outgoing, GError **error) {
    g_autoptr(GPtrArray) states = g_ptr_array_new_with_free_func((GDestroyNotify)snap_state_free);
    if (!snap_guest_get_state(outgoing->guest, states, error) || !check_states(states, error)) {
        return NULL;
    }
    return g_steal_pointer(&states);
}

gboolean snap_outgoing_send_states(SnapOutgoing *outgoing, const GPtrArray *states, GError **error) {
    for (guint i = 0; i < states->len; i++) {
        if (!send_state(outgoing, g_ptr_array_index(states, i), error)) {
            return FALSE;
        }
    }
    return TRUE;
}

/* ---- before the commit point ----------------------------------------------------------------------------- */

/* The guest stands here, and its owner is asked; meanwhile it may be cancelled. */
static gboolean wait_to_go_on(SnapOutgoing *outgoing, GError **error) {
    bool go_on = false;
    snap_outgoing_enter(outgoing, SNAP_MIGRATION_PRE_SWITCHOVER);
    do {
        if (!snap_outgoing_doze(outgoing, outgoing->options.silence_ms, error)) {
            return FALSE;
        }
        snap_lock(&outgoing->lock);
        go_on = outgoing->wishes.go_on;
        snap_unlock(&outgoing->lock);
    } while (!go_on);
    return TRUE;
}

/* What is left goes, or, in a post-copy, is told of. */
static gboolean send_last_pages(SnapOutgoing *outgoing, bool postcopy, GError **error) {
    if (postcopy) {
        return snap_outgoing_send_missing(outgoing, error);
    }
    if (!snap_outgoing_sweep(outgoing, error)) {
        return FALSE;
    }
    g_assert(snap_outgoing_remaining(outgoing) == 0);
    return TRUE;
}

static gboolean send_all_but_go(SnapOutgoing *outgoing, bool postcopy, uint64_t epoch, GError **error) {
    if (!snap_outgoing_collect(outgoing, true, NULL, error) || !send_last_pages(outgoing, postcopy, error)) {
        return FALSE;
    }
    if (postcopy) {
        snap_outgoing_start_answering(outgoing);
    }
    g_autoptr(GPtrArray) states = snap_outgoing_get_states(outgoing, error);
    return states && snap_outgoing_send_states(outgoing, states, error) &&
           snap_outgoing_send_end(outgoing, postcopy ? SNAP_WIRE_PAGES_MISSING : 0, epoch, states->len, error) &&
           (outgoing->one_way || snap_outgoing_await_ready(outgoing, epoch, error));
}

/* ---- from the commit point on ---------------------------------------------------------------------------- */

void snap_outgoing_handed_over(SnapOutgoing *outgoing) {
    const SnapGuest *guest = outgoing->guest;
    outgoing->paused = false;
    snap_lock(&outgoing->lock);
    outgoing->stats.downtime_ns = snap_now_ns() - outgoing->stop_ns;
    snap_unlock(&outgoing->lock);
    guest->move_ops->hand_over(guest->opaque);
}

/* A side that says FAILED has not started the guest, and will not, whatever it has read: so it is ours again. */
static void take_back(SnapOutgoing *outgoing) {
    snap_lock(&outgoing->lock);
    outgoing->committed = false;
    snap_unlock(&outgoing->lock);
}

gboolean snap_outgoing_let_go(SnapOutgoing *outgoing, GError **error) {
    GError *failure = NULL;
    if (snap_outgoing_send_id(outgoing, SNAP_WIRE_GO, &failure) &&
        snap_outgoing_await_id(outgoing, SNAP_WIRE_STARTED, &failure)) {
        snap_outgoing_handed_over(outgoing);
        return TRUE;
    }
    snap_outgoing_explain(outgoing, &failure);
    if (g_error_matches(failure, SNAP_ERROR, SNAP_ERROR_REFUSED)) {
        take_back(outgoing);
    }
    g_propagate_error(error, failure);
    return FALSE;
}

/* A file has the guest as soon as it has its name, and not before. */
static gboolean keep_file(SnapOutgoing *outgoing, GError **error) {
    if (!snap_outgoing_commit(outgoing, error)) {
        return FALSE;
    }
    if (!snap_transport_keep(outgoing->transport, error)) {
        snap_lock(&outgoing->lock);
        outgoing->committed = false;
        snap_unlock(&outgoing->lock);
        return FALSE;
    }
    snap_outgoing_handed_over(outgoing);
    return TRUE;
}

/* Where getting ready took long, the guest has written meanwhile. Of an epoch every page is sent once only. */
static gboolean get_ready(SnapOutgoing *outgoing, uint64_t epoch, GError **error) {
    uint64_t start_ns = snap_now_ns();
    if (!snap_outgoing_get_ready(outgoing, error)) {
        return FALSE;
    }
    if (snap_now_ns() - start_ns < LONG_NS || epoch > 0 || g_atomic_int_get(&outgoing->want_postcopy)) {
        return TRUE;
    }
    return snap_outgoing_collect(outgoing, false, NULL, error) && snap_outgoing_sweep(outgoing, error);
}

static gboolean stop(SnapOutgoing *outgoing, uint64_t epoch, GError **error) {
    if (!get_ready(outgoing, epoch, error) || !snap_outgoing_stop_guest(outgoing, error) ||
        !snap_outgoing_check_regions(outgoing, error)) {
        return FALSE;
    }
    if (outgoing->options.pause_before_switchover && !wait_to_go_on(outgoing, error)) {
        return FALSE;
    }
    outgoing->device_ns = snap_now_ns();
    snap_outgoing_enter(outgoing, SNAP_MIGRATION_DEVICE);
    g_atomic_int_set(&outgoing->halt, 0); /* nobody sets it for post-copy from here on */
    return TRUE;
}

gboolean snap_outgoing_switch_over(SnapOutgoing *outgoing, uint64_t epoch, GError **error) {
    if (!stop(outgoing, epoch, error)) {
        return FALSE;
    }
    bool postcopy = outgoing->postcopy = g_atomic_int_get(&outgoing->want_postcopy);
    snap_outgoing_set_part(outgoing, SNAP_PART_DOWNTIME);
    if (!send_all_but_go(outgoing, postcopy, epoch, error)) {
        return FALSE;
    }
    if (outgoing->one_way) {
        return keep_file(outgoing, error);
    }
    return snap_outgoing_commit(outgoing, error) && snap_outgoing_let_go(outgoing, error) &&
           (!postcopy || snap_outgoing_send_rest(outgoing, error));
}
