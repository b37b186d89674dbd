/*
 * The connections that belong together: see incoming.h.
 *
 * Happy path: the main channel is read by snap-incoming; each data channel by a thread "snap-channel", which
 * places chunks up to END, says so, and waits for its turn to go on; a thread "snap-alive" sends ALIVE on the main
 * one when nothing else is sent, also while the guest's own functions take their time. Closing stops every wait,
 * joins the threads, and says why to the source, if that is to be said; then it reads on for a moment what the
 * source still sends: a TCP connection that is closed with something unread takes back what was said last.
 *
 * Failure modes: a data channel that fails leaves its error here and wakes snap-incoming; where it was merely
 * closed, that one goes on for a moment, as there may be a FAILED on the main channel that says why.
 */
#include "incoming.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    LAST_WORDS_MS = 1000,     /* for the source to read why, or to say why */
    FIRST_SILENCE_MS = 10000, /* before HELLO has said how long */
    ALIVE_MOST_MS = 500,      /* two of them make the second that the protocol has */
    ALIVES_IN_SILENCE = 4,    /* where the silence allowed is short */
    SCRATCH_BYTES = 64 << 10,
};

/* ---- one connection -------------------------------------------------------------------------------------- */

SnapIncomingLane *snap_incoming_lane_new(SnapIncoming *incoming, int in, int out, GError **error) {
    SnapIncomingLane *lane = g_new0(SnapIncomingLane, 1);
    uint64_t silence_ms = incoming->silence_ms ? incoming->silence_ms : FIRST_SILENCE_MS;
    if (incoming->met_once)
        silence_ms = incoming->hello.silence_ms;
    if (!snap_channel_init(&lane->channel, SNAP_WIRE_FROM_DESTINATION, in, out, silence_ms, error)) {
        g_free(lane);
        return NULL;
    }
    lane->incoming = incoming;
    lane->body = g_malloc(SNAP_WIRE_MAX_BODY_BYTES);
    lane->pages = g_malloc(SNAP_WIRE_MAX_BULK_BYTES);
    lane->packed = g_malloc(SNAP_WIRE_MAX_BULK_BYTES);
    return lane;
}

void snap_incoming_lane_free(SnapIncomingLane *lane) {
    if (!lane)
        return;
    snap_channel_clear(&lane->channel);
    ZSTD_freeDCtx(lane->zstd);
    g_free(lane->body);
    g_free(lane->pages);
    g_free(lane->packed);
    g_free(lane);
}

/* Where snap_channel_stop() may have been called: reading on needs no channel. */
static void read_on(SnapChannel *channel) {
    g_autofree uint8_t *scratch = g_malloc(SCRATCH_BYTES);
    int64_t until_us = g_get_monotonic_time() + LAST_WORDS_MS * G_TIME_SPAN_MILLISECOND;
    if (!channel->live || !channel->in_is_socket || channel->out != channel->in)
        return;
    shutdown(channel->out, SHUT_WR);
    for (int64_t left_us; (left_us = until_us - g_get_monotonic_time()) > 0;) {
        struct pollfd in = {.fd = channel->in, .events = POLLIN};
        if (poll(&in, 1, (int)(left_us / 1000) + 1) <= 0 || read(channel->in, scratch, SCRATCH_BYTES) <= 0)
            return;
    }
}

/* ---- opening --------------------------------------------------------------------------------------------- */

gboolean snap_incoming_link_open(SnapIncoming *incoming, SnapIncomingLane *lane, GError **error) {
    SnapIncomingLink *link = g_new0(SnapIncomingLink, 1);
    snap_lock_init(&link->send_lock);
    snap_cond_init(&link->silent);
    link->lanes[0] = lane;
    link->n_channels = 1;
    lane->link = link;
    snap_lock(&incoming->lock);
    bool free = incoming->asked == 0;
    link->stopped = !free;
    incoming->link = link;
    snap_unlock(&incoming->lock);
    if (!free)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_CANCELLED, "cancelled");
    return free;
}

/* ---- data channels --------------------------------------------------------------------------------------- */

void snap_incoming_lane_failed(SnapIncomingLane *lane, GError *error) {
    SnapIncoming *incoming = lane->incoming;
    if (lane->number == SNAP_WIRE_URGENT)
        g_prefix_error(&error, "urgent channel: ");
    else
        g_prefix_error(&error, "channel %u: ", lane->number);
    snap_lock(&incoming->lock);
    if (!lane->link->failure) {
        lane->link->failed_us = g_get_monotonic_time();
        lane->link->failure = g_steal_pointer(&error);
    }
    snap_unlock(&incoming->lock);
    g_clear_error(&error);
    snap_incoming_wake(incoming);
}

