/*
 * The destination of a move whose connection is lost, against a source made by hand: before READY the migration
 * has failed; after it the destination cannot know whether GO was said, starts nothing, and waits for the source.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "incoming-fixture.h"

#include <unistd.h>

/* @silence_ms: 0: long. */
static Rig *greet(void **state, uint32_t n_channels, uint64_t silence_ms) {
    Rig *rig = *state;
    rig->hello.silence_ms = silence_ms ? silence_ms : RIG_SILENCE_MS;
    return rig_greeted(state, n_channels);
}

/* ---- before READY ---------------------------------------------------------------------------------------- */

/* So many steps. Return: how many there are. */
static unsigned go_steps(Rig *rig, unsigned steps) {
    unsigned step = 0;
    if (step++ < steps)
        rig_say_hello(rig, &rig->main, 0);
    if (step++ < steps)
        rig_say_regions(rig, &rig->main);
    if (step++ < steps)
        hand_expect(&rig->main, SNAP_WIRE_WELCOME);
    if (step++ < steps)
        rig_send(rig, (RigChunk){.present = 0xff, .generation = 1});
    if (step++ < steps)
        rig_send_state(rig, "cpu", "registers", 9);
    return step;
}

static void connection_cut_before_ready_fails(void **state) {
    unsigned n = 1;
    for (unsigned steps = 0; steps <= n; steps++) {
        Rig *rig = rig_listening(state, 1);
        rig_connect(rig, &rig->main);
        n = go_steps(rig, steps);
        rig_close(rig);
        rig_expect_ended(rig, SNAP_ERROR_IO, "closed");
        assert_int_equal(rig->loads, 0);
        rig_again(state);
    }
}

static void connection_cut_within_a_record_fails(void **state) {
    Rig *rig = greet(state, 1, 0);
    uint8_t body[64], head[SNAP_WIRE_HEAD_BYTES];
    const SnapWireChunk chunk = {.record = {.present = 1, .length_bytes = (uint32_t)rig->page}};
    uint32_t body_bytes = snap_wire_encode_chunk(&chunk, body);
    snap_wire_seal(&(SnapWireHead){.type = SNAP_WIRE_CHUNK,
                                   .body_bytes = body_bytes,
                                   .bulk_bytes = chunk.record.length_bytes,
                                   .number = rig->main.channel.n_sent},
                   body, head);
    assert_int_equal(write(rig->main.channel.out, head, sizeof head), sizeof head);
    assert_int_equal(write(rig->main.channel.out, body, body_bytes), body_bytes);
    assert_int_equal(write(rig->main.channel.out, body, 10), 10);
    rig_close(rig);
    rig_expect_ended(rig, SNAP_ERROR_IO, "closed");
}

static void channel_that_does_not_come_ends_the_migration(void **state) {
    Rig *rig = greet(state, 2, 200);
    rig_expect_failed(rig, SNAP_ERROR_IO, "further channels");
}

static void data_channel_cut_fails(void **state) {
    Rig *rig = greet(state, 2, 0);
    rig_join(rig, 1);
    hand_close(&rig->channels[1]);
    rig_expect_failed(rig, SNAP_ERROR_IO, "channel 1: the connection was closed");
}

static void data_channel_that_is_silent_before_its_end_fails(void **state) {
    Rig *rig = greet(state, 2, 300);
    rig_join(rig, 1);
    hand_say_end(&rig->main, 0, 0, 0);
    hand_live_on(&rig->main, 600);
    rig_expect_failed(rig, SNAP_ERROR_IO, "a data channel is silent");
}

static void source_that_is_silent_fails(void **state) {
    Rig *rig = greet(state, 1, 200);
    rig_expect_failed(rig, SNAP_ERROR_IO, "silent"); /* TIMED_OUT is the wait itself */
}

static void source_that_says_alive_is_waited_for(void **state) {
    g_autoptr(GError) error = NULL;
    Rig *rig = greet(state, 1, 300);
    hand_live_on(&rig->main, 800);
    /* And so does it: there is more than WELCOME to be read. */
    snap_channel_receive(&rig->main.channel, 1000, &rig->main.head, rig->main.body, &error);
    fail_on(error);
    assert_int_equal(rig->main.head.type, SNAP_WIRE_ALIVE);
    rig_finish(rig, 0);
}

