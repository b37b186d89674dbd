/* The destination of a migration against a source made by hand: a move, and everything that may be wrong with it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "incoming-rig.h"

#include "../../libsnap/chunk.h"
#include "../../libsnap/transport.h"
#include "../lib/own-process.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PAGES = 200 }; /* three chunks and a part */

static const SnapMemory both[] = {SNAP_MEMORY_ANON, SNAP_MEMORY_SHMEM};

static void begin(Rig *rig, Hand *hand) {
    rig_init(rig, both, G_N_ELEMENTS(both), PAGES);
    rig_listen(rig);
    hand_open(hand, rig);
}

static void begin_and_greet(Rig *rig, Hand *hand) {
    begin(rig, hand);
    hand_greet(hand, rig);
}

/* The rest of a move. */
static void finish(Rig *rig, Hand *hand, uint64_t n_states) {
    hand_end(hand, 0, n_states, 0);
    hand_expect_ready(hand, 0);
    assert_int_equal(rig->starts, 0);
    hand_id(hand, rig, SNAP_WIRE_GO);
    hand_expect(hand, SNAP_WIRE_STARTED);
    hand_close(hand);
    rig_wait(rig, 0, NULL);
}

/* ---- the good way ---------------------------------------------------------------------------------------- */

static void move_of_all_pages_is_byte_for_byte(void **state) {
    (void)state;
    Rig rig;
    Hand hand;
    begin_and_greet(&rig, &hand);
    for (unsigned i = 0; i < rig.n_regions; i++)
        hand_region(&hand, &rig, i, 1);
    hand_state(&hand, "cpu", "registers", 9);
    hand_state(&hand, "empty", "", 0);
    finish(&rig, &hand, 2);
    for (unsigned i = 0; i < rig.n_regions; i++) {
        for (uint64_t page = 0; page < PAGES; page++)
            assert_true(rig_is(&rig, i, page, 1));
    }
    assert_int_equal(rig.states->len, 2);
    const SnapState *cpu = g_ptr_array_index(rig.states, 0);
    assert_string_equal(cpu->name, "cpu");
    assert_memory_equal(g_bytes_get_data(cpu->data, NULL), "registers", 9);
    SnapMigrationStats stats;
    snap_incoming_get_stats(rig.incoming, &stats);
    assert_int_equal(stats.pages_normal, 2 * PAGES);
    assert_int_equal(stats.total_bytes, 2 * PAGES * rig.page);
    assert_true(stats.sent_bytes > stats.total_bytes);
    rig_clear(&rig, 1);
}

static void move_over_memory_that_held_something_leaves_nothing_of_it(void **state) {
    (void)state;
    Rig rig;
    Hand hand;
    rig_init(&rig, both, G_N_ELEMENTS(both), PAGES);
    for (unsigned i = 0; i < rig.n_regions; i++)
        memset(rig.regions[i].data, 0xee, rig.regions[i].length_bytes);
    rig_listen(&rig);
    hand_open(&hand, &rig);
    hand_greet(&hand, &rig);
    hand_chunk(&hand, &rig, (HandChunk){.region = 1, .chunk = 1, .present = 0xf, .generation = 1});
    finish(&rig, &hand, 0);
    for (uint64_t page = 0; page < PAGES; page++) {
        assert_true(rig_is_zero(&rig, 0, page));
        assert_true(page >= 64 && page < 68 ? rig_is(&rig, 1, page, 1) : rig_is_zero(&rig, 1, page));
    }
    rig_clear(&rig, 1);
}

static void move_of_pages_that_come_again_keeps_the_last(void **state) {
    (void)state;
    Rig rig;
    Hand hand;
    begin_and_greet(&rig, &hand);
    hand_chunk(&hand, &rig, (HandChunk){.region = 0, .chunk = 0, .present = 0xff, .generation = 1});
    hand_chunk(&hand, &rig, (HandChunk){.region = 0, .chunk = 0, .present = 0x5a, .zero = 0x42, .generation = 2});
    hand_chunk(&hand, &rig, (HandChunk){.region = 0, .chunk = 0, .present = 0x02, .generation = 3});
    hand_chunk(&hand, &rig, (HandChunk){.region = 0, .chunk = 3, .present = 0x82, .zero = 0x80});
    finish(&rig, &hand, 0);
    const unsigned expected[] = {1, 3, 1, 2, 2, 1, 0, 1};
    for (uint64_t page = 0; page < G_N_ELEMENTS(expected); page++)
        assert_true(expected[page] ? rig_is(&rig, 0, page, expected[page]) : rig_is_zero(&rig, 0, page));
    assert_true(rig_is(&rig, 0, 3 * 64 + 1, 0) && rig_is_zero(&rig, 0, 3 * 64 + 7));
    rig_clear(&rig, 1);
}

static void move_of_packed_pages_is_byte_for_byte(void **state) {
    (void)state;
    const uint64_t masks[] = {UINT64_MAX, 1, UINT64_C(0x5555555555555555), UINT64_C(0xff)};
    Rig rig;
    Hand hand;
    begin_and_greet(&rig, &hand);
    for (unsigned i = 0; i < rig.n_regions; i++) {
        for (uint64_t chunk = 0; chunk < G_N_ELEMENTS(masks); chunk++)
            hand_chunk(
                &hand, &rig,
                (HandChunk){.region = i, .chunk = chunk, .present = masks[chunk], .generation = 4, .zstd = true});
    }
    finish(&rig, &hand, 0);
    for (unsigned i = 0; i < rig.n_regions; i++) {
        for (uint64_t page = 0; page < PAGES; page++)
            assert_true((masks[page / 64] >> page % 64 & 1) != 0 ? rig_is(&rig, i, page, 4)
                                                                 : rig_is_zero(&rig, i, page));
    }
    rig_clear(&rig, 1);
}

static void move_on_four_channels_is_byte_for_byte(void **state) {
    (void)state;
    Rig rig;
    Hand hands[4];
    rig_init(&rig, both, G_N_ELEMENTS(both), PAGES);
    rig.hello.n_channels = 4;
    rig_listen(&rig);
    hand_open(&hands[0], &rig);
    hand_greet(&hands[0], &rig);
    const uint32_t order[] = {2, 3, 1};
    for (unsigned i = 0; i < G_N_ELEMENTS(order); i++)
        hand_join(&hands[order[i]], &rig, order[i]);
    for (uint64_t chunk = 0; chunk < 4; chunk++) {
        for (unsigned i = 0; i < rig.n_regions; i++)
            hand_chunk(&hands[chunk], &rig,
                       (HandChunk){.region = i, .chunk = chunk, .present = 0xff, .generation = 5});
    }
    for (unsigned i = 1; i < 4; i++)
        hand_end(&hands[i], 0, 0, 0);
    hand_state(&hands[0], "cpu", "registers", 9);
    finish(&rig, &hands[0], 1);
    for (unsigned i = 1; i < 4; i++)
        hand_close(&hands[i]);
    for (uint64_t page = 0; page < PAGES; page++)
        assert_true(page % 64 < 8 ? rig_is(&rig, 1, page, 5) : rig_is_zero(&rig, 1, page));
    rig_clear(&rig, 1);
}

