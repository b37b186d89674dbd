/*
 * The destination of a move, against a source made by hand that says something wrong when it has been greeted: the
 * migration ends, both sides are told what it was, and the guest is not started.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "incoming-fixture.h"

#include "../../libsnap/chunk.h"

#include <string.h>

/* A part of a blob of state: one byte. */
typedef struct {
    const char *name;
    uint64_t total_bytes, offset_bytes;
} Part;

/* A chunk of one page of zeros, and what is wrong with it. */
typedef struct {
    unsigned region;
    uint64_t page;
    unsigned more_bytes;
    bool packed; /* it says so */
    uint64_t flip;
} WrongChunk;

/* What is said: parts of states, then chunks that are right, then a record. */
typedef struct {
    Part parts[2];
    bool chunk_first; /* of two pages */
    SnapWireType type;
    WrongChunk chunk;
    SnapWireEnd end;
    uint16_t flags; /* of END */
    int code;
    const char *words;
} Lapse;

static void say_chunk(const Rig *rig, Hand *hand, const WrongChunk *wrong) {
    g_autofree uint8_t *zeros = g_malloc0(2 * rig->page);
    uint32_t length_bytes = (uint32_t)(wrong->packed ? 100 : rig->page + wrong->more_bytes * rig->page);
    const SnapWireChunk chunk = {.region = wrong->region,
                                 .chunk = wrong->page / 64,
                                 .record = {.present = UINT64_C(1) << wrong->page % 64,
                                            .length_bytes = length_bytes,
                                            .codec = wrong->packed ? SNAP_WIRE_CODEC_ZSTD : SNAP_WIRE_CODEC_RAW,
                                            .xxh3 = snap_chunk_hash(zeros, rig->page, 1) ^ wrong->flip}};
    hand_say_chunk(hand, &chunk, zeros);
}

static void say_end(Hand *hand, const SnapWireEnd *end, uint16_t flags) {
    uint8_t body[32];
    hand_say(hand, SNAP_WIRE_END, flags, body, snap_wire_encode_end(end, body));
}

static void say_parts(Hand *hand, const Part *parts) {
    for (unsigned i = 0; i < 2 && parts[i].name; i++) {
        const SnapWireState part = {.total_bytes = parts[i].total_bytes,
                                    .offset_bytes = parts[i].offset_bytes,
                                    .name = parts[i].name,
                                    .name_bytes = (uint16_t)strlen(parts[i].name),
                                    .data = (const uint8_t *)"x",
                                    .data_bytes = 1};
        hand_say_state(hand, &part);
    }
}

static void say(Rig *rig, Hand *hand, const Lapse *lapse) {
    const SnapWireMissing missing = {.n_masks = 1};
    say_parts(hand, lapse->parts);
    if (lapse->chunk_first)
        rig_send_by(rig, hand, (RigChunk){.present = 3});
    switch (lapse->type) {
    case SNAP_WIRE_CHUNK:
        say_chunk(rig, hand, &lapse->chunk);
        break;
    case SNAP_WIRE_END:
        say_end(hand, &lapse->end, lapse->flags);
        break;
    case SNAP_WIRE_HELLO:
        rig_say_hello(rig, hand, 0);
        break;
    case SNAP_WIRE_REGION:
        rig_say_region(hand, &rig->regions[0], rig->page);
        break;
    case SNAP_WIRE_MISSING:
        hand_say_missing(hand, &missing, (const uint64_t[]){1});
        break;
    case SNAP_WIRE_GO:
    case SNAP_WIRE_STARTED:
    case SNAP_WIRE_ALL_SENT:
        hand_say_id(hand, lapse->type);
        break;
    case SNAP_WIRE_NONE:
        hand_say_garbage(hand);
        break;
    default: /* the parts were it */
        break;
    }
}

#define PROTOCOL .code = SNAP_ERROR_PROTOCOL, .words
#define CORRUPT .code = SNAP_ERROR_CORRUPT, .words