gboolean snap_incoming_link_failed(SnapIncoming *incoming, GError **error) {
    SnapIncomingLink *link = incoming->link;
    snap_lock(&incoming->lock);
    bool cut = link->failure && g_error_matches(link->failure, SNAP_ERROR, SNAP_ERROR_IO);
    int64_t waited_us = g_get_monotonic_time() - link->failed_us;
    bool counts = link->failure && (!cut || waited_us > LAST_WORDS_MS * G_TIME_SPAN_MILLISECOND);
    if (counts)
        g_propagate_error(error, g_error_copy(link->failure));
    snap_unlock(&incoming->lock);
    return counts;
}

bool snap_incoming_link_is_failing(SnapIncoming *incoming) {
    snap_lock(&incoming->lock);
    bool failing = incoming->link->failure != NULL;
    snap_unlock(&incoming->lock);
    return failing;
}

/* Say that it has come to END, and wait until others have as well. FALSE: it was stopped. */
static bool wait_for_turn(SnapIncomingLane *lane) {
    SnapIncoming *incoming = lane->incoming;
    SnapIncomingLink *link = lane->link;
    snap_lock(&incoming->lock);
    unsigned turn = link->turn;
    link->n_ended++;
    snap_incoming_wake(incoming);
    while (turn == link->turn && !link->stopped)
        snap_cond_wait(&incoming->changed, &incoming->lock);
    bool on = !link->stopped;
    snap_unlock(&incoming->lock);
    return on;
}

/* A record of a data channel. */
static gboolean serve_record(SnapIncomingLane *lane, const SnapWireHead *head, bool *ret_stopped, GError **error) {
    SnapWireEnd end;
    if (head->type == SNAP_WIRE_CHUNK)
        return snap_incoming_take_chunk(lane, head, error);
    if (head->type != SNAP_WIRE_END)
        return snap_incoming_wrong(lane, head->type, "a data channel has no such record", error);
    const char *wrong = snap_wire_decode_end(head, lane->body, &end);
    if (wrong)
        return snap_incoming_wrong(lane, head->type, wrong, error);
    if (!snap_incoming_check_end(lane, &end, error))
        return FALSE;
    *ret_stopped = !wait_for_turn(lane);
    return TRUE;
}

static gpointer run_lane(gpointer data) {
    SnapIncomingLane *lane = data;
    GError *error = NULL;
    bool stopped = false;
    SnapWireHead head;
    while (!stopped) {
        /* Silence is the main channel's matter: there may be nothing to send here. */
        if (!snap_channel_receive(&lane->channel, G_MAXINT, &head, lane->body, &error) ||
            !serve_record(lane, &head, &stopped, &error))
            break;
    }
    if (error)
        snap_incoming_lane_failed(lane, error);
    return NULL;
}

gboolean snap_incoming_link_add(SnapIncoming *incoming, SnapIncomingLane *lane, GError **error) {
    SnapIncomingLink *link = incoming->link;
    bool urgent = lane->number == SNAP_WIRE_URGENT;
    lane->link = link;
    snap_lock(&incoming->lock);
    bool free = incoming->asked == 0;
    if (urgent)
        link->urgent = lane;
    else
        link->lanes[lane->number] = lane;
    snap_unlock(&incoming->lock);
    if (!free)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_CANCELLED, "cancelled");
    else if (!urgent)
        lane->thread = g_thread_new("snap-channel", run_lane, lane);
    return free;
}

bool snap_incoming_link_ended(SnapIncoming *incoming) {
    snap_lock(&incoming->lock);
    bool ended = incoming->link->n_ended == incoming->link->n_channels - 1;
    snap_unlock(&incoming->lock);
    return ended;
}

void snap_incoming_link_go_on(SnapIncoming *incoming) {
    snap_lock(&incoming->lock);
    incoming->link->turn++;
    incoming->link->n_ended = 0;
    snap_cond_broadcast(&incoming->changed);
    snap_unlock(&incoming->lock);
}

/* ---- speaking -------------------------------------------------------------------------------------------- */

static gboolean send_locked(SnapIncomingLink *link, SnapWireType type, const void *body, uint32_t body_bytes,
                            GError **error) SNAP_REQUIRES(link->send_lock) {
    if (link->one_way)
        return TRUE;
    if (link->mute) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_IO, "the connection was closed");
        return FALSE;
    }
    link->mute = !snap_channel_send(&link->lanes[0]->channel, type, 0, body, body_bytes, NULL, 0, error);
    return !link->mute;
}