static void source_that_says_why_is_quoted(void **state) {
    Rig *rig = greet(state, 2, 0);
    rig_join(rig, 1);
    hand_close(&rig->channels[1]); /* it closes all, and what it said is not to be lost over that */
    g_usleep(20000);
    hand_say_failed(&rig->main, "the guest does not converge");
    rig_close(rig);
    rig_expect_ended(rig, SNAP_ERROR_REFUSED, "the other side: the guest does not converge");
}

/* ---- around GO ------------------------------------------------------------------------------------------- */

static Rig *come_to_ready(void **state) {
    Rig *rig = greet(state, 1, 0);
    rig_send_region(rig, 0, 1);
    rig_send_state(rig, "cpu", "registers", 9);
    rig_end(rig, 0, 1, 0);
    hand_expect_ready(&rig->main, 0);
    return rig;
}

static void lose(Rig *rig) {
    rig_close(rig);
    rig_expect_lost(rig, SNAP_MIGRATION_DEVICE);
}

static void resume_as(Rig *rig, SnapWireAt at) {
    rig_recover(rig);
    assert_int_equal(rig_resume(rig, at), 0);
}

static void connection_cut_after_ready_waits_for_the_source(void **state) {
    Rig *rig = come_to_ready(state);
    lose(rig);
    resume_as(rig, SNAP_WIRE_AT_READY);
    rig_hand_over(rig);
    assert_int_equal(rig->loads, 1);
}

static void connection_cut_after_ready_again_and_again_waits(void **state) {
    Rig *rig = come_to_ready(state);
    for (unsigned i = 0; i < 3; i++) {
        lose(rig);
        resume_as(rig, SNAP_WIRE_AT_READY);
    }
    lose(rig);
}

static void garbage_after_ready_says_nothing_and_waits(void **state) {
    Rig *rig = come_to_ready(state);
    hand_say_garbage(&rig->main);
    hand_expect_closed(&rig->main);
    lose(rig);
}

static void go_of_another_migration_starts_nothing(void **state) {
    Rig *rig = come_to_ready(state);
    rig->main.id.bytes[0] ^= 1;
    hand_say_id(&rig->main, SNAP_WIRE_GO);
    hand_expect_closed(&rig->main);
    lose(rig);
}

static void source_that_keeps_its_guest_after_ready_ends_it(void **state) {
    Rig *rig = come_to_ready(state);
    hand_say_failed(&rig->main, "cancelled there");
    rig_close(rig);
    rig_expect_ended(rig, SNAP_ERROR_REFUSED, "cancelled there");
}

static void source_that_has_not_heard_of_the_start_is_told(void **state) {
    Rig *rig = come_to_ready(state);
    hand_say_id(&rig->main, SNAP_WIRE_GO);
    rig_close(rig);
    rig_expect_completed(rig);
    g_usleep(50000);
    resume_as(rig, SNAP_WIRE_AT_STARTED);
    hand_expect(&rig->main, SNAP_WIRE_STARTED);
    rig_close(rig);
    rig_expect_completed(rig);
}

static void resume_by_a_stranger_is_refused_and_waited_on(void **state) {
    Rig *rig = come_to_ready(state);
    lose(rig);
    rig_recover(rig);
    rig->flags = SNAP_WIRE_RESUME;
    rig->hello.id.bytes[15] ^= 1;
    rig_connect(rig, &rig->stranger);
    rig_say_hello(rig, &rig->stranger, 0);
    hand_expect_failed(&rig->stranger, "another migration");
    rig->hello.id.bytes[15] ^= 1;
    rig_resume(rig, SNAP_WIRE_AT_READY);
    rig_hand_over(rig);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(connection_cut_before_ready_fails),
        TEST(connection_cut_within_a_record_fails),
        TEST(channel_that_does_not_come_ends_the_migration),
        TEST(data_channel_cut_fails),
        TEST(data_channel_that_is_silent_before_its_end_fails),
        TEST(source_that_is_silent_fails),
        TEST(source_that_says_alive_is_waited_for),
        TEST(source_that_says_why_is_quoted),
        TEST(connection_cut_after_ready_waits_for_the_source),
        TEST(connection_cut_after_ready_again_and_again_waits),
        TEST(garbage_after_ready_says_nothing_and_waits),
        TEST(go_of_another_migration_starts_nothing),
        TEST(source_that_keeps_its_guest_after_ready_ends_it),
        TEST(source_that_has_not_heard_of_the_start_is_told),
        TEST(resume_by_a_stranger_is_refused_and_waited_on),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