static const Lapse lapses[] = {
    /* chunks */
    {.type = SNAP_WIRE_CHUNK, .chunk = {.region = 2}, PROTOCOL = "(CHUNK): there is no such region"},
    {.type = SNAP_WIRE_CHUNK, .chunk = {.page = 256}, PROTOCOL = "(CHUNK): there is no such chunk"},
    {.type = SNAP_WIRE_CHUNK, .chunk = {.page = RIG_PAGES}, PROTOCOL = "(CHUNK): it has pages beyond the end"},
    {.type = SNAP_WIRE_CHUNK, .chunk = {.more_bytes = 1}, PROTOCOL = "(CHUNK): the length does not fit"},
    {.type = SNAP_WIRE_CHUNK, .chunk = {.flip = 1}, CORRUPT = "region \"ram\", chunk 0: the checksum is wrong"},
    {.type = SNAP_WIRE_CHUNK, .chunk = {.packed = true}, CORRUPT = "region \"ram\", chunk 0: "},
    /* END */
    {.type = SNAP_WIRE_END,
     .end = {.n_chunks = 1, .n_pages = 1},
     PROTOCOL = "1 chunks with 1 pages were sent, and 0 with 0 have come"},
    {.chunk_first = true,
     .type = SNAP_WIRE_END,
     .end = {.n_chunks = 1, .n_pages = 3},
     PROTOCOL = "1 chunks with 3 pages were sent, and 1 with 2 have come"},
    {.parts = {{"cpu", 1, 0}},
     .type = SNAP_WIRE_END,
     .end = {.n_states = 2},
     PROTOCOL = "another number of blobs"},
    {.type = SNAP_WIRE_END, .end = {.epoch = 1}, PROTOCOL = "epoch 1, and 0 was to come"},
    {.type = SNAP_WIRE_END, .flags = SNAP_WIRE_PAGES_MISSING, PROTOCOL = "no post-copy was agreed on"},
    /* records that may not come, or not yet, or not any more */
    {.type = SNAP_WIRE_MISSING, PROTOCOL = "(MISSING): no post-copy was agreed on"},
    {.type = SNAP_WIRE_GO, PROTOCOL = "(GO): it may not come while memory comes"},
    {.type = SNAP_WIRE_ALL_SENT, PROTOCOL = "(ALL_SENT): it may not come"},
    {.type = SNAP_WIRE_HELLO, PROTOCOL = "(HELLO): it may not come"},
    {.type = SNAP_WIRE_REGION, PROTOCOL = "(REGION): it may not come"},
    {.type = SNAP_WIRE_STARTED, PROTOCOL = "(STARTED)"},
    {.type = SNAP_WIRE_NONE, PROTOCOL = "record 3"},
    {.parts = {{"cpu", 1, 0}},
     .type = SNAP_WIRE_CHUNK,
     PROTOCOL = "(CHUNK): it may not come while the device state comes"},
    /* states */
    {.parts = {{"cpu", 1, 0}, {"cpu", 1, 0}},
     .type = SNAP_WIRE_STATE,
     PROTOCOL = "(STATE): there is such a blob already"},
    {.parts = {{"cpu", 3, 1}}, .type = SNAP_WIRE_STATE, PROTOCOL = "(STATE): the beginning"},
    {.parts = {{"cpu", 3, 0}, {"cpu", 3, 2}}, .type = SNAP_WIRE_STATE, PROTOCOL = "(STATE): it does not continue"},
    {.parts = {{"cpu", 3, 0}, {"cpu", 4, 1}}, .type = SNAP_WIRE_STATE, PROTOCOL = "(STATE): it does not continue"},
    {.parts = {{"cpu", 3, 0}, {"disk", 3, 0}}, .type = SNAP_WIRE_STATE, PROTOCOL = "(STATE): the blob before it"},
    {.parts = {{"cpu", 3, 0}},
     .type = SNAP_WIRE_END,
     .end = {.n_states = 1},
     PROTOCOL = "(END): a blob of state is not complete"},
};

static void record_that_may_not_be_ends_the_migration_by_name(void **state) {
    for (unsigned i = 0; i < G_N_ELEMENTS(lapses); i++) {
        Rig *rig = rig_greeted(state, 1);
        say(rig, &rig->main, &lapses[i]);
        rig_expect_failed(rig, lapses[i].code, lapses[i].words);
        assert_int_equal(rig->loads, 0);
        rig_again(state);
    }
}

static const Lapse data_lapses[] = {
    {.type = SNAP_WIRE_CHUNK,
     .chunk = {.region = 2},
     PROTOCOL = "channel 1: record 1 (CHUNK): there is no such region"},
    {.type = SNAP_WIRE_CHUNK, PROTOCOL = "channel 1: record 1 (CHUNK): it belongs to another channel"},
    {.type = SNAP_WIRE_GO, PROTOCOL = "channel 1: record 1 (GO): a data channel has no such record"},
    {.type = SNAP_WIRE_END,
     .end = {.n_chunks = 1, .n_pages = 1},
     PROTOCOL = "channel 1: record 1 (END): 1 chunks"},
    {.type = SNAP_WIRE_NONE, PROTOCOL = "channel 1: record 1"},
};

static void data_channel_that_breaks_the_rules_ends_the_migration(void **state) {
    for (unsigned i = 0; i < G_N_ELEMENTS(data_lapses); i++) {
        Rig *rig = rig_greeted(state, 2);
        rig_join_all(rig);
        say(rig, &rig->channels[1], &data_lapses[i]);
        rig_expect_failed(rig, data_lapses[i].code, data_lapses[i].words);
        rig_again(state);
    }
}

static void states_that_are_too_many_are_refused(void **state) {
    Rig *rig = rig_greeted(state, 1);
    for (unsigned i = 0; i <= SNAP_WIRE_MAX_STATES; i++) {
        char name[16];
        g_snprintf(name, sizeof name, "%u", i);
        rig_send_state(rig, name, "", 0);
    }
    rig_expect_failed(rig, SNAP_ERROR_PROTOCOL, "(STATE): too many blobs");
    assert_int_equal(rig->loads, 0);
}

static void state_of_more_than_it_may_be_is_refused(void **state) {
    const size_t length = 192u << 20;
    g_autofree uint8_t *blob = g_malloc0(length);
    Rig *rig = rig_greeted(state, 1);
    rig_send_state(rig, "first", blob, length);
    rig->main.lenient = true; /* the second would exceed the sum: it is refused in its middle */
    rig_send_state(rig, "second", blob, length);
    rig_expect_failed(rig, SNAP_ERROR_PROTOCOL, "longer than it may be");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(record_that_may_not_be_ends_the_migration_by_name),
        TEST(data_channel_that_breaks_the_rules_ends_the_migration),
        TEST(states_that_are_too_many_are_refused),
        TEST(state_of_more_than_it_may_be_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
