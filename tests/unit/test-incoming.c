/*
 * The destination of a move, against a source made by hand: what goes well, how it begins, what its owner asks of
 * it, and other ways than a socket. What a source does wrong: test-incoming-wrong.c; connections that are lost:
 * test-incoming-lost.c.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "expect.h"
#include "incoming-fixture.h"

#include <string.h>
#include <sys/socket.h>

/* ---- the good way ---------------------------------------------------------------------------------------- */

static void move_of_all_pages_is_byte_for_byte(void **state) {
    Rig *rig = rig_greeted(state, 1);
    for (unsigned i = 0; i < rig->n_regions; i++)
        rig_send_region(rig, i, 1);
    rig_send_state(rig, "cpu", "registers", 9);
    rig_send_state(rig, "empty", "", 0);
    rig_finish(rig, 2);
    assert_int_equal(rig->states->len, 2);
    rig_check_state(rig, 0, "cpu", "registers", 9);
    rig_check_state(rig, 1, "empty", NULL, 0);
    SnapMigrationStats stats = rig_stats(rig);
    assert_int_equal(stats.pages_normal, 2 * RIG_PAGES);
    assert_int_equal(stats.total_bytes, 2 * RIG_PAGES * rig->page);
    assert_true(stats.sent_bytes > stats.total_bytes);
}

static void move_over_memory_that_held_something_leaves_nothing_of_it(void **state) {
    Rig *rig = rig_mapped(state);
    for (unsigned i = 0; i < rig->n_regions; i++)
        memset(rig->regions[i].data, 0xee, rig->regions[i].length_bytes);
    rig_listen(rig);
    rig_greet(rig);
    rig_send(rig, (RigChunk){.region = 1, .chunk = 1, .present = 0xf, .generation = 1});
    rig_finish(rig, 0);
}

static void move_of_pages_that_come_again_keeps_the_last(void **state) {
    static const unsigned expected[] = {1, 3, 1, 2, 2, 1, 0, 1};
    Rig *rig = rig_greeted(state, 1);
    rig_send(rig, (RigChunk){.present = 0xff, .generation = 1});
    rig_send(rig, (RigChunk){.present = 0x5a, .zero = 0x42, .generation = 2});
    rig_send(rig, (RigChunk){.present = 0x02, .generation = 3});
    rig_send(rig, (RigChunk){.chunk = 3, .present = 0x82, .zero = 0x80, .generation = 1});
    rig_finish(rig, 0);
    for (uint64_t page = 0; page < G_N_ELEMENTS(expected); page++)
        assert_true(rig_is(rig, 0, page, expected[page]));
    assert_true(rig_is(rig, 0, 3 * 64 + 1, 1) && rig_is(rig, 0, 3 * 64 + 7, 0));
}

static void move_of_packed_pages_is_byte_for_byte(void **state) {
    static const uint64_t masks[] = {UINT64_MAX, 1, UINT64_C(0x5555555555555555), UINT64_C(0xff)};
    Rig *rig = rig_greeted(state, 1);
    for (unsigned i = 0; i < rig->n_regions; i++) {
        for (uint64_t chunk = 0; chunk < G_N_ELEMENTS(masks); chunk++)
            rig_send(
                rig,
                (RigChunk){.region = i, .chunk = chunk, .present = masks[chunk], .generation = 4, .zstd = true});
    }
    rig_finish(rig, 0);
}

static void move_on_four_channels_is_byte_for_byte(void **state) {
    static const uint32_t order[] = {2, 3, 1};
    Rig *rig = rig_greeted(state, 4);
    for (unsigned i = 0; i < G_N_ELEMENTS(order); i++)
        rig_join(rig, order[i]);
    for (uint64_t chunk = 0; chunk < 4; chunk++) {
        for (unsigned i = 0; i < rig->n_regions; i++)
            rig_send(rig, (RigChunk){.region = i, .chunk = chunk, .present = 0xff, .generation = 5});
    }
    rig_send_state(rig, "cpu", "registers", 9);
    rig_finish(rig, 1);
}

static void state_in_many_parts_comes_whole(void **state) {
    const size_t length = 3 * SNAP_WIRE_STATE_PART_BYTES + 17;
    g_autofree uint8_t *blob = g_malloc(length);
    Rig *rig = rig_greeted(state, 1);
    for (size_t i = 0; i < length; i++)
        blob[i] = (uint8_t)(i * 31 / 7);
    rig_send_state(rig, "large", blob, length);
    rig_finish(rig, 1);
    rig_check_state(rig, 0, "large", blob, length);
}

