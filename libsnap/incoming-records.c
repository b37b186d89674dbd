/*
 * The main channel, record by record.
 *
 * Happy path: a record comes; the table says whether it may, and what follows; its function does it. Failure
 * modes: what may not come is PROTOCOL, with the record's number and type, and nothing of it was done. Others wake
 * this thread by an eventfd: a data channel that is at its END or has failed, the last missing page, the owner.
 */
#include "incoming.h"

#include <unistd.h>

enum { LOOK_MS = 50 };

static const char *const state_names[] = {
    [SNAP_INCOMING_NOWHERE] = "nothing was agreed on",
    [SNAP_INCOMING_MEMORY] = "memory comes",
    [SNAP_INCOMING_LAYOUT] = "regions are listed",
    [SNAP_INCOMING_LAST] = "the device state comes",
    [SNAP_INCOMING_ENDED] = "all was said",
    [SNAP_INCOMING_READY] = "GO is to come",
    [SNAP_INCOMING_STANDBY] = "an epoch is in force",
    [SNAP_INCOMING_RUNS] = "the guest runs",
    [SNAP_INCOMING_ALL_SENT] = "all was sent",
};
G_STATIC_ASSERT(G_N_ELEMENTS(state_names) == SNAP_INCOMING_STATE_MAX);

/* What follows when a record has come; NOWHERE: it may not. FAILED and ALIVE may always, and change nothing. READY
 * and STANDBY are entered by ourselves, from ENDED; MEMORY from LAYOUT, when the last region has come. */
static const SnapIncomingState next[SNAP_INCOMING_STATE_MAX][SNAP_WIRE_MAX] = {
    [SNAP_INCOMING_MEMORY] =
        {
            [SNAP_WIRE_CHUNK] = SNAP_INCOMING_MEMORY,
            [SNAP_WIRE_ROUND] = SNAP_INCOMING_MEMORY,
            [SNAP_WIRE_LAYOUT] = SNAP_INCOMING_LAYOUT,
            [SNAP_WIRE_MISSING] = SNAP_INCOMING_LAST,
            [SNAP_WIRE_STATE] = SNAP_INCOMING_LAST,
            [SNAP_WIRE_END] = SNAP_INCOMING_ENDED,
        },
    [SNAP_INCOMING_LAYOUT] =
        {
            [SNAP_WIRE_REGION] = SNAP_INCOMING_LAYOUT,
        },
    [SNAP_INCOMING_LAST] =
        {
            [SNAP_WIRE_MISSING] = SNAP_INCOMING_LAST,
            [SNAP_WIRE_STATE] = SNAP_INCOMING_LAST,
            [SNAP_WIRE_END] = SNAP_INCOMING_ENDED,
        },
    [SNAP_INCOMING_READY] =
        {
            [SNAP_WIRE_GO] = SNAP_INCOMING_RUNS,
        },
    [SNAP_INCOMING_STANDBY] =
        {
            [SNAP_WIRE_CHUNK] = SNAP_INCOMING_MEMORY,
            [SNAP_WIRE_ROUND] = SNAP_INCOMING_STANDBY,
            [SNAP_WIRE_LAYOUT] = SNAP_INCOMING_LAYOUT,
            [SNAP_WIRE_STATE] = SNAP_INCOMING_LAST,
            [SNAP_WIRE_END] = SNAP_INCOMING_ENDED,
            [SNAP_WIRE_GO] = SNAP_INCOMING_RUNS,
        },
    [SNAP_INCOMING_RUNS] =
        {
            [SNAP_WIRE_CHUNK] = SNAP_INCOMING_RUNS,
            [SNAP_WIRE_ALL_SENT] = SNAP_INCOMING_ALL_SENT,
        },
};

gboolean snap_incoming_wrong(const SnapIncomingLane *lane, SnapWireType type, const char *wrong, GError **error) {
    const char *name = snap_wire_name(type);
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_PROTOCOL, "record %" G_GUINT64_FORMAT " (%s): %s",
                lane->channel.n_received - 1, name ? name : "unknown", wrong);
    return FALSE;
}

/* ---- what each does -------------------------------------------------------------------------------------- */

