/* See incoming-fixture.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "incoming-fixture.h"

#include "../../libsnap/chunk.h"
#include "../../libsnap/transport.h"

#include <string.h>
#include <zstd.h>

/* ---- connections ----------------------------------------------------------------------------------------- */

static void connect_to(const Rig *rig, Hand *hand, SnapTransport *transport) {
    g_autoptr(GError) error = NULL;
    int in = -1, out = -1;
    snap_transport_connect(transport, HAND_PATIENCE_MS, &in, &out, &error);
    fail_on(error);
    hand_init(hand, SNAP_WIRE_FROM_SOURCE, in, out);
    hand->id = rig->hello.id;
}

void rig_connect(const Rig *rig, Hand *hand) {
    g_autoptr(GError) error = NULL;
    g_autofree char *uri = snap_incoming_uri(rig->incoming);
    g_autoptr(SnapTransport) transport = snap_transport_new_source(uri, &error);
    fail_on(error);
    connect_to(rig, hand, transport);
}

void rig_say_hello(const Rig *rig, Hand *hand, uint32_t channel) {
    uint8_t body[512];
    SnapWireHello hello = rig->hello;
    hello.channel = channel;
    if (channel != 0 || (rig->flags & SNAP_WIRE_RESUME) != 0)
        hello.n_regions = 0;
    hand_say(hand, SNAP_WIRE_HELLO, rig->flags, body, snap_wire_encode_hello(&hello, body));
}

void rig_say_region(Hand *hand, const RigRegion *region, uint64_t page_bytes) {
    uint8_t body[1152];
    const SnapWireRegion record = {.guest_address = region->guest_address,
                                   .length_bytes = region->length_bytes,
                                   .page_bytes = page_bytes,
                                   .granule_bytes = region->granule_pages * page_bytes,
                                   .host_address = 0x10000 + region->guest_address,
                                   .name = region->name,
                                   .name_bytes = (uint16_t)strlen(region->name)};
    hand_say(hand, SNAP_WIRE_REGION, 0, body, snap_wire_encode_region(&record, body));
}

void rig_say_regions(const Rig *rig, Hand *hand) {
    for (unsigned i = 0; i < rig->n_regions; i++)
        rig_say_region(hand, &rig->regions[i], rig->page);
}

void rig_greet(Rig *rig) {
    rig_connect(rig, &rig->main);
    rig_say_hello(rig, &rig->main, 0);
    rig_say_regions(rig, &rig->main);
    hand_expect(&rig->main, SNAP_WIRE_WELCOME);
}

Rig *rig_greeted(void **state, uint32_t n_channels) {
    Rig *rig = rig_listening(state, n_channels);
    rig_greet(rig);
    return rig;
}

void rig_join(Rig *rig, uint32_t channel) {
    Hand *hand = channel == SNAP_WIRE_URGENT ? &rig->urgent : &rig->channels[channel];
    rig_connect(rig, hand);
    rig_say_hello(rig, hand, channel);
    hand_expect(hand, SNAP_WIRE_WELCOME);
}

void rig_join_all(Rig *rig) {
    for (uint32_t channel = 1; channel < rig->hello.n_channels; channel++)
        rig_join(rig, channel);
}

uint64_t rig_resume(Rig *rig, SnapWireAt at) {
    SnapWireWelcome welcome;
    rig->flags |= SNAP_WIRE_RESUME;
    rig_connect(rig, &rig->main);
    rig_say_hello(rig, &rig->main, 0);
    hand_expect(&rig->main, SNAP_WIRE_WELCOME);
    assert_null(snap_wire_decode_welcome(&rig->main.head, rig->main.body, &welcome));
    assert_int_equal(welcome.at, at);
    return welcome.n_missing;
}

void rig_greet_file(Rig *rig) {
    g_autoptr(GError) error = NULL;
    g_snprintf(rig->uri, sizeof rig->uri, "file:%s/file", rig->dir);
    g_autoptr(SnapTransport) transport = snap_transport_new_source(rig->uri, &error);
    fail_on(error);
    connect_to(rig, &rig->main, transport);
    rig->flags = SNAP_WIRE_ONE_WAY;
    rig_say_hello(rig, &rig->main, 0);
    rig_say_regions(rig, &rig->main);
    snap_transport_keep(transport, &error);
    fail_on(error);
}

