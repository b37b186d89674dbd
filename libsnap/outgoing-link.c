/*
 * The connections of a source: opened, closed, listened to. See outgoing.h.
 *
 * Happy path: after the greeting (outgoing-greet.c) everything the destination says comes on the main channel (and
 * REQUESTs on the urgent one): the job's thread hears it between two pieces of work.
 *
 * Failure modes: the other side says FAILED (REFUSED, in its words); nothing of it is heard for silence_ms
 * (TIMED_OUT); the connection is closed (IO); it says what is not to be said (PROTOCOL). Where sending fails, what
 * it said last is looked at: mostly that is why.
 *
 * Invariant: a channel is in outgoing->channels as long as others may stop it.
 */
#include "outgoing.h"

#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>

enum {
    LOOK_US = 2000,      /* between two looks at what has come */
    LAST_WORDS_MS = 100, /* of a side that closed the connection */
    LIMITS_MAX = 4,      /* so many times the downtime limit may a guest stand, and the time of silence */
};

/* ---- open and close -------------------------------------------------------------------------------------- */

/* Let others stop it; if they have wanted to already, it is done now. */
static void publish(SnapOutgoing *outgoing, SnapLane *lane) {
    snap_lock(&outgoing->lock);
    lane->open = true;
    g_ptr_array_add(outgoing->channels, &lane->channel);
    if (g_atomic_int_get(&outgoing->cancelled) || outgoing->wishes.ended) {
        snap_channel_stop(&lane->channel);
    }
    snap_unlock(&outgoing->lock);
}

static void close_lane(SnapOutgoing *outgoing, SnapLane *lane) {
    if (lane->open) {
        snap_lock(&outgoing->lock);
        lane->open = false;
        g_ptr_array_remove(outgoing->channels, &lane->channel);
        snap_unlock(&outgoing->lock);
        snap_channel_clear(&lane->channel);
    }
}

void snap_outgoing_disconnect(SnapOutgoing *outgoing) {
    snap_outgoing_stop_alive(outgoing);
    close_lane(outgoing, &outgoing->urgent);
    for (guint i = outgoing->n_lanes; i-- > 0;) {
        close_lane(outgoing, &outgoing->lanes[i]);
        snap_lane_clear(&outgoing->lanes[i]);
    }
    snap_lane_clear(&outgoing->urgent);
    outgoing->n_lanes = 0;
    snap_lock(&outgoing->lock);
    SnapTransport *transport = g_steal_pointer(&outgoing->transport);
    snap_unlock(&outgoing->lock);
    snap_transport_free(transport);
}

void snap_outgoing_stop_locked(SnapOutgoing *outgoing) {
    for (guint i = 0; i < outgoing->channels->len; i++) {
        snap_channel_stop(g_ptr_array_index(outgoing->channels, i));
    }
    if (outgoing->transport) {
        snap_transport_stop(outgoing->transport);
    }
}

gboolean snap_outgoing_open_lane(SnapOutgoing *outgoing, SnapLane *lane, uint32_t number, GError **error) {
    int in, out;
    int timeout_ms = (int)MIN(outgoing->options.silence_ms, G_MAXINT);
    snap_lane_init(lane, outgoing, number);
    if (!snap_transport_connect(outgoing->transport, timeout_ms, &in, &out, error) ||
        !snap_channel_init(&lane->channel, SNAP_WIRE_FROM_SOURCE, in, out, outgoing->options.silence_ms, error)) {
        return FALSE;
    }
    publish(outgoing, lane);
    return TRUE;
}

/* ---- sending on main ------------------------------------------------------------------------------------- */

gboolean snap_outgoing_send(SnapOutgoing *outgoing, SnapWireType type, uint16_t flags, const void *body,
                            uint32_t body_bytes, GError **error) {
    return snap_lane_transmit(&outgoing->lanes[0], type, flags, body, body_bytes, NULL, error);
}

gboolean snap_outgoing_send_id(SnapOutgoing *outgoing, SnapWireType type, GError **error) {
    uint8_t body[16];
    return snap_outgoing_send(outgoing, type, 0, body, snap_wire_encode_id(&outgoing->id, body), error);
}

/* ---- hearing --------------------------------------------------------------------------------------------- */

static gboolean fail_protocol(const SnapWireHead *head, GError **error) {
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_PROTOCOL,
                "record %" G_GUINT64_FORMAT " (%s): it is not to be sent at this point", head->number,
                snap_wire_name(head->type));
    return FALSE;
}