/* The guest stands at the source: the last of it comes. */
static void note_stop(SnapIncoming *incoming) {
    if (incoming->hello.purpose != SNAP_WIRE_MOVE || incoming->state != SNAP_INCOMING_MEMORY)
        return;
    SnapMigrationStats stats;
    snap_incoming_get_stats(incoming, &stats);
    snap_lock(&incoming->lock);
    incoming->switch_bytes[0] = stats.sent_bytes;
    incoming->stopped_us = g_get_monotonic_time();
    snap_unlock(&incoming->lock);
    snap_incoming_set_phase(incoming, SNAP_MIGRATION_DEVICE);
}

static gboolean on_chunk(SnapIncoming *incoming, const SnapWireHead *head, GError **error) {
    return snap_incoming_take_chunk(incoming->link->lanes[0], head, error);
}

static gboolean on_round(SnapIncoming *incoming, const SnapWireHead *head, GError **error) {
    SnapIncomingLane *lane = incoming->link->lanes[0];
    SnapWireRound round;
    const char *wrong = snap_wire_decode_round(head, lane->body, &round);
    if (wrong)
        return snap_incoming_wrong(lane, head->type, wrong, error);
    snap_lock(&incoming->lock);
    incoming->rounds = round.round;
    incoming->dirty_pages_per_second = round.pages_per_second;
    snap_unlock(&incoming->lock);
    snap_incoming_tell(incoming);
    return TRUE;
}

static gboolean on_layout(SnapIncoming *incoming, const SnapWireHead *head, GError **error) {
    SnapIncomingLane *lane = incoming->link->lanes[0];
    uint64_t n = 0;
    const char *wrong = snap_wire_decode_number(head, lane->body, &n);
    incoming->state = SNAP_INCOMING_LAYOUT; /* so that it can be told: no GO comes before another READY */
    if (!wrong && incoming->guest) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_REFUSED,
                    "the guest's memory is laid out differently at the source now, and cannot be here");
        return FALSE;
    }
    if (!wrong)
        wrong = snap_incoming_begin_layout(incoming, n);
    return wrong ? snap_incoming_wrong(lane, head->type, wrong, error) : TRUE;
}

static gboolean on_region(SnapIncoming *incoming, const SnapWireHead *head, GError **error) {
    SnapIncomingLane *lane = incoming->link->lanes[0];
    SnapWireRegion region;
    const char *wrong = snap_wire_decode_region(head, lane->body, &region);
    if (!wrong)
        wrong = snap_incoming_add_to_layout(incoming, &region, (head->flags & SNAP_WIRE_KEPT) != 0);
    return wrong ? snap_incoming_wrong(lane, head->type, wrong, error) : TRUE;
}

static gboolean on_missing(SnapIncoming *incoming, const SnapWireHead *head, GError **error) {
    SnapIncomingLane *lane = incoming->link->lanes[0];
    g_autofree uint64_t *masks = g_new(uint64_t, SNAP_WIRE_MAX_MASKS);
    SnapWireMissing record;
    const char *wrong = snap_wire_decode_missing(head, lane->body, &record, masks);
    if (!wrong && !incoming->missing)
        wrong = "no post-copy was agreed on";
    if (!wrong)
        wrong = snap_missing_add(incoming->missing, &record, masks);
    if (wrong)
        return snap_incoming_wrong(lane, head->type, wrong, error);
    note_stop(incoming);
    incoming->n_masks++;
    return TRUE;
}

static gboolean on_state(SnapIncoming *incoming, const SnapWireHead *head, GError **error) {
    SnapIncomingLane *lane = incoming->link->lanes[0];
    SnapWireState state;
    const char *wrong = snap_wire_decode_state(head, lane->body, &state);
    if (!wrong)
        wrong = snap_incoming_add_state(incoming, &state);
    if (wrong)
        return snap_incoming_wrong(lane, head->type, wrong, error);
    note_stop(incoming);
    return TRUE;
}

gboolean snap_incoming_check_end(SnapIncomingLane *lane, const SnapWireEnd *end, GError **error) {
    const SnapIncoming *incoming = lane->incoming;
    uint64_t epoch = incoming->hello.purpose == SNAP_WIRE_REPLICATE ? incoming->epoch + 1 : 0;
    g_autofree char *wrong = NULL;
    if (end->epoch != epoch)
        wrong = g_strdup_printf("epoch %" G_GUINT64_FORMAT ", and %" G_GUINT64_FORMAT " was to come", end->epoch,
                                epoch);
    else if (end->n_chunks != lane->n_chunks || end->n_pages != lane->n_pages)
        wrong = g_strdup_printf("%" G_GUINT64_FORMAT " chunks with %" G_GUINT64_FORMAT
                                " pages were sent, and %" G_GUINT64_FORMAT " with %" G_GUINT64_FORMAT " have come",
                                end->n_chunks, end->n_pages, lane->n_chunks, lane->n_pages);
    lane->n_chunks = lane->n_pages = 0;
    return wrong ? snap_incoming_wrong(lane, SNAP_WIRE_END, wrong, error) : TRUE;
}