/* ---- what it sends --------------------------------------------------------------------------------------- */

void rig_send_by(Rig *rig, Hand *hand, RigChunk chunk) {
    size_t room = 64 * rig->page, bound = ZSTD_compressBound(room), length = 0;
    g_autofree uint8_t *pages = g_malloc(room), *packed = g_malloc(bound);
    uint64_t stored = 0;
    for (uint64_t left = chunk.present; left != 0; left &= left - 1) {
        uint64_t bit = (uint64_t)__builtin_ctzll(left), page = chunk.chunk * 64 + bit;
        unsigned generation = chunk.zero >> bit & 1 ? 0 : chunk.generation;
        rig_note(rig, chunk.region, page, 1, generation);
        if (chunk.zero >> bit & 1)
            continue;
        rig_page(rig, chunk.region, page, generation, pages + length);
        stored = stored << 1 | 1;
        length += rig->page;
    }
    size_t sent = chunk.zstd ? ZSTD_compress(packed, bound, pages, length, 1) : length;
    SnapWireChunk record = {.region = chunk.region,
                            .chunk = chunk.chunk,
                            .record = {.present = chunk.present,
                                       .zero = chunk.zero,
                                       .length_bytes = (uint32_t)sent,
                                       .codec = chunk.zstd ? SNAP_WIRE_CODEC_ZSTD : SNAP_WIRE_CODEC_RAW,
                                       .xxh3 = snap_chunk_hash(pages, rig->page, stored)}};
    hand_say_chunk(hand, &record, chunk.zstd ? packed : pages);
}

void rig_send(Rig *rig, RigChunk chunk) {
    rig_send_by(rig, &rig->channels[chunk.chunk % rig->hello.n_channels], chunk);
}

void rig_send_region(Rig *rig, unsigned region, unsigned generation) {
    const RigRegion *all = &rig->regions[region];
    for (uint64_t chunk = 0; chunk < snap_chunk_count(all->length_bytes, rig->page); chunk++)
        rig_send(rig, (RigChunk){.region = region,
                                 .chunk = chunk,
                                 .present = snap_chunk_pages(all->length_bytes, rig->page, chunk),
                                 .generation = generation});
}

void rig_send_state(Rig *rig, const char *name, const void *data, size_t length_bytes) {
    size_t at = 0;
    do {
        const SnapWireState part = {.total_bytes = length_bytes,
                                    .offset_bytes = at,
                                    .name = name,
                                    .name_bytes = (uint16_t)strlen(name),
                                    .data = (const uint8_t *)data + at,
                                    .data_bytes = (uint32_t)MIN(length_bytes - at, SNAP_WIRE_STATE_PART_BYTES)};
        hand_say_state(&rig->main, &part);
        at += part.data_bytes;
    } while (at < length_bytes);
}

void rig_end(Rig *rig, uint64_t epoch, uint64_t n_states, uint16_t flags) {
    for (unsigned i = 1; i < G_N_ELEMENTS(rig->channels); i++) {
        if (rig->channels[i].channel.live)
            hand_say_end(&rig->channels[i], epoch, 0, 0);
    }
    hand_say_end(&rig->main, epoch, n_states, flags);
}

void rig_end_epoch(Rig *rig, uint64_t epoch) {
    char state[32];
    g_snprintf(state, sizeof state, "state %u", (unsigned)epoch);
    rig_send_state(rig, "cpu", state, strlen(state) + 1);
    rig_end(rig, epoch, 1, 0);
}

void rig_finish_epoch(Rig *rig, uint64_t epoch) {
    rig_end_epoch(rig, epoch);
    hand_expect_ready(&rig->main, epoch);
}

void rig_go(Rig *rig) {
    assert_int_equal(rig->starts, 0);
    hand_say_id(&rig->main, SNAP_WIRE_GO);
    hand_expect(&rig->main, SNAP_WIRE_STARTED);
    rig->starts_due = 1;
}

void rig_hand_over(Rig *rig) {
    rig_go(rig);
    rig_close(rig);
    rig_expect_completed(rig);
    rig_check(rig);
}

void rig_finish(Rig *rig, uint64_t n_states) {
    rig_end(rig, 0, n_states, 0);
    hand_expect_ready(&rig->main, 0);
    rig_hand_over(rig);
}