/* ---- what is wrong when it begins ------------------------------------------------------------------------ */

typedef struct {
    uint16_t flags;
    uint32_t n_channels, channel;
    SnapWirePurpose purpose;
    unsigned page_factor;
    const char *part;
} WrongHello;

static const WrongHello wrong_hellos[] = {
    {SNAP_WIRE_RESUME, 1, 0, SNAP_WIRE_MOVE, 1, "could be resumed"},
    {0, 1, 0, SNAP_WIRE_MOVE, 2, "there, and"},
    {0, 2, 1, SNAP_WIRE_MOVE, 1, "has to come first"},
    {SNAP_WIRE_POSTCOPY, 1, 0, SNAP_WIRE_REPLICATE, 1, "has no post-copy"},
};

static void hello_that_does_not_fit_is_refused(void **state) {
    for (unsigned i = 0; i < G_N_ELEMENTS(wrong_hellos); i++) {
        const WrongHello *wrong = &wrong_hellos[i];
        Rig *rig = rig_listening(state, wrong->n_channels);
        rig->flags = wrong->flags;
        rig->hello.purpose = wrong->purpose;
        rig->hello.page_bytes *= wrong->page_factor;
        rig_connect(rig, &rig->main);
        rig_say_hello(rig, &rig->main, wrong->channel);
        rig_expect_failed(rig, SNAP_ERROR_REFUSED, wrong->part);
        rig_again(state);
    }
}

static void record_before_hello_is_refused(void **state) {
    Rig *rig = rig_listening(state, 1);
    rig_connect(rig, &rig->main);
    hand_say_id(&rig->main, SNAP_WIRE_GO);
    rig_expect_failed(rig, SNAP_ERROR_PROTOCOL, "record 0 (GO)");
}

static void garbage_instead_of_hello_is_refused(void **state) {
    Rig *rig = rig_listening(state, 1);
    rig_connect(rig, &rig->main);
    hand_say_garbage(&rig->main);
    rig_expect_failed(rig, SNAP_ERROR_PROTOCOL, "record 0");
}

/* Changes what the source says of its first region. */
typedef struct {
    const char *part;
    uint64_t length_pages, address_pages, page_factor; /* added */
    uint64_t guest_address;
    const char *name; /* (nullable) instead */
    bool alone;       /* it says nothing of the second one */
} Lie;

static const Lie lies[] = {
    {.part = "region \"ram\" has length", .length_pages = 1},
    {.part = "region \"ram\" has guest address", .address_pages = 1},
    {.part = "region \"ram\" has pages of", .page_factor = 1},
    {.part = "no region \"bam\" here", .name = "bam"},
    {.part = "no region \"video\" here, or it came twice", .guest_address = UINT64_C(1) << 32, .name = "video"},
    {.part = "no region \"video\" at the source", .alone = true},
};

static void regions_that_differ_are_refused_by_name(void **state) {
    for (unsigned i = 0; i < G_N_ELEMENTS(lies); i++) {
        const Lie *lie = &lies[i];
        Rig *rig = rig_listening(state, 1);
        RigRegion said = rig->regions[0];
        said.length_bytes += lie->length_pages * rig->page;
        said.guest_address += lie->guest_address + lie->address_pages * rig->page;
        said.name = lie->name ? lie->name : said.name;
        rig->hello.n_regions = lie->alone ? 1 : 2;
        rig_connect(rig, &rig->main);
        rig_say_hello(rig, &rig->main, 0);
        rig_say_region(&rig->main, &said, rig->page * (1 + lie->page_factor));
        if (!lie->alone)
            rig_say_region(&rig->main, &rig->regions[1], rig->page);
        rig_expect_failed(rig, SNAP_ERROR_REFUSED, lie->part);
        rig_again(state);
    }
}

/* ---- further channels ------------------------------------------------------------------------------------ */

static void channel_of_another_migration_is_sent_away_alone(void **state) {
    Rig *rig = rig_greeted(state, 2);
    rig->hello.id.bytes[3] ^= 1;
    rig_connect(rig, &rig->stranger);
    rig_say_hello(rig, &rig->stranger, 1);
    hand_expect_failed(&rig->stranger, "another migration is under way");
    rig->hello.id.bytes[3] ^= 1;
    rig_join(rig, 1);
    rig_finish(rig, 0);
}