gboolean snap_incoming_send(SnapIncoming *incoming, SnapWireType type, const void *body, uint32_t body_bytes,
                            GError **error) {
    snap_lock(&incoming->link->send_lock);
    gboolean sent = send_locked(incoming->link, type, body, body_bytes, error);
    snap_unlock(&incoming->link->send_lock);
    return sent;
}

/* What fails is seen by whoever reads, or says the next thing. */
static gpointer run_alive(gpointer data) {
    SnapIncoming *incoming = data;
    SnapIncomingLink *link = incoming->link;
    const SnapChannel *channel = &link->lanes[0]->channel;
    int64_t step_us = (int64_t)MIN(ALIVE_MOST_MS, MAX(channel->silence_ms / ALIVES_IN_SILENCE, 1)) * 1000;
    snap_lock(&link->send_lock);
    while (!link->ending && !link->mute) {
        snap_cond_wait_until(&link->silent, &link->send_lock, g_get_monotonic_time() + step_us / 2);
        int64_t idle_us = g_get_monotonic_time() - __atomic_load_n(&channel->sent_us, __ATOMIC_RELAXED);
        if (link->ending || idle_us < step_us)
            continue;
        uint8_t body[16];
        uint64_t n_chunks = __atomic_load_n(&incoming->n_chunks, __ATOMIC_RELAXED);
        send_locked(link, SNAP_WIRE_ALIVE, body, snap_wire_encode_number(n_chunks, body), NULL);
    }
    snap_unlock(&link->send_lock);
    return NULL;
}

void snap_incoming_link_keep_alive(SnapIncoming *incoming) {
    if (!incoming->link->one_way)
        incoming->link->alive = g_thread_new("snap-alive", run_alive, incoming);
}

/* ---- closing --------------------------------------------------------------------------------------------- */

static void end_threads(SnapIncoming *incoming, SnapIncomingLink *link) {
    snap_lock(&incoming->lock);
    link->stopped = true;
    for (unsigned i = 1; i < G_N_ELEMENTS(link->lanes); i++) {
        if (link->lanes[i])
            snap_channel_stop(&link->lanes[i]->channel);
    }
    if (link->urgent)
        snap_channel_stop(&link->urgent->channel);
    snap_cond_broadcast(&incoming->changed);
    snap_unlock(&incoming->lock);
    for (unsigned i = 1; i < G_N_ELEMENTS(link->lanes); i++) {
        if (link->lanes[i] && link->lanes[i]->thread)
            g_thread_join(link->lanes[i]->thread);
    }
    if (incoming->missing)
        snap_missing_connect(incoming->missing, NULL);
    snap_lock(&link->send_lock);
    link->ending = true;
    snap_cond_broadcast(&link->silent);
    snap_unlock(&link->send_lock);
    if (link->alive)
        g_thread_join(link->alive);
}

/* Whoever has asked for the end need not wait for somebody who has not even been made welcome. */
static void say_why(SnapIncoming *incoming, SnapIncomingLink *link, const char *why) {
    if (link->one_way || link->mute)
        return;
    snap_channel_send_failed(&link->lanes[0]->channel, why);
    snap_lock(&incoming->lock);
    bool at_once = incoming->asked != 0 && incoming->state == SNAP_INCOMING_NOWHERE;
    snap_unlock(&incoming->lock);
    if (!at_once)
        read_on(&link->lanes[0]->channel);
}

/* Nobody finds it any more. */
static void take_away(SnapIncoming *incoming, SnapIncomingLink *link) {
    snap_lock(&incoming->lock);
    incoming->link = NULL;
    incoming->past_bytes += link->lanes[0]->channel.received_bytes;
    for (unsigned i = 1; i < G_N_ELEMENTS(link->lanes); i++)
        incoming->past_multifd_bytes += link->lanes[i] ? link->lanes[i]->channel.received_bytes : 0;
    incoming->past_bytes += link->urgent ? link->urgent->channel.received_bytes : 0;
    snap_unlock(&incoming->lock);
}

void snap_incoming_link_close(SnapIncoming *incoming, const char *why) {
    SnapIncomingLink *link = incoming->link;
    if (!link)
        return;
    end_threads(incoming, link);
    if (why)
        say_why(incoming, link, why);
    else if (incoming->done)
        read_on(&link->lanes[0]->channel);
    take_away(incoming, link);
    for (unsigned i = 0; i < G_N_ELEMENTS(link->lanes); i++)
        snap_incoming_lane_free(link->lanes[i]);
    snap_incoming_lane_free(link->urgent);
    g_clear_error(&link->failure);
    snap_cond_clear(&link->silent);
    snap_lock_clear(&link->send_lock);
    g_free(link);
}
