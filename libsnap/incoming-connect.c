/*
 * How the two sides come to terms: see docs/protocol.md, "HELLO", "REGION", "WELCOME".
 *
 * Happy path: a connection comes, its HELLO and REGIONs are those of a guest that fits; the memory here is
 * dropped, WELCOME is said; then the other channels that HELLO has promised come, and nobody listens any more.
 * Resuming: a HELLO with the id that is known, WELCOME that says where we are, the masks of what is missing, the
 * urgent channel.
 *
 * Failure modes: what is wrong with the first connection ends the migration, by name. Of what comes later, a
 * stranger (no HELLO, or one with another id) is sent away alone; of the further channels, one that has our id and
 * breaks the rules ends the connection, while of those that want to resume everybody who does not fit is sent
 * away. Who says nothing, or next to nothing, is waited for no longer than a silence may last, and not at all when
 * our owner asks for something; those that come meanwhile wait behind it.
 */
#include "incoming.h"

#include <unistd.h>

/* ---- HELLO ----------------------------------------------------------------------------------------------- */

/* NULL: it is in the link, or gone. */
static void set_newcomer(SnapIncoming *incoming, SnapIncomingLane *lane) {
    snap_lock(&incoming->lock);
    incoming->newcomer = lane;
    if (lane && incoming->asked)
        snap_channel_stop(&lane->channel);
    snap_unlock(&incoming->lock);
}

static SnapIncomingLane *accept_lane(SnapIncoming *incoming, int timeout_ms, GError **error) {
    int in = -1, out = -1;
    /* Changed by this thread only. */
    if (!snap_transport_accept(incoming->transport, timeout_ms, &in, &out, error))
        return NULL;
    SnapIncomingLane *lane = snap_incoming_lane_new(incoming, in, out, error);
    if (lane)
        set_newcomer(incoming, lane);
    return lane;
}

static gboolean open_link(SnapIncoming *incoming, SnapIncomingLane *lane, GError **error) {
    gboolean open = snap_incoming_link_open(incoming, lane, error);
    set_newcomer(incoming, NULL);
    return open;
}

/* It is not who is waited for, or nobody is any more: then it is told nothing, as nothing is certain. */
static void send_away(SnapIncoming *incoming, SnapIncomingLane *lane, const GError *why) {
    set_newcomer(incoming, NULL);
    if (!g_error_matches(why, SNAP_ERROR, SNAP_ERROR_CANCELLED))
        snap_channel_send_failed(&lane->channel, why->message);
    snap_incoming_lane_free(lane);
}

static gboolean receive_hello(SnapIncomingLane *lane, SnapWireHead *ret_head, SnapWireHello *ret_hello,
                              GError **error) {
    SnapChannel *channel = &lane->channel;
    channel->until_us = g_get_monotonic_time() + (int64_t)channel->silence_ms * 1000;
    if (!snap_channel_expect(channel, SNAP_WIRE_HELLO, -1, ret_head, lane->body, error))
        return FALSE;
    channel->until_us = 0;
    const char *wrong = snap_wire_decode_hello(ret_head, lane->body, ret_hello);
    if (wrong)
        return snap_incoming_wrong(lane, SNAP_WIRE_HELLO, wrong, error);
    lane->number = ret_hello->channel;
    return TRUE;
}

static gboolean is_ours(const SnapIncoming *incoming, const SnapWireHello *hello) {
    return memcmp(&hello->id, &incoming->hello.id, sizeof hello->id) == 0;
}

static gboolean check_replication(const SnapIncoming *incoming, const SnapWireHello *hello, uint16_t flags,
                                  GError **error) {
    bool replicates = hello->purpose == SNAP_WIRE_REPLICATE;
    if (replicates && (flags & SNAP_WIRE_POSTCOPY) != 0)
        return snap_incoming_refuse(error, "a replication has no post-copy");
    if (!incoming->guest && !replicates && (flags & SNAP_WIRE_ONE_WAY) == 0)
        return snap_incoming_refuse(error,
                                    "there is no guest here that could be run: a replication becomes images");
    return TRUE;
}

