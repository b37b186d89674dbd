/* See hand.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "hand.h"

#include <string.h>
#include <unistd.h>

void hand_init(Hand *hand, SnapWireSender self, int in, int out) {
    g_autoptr(GError) error = NULL;
    *hand = (Hand){.body = g_malloc(SNAP_WIRE_MAX_BODY_BYTES)};
    snap_channel_init(&hand->channel, self, in, out, HAND_PATIENCE_MS, &error);
    fail_on(error);
}

void hand_close(Hand *hand) {
    snap_channel_clear(&hand->channel);
    g_clear_pointer(&hand->body, g_free);
}

/* ---- what it says ---------------------------------------------------------------------------------------- */

static void send(Hand *hand, SnapWireType type, uint16_t flags, const void *body, uint32_t body_bytes,
                 const struct iovec *bulk) {
    g_autoptr(GError) error = NULL;
    snap_channel_send(&hand->channel, type, flags, body, body_bytes, bulk, bulk != NULL, &error);
    if (!hand->lenient)
        fail_on(error);
}

void hand_say(Hand *hand, SnapWireType type, uint16_t flags, const void *body, uint32_t body_bytes) {
    send(hand, type, flags, body, body_bytes, NULL);
}

void hand_say_id(Hand *hand, SnapWireType type) {
    uint8_t body[16];
    hand_say(hand, type, 0, body, snap_wire_encode_id(&hand->id, body));
}

void hand_say_number(Hand *hand, SnapWireType type, uint64_t number) {
    uint8_t body[16];
    hand_say(hand, type, 0, body, snap_wire_encode_number(number, body));
}

void hand_say_failed(Hand *hand, const char *text) {
    snap_channel_send_failed(&hand->channel, text);
}

void hand_say_garbage(Hand *hand) {
    static const char text[] = "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    assert_int_equal(write(hand->channel.out, text, sizeof text), sizeof text);
}

void hand_live_on(Hand *hand, unsigned ms) {
    const bool lenient = hand->lenient;
    hand->lenient = true;
    for (unsigned passed = 0; passed < ms; passed += 100) {
        g_usleep(100000);
        hand_say_number(hand, SNAP_WIRE_ALIVE, 0);
    }
    hand->lenient = lenient;
}

void hand_say_chunk(Hand *hand, const SnapWireChunk *chunk, const void *bulk) {
    uint8_t body[64];
    const struct iovec part = {(void *)(uintptr_t)bulk, chunk->record.length_bytes};
    send(hand, SNAP_WIRE_CHUNK, 0, body, snap_wire_encode_chunk(chunk, body), part.iov_len > 0 ? &part : NULL);
    hand->n_chunks++;
    hand->n_pages += (uint64_t)__builtin_popcountll(chunk->record.present);
}

void hand_say_state(Hand *hand, const SnapWireState *state) {
    g_autofree uint8_t *body = g_malloc(SNAP_WIRE_MAX_BODY_BYTES);
    hand_say(hand, SNAP_WIRE_STATE, 0, body, snap_wire_encode_state(state, body));
}

void hand_say_missing(Hand *hand, const SnapWireMissing *missing, const uint64_t *masks) {
    g_autofree uint8_t *body = g_malloc(SNAP_WIRE_MAX_BODY_BYTES);
    hand_say(hand, SNAP_WIRE_MISSING, 0, body, snap_wire_encode_missing(missing, masks, body));
}

void hand_say_end(Hand *hand, uint64_t epoch, uint64_t n_states, uint16_t flags) {
    uint8_t body[32];
    const SnapWireEnd end = {
        .epoch = epoch, .n_chunks = hand->n_chunks, .n_pages = hand->n_pages, .n_states = n_states};
    hand->n_chunks = hand->n_pages = 0;
    hand_say(hand, SNAP_WIRE_END, flags, body, snap_wire_encode_end(&end, body));
}

/* ---- what has to come ------------------------------------------------------------------------------------ */

void hand_expect(Hand *hand, SnapWireType type) {
    g_autoptr(GError) error = NULL;
    snap_channel_expect(&hand->channel, type, HAND_PATIENCE_MS, &hand->head, hand->body, &error);
    fail_on(error);
}

void hand_expect_ready(Hand *hand, uint64_t epoch) {
    uint64_t said = 0;
    hand_expect(hand, SNAP_WIRE_READY);
    assert_null(snap_wire_decode_number(&hand->head, hand->body, &said));
    assert_int_equal(said, epoch);
}

void hand_expect_failed(Hand *hand, const char *part) {
    hand_expect(hand, SNAP_WIRE_FAILED);
    g_autofree char *text = snap_wire_decode_failed(&hand->head, hand->body);
    if (!strstr(text, part))
        fail_msg("\"%s\" is not in \"%s\"", part, text);
}

void hand_expect_closed(Hand *hand) {
    g_autoptr(GError) error = NULL;
    assert_false(
        snap_channel_expect(&hand->channel, SNAP_WIRE_NONE, HAND_PATIENCE_MS, &hand->head, hand->body, &error));
    assert_int_equal(error->code, SNAP_ERROR_IO);
}