/* One record: ALIVE; or @type, which is told. */
static gboolean hear(SnapOutgoing *outgoing, SnapWireType type, SnapWireHead *ret_head, bool *ret_got,
                     GError **error) {
    SnapWireHead head;
    if (!snap_channel_receive(&outgoing->lanes[0].channel, -1, &head, outgoing->body, error)) {
        return FALSE;
    }
    *ret_got = head.type == type;
    if (*ret_got) {
        *ret_head = head;
        return TRUE;
    }
    if (head.type == SNAP_WIRE_FAILED) {
        return snap_channel_fail_as_told(&head, outgoing->body, error);
    }
    return head.type == SNAP_WIRE_ALIVE || fail_protocol(&head, error);
}

static gboolean hear_all(SnapOutgoing *outgoing, SnapWireType type, SnapWireHead *ret_head, bool *ret_got,
                         GError **error) {
    *ret_got = false;
    while (!*ret_got && snap_channel_has_input(&outgoing->lanes[0].channel)) {
        if (!hear(outgoing, type, ret_head, ret_got, error)) {
            return FALSE;
        }
    }
    return TRUE;
}

static gboolean check_silence(SnapOutgoing *outgoing, GError **error) {
    const SnapChannel *main = &outgoing->lanes[0].channel;
    int64_t heard_us = __atomic_load_n(&main->received_us, __ATOMIC_RELAXED);
    if (g_get_monotonic_time() - heard_us <= (int64_t)outgoing->options.silence_ms * 1000) {
        return TRUE;
    }
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_TIMED_OUT,
                "the other side is silent: nothing was heard of it for %" G_GUINT64_FORMAT " ms",
                (guint64)outgoing->options.silence_ms);
    return FALSE;
}

/* The last words of a side that has closed the connection are a better reason. */
static void explain(SnapOutgoing *outgoing, GError **error) {
    SnapWireHead head;
    int64_t until_us = g_get_monotonic_time() + LAST_WORDS_MS * 1000;
    if (!error || !*error || !g_error_matches(*error, SNAP_ERROR, SNAP_ERROR_IO) || outgoing->one_way) {
        return;
    }
    /* Where only another connection is lost, this one may go on for ever, and a guest may stand. */
    while (g_get_monotonic_time() < until_us &&
           snap_channel_receive(&outgoing->lanes[0].channel, LAST_WORDS_MS, &head, outgoing->body, NULL)) {
        if (head.type == SNAP_WIRE_FAILED) {
            g_clear_error(error);
            snap_channel_fail_as_told(&head, outgoing->body, error);
            return;
        }
    }
}

void snap_outgoing_explain(SnapOutgoing *outgoing, GError **error) {
    if (outgoing->lanes[0].open) {
        explain(outgoing, error);
    }
}

/* Once it is committed only free() ends it, or that a part of the connection is lost. */
static gboolean is_whole(SnapOutgoing *outgoing, GError **error) {
    GError *failure = NULL;
    snap_lock(&outgoing->lock);
    if (outgoing->wishes.ended) {
        failure = g_error_new_literal(SNAP_ERROR, SNAP_ERROR_CANCELLED, "it was let go of");
    } else if (outgoing->urgent_ended) {
        failure = outgoing->urgent_error
                      ? g_error_copy(outgoing->urgent_error)
                      : g_error_new_literal(SNAP_ERROR, SNAP_ERROR_IO, "the urgent connection was closed");
    }
    snap_unlock(&outgoing->lock);
    if (failure) {
        g_propagate_error(error, failure);
    }
    return !failure;
}

/* A guest that stands is not kept standing by a side that lives, and does not come to an end; nor by a connection
 * that takes a byte now and then. */
static gboolean check_patience(SnapOutgoing *outgoing, GError **error) {
    if (outgoing->phase != SNAP_MIGRATION_DEVICE || outgoing->committed) {
        return TRUE;
    }
    snap_lock(&outgoing->lock);
    uint64_t limit_ms = outgoing->options.silence_ms + LIMITS_MAX * outgoing->limits.downtime_limit_ms;
    snap_unlock(&outgoing->lock);
    uint64_t stood_ms = (snap_now_ns() - outgoing->device_ns) / 1000000;
    if (stood_ms <= limit_ms) {
        return TRUE;
    }
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_TIMED_OUT,
                "the guest stands for %" G_GUINT64_FORMAT " ms already, and the other side is not ready",
                (guint64)stood_ms);
    return FALSE;
}