static void state_in_many_parts_comes_whole(void **state) {
    (void)state;
    const size_t length = 3 * SNAP_WIRE_STATE_PART_BYTES + 17;
    g_autofree uint8_t *blob = g_malloc(length);
    Rig rig;
    Hand hand;
    for (size_t i = 0; i < length; i++)
        blob[i] = (uint8_t)(i * 31 / 7);
    begin_and_greet(&rig, &hand);
    hand_state(&hand, "large", blob, length);
    finish(&rig, &hand, 1);
    const SnapState *large = g_ptr_array_index(rig.states, 0);
    assert_int_equal(g_bytes_get_size(large->data), length);
    assert_memory_equal(g_bytes_get_data(large->data, NULL), blob, length);
    rig_clear(&rig, 1);
}

/* ---- what is wrong when it begins ------------------------------------------------------------------------ */

static void refused_at_hello(Rig *rig, Hand *hand, int code, const char *part) {
    hand_expect_failed(hand, part);
    hand_close(hand);
    rig_wait(rig, code, part);
    rig_clear(rig, 0);
}

static void hello_that_resumes_nothing_is_refused(void **state) {
    (void)state;
    Rig rig;
    Hand hand;
    begin(&rig, &hand);
    rig.flags = SNAP_WIRE_RESUME;
    hand_say_hello(&hand, &rig, 0);
    refused_at_hello(&rig, &hand, SNAP_ERROR_REFUSED, "could be resumed");
}

static void hello_of_other_pages_is_refused(void **state) {
    (void)state;
    Rig rig;
    Hand hand;
    begin(&rig, &hand);
    rig.hello.page_bytes *= 2;
    hand_say_hello(&hand, &rig, 0);
    refused_at_hello(&rig, &hand, SNAP_ERROR_REFUSED, "there, and");
}

static void hello_of_a_further_channel_first_is_refused(void **state) {
    (void)state;
    Rig rig;
    Hand hand;
    begin(&rig, &hand);
    rig.hello.n_channels = 2;
    hand_say_hello(&hand, &rig, 1);
    refused_at_hello(&rig, &hand, SNAP_ERROR_REFUSED, "has to come first");
}

static void hello_of_a_replication_with_postcopy_is_refused(void **state) {
    (void)state;
    Rig rig;
    Hand hand;
    begin(&rig, &hand);
    rig.hello.purpose = SNAP_WIRE_REPLICATE;
    rig.flags = SNAP_WIRE_POSTCOPY;
    hand_say_hello(&hand, &rig, 0);
    refused_at_hello(&rig, &hand, SNAP_ERROR_REFUSED, "has no post-copy");
}

static void record_before_hello_is_refused(void **state) {
    (void)state;
    Rig rig;
    Hand hand;
    begin(&rig, &hand);
    hand_id(&hand, &rig, SNAP_WIRE_GO);
    refused_at_hello(&rig, &hand, SNAP_ERROR_PROTOCOL, "record 0 (GO)");
}

static void garbage_instead_of_hello_is_refused(void **state) {
    (void)state;
    Rig rig;
    Hand hand;
    begin(&rig, &hand);
    char garbage[256];
    memset(garbage, 'G', sizeof garbage);
    assert_int_equal(write(hand.channel.out, garbage, sizeof garbage), sizeof garbage);
    refused_at_hello(&rig, &hand, SNAP_ERROR_PROTOCOL, "record 0");
}

/* Changes what the source says of its regions. */
typedef struct {
    const char *part;
    uint64_t length_bytes, guest_address, page_bytes; /* added */
    const char *name;                                 /* (nullable) instead */
    unsigned n_regions;                               /* 0: as many as there are */
} Lie;

static void regions_that_differ_are_refused_by_name(void **state) {
    (void)state;
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    const Lie lies[] = {
        {.part = "region \"ram\" has length", .length_bytes = page},
        {.part = "region \"ram\" has guest address", .guest_address = page},
        {.part = "region \"ram\" has pages of", .page_bytes = page},
        {.part = "no region \"bam\" here", .name = "bam"},
        {.part = "no region \"video\" here, or it came twice",
         .guest_address = UINT64_C(0x100000000),
         .name = "video"},
        {.part = "no region \"video\" at the source", .n_regions = 1},
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(lies); i++) {
        const Lie *lie = &lies[i];
        Rig rig;
        Hand hand;
        begin(&rig, &hand);
        rig.hello.n_regions = lie->n_regions ? lie->n_regions : rig.n_regions;
        hand_say_hello(&hand, &rig, 0);
        RigRegion said = rig.regions[0];
        said.length_bytes += lie->length_bytes;
        said.guest_address += lie->guest_address;
        said.granule_bytes += lie->page_bytes;
        said.name = lie->name ? lie->name : said.name;
        hand_say_region(&hand, &said, rig.page + lie->page_bytes);
        if (!lie->n_regions)
            hand_say_region(&hand, &rig.regions[1], rig.page);
        refused_at_hello(&rig, &hand, SNAP_ERROR_REFUSED, lie->part);
    }
}

/* ---- further channels ------------------------------------------------------------------------------------ */

static void begin_with_two(Rig *rig, Hand *hand) {
    rig_init(rig, both, G_N_ELEMENTS(both), PAGES);
    rig->hello.n_channels = 2;
    rig_listen(rig);
    hand_open(hand, rig);
    hand_greet(hand, rig);
}

static void channel_of_another_migration_is_sent_away_alone(void **state) {
    (void)state;
    Rig rig;
    Hand hand, stranger, second;
    begin_with_two(&rig, &hand);
    rig.hello.id.bytes[3] ^= 1;
    hand_open(&stranger, &rig);
    hand_say_hello(&stranger, &rig, 1);
    hand_expect_failed(&stranger, "another migration is under way");
    hand_close(&stranger);
    rig.hello.id.bytes[3] ^= 1;
    hand_join(&second, &rig, 1);
    hand_end(&second, 0, 0, 0);
    finish(&rig, &hand, 0);
    hand_close(&second);
    rig_clear(&rig, 1);
}