static gboolean check_first(const SnapIncoming *incoming, const SnapWireHello *hello, uint16_t flags,
                            GError **error) {
    uint64_t page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
    if (hello->channel != 0)
        return snap_incoming_refuse(error, "the main channel has to come first");
    if ((flags & SNAP_WIRE_RESUME) != 0)
        return snap_incoming_refuse(error, "there is no migration here that could be resumed");
    if ((flags & SNAP_WIRE_ONE_WAY) == 0 && snap_transport_is_one_way(incoming->transport))
        return snap_incoming_refuse(error, "it expects an answer, and this is a file");
    if ((hello->n_channels > 1 || (flags & SNAP_WIRE_POSTCOPY) != 0) &&
        !snap_transport_can_have_several(incoming->transport))
        return snap_incoming_refuse(error, "there is room for one connection only at %s", incoming->uri);
    if (incoming->guest && hello->page_bytes != page_bytes)
        return snap_incoming_refuse(error,
                                    "pages have %" G_GUINT64_FORMAT " bytes there, and %" G_GUINT64_FORMAT " here",
                                    hello->page_bytes, page_bytes);
    return check_replication(incoming, hello, flags, error);
}

static void remember(SnapIncoming *incoming, const SnapWireHello *hello, uint16_t flags) {
    incoming->hello = *hello;
    incoming->hello.driver = NULL;
    incoming->driver = g_strndup(hello->driver, hello->driver_bytes);
    incoming->one_way = (flags & SNAP_WIRE_ONE_WAY) != 0;
    incoming->may_postcopy = (flags & SNAP_WIRE_POSTCOPY) != 0;
    incoming->met_once = true;
    if (incoming->silence_ms)
        incoming->hello.silence_ms = incoming->silence_ms;
    incoming->link->n_channels = hello->n_channels;
    incoming->link->one_way = incoming->one_way;
    incoming->link->lanes[0]->channel.silence_ms = incoming->hello.silence_ms;
    incoming->link->lanes[0]->channel.never_silent |= incoming->one_way;
}

/* ---- REGION ---------------------------------------------------------------------------------------------- */

static gboolean receive_regions(SnapIncoming *incoming, GError **error) {
    SnapIncomingLane *lane = incoming->link->lanes[0];
    g_autoptr(GPtrArray) own = incoming->guest ? snap_incoming_list_regions(incoming, error) : NULL;
    SnapWireHead head;
    SnapWireRegion region;
    if (incoming->guest && !own)
        return FALSE;
    for (uint64_t i = 0; i < incoming->hello.n_regions; i++) {
        if (!snap_channel_expect(&lane->channel, SNAP_WIRE_REGION, -1, &head, lane->body, error))
            return FALSE;
        const char *wrong = snap_wire_decode_region(&head, lane->body, &region);
        if (!wrong && head.flags & SNAP_WIRE_KEPT)
            wrong = "it cannot be kept: there was none before";
        if (wrong)
            return snap_incoming_wrong(lane, SNAP_WIRE_REGION, wrong, error);
        if (!snap_incoming_add_region(incoming, own, &region, error))
            return FALSE;
    }
    return !own || snap_incoming_check_regions(own, error);
}

/* All that is needed from now on. */
static gboolean prepare(SnapIncoming *incoming, GError **error) {
    if (!incoming->guest) {
        incoming->place = SNAP_PLACE_IMAGE;
        return (incoming->image = snap_incoming_image_new(incoming, error)) != NULL;
    }
    snap_incoming_drop_memory(incoming);
    incoming->place = SNAP_PLACE_MEMORY;
    if (incoming->hello.purpose == SNAP_WIRE_REPLICATE)
        incoming->arrivals = snap_arrivals_new(incoming);
    return !incoming->may_postcopy || (incoming->missing = snap_missing_new(incoming, error)) != NULL;
}

/* ---- WELCOME, and further channels ----------------------------------------------------------------------- */

static gboolean welcome(SnapIncoming *incoming, SnapIncomingLane *lane, SnapWireAt at, uint64_t n_missing,
                        GError **error) {
    const SnapWireWelcome welcome = {
        .id = incoming->hello.id, .version = SNAP_WIRE_VERSION, .at = at, .n_missing = n_missing};
    uint8_t body[64];
    uint32_t body_bytes = snap_wire_encode_welcome(&welcome, body);
    if (lane->number == 0)
        return snap_incoming_send(incoming, SNAP_WIRE_WELCOME, body, body_bytes, error);
    return snap_channel_send(&lane->channel, SNAP_WIRE_WELCOME, 0, body, body_bytes, NULL, 0, error);
}