/* Of each wait of the job. What has come counts before that a part of the connection is lost: the last words of
 * the other side, and COMPLETE, come before it closes. */
static gboolean attend(SnapOutgoing *outgoing, SnapWireType type, SnapWireHead *ret_head, bool *ret_got,
                       GError **error) {
    *ret_got = false;
    if (!outgoing->committed && snap_outgoing_is_cancelled(outgoing, error)) {
        return FALSE;
    }
    if (!outgoing->one_way && !hear_all(outgoing, type, ret_head, ret_got, error)) {
        return FALSE;
    }
    if (*ret_got) {
        return TRUE;
    }
    return is_whole(outgoing, error) && check_patience(outgoing, error) &&
           (outgoing->one_way || check_silence(outgoing, error));
}

gboolean snap_outgoing_look(SnapOutgoing *outgoing, GError **error) {
    SnapWireHead head;
    bool got;
    int64_t now_us = g_get_monotonic_time();
    if (now_us - outgoing->looked_us < LOOK_US && !g_atomic_int_get(&outgoing->cancelled)) {
        return TRUE;
    }
    outgoing->looked_us = now_us;
    return attend(outgoing, SNAP_WIRE_NONE, &head, &got, error);
}

/* Until something has come, or was asked. */
static void sleep_for(SnapOutgoing *outgoing, uint64_t timeout_ms) {
    eventfd_t ignored;
    int wait_ms = (int)MIN(timeout_ms, snap_outgoing_alive_ms(outgoing));
    if (outgoing->one_way) {
        struct pollfd wake = {.fd = outgoing->wake_fd, .events = POLLIN};
        poll(&wake, 1, wait_ms);
    } else if (snap_channel_wait(&outgoing->lanes[0].channel, outgoing->wake_fd, wait_ms)) {
        return;
    }
    (void)eventfd_read(outgoing->wake_fd, &ignored);
}

gboolean snap_outgoing_doze(SnapOutgoing *outgoing, uint64_t timeout_ms, GError **error) {
    SnapWireHead head;
    bool got;
    if (!attend(outgoing, SNAP_WIRE_NONE, &head, &got, error)) {
        return FALSE;
    }
    sleep_for(outgoing, timeout_ms);
    return attend(outgoing, SNAP_WIRE_NONE, &head, &got, error);
}

gboolean snap_outgoing_await(SnapOutgoing *outgoing, SnapWireType type, SnapWireHead *ret_head, GError **error) {
    SnapWireHead head;
    bool got;
    for (;;) {
        if (!attend(outgoing, type, ret_head ? ret_head : &head, &got, error)) {
            return FALSE;
        }
        if (got) {
            return TRUE;
        }
        sleep_for(outgoing, outgoing->options.silence_ms);
    }
}

gboolean snap_outgoing_fail_content(SnapWireType type, const char *wrong, GError **error) {
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_PROTOCOL, "%s: %s", snap_wire_name(type), wrong);
    return FALSE;
}

gboolean snap_outgoing_await_ready(SnapOutgoing *outgoing, uint64_t epoch, GError **error) {
    SnapWireHead head;
    uint64_t ready;
    if (!snap_outgoing_await(outgoing, SNAP_WIRE_READY, &head, error)) {
        return FALSE;
    }
    const char *wrong = snap_wire_decode_number(&head, outgoing->body, &ready);
    wrong = wrong ? wrong : ready != epoch ? "it is of another epoch" : NULL;
    return !wrong || snap_outgoing_fail_content(SNAP_WIRE_READY, wrong, error);
}

gboolean snap_outgoing_await_id(SnapOutgoing *outgoing, SnapWireType type, GError **error) {
    SnapWireHead head;
    SnapWireId id;
    if (!snap_outgoing_await(outgoing, type, &head, error)) {
        return FALSE;
    }
    const char *wrong = snap_wire_decode_id(&head, outgoing->body, &id);
    wrong = wrong ? wrong : memcmp(&id, &outgoing->id, sizeof id) != 0 ? "it is of another migration" : NULL;
    return !wrong || snap_outgoing_fail_content(type, wrong, error);
}