static void channel_that_says_garbage_is_sent_away_alone(void **state) {
    (void)state;
    Rig rig;
    Hand hand, stranger, second;
    begin_with_two(&rig, &hand);
    hand_open(&stranger, &rig);
    hand_id(&stranger, &rig, SNAP_WIRE_GO);
    hand_expect_failed(&stranger, "record 0 (GO)");
    hand_close(&stranger);
    hand_join(&second, &rig, 1);
    hand_end(&second, 0, 0, 0);
    finish(&rig, &hand, 0);
    hand_close(&second);
    rig_clear(&rig, 1);
}

typedef struct {
    uint32_t channel;
    uint16_t flags;
    uint32_t n_channels;
    const char *part;
} Wrong;

static void channel_that_breaks_the_rules_ends_the_migration(void **state) {
    (void)state;
    const Wrong wrongs[] = {
        {.channel = 0, .n_channels = 3, .flags = SNAP_WIRE_RESUME, .part = "channel 0 says otherwise"},
        {.channel = 1, .n_channels = 2, .part = "channel 1 says otherwise"},
        {.channel = SNAP_WIRE_URGENT, .n_channels = 3, .part = "no post-copy"},
        {.channel = 2, .n_channels = 3, .part = "channel 2 is there already"},
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(wrongs); i++) {
        Rig rig;
        Hand hand, second, third;
        rig_init(&rig, both, G_N_ELEMENTS(both), PAGES);
        rig.hello.n_channels = 3;
        rig_listen(&rig);
        hand_open(&hand, &rig);
        hand_greet(&hand, &rig);
        hand_join(&second, &rig, 2);
        rig.flags = wrongs[i].flags;
        rig.hello.n_channels = wrongs[i].n_channels;
        hand_open(&third, &rig);
        hand_say_hello(&third, &rig, wrongs[i].channel);
        hand_expect_failed(&third, wrongs[i].part);
        hand_expect_failed(&hand, wrongs[i].part);
        hand_close(&hand);
        hand_close(&second);
        hand_close(&third);
        rig_wait(&rig, SNAP_ERROR_REFUSED, wrongs[i].part);
        rig_clear(&rig, 0);
    }
}

static void channel_that_does_not_come_ends_the_migration(void **state) {
    (void)state;
    Rig rig;
    Hand hand;
    rig_init(&rig, both, G_N_ELEMENTS(both), PAGES);
    rig.hello.n_channels = 2;
    rig.hello.silence_ms = 200;
    rig_listen(&rig);
    hand_open(&hand, &rig);
    hand_greet(&hand, &rig);
    hand_expect_failed(&hand, "further channels");
    hand_close(&hand);
    rig_wait(&rig, SNAP_ERROR_IO, "further channels");
    rig_clear(&rig, 0);
}

/* ---- what is wrong later --------------------------------------------------------------------------------- */

static void send_chunk(Hand *hand, const SnapWireChunk *chunk, const void *bulk, size_t length) {
    g_autoptr(GError) error = NULL;
    uint8_t body[64];
    const struct iovec part = {(void *)(uintptr_t)bulk, length};
    snap_channel_send(&hand->channel, SNAP_WIRE_CHUNK, 0, body, snap_wire_encode_chunk(chunk, body), &part,
                      length > 0, &error);
    fail_on(error);
}

/* One page of it. */
static SnapWireChunk one_page(const Rig *rig, uint64_t page) {
    static const uint8_t bytes[1 << 16];
    SnapWireChunk chunk = {.chunk = page / 64,
                           .record = {.present = UINT64_C(1) << page % 64, .length_bytes = (uint32_t)rig->page}};
    chunk.record.xxh3 = snap_chunk_hash(bytes, rig->page, 1);
    return chunk;
}

static void send_zeros(const Rig *rig, Hand *hand, const SnapWireChunk *chunk) {
    g_autofree uint8_t *zeros = g_malloc0(64 * rig->page);
    send_chunk(hand, chunk, zeros, chunk->record.length_bytes);
}

static void chunk_of_no_region(Rig *rig, Hand *hand) {
    SnapWireChunk chunk = one_page(rig, 0);
    chunk.region = 2;
    send_zeros(rig, hand, &chunk);
}

static void chunk_beyond_the_end(Rig *rig, Hand *hand) {
    const SnapWireChunk chunk = one_page(rig, 256);
    send_zeros(rig, hand, &chunk);
}

static void page_beyond_the_end(Rig *rig, Hand *hand) {
    const SnapWireChunk chunk = one_page(rig, PAGES);
    send_zeros(rig, hand, &chunk);
}

static void chunk_of_larger_pages(Rig *rig, Hand *hand) {
    SnapWireChunk chunk = one_page(rig, 0);
    chunk.record.length_bytes *= 2;
    send_zeros(rig, hand, &chunk);
}

static void chunk_of_wrong_bytes(Rig *rig, Hand *hand) {
    SnapWireChunk chunk = one_page(rig, 0);
    chunk.record.xxh3 ^= 1;
    send_zeros(rig, hand, &chunk);
}

static void packed_chunk_that_is_none(Rig *rig, Hand *hand) {
    SnapWireChunk chunk = one_page(rig, 0);
    chunk.record.codec = SNAP_WIRE_CODEC_ZSTD;
    chunk.record.length_bytes = 100;
    send_zeros(rig, hand, &chunk);
}

static void send_end(Hand *hand, SnapWireEnd end, uint16_t flags) {
    uint8_t body[32];
    hand_send(hand, SNAP_WIRE_END, flags, body, snap_wire_encode_end(&end, body));
}

static void end_with_other_chunks(Rig *rig, Hand *hand) {
    (void)rig;
    send_end(hand, (SnapWireEnd){.n_chunks = 1, .n_pages = 1}, 0);
}

static void end_with_other_pages(Rig *rig, Hand *hand) {
    hand_chunk(hand, rig, (HandChunk){.present = 3});
    send_end(hand, (SnapWireEnd){.n_chunks = 1, .n_pages = 3}, 0);
}

static void end_with_other_states(Rig *rig, Hand *hand) {
    (void)rig;
    hand_state(hand, "cpu", "x", 1);
    send_end(hand, (SnapWireEnd){.n_states = 2}, 0);
}

static void end_with_an_epoch(Rig *rig, Hand *hand) {
    (void)rig;
    send_end(hand, (SnapWireEnd){.epoch = 1}, 0);
}

static void end_with_pages_missing(Rig *rig, Hand *hand) {
    (void)rig;
    send_end(hand, (SnapWireEnd){0}, SNAP_WIRE_PAGES_MISSING);
}

static void masks_of_what_is_missing(Rig *rig, Hand *hand) {
    (void)rig;
    hand_missing(hand, 0, 0, (const uint64_t[]){1}, 1);
}