static gboolean check_further(const SnapIncoming *incoming, const SnapWireHello *hello, uint16_t flags,
                              uint16_t expected_flags, GError **error) {
    const SnapIncomingLink *link = incoming->link;
    bool urgent = hello->channel == SNAP_WIRE_URGENT;
    if (flags != expected_flags || hello->n_channels != link->n_channels ||
        hello->purpose != incoming->hello.purpose)
        return snap_incoming_refuse(error, "channel %u says otherwise than the main one", hello->channel);
    if (urgent && !incoming->may_postcopy)
        return snap_incoming_refuse(error, "an urgent channel, and no post-copy");
    if (urgent ? link->urgent != NULL : link->lanes[hello->channel] != NULL)
        return snap_incoming_refuse(error, "channel %u is there already", hello->channel);
    return TRUE;
}

/* One further connection. *ret_lane stays NULL where a stranger was sent away. FALSE: the migration fails. */
static gboolean accept_further(SnapIncoming *incoming, int timeout_ms, uint16_t flags, SnapIncomingLane **ret_lane,
                               GError **error) {
    SnapIncomingLane *lane = accept_lane(incoming, timeout_ms, error);
    g_autoptr(GError) failure = NULL;
    SnapWireHead head = {0};
    SnapWireHello hello = {0};
    if (!lane)
        return FALSE;
    bool read = receive_hello(lane, &head, &hello, &failure);
    bool stranger = !read || !is_ours(incoming, &hello);
    if (read && stranger)
        snap_incoming_refuse(&failure, "another migration is under way here");
    if (!failure && check_further(incoming, &hello, head.flags, flags, &failure) &&
        welcome(incoming, lane, SNAP_WIRE_AT_BEGIN, 0, &failure)) {
        *ret_lane = lane;
        return TRUE;
    }
    send_away(incoming, lane, failure);
    if (stranger)
        return TRUE;
    g_propagate_error(error, g_steal_pointer(&failure));
    return FALSE;
}

/* Those that HELLO has promised. They come at once; a source that is slow about it is lost. */
static gboolean accept_others(SnapIncoming *incoming, uint16_t flags, GError **error) {
    unsigned due = incoming->link->n_channels - 1 + (incoming->may_postcopy ? 1 : 0);
    int64_t until_us = g_get_monotonic_time() + (int64_t)incoming->hello.silence_ms * 1000;
    while (due > 0) {
        SnapIncomingLane *lane = NULL;
        int64_t left_ms = MAX(until_us - g_get_monotonic_time(), 0) / 1000;
        if (!accept_further(incoming, (int)left_ms, flags, &lane, error)) {
            g_prefix_error(error, "further channels: ");
            return FALSE;
        }
        if (!lane)
            continue;
        due--;
        bool added = snap_incoming_link_add(incoming, lane, error);
        set_newcomer(incoming, NULL);
        if (!added)
            return FALSE;
    }
    return TRUE;
}

/* Nobody else is to come; who comes is refused by the system. A command or a descriptor ends with its transport.
 */
static void stop_listening(SnapIncoming *incoming) {
    g_autoptr(SnapTransport) transport = NULL;
    snap_lock(&incoming->lock);
    if (snap_transport_can_have_several(incoming->transport))
        transport = g_steal_pointer(&incoming->transport);
    snap_unlock(&incoming->lock);
}

static void begin(SnapIncoming *incoming) {
    uint64_t total_bytes = 0;
    for (guint i = 0; i < incoming->regions->len; i++) {
        const SnapIncomingRegion *region = g_ptr_array_index(incoming->regions, i);
        total_bytes += region->region->length_bytes;
    }
    snap_lock(&incoming->lock);
    incoming->total_bytes = total_bytes;
    incoming->rounds = 1;
    incoming->welcome_us = g_get_monotonic_time();
    snap_unlock(&incoming->lock);
    incoming->state = SNAP_INCOMING_MEMORY;
    incoming->states = g_ptr_array_new_with_free_func((GDestroyNotify)snap_state_free);
    incoming->next_states = g_ptr_array_new_with_free_func((GDestroyNotify)snap_state_free);
}

gboolean snap_incoming_meet(SnapIncoming *incoming, GError **error) {
    SnapIncomingLane *lane = accept_lane(incoming, -1, error);
    SnapWireHead head;
    SnapWireHello hello;
    if (!lane || !open_link(incoming, lane, error) || !receive_hello(lane, &head, &hello, error) ||
        !check_first(incoming, &hello, head.flags, error))
        return FALSE;
    remember(incoming, &hello, head.flags);
    if (!receive_regions(incoming, error) || !prepare(incoming, error))
        return FALSE;
    begin(incoming);
    if (!incoming->one_way && !welcome(incoming, lane, SNAP_WIRE_AT_BEGIN, 0, error))
        return FALSE;
    snap_incoming_link_keep_alive(incoming);
    if (!accept_others(incoming, head.flags, error))
        return FALSE;
    if (incoming->missing)
        snap_missing_connect(incoming->missing, incoming->link->urgent);
    stop_listening(incoming);
    snap_incoming_set_phase(incoming, SNAP_MIGRATION_ACTIVE);
    return TRUE;
}