static const char *check_flag(const SnapIncoming *incoming, bool pages_missing) {
    if (pages_missing && !incoming->missing)
        return "pages are missing, and no post-copy was agreed on";
    if (!pages_missing && incoming->n_masks > 0)
        return "pages were said to be missing";
    return NULL;
}

static gboolean on_end(SnapIncoming *incoming, const SnapWireHead *head, GError **error) {
    SnapIncomingLane *lane = incoming->link->lanes[0];
    SnapWireEnd end;
    const char *wrong = snap_wire_decode_end(head, lane->body, &end);
    if (!wrong)
        wrong = check_flag(incoming, (head->flags & SNAP_WIRE_PAGES_MISSING) != 0);
    if (!wrong)
        wrong = snap_incoming_check_states(incoming, end.n_states);
    if (wrong)
        return snap_incoming_wrong(lane, head->type, wrong, error);
    if (!snap_incoming_check_end(lane, &end, error))
        return FALSE;
    note_stop(incoming);
    incoming->postcopy = (head->flags & SNAP_WIRE_PAGES_MISSING) != 0;
    return TRUE;
}

static gboolean check_id(SnapIncoming *incoming, const SnapWireHead *head, GError **error) {
    SnapIncomingLane *lane = incoming->link->lanes[0];
    SnapWireId id;
    const char *wrong = snap_wire_decode_id(head, lane->body, &id);
    if (!wrong && memcmp(&id, &incoming->hello.id, sizeof id) != 0)
        wrong = "it is of another migration";
    return wrong ? snap_incoming_wrong(lane, head->type, wrong, error) : TRUE;
}

static gboolean on_go(SnapIncoming *incoming, const SnapWireHead *head, GError **error) {
    if (incoming->one_way || !incoming->guest)
        return snap_incoming_wrong(incoming->link->lanes[0], head->type, "there is no guest to run here", error);
    if (incoming->arrivals && !snap_arrivals_is_empty(incoming->arrivals))
        return snap_incoming_wrong(incoming->link->lanes[0], head->type, "an epoch is not complete", error);
    return check_id(incoming, head, error) && snap_incoming_take_over(incoming, error);
}

static gboolean (*const functions[SNAP_WIRE_MAX])(SnapIncoming *, const SnapWireHead *, GError **) = {
    [SNAP_WIRE_CHUNK] = on_chunk,    [SNAP_WIRE_ROUND] = on_round,   [SNAP_WIRE_MISSING] = on_missing,
    [SNAP_WIRE_STATE] = on_state,    [SNAP_WIRE_END] = on_end,       [SNAP_WIRE_GO] = on_go,
    [SNAP_WIRE_ALL_SENT] = check_id, [SNAP_WIRE_LAYOUT] = on_layout, [SNAP_WIRE_REGION] = on_region,
};

/* ---- the loop -------------------------------------------------------------------------------------------- */

static gboolean on_failed(SnapIncoming *incoming, const SnapWireHead *head, GError **error) {
    incoming->told = true;
    return snap_channel_fail_as_told(head, incoming->link->lanes[0]->body, error);
}

static gboolean serve_record(SnapIncoming *incoming, GError **error) {
    SnapIncomingLane *lane = incoming->link->lanes[0];
    SnapWireHead head;
    if (!snap_channel_receive(&lane->channel, -1, &head, lane->body, error))
        return FALSE;
    if (head.type == SNAP_WIRE_FAILED)
        return on_failed(incoming, &head, error);
    if (head.type == SNAP_WIRE_ALIVE)
        return TRUE;
    SnapIncomingState follows = next[incoming->state][head.type];
    if (follows == SNAP_INCOMING_NOWHERE) {
        g_autofree char *wrong = g_strdup_printf("it may not come while %s", state_names[incoming->state]);
        return snap_incoming_wrong(lane, head.type, wrong, error);
    }
    if (!functions[head.type](incoming, &head, error))
        return FALSE;
    incoming->state = follows == SNAP_INCOMING_LAYOUT && !incoming->layout ? SNAP_INCOMING_MEMORY : follows;
    return TRUE;
}