static void go_too_early(Rig *rig, Hand *hand) {
    hand_id(hand, rig, SNAP_WIRE_GO);
}

static void all_sent_too_early(Rig *rig, Hand *hand) {
    hand_id(hand, rig, SNAP_WIRE_ALL_SENT);
}

static void second_hello(Rig *rig, Hand *hand) {
    hand_say_hello(hand, rig, 0);
}

static void region_too_late(Rig *rig, Hand *hand) {
    hand_say_region(hand, &rig->regions[0], rig->page);
}

static void chunk_after_state(Rig *rig, Hand *hand) {
    hand_state(hand, "cpu", "x", 1);
    hand_chunk(hand, rig, (HandChunk){.present = 1});
}

static void state_twice(Rig *rig, Hand *hand) {
    (void)rig;
    hand_state(hand, "cpu", "x", 1);
    hand_state(hand, "cpu", "x", 1);
}

static void send_state_part(Hand *hand, const char *name, uint64_t total, uint64_t offset) {
    uint8_t body[64];
    const SnapWireState part = {.total_bytes = total,
                                .offset_bytes = offset,
                                .name = name,
                                .name_bytes = (uint16_t)strlen(name),
                                .data = (const uint8_t *)"x",
                                .data_bytes = 1};
    hand_send(hand, SNAP_WIRE_STATE, 0, body, snap_wire_encode_state(&part, body));
}

static void state_without_a_beginning(Rig *rig, Hand *hand) {
    (void)rig;
    send_state_part(hand, "cpu", 3, 1);
}

static void state_with_a_gap(Rig *rig, Hand *hand) {
    (void)rig;
    send_state_part(hand, "cpu", 3, 0);
    send_state_part(hand, "cpu", 3, 2);
}

static void state_that_grows(Rig *rig, Hand *hand) {
    (void)rig;
    send_state_part(hand, "cpu", 3, 0);
    send_state_part(hand, "cpu", 4, 1);
}

static void state_within_another(Rig *rig, Hand *hand) {
    (void)rig;
    send_state_part(hand, "cpu", 3, 0);
    send_state_part(hand, "disk", 3, 0);
}

static void end_within_a_state(Rig *rig, Hand *hand) {
    (void)rig;
    send_state_part(hand, "cpu", 3, 0);
    send_end(hand, (SnapWireEnd){.n_states = 1}, 0);
}

static void states_too_many(Rig *rig, Hand *hand) {
    (void)rig;
    for (unsigned i = 0; i <= SNAP_WIRE_MAX_STATES; i++) {
        char name[16];
        g_snprintf(name, sizeof name, "%u", i);
        hand_state(hand, name, "", 0);
    }
}

static void garbage(Rig *rig, Hand *hand) {
    (void)rig;
    char bytes[64];
    memset(bytes, 'x', sizeof bytes);
    assert_int_equal(write(hand->channel.out, bytes, sizeof bytes), sizeof bytes);
}

static void record_of_a_destination(Rig *rig, Hand *hand) {
    hand_id(hand, rig, SNAP_WIRE_STARTED);
}

typedef struct {
    void (*act)(Rig *rig, Hand *hand);
    int code;
    const char *part;
} Lapse;

static const Lapse lapses[] = {
    {chunk_of_no_region, SNAP_ERROR_PROTOCOL, "(CHUNK): there is no such region"},
    {chunk_beyond_the_end, SNAP_ERROR_PROTOCOL, "(CHUNK): there is no such chunk"},
    {page_beyond_the_end, SNAP_ERROR_PROTOCOL, "(CHUNK): it has pages beyond the end"},
    {chunk_of_larger_pages, SNAP_ERROR_PROTOCOL, "(CHUNK): the length does not fit"},
    {chunk_of_wrong_bytes, SNAP_ERROR_CORRUPT, "region \"ram\", chunk 0: the checksum is wrong"},
    {packed_chunk_that_is_none, SNAP_ERROR_CORRUPT, "region \"ram\", chunk 0: "},
    {end_with_other_chunks, SNAP_ERROR_PROTOCOL, "1 chunks with 1 pages were sent, and 0 with 0 have come"},
    {end_with_other_pages, SNAP_ERROR_PROTOCOL, "1 chunks with 3 pages were sent, and 1 with 2 have come"},
    {end_with_other_states, SNAP_ERROR_PROTOCOL, "another number of blobs"},
    {end_with_an_epoch, SNAP_ERROR_PROTOCOL, "epoch 1, and 0 was to come"},
    {end_with_pages_missing, SNAP_ERROR_PROTOCOL, "no post-copy was agreed on"},
    {masks_of_what_is_missing, SNAP_ERROR_PROTOCOL, "(MISSING): no post-copy was agreed on"},
    {go_too_early, SNAP_ERROR_PROTOCOL, "(GO): it may not come while memory comes"},
    {all_sent_too_early, SNAP_ERROR_PROTOCOL, "(ALL_SENT): it may not come"},
    {second_hello, SNAP_ERROR_PROTOCOL, "(HELLO): it may not come"},
    {region_too_late, SNAP_ERROR_PROTOCOL, "(REGION): it may not come"},
    {chunk_after_state, SNAP_ERROR_PROTOCOL, "(CHUNK): it may not come while the device state comes"},
    {state_twice, SNAP_ERROR_PROTOCOL, "(STATE): there is such a blob already"},
    {state_without_a_beginning, SNAP_ERROR_PROTOCOL, "(STATE): the beginning"},
    {state_with_a_gap, SNAP_ERROR_PROTOCOL, "(STATE): it does not continue"},
    {state_that_grows, SNAP_ERROR_PROTOCOL, "(STATE): it does not continue"},
    {state_within_another, SNAP_ERROR_PROTOCOL, "(STATE): the blob before it"},
    {end_within_a_state, SNAP_ERROR_PROTOCOL, "(END): a blob of state is not complete"},
    {states_too_many, SNAP_ERROR_PROTOCOL, "(STATE): too many blobs"},
    {garbage, SNAP_ERROR_PROTOCOL, "record 3"},
    {record_of_a_destination, SNAP_ERROR_PROTOCOL, "(STARTED)"},
};

static void record_that_may_not_be_ends_the_migration_by_name(void **state) {
    (void)state;
    for (unsigned i = 0; i < G_N_ELEMENTS(lapses); i++) {
        Rig rig;
        Hand hand;
        begin_and_greet(&rig, &hand);
        lapses[i].act(&rig, &hand);
        hand_expect_failed(&hand, lapses[i].part);
        hand_close(&hand);
        rig_wait(&rig, lapses[i].code, lapses[i].part);
        assert_int_equal(rig.loads, 0);
        rig_clear(&rig, 0);
    }
}