/* ---- resuming -------------------------------------------------------------------------------------------- */

static gboolean check_again(const SnapIncoming *incoming, const SnapWireHello *hello, uint16_t flags,
                            GError **error) {
    uint16_t expected = SNAP_WIRE_RESUME | (incoming->postcopy ? SNAP_WIRE_POSTCOPY : 0);
    if (!is_ours(incoming, hello))
        return snap_incoming_refuse(error, "another migration is to be resumed here");
    if ((flags & SNAP_WIRE_RESUME) == 0)
        return snap_incoming_refuse(error, "this migration has begun already");
    if ((flags | SNAP_WIRE_POSTCOPY) != (expected | SNAP_WIRE_POSTCOPY) || hello->channel != 0 ||
        hello->n_channels != 1 || hello->purpose != incoming->hello.purpose)
        return snap_incoming_refuse(error, "it is not resumed as it was begun");
    if (incoming->postcopy && (flags & SNAP_WIRE_POSTCOPY) == 0)
        return snap_incoming_refuse(error, "the urgent channel is to come as well");
    return TRUE;
}

/* The main channel of the source that was lost; others are sent away. */
static gboolean accept_again(SnapIncoming *incoming, uint16_t *ret_flags, GError **error) {
    for (;;) {
        SnapIncomingLane *lane = accept_lane(incoming, -1, error);
        g_autoptr(GError) failure = NULL;
        SnapWireHead head;
        SnapWireHello hello;
        if (!lane)
            return FALSE;
        if (receive_hello(lane, &head, &hello, &failure) && check_again(incoming, &hello, head.flags, &failure)) {
            *ret_flags = head.flags;
            return open_link(incoming, lane, error);
        }
        send_away(incoming, lane, failure);
    }
}

static gboolean tell_where(SnapIncoming *incoming, GError **error) {
    SnapIncomingLane *lane = incoming->link->lanes[0];
    SnapMissing *missing = incoming->started ? incoming->missing : NULL;
    SnapWireAt at = incoming->started ? SNAP_WIRE_AT_STARTED : SNAP_WIRE_AT_READY;
    uint64_t n_missing = 0;
    if (missing && !snap_missing_list(missing, &n_missing, error))
        return FALSE;
    return welcome(incoming, lane, at, n_missing, error) &&
           (n_missing == 0 || snap_missing_list(missing, NULL, error));
}

/* A name may still have to be found; the URI says only then with which port it is listened at. */
static gboolean begin_to_listen(SnapIncoming *incoming, GError **error) {
    if (!snap_transport_listen(incoming->transport, -1, error))
        return FALSE;
    snap_lock(&incoming->lock);
    g_free(incoming->uri);
    incoming->uri = g_strdup(snap_transport_uri(incoming->transport));
    snap_unlock(&incoming->lock);
    return TRUE;
}

gboolean snap_incoming_meet_again(SnapIncoming *incoming, GError **error) {
    uint16_t flags = 0;
    if (!begin_to_listen(incoming, error) || !accept_again(incoming, &flags, error) ||
        !tell_where(incoming, error))
        return FALSE;
    bool urgent = (flags & SNAP_WIRE_POSTCOPY) != 0;
    bool standby = incoming->hello.purpose == SNAP_WIRE_REPLICATE;
    incoming->state = incoming->started ? SNAP_INCOMING_RUNS
                      : standby         ? SNAP_INCOMING_STANDBY
                                        : SNAP_INCOMING_READY;
    incoming->done = incoming->complete && !incoming->postcopy;
    incoming->all_sent_us = 0;
    snap_incoming_link_keep_alive(incoming);
    incoming->may_postcopy = urgent;
    if (!accept_others(incoming, flags, error))
        return FALSE;
    if (incoming->missing && urgent)
        snap_missing_connect(incoming->missing, incoming->link->urgent);
    stop_listening(incoming);
    return !incoming->started || snap_incoming_say_started(incoming, error);
}