static void channel_that_says_garbage_is_sent_away_alone(void **state) {
    Rig *rig = rig_greeted(state, 2);
    rig_connect(rig, &rig->stranger);
    hand_say_id(&rig->stranger, SNAP_WIRE_GO);
    hand_expect_failed(&rig->stranger, "record 0 (GO)");
    rig_join(rig, 1);
    rig_finish(rig, 0);
}

typedef struct {
    uint32_t channel, n_channels;
    uint16_t flags;
    const char *part;
} WrongChannel;

static const WrongChannel wrong_channels[] = {
    {0, 3, SNAP_WIRE_RESUME, "channel 0 says otherwise"},
    {1, 2, 0, "channel 1 says otherwise"},
    {SNAP_WIRE_URGENT, 3, 0, "no post-copy"},
    {2, 3, 0, "channel 2 is there already"},
};

static void channel_that_breaks_the_rules_ends_the_migration(void **state) {
    for (unsigned i = 0; i < G_N_ELEMENTS(wrong_channels); i++) {
        const WrongChannel *wrong = &wrong_channels[i];
        Rig *rig = rig_greeted(state, 3);
        rig_join(rig, 2);
        rig->flags = wrong->flags;
        rig->hello.n_channels = wrong->n_channels;
        rig_connect(rig, &rig->stranger);
        rig_say_hello(rig, &rig->stranger, wrong->channel);
        hand_expect_failed(&rig->stranger, wrong->part);
        rig_expect_failed(rig, SNAP_ERROR_REFUSED, wrong->part);
        rig_again(state);
    }
}

/* ---- the owner, and the guest ---------------------------------------------------------------------------- */

static void cancel_while_it_listens_ends_it(void **state) {
    Rig *rig = rig_listening(state, 1);
    assert_true(snap_incoming_cancel(rig->incoming, NULL));
    rig_expect_ended(rig, SNAP_ERROR_CANCELLED, "cancelled");
    assert_false(snap_incoming_cancel(rig->incoming, NULL));
}

static void cancel_while_memory_comes_tells_the_source(void **state) {
    Rig *rig = rig_greeted(state, 1);
    assert_true(snap_incoming_cancel(rig->incoming, NULL));
    rig_expect_failed(rig, SNAP_ERROR_CANCELLED, "cancelled");
}

static void cancel_after_ready_is_refused(void **state) {
    GError *error = NULL;
    Rig *rig = rig_greeted(state, 1);
    rig_end(rig, 0, 0, 0);
    hand_expect_ready(&rig->main, 0);
    expect_error(snap_incoming_cancel(rig->incoming, &error), &error, SNAP_ERROR_REFUSED, "");
    rig_hand_over(rig);
}

static void free_while_memory_comes_tells_the_source(void **state) {
    Rig *rig = rig_greeted(state, 1);
    g_clear_pointer(&rig->incoming, snap_incoming_free);
    hand_expect_failed(&rig->main, "cancelled");
}

static void state_that_cannot_be_loaded_leaves_the_guest_at_the_source(void **state) {
    Rig *rig = rig_greeted(state, 1);
    rig->no_load = true;
    rig_end(rig, 0, 0, 0);
    rig_expect_failed(rig, SNAP_ERROR_FAILED, "no such device");
}

static void guest_that_cannot_be_started_is_reported(void **state) {
    Rig *rig = rig_greeted(state, 1);
    rig->no_start = true;
    rig_end(rig, 0, 0, 0);
    hand_expect_ready(&rig->main, 0);
    hand_say_id(&rig->main, SNAP_WIRE_GO);
    rig->starts_due = 1; /* it was tried */
    rig_expect_failed(rig, SNAP_ERROR_FAILED, "no processor");
}

static void guest_that_cannot_be_moved_is_refused(void **state) {
    GError *error = NULL;
    Rig *rig = rig_mapped(state);
    const SnapIncomingOptions options = {.uri = rig->uri};
    snap_guest_set_move_ops(rig->guest, NULL);
    expect_error(snap_incoming_start(rig->guest, &options, NULL, NULL, &error), &error, SNAP_ERROR_REFUSED, "");
    expect_error(snap_incoming_start(NULL, &options, NULL, NULL, &error), &error, SNAP_ERROR_USAGE, "");
}

static void recover_of_what_is_not_lost_is_refused(void **state) {
    GError *error = NULL;
    Rig *rig = rig_greeted(state, 1);
    expect_error(snap_incoming_recover(rig->incoming, rig->uri, &error), &error, SNAP_ERROR_REFUSED, "");
    expect_error(snap_incoming_promote(rig->incoming, TRUE, &error), &error, SNAP_ERROR_REFUSED, "");
    rig_finish(rig, 0);
}