static void state_of_more_than_it_may_be_is_refused(void **state) {
    (void)state;
    const size_t length = 192u << 20;
    g_autofree uint8_t *blob = g_malloc0(length);
    Rig rig;
    Hand hand;
    begin_and_greet(&rig, &hand);
    hand_state(&hand, "first", blob, length);
    /* The second would exceed the sum: it is refused in its middle, whose rest cannot be sent then. */
    g_autoptr(GError) error = NULL;
    g_autofree uint8_t *body = g_malloc(SNAP_WIRE_MAX_BODY_BYTES);
    for (size_t at = 0; at < length && !error; at += SNAP_WIRE_STATE_PART_BYTES) {
        const SnapWireState part = {.total_bytes = length,
                                    .offset_bytes = at,
                                    .name = "second",
                                    .name_bytes = 6,
                                    .data = blob + at,
                                    .data_bytes = SNAP_WIRE_STATE_PART_BYTES};
        uint32_t body_bytes = snap_wire_encode_state(&part, body);
        snap_channel_send(&hand.channel, SNAP_WIRE_STATE, 0, body, body_bytes, NULL, 0, &error);
    }
    hand_expect_failed(&hand, "longer than it may be");
    hand_close(&hand);
    rig_wait(&rig, SNAP_ERROR_PROTOCOL, "longer than it may be");
    rig_clear(&rig, 0);
}

static void data_channel_that_breaks_the_rules_ends_the_migration(void **state) {
    (void)state;
    const Lapse on_second[] = {
        {chunk_of_no_region, SNAP_ERROR_PROTOCOL, "channel 1: record 1 (CHUNK): there is no such region"},
        {chunk_of_wrong_bytes, SNAP_ERROR_PROTOCOL, "channel 1: record 1 (CHUNK): it belongs to another channel"},
        {go_too_early, SNAP_ERROR_PROTOCOL, "channel 1: record 1 (GO): a data channel has no such record"},
        {end_with_other_chunks, SNAP_ERROR_PROTOCOL, "channel 1: record 1 (END): 1 chunks"},
        {garbage, SNAP_ERROR_PROTOCOL, "channel 1: record 1"},
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(on_second); i++) {
        Rig rig;
        Hand hand, second;
        begin_with_two(&rig, &hand);
        hand_join(&second, &rig, 1);
        on_second[i].act(&rig, &second);
        hand_expect_failed(&hand, on_second[i].part);
        hand_close(&hand);
        hand_close(&second);
        rig_wait(&rig, on_second[i].code, on_second[i].part);
        rig_clear(&rig, 0);
    }
}

/* ---- connections that end -------------------------------------------------------------------------------- */

/* Cut after so many steps. */
static unsigned cut_after(Rig *rig, Hand *hand, unsigned steps) {
    unsigned step = 0;
    if (step++ < steps)
        hand_say_hello(hand, rig, 0);
    if (step++ < steps)
        hand_say_regions(hand, rig);
    if (step++ < steps)
        hand_expect(hand, SNAP_WIRE_WELCOME);
    if (step++ < steps)
        hand_chunk(hand, rig, (HandChunk){.present = 0xff, .generation = 1});
    if (step++ < steps)
        hand_state(hand, "cpu", "registers", 9);
    hand_close(hand);
    return step;
}

static void connection_cut_before_ready_fails(void **state) {
    (void)state;
    unsigned n = 1;
    for (unsigned steps = 0; steps <= n; steps++) {
        Rig rig;
        Hand hand;
        begin(&rig, &hand);
        n = cut_after(&rig, &hand, steps);
        rig_wait(&rig, SNAP_ERROR_IO, "closed");
        assert_int_equal(rig.loads, 0);
        rig_clear(&rig, 0);
    }
}

static void connection_cut_within_a_record_fails(void **state) {
    (void)state;
    Rig rig;
    Hand hand;
    begin_and_greet(&rig, &hand);
    uint8_t body[64], head[SNAP_WIRE_HEAD_BYTES];
    const SnapWireChunk chunk = one_page(&rig, 0);
    uint32_t body_bytes = snap_wire_encode_chunk(&chunk, body);
    snap_wire_seal(&(SnapWireHead){.type = SNAP_WIRE_CHUNK,
                                   .body_bytes = body_bytes,
                                   .bulk_bytes = chunk.record.length_bytes,
                                   .number = hand.channel.n_sent},
                   body, head);
    assert_int_equal(write(hand.channel.out, head, sizeof head), sizeof head);
    assert_int_equal(write(hand.channel.out, body, body_bytes), body_bytes);
    assert_int_equal(write(hand.channel.out, body, 10), 10);
    hand_close(&hand);
    rig_wait(&rig, SNAP_ERROR_IO, "closed");
    rig_clear(&rig, 0);
}

static void data_channel_cut_fails(void **state) {
    (void)state;
    Rig rig;
    Hand hand, second;
    begin_with_two(&rig, &hand);
    hand_join(&second, &rig, 1);
    hand_close(&second);
    hand_expect_failed(&hand, "channel 1: the connection was closed");
    hand_close(&hand);
    rig_wait(&rig, SNAP_ERROR_IO, "channel 1");
    rig_clear(&rig, 0);
}

static void data_channel_that_is_silent_before_its_end_fails(void **state) {
    (void)state;
    uint8_t body[16];
    Rig rig;
    Hand hand, second;
    rig_init(&rig, both, G_N_ELEMENTS(both), PAGES);
    rig.hello.n_channels = 2;
    rig.hello.silence_ms = 300;
    rig_listen(&rig);
    hand_open(&hand, &rig);
    hand_greet(&hand, &rig);
    hand_join(&second, &rig, 1);
    hand_end(&hand, 0, 0, 0);
    for (unsigned i = 0; i < 6; i++) {
        g_autoptr(GError) gone = NULL;
        g_usleep(100000);
        snap_channel_send(&hand.channel, SNAP_WIRE_ALIVE, 0, body, snap_wire_encode_number(0, body), NULL, 0,
                          &gone);
    }
    hand_expect_failed(&hand, "a data channel is silent");
    hand_close(&hand);
    hand_close(&second);
    rig_wait(&rig, SNAP_ERROR_IO, "a data channel is silent");
    rig_clear(&rig, 0);
}

static void source_that_says_why_is_quoted(void **state) {
    (void)state;
    Rig rig;
    Hand hand, second;
    begin_with_two(&rig, &hand);
    hand_join(&second, &rig, 1);
    hand_close(&second); /* it closes all, and what it said is not to be lost over that */
    g_usleep(20000);
    snap_channel_send_failed(&hand.channel, "the guest does not converge");
    hand_close(&hand);
    rig_wait(&rig, SNAP_ERROR_REFUSED, "the other side: the guest does not converge");
    rig_clear(&rig, 0);
}

