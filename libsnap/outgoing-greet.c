/*
 * How a source and its destination come to terms. See outgoing.h, and docs/protocol.md.
 *
 * Happy path: connect the main channel, HELLO and REGIONs, WELCOME; then data channels and the urgent one, HELLO
 * and WELCOME each. One that is resumed has a main channel and, in a post-copy, an urgent one.
 *
 * Failure modes: nobody is there (IO), or not in time; the other side refuses (REFUSED, in its words), or says
 * what does not fit (PROTOCOL).
 */
#include "outgoing.h"

#include <string.h>
#include <unistd.h>

/* ---- greeting -------------------------------------------------------------------------------------------- */

/* One that is resumed has what it needs, no more. */
static bool has_urgent(const SnapOutgoing *outgoing, bool resume) {
    return resume ? outgoing->postcopy : outgoing->options.may_postcopy;
}

static gboolean send_hello(SnapOutgoing *outgoing, SnapLane *lane, bool resume, GError **error) {
    uint8_t body[512];
    bool whole = lane->number == 0 && !resume;
    SnapWireHello hello = {
        .id = outgoing->id,
        .version = SNAP_WIRE_VERSION,
        .n_channels = resume ? 1 : outgoing->options.n_channels,
        .channel = lane->number,
        .purpose = outgoing->options.epoch_ms ? SNAP_WIRE_REPLICATE : SNAP_WIRE_MOVE,
        .n_regions = whole ? outgoing->sources->len : 0,
        .page_bytes = (uint64_t)sysconf(_SC_PAGESIZE),
        .silence_ms = outgoing->options.silence_ms,
        .driver = outgoing->guest->driver,
        .driver_bytes = (uint16_t)MIN(strlen(outgoing->guest->driver), 255),
    };
    uint16_t flags = (uint16_t)((outgoing->one_way ? SNAP_WIRE_ONE_WAY : 0) | (resume ? SNAP_WIRE_RESUME : 0) |
                                (has_urgent(outgoing, resume) ? SNAP_WIRE_POSTCOPY : 0));
    return snap_lane_transmit(lane, SNAP_WIRE_HELLO, flags, body, snap_wire_encode_hello(&hello, body), NULL,
                              error);
}

static gboolean send_regions(SnapOutgoing *outgoing, GError **error) {
    uint8_t body[1152];
    for (guint i = 0; i < outgoing->sources->len; i++) {
        const SnapRegion *region = snap_outgoing_region(outgoing, i);
        SnapWireRegion announced = {.guest_address = region->guest_address,
                                    .length_bytes = region->length_bytes,
                                    .page_bytes = region->page_bytes,
                                    .granule_bytes = region->granule_bytes,
                                    .host_address = region->host_address,
                                    .name = region->name,
                                    .name_bytes = (uint16_t)strlen(region->name)};
        uint16_t flags = snap_outgoing_source(outgoing, i)->kept ? SNAP_WIRE_KEPT : 0;
        if (!snap_outgoing_send(outgoing, SNAP_WIRE_REGION, flags, body, snap_wire_encode_region(&announced, body),
                                error)) {
            return FALSE;
        }
    }
    return TRUE;
}

gboolean snap_outgoing_send_layout(SnapOutgoing *outgoing, GError **error) {
    uint8_t body[16];
    uint32_t body_bytes = snap_wire_encode_number(outgoing->sources->len, body);
    return snap_outgoing_send(outgoing, SNAP_WIRE_LAYOUT, 0, body, body_bytes, error) &&
           send_regions(outgoing, error);
}

static gboolean check_welcome(const SnapOutgoing *outgoing, const SnapLane *lane, const SnapWireWelcome *welcome,
                              bool resume, GError **error) {
    const char *wrong = NULL;
    if (memcmp(&welcome->id, &outgoing->id, sizeof welcome->id) != 0) {
        wrong = "it has another id";
    } else if (welcome->version != SNAP_WIRE_VERSION) {
        wrong = "it has another version";
    } else if (lane->number == 0 && resume != (welcome->at != SNAP_WIRE_AT_BEGIN)) {
        wrong = "the other side is at a point that it cannot be at";
    } else if (welcome->n_missing && (lane->number != 0 || !outgoing->postcopy)) {
        wrong = "nothing can be missing";
    }
    return !wrong || snap_outgoing_fail_content(SNAP_WIRE_WELCOME, wrong, error);
}

static gboolean await_welcome(SnapOutgoing *outgoing, SnapLane *lane, bool resume, SnapWireWelcome *ret_welcome,
                              GError **error) {
    SnapWireHead head;
    int timeout_ms = (int)MIN(outgoing->options.silence_ms, G_MAXINT);
    if (!snap_channel_expect(&lane->channel, SNAP_WIRE_WELCOME, timeout_ms, &head, outgoing->body, error)) {
        return FALSE;
    }
    const char *wrong = snap_wire_decode_welcome(&head, outgoing->body, ret_welcome);
    if (wrong) {
        return snap_outgoing_fail_content(SNAP_WIRE_WELCOME, wrong, error);
    }
    return check_welcome(outgoing, lane, ret_welcome, resume, error);
}

static gboolean greet(SnapOutgoing *outgoing, SnapLane *lane, uint32_t number, bool resume,
                      SnapWireWelcome *ret_welcome, GError **error) {
    gboolean done = snap_outgoing_open_lane(outgoing, lane, number, error) &&
                    send_hello(outgoing, lane, resume, error) &&
                    (number != 0 || resume || send_regions(outgoing, error)) &&
                    (outgoing->one_way || await_welcome(outgoing, lane, resume, ret_welcome, error));
    if (!done && number != 0) {
        g_prefix_error(error, "channel %u: ", number);
    }
    return done;
}

gboolean snap_outgoing_connect(SnapOutgoing *outgoing, bool resume, SnapWireWelcome *ret_welcome, GError **error) {
    SnapWireWelcome ignored;
    guint n = resume ? 1 : outgoing->options.n_channels;
    for (guint i = 0; i < n; i++) {
        outgoing->n_lanes = i + 1;
        if (!greet(outgoing, &outgoing->lanes[i], i, resume, i ? &ignored : ret_welcome, error)) {
            return FALSE;
        }
        if (i == 0 && !outgoing->one_way) {
            snap_outgoing_start_alive(outgoing);
        }
    }
    return TRUE;
}

gboolean snap_outgoing_connect_urgent(SnapOutgoing *outgoing, bool resume, GError **error) {
    SnapWireWelcome ignored;
    return !has_urgent(outgoing, resume) ||
           greet(outgoing, &outgoing->urgent, SNAP_WIRE_URGENT, resume, &ignored, error);
}