static void note_phase(SnapMigrationPhase phase, uint64_t round, void *opaque) {
    g_string_append_printf(opaque, "%s%u ", snap_migration_phase_name(phase), (unsigned)round);
}

static void phases_and_rounds_are_told_in_order(void **state) {
    static const SnapWireRound round = {.round = 2, .dirty_pages = 10, .pages_per_second = 100};
    g_autoptr(GString) told = g_string_new(NULL);
    uint8_t body[32];
    Rig *rig = rig_mapped(state);
    rig->incoming =
        snap_incoming_start(rig->guest, &(SnapIncomingOptions){.uri = rig->uri}, note_phase, told, NULL);
    rig_greet(rig);
    hand_say(&rig->main, SNAP_WIRE_ROUND, 0, body, snap_wire_encode_round(&round, body));
    rig_finish(rig, 0);
    g_clear_pointer(&rig->incoming, snap_incoming_free); /* nobody tells anything any more */
    assert_string_equal(told->str, "setup0 active1 active2 device2 completed2 ");
}

/* ---- other ways ------------------------------------------------------------------------------------------ */

/* It listens on one end of a socket pair; the main channel is the other. */
static Rig *pair(void **state, uint32_t n_channels) {
    int ends[2];
    Rig *rig = *state;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    g_snprintf(rig->uri, sizeof rig->uri, "fd:%d", ends[1]);
    rig_listening(state, n_channels);
    hand_init(&rig->main, SNAP_WIRE_FROM_SOURCE, ends[0], ends[0]);
    rig->main.id = rig->hello.id;
    rig_say_hello(rig, &rig->main, 0);
    return rig;
}

static void move_over_a_descriptor_is_byte_for_byte(void **state) {
    Rig *rig = pair(state, 1);
    rig_say_regions(rig, &rig->main);
    hand_expect(&rig->main, SNAP_WIRE_WELCOME);
    rig_send_region(rig, 1, 3);
    rig_finish(rig, 0);
}

static void several_channels_over_a_descriptor_are_refused(void **state) {
    Rig *rig = pair(state, 2);
    rig_expect_failed(rig, SNAP_ERROR_REFUSED, "room for one connection only");
}

static void move_from_a_file_starts_the_guest(void **state) {
    Rig *rig = rig_mapped(state);
    rig_greet_file(rig);
    rig_send_region(rig, 1, 7);
    rig_send_state(rig, "cpu", "registers", 9);
    rig_end(rig, 0, 1, 0);
    rig_close(rig);
    rig_listen(rig);
    rig_expect_completed(rig);
    rig_check(rig);
}

static void move_from_a_file_without_end_is_refused(void **state) {
    Rig *rig = rig_mapped(state);
    rig_greet_file(rig);
    rig_send_region(rig, 1, 7);
    rig_close(rig);
    rig_listen(rig);
    rig_expect_ended(rig, SNAP_ERROR_IO, "before it is complete");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(move_of_all_pages_is_byte_for_byte),
        TEST(move_over_memory_that_held_something_leaves_nothing_of_it),
        TEST(move_of_pages_that_come_again_keeps_the_last),
        TEST(move_of_packed_pages_is_byte_for_byte),
        TEST(move_on_four_channels_is_byte_for_byte),
        TEST(state_in_many_parts_comes_whole),
        TEST(hello_that_does_not_fit_is_refused),
        TEST(record_before_hello_is_refused),
        TEST(garbage_instead_of_hello_is_refused),
        TEST(regions_that_differ_are_refused_by_name),
        TEST(channel_of_another_migration_is_sent_away_alone),
        TEST(channel_that_says_garbage_is_sent_away_alone),
        TEST(channel_that_breaks_the_rules_ends_the_migration),
        TEST(cancel_while_it_listens_ends_it),
        TEST(cancel_while_memory_comes_tells_the_source),
        TEST(cancel_after_ready_is_refused),
        TEST(free_while_memory_comes_tells_the_source),
        TEST(state_that_cannot_be_loaded_leaves_the_guest_at_the_source),
        TEST(guest_that_cannot_be_started_is_reported),
        TEST(guest_that_cannot_be_moved_is_refused),
        TEST(recover_of_what_is_not_lost_is_refused),
        TEST(phases_and_rounds_are_told_in_order),
        TEST(move_over_a_descriptor_is_byte_for_byte),
        TEST(several_channels_over_a_descriptor_are_refused),
        TEST(move_from_a_file_starts_the_guest),
        TEST(move_from_a_file_without_end_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