static void source_that_is_silent_fails(void **state) {
    (void)state;
    Rig rig;
    Hand hand;
    rig_init(&rig, both, G_N_ELEMENTS(both), PAGES);
    rig.hello.silence_ms = 200;
    rig_listen(&rig);
    hand_open(&hand, &rig);
    hand_greet(&hand, &rig);
    hand_expect_failed(&hand, "silent");
    hand_close(&hand);
    rig_wait(&rig, SNAP_ERROR_IO, "silent"); /* TIMED_OUT is the wait itself */
    rig_clear(&rig, 0);
}

static void source_that_says_alive_is_waited_for(void **state) {
    (void)state;
    Rig rig;
    Hand hand;
    uint8_t body[16];
    rig_init(&rig, both, G_N_ELEMENTS(both), PAGES);
    rig.hello.silence_ms = 300;
    rig_listen(&rig);
    hand_open(&hand, &rig);
    hand_greet(&hand, &rig);
    for (unsigned i = 0; i < 8; i++) {
        g_usleep(100000);
        hand_send(&hand, SNAP_WIRE_ALIVE, 0, body, snap_wire_encode_number(0, body));
    }
    /* And so does it: there is more than WELCOME to be read. */
    g_autoptr(GError) error = NULL;
    snap_channel_receive(&hand.channel, 1000, &hand.head, hand.body, &error);
    fail_on(error);
    assert_int_equal(hand.head.type, SNAP_WIRE_ALIVE);
    finish(&rig, &hand, 0);
    rig_clear(&rig, 1);
}

/* ---- the owner, and the guest ---------------------------------------------------------------------------- */

static void cancel_while_it_listens_ends_it(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    Rig rig;
    rig_init(&rig, both, G_N_ELEMENTS(both), PAGES);
    rig_listen(&rig);
    assert_true(snap_incoming_cancel(rig.incoming, &error));
    rig_wait(&rig, SNAP_ERROR_CANCELLED, "cancelled");
    assert_false(snap_incoming_cancel(rig.incoming, &error));
    rig_clear(&rig, 0);
}

static void cancel_while_memory_comes_tells_the_source(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    Rig rig;
    Hand hand;
    begin_and_greet(&rig, &hand);
    assert_true(snap_incoming_cancel(rig.incoming, &error));
    hand_expect_failed(&hand, "cancelled");
    hand_close(&hand);
    rig_wait(&rig, SNAP_ERROR_CANCELLED, "cancelled");
    rig_clear(&rig, 0);
}

static void cancel_after_ready_is_refused(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    Rig rig;
    Hand hand;
    begin_and_greet(&rig, &hand);
    hand_end(&hand, 0, 0, 0);
    hand_expect_ready(&hand, 0);
    assert_false(snap_incoming_cancel(rig.incoming, &error));
    assert_int_equal(error->code, SNAP_ERROR_REFUSED);
    hand_id(&hand, &rig, SNAP_WIRE_GO);
    hand_expect(&hand, SNAP_WIRE_STARTED);
    hand_close(&hand);
    rig_wait(&rig, 0, NULL);
    rig_clear(&rig, 1);
}

static void free_while_memory_comes_tells_the_source(void **state) {
    (void)state;
    Rig rig;
    Hand hand;
    begin_and_greet(&rig, &hand);
    rig_clear(&rig, 0);
    hand_expect_failed(&hand, "cancelled");
    hand_close(&hand);
}

static void state_that_cannot_be_loaded_leaves_the_guest_at_the_source(void **state) {
    (void)state;
    Rig rig;
    Hand hand;
    begin_and_greet(&rig, &hand);
    rig.no_load = true;
    hand_end(&hand, 0, 0, 0);
    hand_expect_failed(&hand, "no such device");
    hand_close(&hand);
    rig_wait(&rig, SNAP_ERROR_FAILED, "no such device");
    rig_clear(&rig, 0);
}

static void guest_that_cannot_be_started_is_reported(void **state) {
    (void)state;
    Rig rig;
    Hand hand;
    begin_and_greet(&rig, &hand);
    rig.no_start = true;
    hand_end(&hand, 0, 0, 0);
    hand_expect_ready(&hand, 0);
    hand_id(&hand, &rig, SNAP_WIRE_GO);
    hand_expect_failed(&hand, "no processor");
    hand_close(&hand);
    rig_wait(&rig, SNAP_ERROR_FAILED, "no processor");
    rig_clear(&rig, 1); /* it was tried */
}

static void guest_that_cannot_be_moved_is_refused(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    Rig rig;
    rig_init(&rig, both, 1, PAGES);
    const SnapIncomingOptions options = {.uri = rig.uri};
    snap_guest_set_move_ops(rig.guest, NULL);
    assert_null(snap_incoming_start(rig.guest, &options, NULL, NULL, &error));
    assert_int_equal(error->code, SNAP_ERROR_REFUSED);
    g_clear_error(&error);
    assert_null(snap_incoming_start(NULL, &options, NULL, NULL, &error));
    assert_int_equal(error->code, SNAP_ERROR_USAGE);
    rig_clear(&rig, 0);
}

/* ---- around GO ------------------------------------------------------------------------------------------- */

static void come_to_ready(Rig *rig, Hand *hand) {
    begin_and_greet(rig, hand);
    hand_region(hand, rig, 0, 1);
    hand_state(hand, "cpu", "registers", 9);
    hand_end(hand, 0, 1, 0);
    hand_expect_ready(hand, 0);
}

static void resume_as(Rig *rig, Hand *hand, SnapWireAt at) {
    g_autoptr(GError) error = NULL;
    SnapWireWelcome welcome;
    assert_true(snap_incoming_recover(rig->incoming, rig->uri, &error));
    rig->flags = SNAP_WIRE_RESUME;
    hand_open(hand, rig);
    hand_say_hello(hand, rig, 0);
    hand_expect(hand, SNAP_WIRE_WELCOME);
    assert_null(snap_wire_decode_welcome(&hand->head, hand->body, &welcome));
    assert_int_equal(welcome.at, at);
    assert_int_equal(welcome.n_missing, 0);
}

static void connection_cut_after_ready_waits_for_the_source(void **state) {
    (void)state;
    Rig rig;
    Hand hand;
    come_to_ready(&rig, &hand);
    hand_close(&hand);
    rig_wait_lost(&rig, SNAP_MIGRATION_DEVICE);
    resume_as(&rig, &hand, SNAP_WIRE_AT_READY);
    assert_int_equal(rig.starts, 0);
    hand_id(&hand, &rig, SNAP_WIRE_GO);
    hand_expect(&hand, SNAP_WIRE_STARTED);
    hand_close(&hand);
    rig_wait(&rig, 0, NULL);
    assert_int_equal(rig.loads, 1);
    rig_clear(&rig, 1);
}