static gboolean cancelled(SnapIncoming *incoming, GError **error) {
    snap_lock(&incoming->lock);
    bool asked = incoming->link->stopped;
    snap_unlock(&incoming->lock);
    if (asked)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_CANCELLED, "cancelled");
    return asked;
}

/* Of the silence that is allowed, how much is left. */
static int silence_left_ms(const SnapChannel *channel) {
    if (channel->never_silent)
        return -1;
    int64_t silent_us = g_get_monotonic_time() - __atomic_load_n(&channel->received_us, __ATOMIC_RELAXED);
    return (int)CLAMP((int64_t)channel->silence_ms - silent_us / 1000, 0, G_MAXINT);
}

/* Wait for a record, or for something else to look at. */
static gboolean serve_next(SnapIncoming *incoming, GError **error) {
    SnapChannel *channel = &incoming->link->lanes[0]->channel;
    int left_ms = silence_left_ms(channel);
    if (snap_incoming_link_is_failing(incoming))
        left_ms = LOOK_MS; /* at most: something is going to be decided */
    if (snap_channel_wait(channel, incoming->wake_fd, left_ms))
        return serve_record(incoming, error);
    uint64_t count = 0;
    bool woken = read(incoming->wake_fd, &count, sizeof count) > 0;
    if (cancelled(incoming, error))
        return FALSE;
    if (!woken && silence_left_ms(channel) == 0) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_TIMED_OUT, "the other side is silent");
        return FALSE;
    }
    return TRUE;
}

/* All was sent, on all channels: what is still missing can only be on its way on the urgent one. */
static gboolean look_for_rest(SnapIncoming *incoming, GError **error) {
    uint64_t left = snap_missing_left(incoming->missing);
    if (left == 0)
        return snap_incoming_all_there(incoming, error);
    int64_t now_us = g_get_monotonic_time();
    if (!incoming->all_sent_us)
        incoming->all_sent_us = now_us;
    if (now_us - incoming->all_sent_us < (int64_t)incoming->hello.silence_ms * 1000)
        return TRUE;
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_PROTOCOL,
                "all was sent, says the source, and %" G_GUINT64_FORMAT " pages are missing", left);
    return FALSE;
}

/* A data channel may be idle as long as the main one is not at its END; then it is not silent for long. */
static gboolean wait_for_ends(SnapIncoming *incoming, GError **error) {
    SnapIncomingLink *link = incoming->link;
    int64_t now_us = g_get_monotonic_time();
    if (!incoming->ends_us)
        incoming->ends_us = now_us;
    int64_t heard_us = incoming->ends_us;
    for (unsigned i = 1; i < link->n_channels; i++)
        heard_us = MAX(heard_us, __atomic_load_n(&link->lanes[i]->channel.received_us, __ATOMIC_RELAXED));
    if (now_us - heard_us < (int64_t)link->lanes[0]->channel.silence_ms * 1000)
        return TRUE;
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_TIMED_OUT, "a data channel is silent, and not at its END");
    return FALSE;
}

/* What waits for more than one channel. */
static gboolean look_around(SnapIncoming *incoming, GError **error) {
    if (incoming->state != SNAP_INCOMING_ENDED && incoming->state != SNAP_INCOMING_ALL_SENT)
        return TRUE;
    if (!snap_incoming_link_ended(incoming))
        return wait_for_ends(incoming, error);
    incoming->ends_us = 0;
    return incoming->state == SNAP_INCOMING_ENDED ? snap_incoming_part_done(incoming, error)
                                                  : look_for_rest(incoming, error);
}

gboolean snap_incoming_listen(SnapIncoming *incoming, GError **error) {
    GError *failure = NULL;
    bool ok = true;
    while (ok && !incoming->done) {
        ok = !snap_incoming_link_failed(incoming, &failure) && look_around(incoming, &failure) &&
             (incoming->done || serve_next(incoming, &failure));
    }
    if (!ok && incoming->one_way && snap_incoming_end_of_file(incoming, &failure))
        ok = true;
    if (!ok)
        g_propagate_error(error, failure);
    return ok;
}