static void connection_cut_after_ready_again_and_again_waits(void **state) {
    (void)state;
    Rig rig;
    Hand hand;
    come_to_ready(&rig, &hand);
    for (unsigned i = 0; i < 3; i++) {
        hand_close(&hand);
        rig_wait_lost(&rig, SNAP_MIGRATION_DEVICE);
        resume_as(&rig, &hand, SNAP_WIRE_AT_READY);
    }
    hand_close(&hand);
    rig_wait_lost(&rig, SNAP_MIGRATION_DEVICE);
    rig_clear(&rig, 0);
}

static void garbage_after_ready_says_nothing_and_waits(void **state) {
    (void)state;
    Rig rig;
    Hand hand;
    come_to_ready(&rig, &hand);
    garbage(&rig, &hand);
    hand_expect_end(&hand);
    hand_close(&hand);
    rig_wait_lost(&rig, SNAP_MIGRATION_DEVICE);
    rig_clear(&rig, 0);
}

static void go_of_another_migration_starts_nothing(void **state) {
    (void)state;
    Rig rig;
    Hand hand;
    come_to_ready(&rig, &hand);
    rig.hello.id.bytes[0] ^= 1;
    hand_id(&hand, &rig, SNAP_WIRE_GO);
    hand_expect_end(&hand);
    hand_close(&hand);
    rig_wait_lost(&rig, SNAP_MIGRATION_DEVICE);
    rig_clear(&rig, 0);
}

static void source_that_keeps_its_guest_after_ready_ends_it(void **state) {
    (void)state;
    Rig rig;
    Hand hand;
    come_to_ready(&rig, &hand);
    snap_channel_send_failed(&hand.channel, "cancelled there");
    hand_close(&hand);
    rig_wait(&rig, SNAP_ERROR_REFUSED, "cancelled there");
    rig_clear(&rig, 0);
}

static void source_that_has_not_heard_of_the_start_is_told(void **state) {
    (void)state;
    Rig rig;
    Hand hand;
    come_to_ready(&rig, &hand);
    hand_id(&hand, &rig, SNAP_WIRE_GO);
    hand_close(&hand);
    rig_wait(&rig, 0, NULL);
    assert_int_equal(rig.starts, 1);
    g_usleep(50000);
    resume_as(&rig, &hand, SNAP_WIRE_AT_STARTED);
    hand_expect(&hand, SNAP_WIRE_STARTED);
    hand_close(&hand);
    rig_wait(&rig, 0, NULL);
    rig_clear(&rig, 1);
}

static void resume_by_a_stranger_is_refused_and_waited_on(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    Rig rig;
    Hand hand, stranger;
    come_to_ready(&rig, &hand);
    hand_close(&hand);
    rig_wait_lost(&rig, SNAP_MIGRATION_DEVICE);
    assert_true(snap_incoming_recover(rig.incoming, rig.uri, &error));
    rig.flags = SNAP_WIRE_RESUME;
    rig.hello.id.bytes[15] ^= 1;
    hand_open(&stranger, &rig);
    hand_say_hello(&stranger, &rig, 0);
    hand_expect_failed(&stranger, "another migration");
    hand_close(&stranger);
    rig.hello.id.bytes[15] ^= 1;
    hand_open(&hand, &rig);
    hand_say_hello(&hand, &rig, 0);
    hand_expect(&hand, SNAP_WIRE_WELCOME);
    hand_id(&hand, &rig, SNAP_WIRE_GO);
    hand_expect(&hand, SNAP_WIRE_STARTED);
    hand_close(&hand);
    rig_wait(&rig, 0, NULL);
    rig_clear(&rig, 1);
}

static void recover_of_what_is_not_lost_is_refused(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    Rig rig;
    Hand hand;
    begin_and_greet(&rig, &hand);
    assert_false(snap_incoming_recover(rig.incoming, rig.uri, &error));
    assert_int_equal(error->code, SNAP_ERROR_REFUSED);
    g_clear_error(&error);
    assert_false(snap_incoming_promote(rig.incoming, TRUE, &error));
    assert_int_equal(error->code, SNAP_ERROR_REFUSED);
    finish(&rig, &hand, 0);
    rig_clear(&rig, 1);
}

/* ---- other ways ------------------------------------------------------------------------------------------ */

static void move_over_a_descriptor_is_byte_for_byte(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    Rig rig;
    Hand hand = {.body = g_malloc(SNAP_WIRE_MAX_BODY_BYTES)};
    int ends[2];
    rig_init(&rig, both, G_N_ELEMENTS(both), PAGES);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    g_snprintf(rig.uri, sizeof rig.uri, "fd:%d", ends[1]);
    rig_listen(&rig);
    assert_true(snap_channel_init(&hand.channel, SNAP_WIRE_FROM_SOURCE, ends[0], ends[0], 1000, &error));
    hand_greet(&hand, &rig);
    hand_region(&hand, &rig, 1, 3);
    finish(&rig, &hand, 0);
    for (uint64_t page = 0; page < PAGES; page++)
        assert_true(rig_is(&rig, 1, page, 3));
    rig_clear(&rig, 1);
}

static void several_channels_over_a_descriptor_are_refused(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    Rig rig;
    Hand hand = {.body = g_malloc(SNAP_WIRE_MAX_BODY_BYTES)};
    int ends[2];
    rig_init(&rig, both, G_N_ELEMENTS(both), PAGES);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    g_snprintf(rig.uri, sizeof rig.uri, "fd:%d", ends[1]);
    rig.hello.n_channels = 2;
    rig_listen(&rig);
    assert_true(snap_channel_init(&hand.channel, SNAP_WIRE_FROM_SOURCE, ends[0], ends[0], 1000, &error));
    hand_say_hello(&hand, &rig, 0);
    refused_at_hello(&rig, &hand, SNAP_ERROR_REFUSED, "room for one connection only");
}

/* ---- what is told ---------------------------------------------------------------------------------------- */

static void note_phase(SnapMigrationPhase phase, uint64_t round, void *opaque) {
    GString *told = opaque;
    g_string_append_printf(told, "%s%u ", snap_migration_phase_name(phase), (unsigned)round);
}

static void phases_and_rounds_are_told_in_order(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    g_autoptr(GString) told = g_string_new(NULL);
    Rig rig;
    Hand hand;
    uint8_t body[32];
    rig_init(&rig, both, G_N_ELEMENTS(both), PAGES);
    const SnapIncomingOptions options = {.uri = rig.uri};
    rig.incoming = snap_incoming_start(rig.guest, &options, note_phase, told, &error);
    fail_on(error);
    hand_open(&hand, &rig);
    hand_greet(&hand, &rig);
    const SnapWireRound round = {.round = 2, .dirty_pages = 10, .pages_per_second = 100};
    hand_send(&hand, SNAP_WIRE_ROUND, 0, body, snap_wire_encode_round(&round, body));
    finish(&rig, &hand, 0);
    rig_clear(&rig, 1); /* nobody tells anything any more */
    assert_string_equal(told->str, "setup0 active1 active2 device2 completed2 ");
}

/* ---- one-way --------------------------------------------------------------------------------------------- */

static void hand_open_file(Hand *hand, Rig *rig) {
    g_autoptr(GError) error = NULL;
    g_autofree char *path = g_build_filename(rig->dir, "file", NULL);
    g_snprintf(rig->uri, sizeof rig->uri, "file:%s", path);
    g_autoptr(SnapTransport) transport = snap_transport_new_source(rig->uri, &error);
    int in = -1, out = -1;
    fail_on(error);
    snap_transport_connect(transport, 0, &in, &out, &error);
    fail_on(error);
    *hand = (Hand){.body = g_malloc(SNAP_WIRE_MAX_BODY_BYTES)};
    snap_channel_init(&hand->channel, SNAP_WIRE_FROM_SOURCE, in, out, 0, &error);
    fail_on(error);
    rig->flags = SNAP_WIRE_ONE_WAY;
    hand_say_hello(hand, rig, 0);
    hand_say_regions(hand, rig);
    assert_true(snap_transport_keep(transport, &error));
}

static void remove_file(const Rig *rig) {
    g_autofree char *path = g_build_filename(rig->dir, "file", NULL);
    unlink(path);
}

static void move_from_a_file_starts_the_guest(void **state) {
    (void)state;
    Rig rig;
    Hand hand;
    rig_init(&rig, both, G_N_ELEMENTS(both), PAGES);
    hand_open_file(&hand, &rig);
    hand_region(&hand, &rig, 1, 7);
    hand_state(&hand, "cpu", "registers", 9);
    hand_end(&hand, 0, 1, 0);
    hand_close(&hand);
    rig_listen(&rig);
    rig_wait(&rig, 0, NULL);
    for (uint64_t page = 0; page < PAGES; page++)
        assert_true(rig_is(&rig, 1, page, 7));
    remove_file(&rig);
    rig_clear(&rig, 1);
}

static void move_from_a_file_without_end_is_refused(void **state) {
    (void)state;
    Rig rig;
    Hand hand;
    rig_init(&rig, both, G_N_ELEMENTS(both), PAGES);
    hand_open_file(&hand, &rig);
    hand_region(&hand, &rig, 1, 7);
    hand_close(&hand);
    rig_listen(&rig);
    rig_wait(&rig, SNAP_ERROR_IO, "before it is complete");
    remove_file(&rig);
    rig_clear(&rig, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(move_of_all_pages_is_byte_for_byte),
        cmocka_unit_test(move_over_memory_that_held_something_leaves_nothing_of_it),
        cmocka_unit_test(move_of_pages_that_come_again_keeps_the_last),
        cmocka_unit_test(move_of_packed_pages_is_byte_for_byte),
        cmocka_unit_test(move_on_four_channels_is_byte_for_byte),
        cmocka_unit_test(state_in_many_parts_comes_whole),
        cmocka_unit_test(hello_that_resumes_nothing_is_refused),
        cmocka_unit_test(hello_of_other_pages_is_refused),
        cmocka_unit_test(hello_of_a_further_channel_first_is_refused),
        cmocka_unit_test(hello_of_a_replication_with_postcopy_is_refused),
        cmocka_unit_test(record_before_hello_is_refused),
        cmocka_unit_test(garbage_instead_of_hello_is_refused),
        cmocka_unit_test(regions_that_differ_are_refused_by_name),
        cmocka_unit_test(channel_of_another_migration_is_sent_away_alone),
        cmocka_unit_test(channel_that_says_garbage_is_sent_away_alone),
        cmocka_unit_test(channel_that_breaks_the_rules_ends_the_migration),
        cmocka_unit_test(channel_that_does_not_come_ends_the_migration),
        cmocka_unit_test(record_that_may_not_be_ends_the_migration_by_name),
        cmocka_unit_test(state_of_more_than_it_may_be_is_refused),
        cmocka_unit_test(data_channel_that_breaks_the_rules_ends_the_migration),
        cmocka_unit_test(connection_cut_before_ready_fails),
        cmocka_unit_test(connection_cut_within_a_record_fails),
        cmocka_unit_test(data_channel_cut_fails),
        cmocka_unit_test(data_channel_that_is_silent_before_its_end_fails),
        cmocka_unit_test(source_that_says_why_is_quoted),
        cmocka_unit_test(source_that_is_silent_fails),
        cmocka_unit_test(source_that_says_alive_is_waited_for),
        cmocka_unit_test(cancel_while_it_listens_ends_it),
        cmocka_unit_test(cancel_while_memory_comes_tells_the_source),
        cmocka_unit_test(cancel_after_ready_is_refused),
        cmocka_unit_test(free_while_memory_comes_tells_the_source),
        cmocka_unit_test(state_that_cannot_be_loaded_leaves_the_guest_at_the_source),
        cmocka_unit_test(guest_that_cannot_be_started_is_reported),
        cmocka_unit_test(guest_that_cannot_be_moved_is_refused),
        cmocka_unit_test(connection_cut_after_ready_waits_for_the_source),
        cmocka_unit_test(connection_cut_after_ready_again_and_again_waits),
        cmocka_unit_test(garbage_after_ready_says_nothing_and_waits),
        cmocka_unit_test(go_of_another_migration_starts_nothing),
        cmocka_unit_test(source_that_keeps_its_guest_after_ready_ends_it),
        cmocka_unit_test(source_that_has_not_heard_of_the_start_is_told),
        cmocka_unit_test(resume_by_a_stranger_is_refused_and_waited_on),
        cmocka_unit_test(recover_of_what_is_not_lost_is_refused),
        cmocka_unit_test(move_over_a_descriptor_is_byte_for_byte),
        cmocka_unit_test(several_channels_over_a_descriptor_are_refused),
        cmocka_unit_test(phases_and_rounds_are_told_in_order),
        cmocka_unit_test(move_from_a_file_starts_the_guest),
        cmocka_unit_test(move_from_a_file_without_end_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
