/* The destination of a replication against a source made by hand: epochs, and what is left when one is cut. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "expect.h"
#include "incoming-fixture.h"

#include <sys/stat.h>
#include <unistd.h>

/* ---- epochs ---------------------------------------------------------------------------------------------- */

/* END, READY: it is in force. */
static void end_epoch(Rig *rig, uint64_t epoch) {
    rig_end_epoch(rig, epoch);
    hand_expect_ready(&rig->main, epoch);
    rig_put_in_force(rig);
}

static Rig *first_epoch(void **state, uint32_t n_channels) {
    Rig *rig = *state;
    rig->hello.purpose = SNAP_WIRE_REPLICATE;
    rig_greeted(state, n_channels);
    rig_join_all(rig);
    for (uint64_t chunk = 0; chunk < 3; chunk++) {
        rig_send(rig, (RigChunk){.region = 0, .chunk = chunk, .present = UINT64_MAX, .generation = 1});
        rig_send(rig, (RigChunk){.region = 1, .chunk = chunk, .present = 0xff0, .generation = 1});
    }
    end_epoch(rig, 1);
    return rig;
}

/* All kinds of chunks. */
static void send_epoch(Rig *rig, unsigned epoch) {
    const RigChunk chunks[] = {
        {.region = 0, .chunk = 0, .present = 0xf0f, .generation = epoch},
        {.region = 0, .chunk = 1, .present = UINT64_MAX, .zero = epoch, .generation = epoch, .zstd = true},
        {.region = 1, .chunk = 2, .present = UINT64_C(3) << epoch % 60, .generation = epoch},
        {.region = 1, .chunk = 0, .present = 0x3f0, .zero = 0x3f0},
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(chunks); i++)
        rig_send(rig, chunks[i]);
}

static void lose(Rig *rig) {
    rig_close(rig);
    rig_expect_lost(rig, SNAP_MIGRATION_STANDBY);
}

/* It is let run, and has the epoch in force, of this state. */
static void promote(Rig *rig, const char *expected) {
    rig_promote(rig);
    assert_int_equal(rig->states->len, 1);
    rig_check_state(rig, 0, "cpu", expected, sizeof "state 1");
    rig_check(rig);
}

/* ---- the good way ---------------------------------------------------------------------------------------- */

static void standby_that_is_promoted(void **state, uint32_t n_channels) {
    Rig *rig = first_epoch(state, n_channels);
    for (unsigned epoch = 2; epoch <= 5; epoch++) {
        send_epoch(rig, epoch);
        end_epoch(rig, epoch);
        rig_check(rig);
    }
    assert_int_equal(rig_stats(rig).phase, SNAP_MIGRATION_STANDBY);
    assert_int_equal(rig_stats(rig).epoch, 5);
    assert_int_equal(rig->loads, 0);
    assert_false(snap_incoming_promote(rig->incoming, FALSE, NULL)); /* the source is there */
    promote(rig, "state 5");
    assert_int_equal(rig_stats(rig).downtime_ns, 0); /* nobody knows */
}

static void standby_has_the_last_epoch(void **state) {
    standby_that_is_promoted(state, 1);
}

static void standby_on_three_channels_has_the_last_epoch(void **state) {
    standby_that_is_promoted(state, 3);
}

static void epoch_that_is_not_complete_is_not_seen(void **state) {
    Rig *rig = first_epoch(state, 1);
    send_epoch(rig, 2);
    g_usleep(50000);
    rig_check(rig);
    promote(rig, "state 1");
    hand_expect_closed(&rig->main); /* cut, and nothing said: it runs here now */
}

/* One channel is ahead of the others: what it says behind its END is of the next epoch. */
static void channel_that_is_ahead_waits_for_the_others(void **state) {
    Rig *rig = first_epoch(state, 2);
    for (unsigned epoch = 2; epoch < 5; epoch++) {
        hand_say_end(&rig->channels[1], epoch, 0, 0);
        rig_send(rig, (RigChunk){.chunk = 1, .present = 0xff, .generation = epoch});
        g_usleep(30000);
        rig_send_state(rig, "cpu", "x", 1);
        hand_say_end(&rig->main, epoch, 1, 0);
        hand_expect_ready(&rig->main, epoch);
        g_usleep(30000);
        rig_check(rig);
        rig_put_in_force(rig); /* with the next one */
    }
    lose(rig);
}

/* After so many records of the second epoch. */
static void source_lost_at_any_record_leaves_the_last_epoch(void **state) {
    for (unsigned cut = 0; cut < 6; cut++) {
        Rig *rig = first_epoch(state, 2);
        if (cut > 0)
            rig_send(rig, (RigChunk){.chunk = 0, .present = 0xf, .generation = 2});
        if (cut > 1)
            rig_send(rig, (RigChunk){.chunk = 1, .present = 0xf, .generation = 2});
        if (cut > 2)
            hand_say_end(&rig->channels[1], 2, 0, 0);
        if (cut > 3)
            rig_send_state(rig, "cpu", "state 2", 8);
        if (cut > 4) {
            hand_say_end(&rig->main, 2, 1, 0);
            hand_expect_ready(&rig->main, 2);
            rig_put_in_force(rig);
        }
        lose(rig);
        promote(rig, cut > 4 ? "state 2" : "state 1");
        rig_again(state);
    }
}

static void hand_over_starts_the_standby(void **state) {
    Rig *rig = first_epoch(state, 1);
    send_epoch(rig, 2);
    end_epoch(rig, 2);
    rig_hand_over(rig);
    rig_check_state(rig, 0, "cpu", "state 2", 8);
}

static void hand_over_that_was_cut_is_resumed(void **state) {
    Rig *rig = first_epoch(state, 1);
    lose(rig);
    rig_recover(rig);
    rig_resume(rig, SNAP_WIRE_AT_READY);
    rig_hand_over(rig);
}

/* GO was lost on its way, and the owner has decided: the source hears that it need not wait any more. */
static void source_of_a_promoted_standby_is_told(void **state) {
    Rig *rig = first_epoch(state, 1);
    lose(rig);
    promote(rig, "state 1");
    g_usleep(50000);
    rig_recover(rig);
    rig_resume(rig, SNAP_WIRE_AT_STARTED);
    hand_expect(&rig->main, SNAP_WIRE_STARTED);
    rig_close(rig);
    rig_expect_completed(rig);
}

/* ---- what is wrong --------------------------------------------------------------------------------------- */

static void go_within_an_epoch_starts_nothing(void **state) {
    for (unsigned channel = 0; channel < 2; channel++) {
        Rig *rig = first_epoch(state, 2);
        rig_send(rig, (RigChunk){.chunk = channel, .present = 0xf, .generation = 2});
        g_usleep(50000);
        hand_say_id(&rig->main, SNAP_WIRE_GO);
        rig_expect_lost(rig, SNAP_MIGRATION_STANDBY);
        rig_check(rig);
        rig_again(state);
    }
}

static void epoch_out_of_order_is_dropped(void **state) {
    Rig *rig = first_epoch(state, 1);
    send_epoch(rig, 3);
    rig_end_epoch(rig, 3);
    hand_expect_failed(&rig->main, "epoch 3, and 2 was to come");
    lose(rig);
    promote(rig, "state 1");
}

static void epoch_that_is_too_large_is_dropped(void **state) {
    Rig *rig = first_epoch(state, 1);
    for (unsigned i = 0; i < 9; i++) /* there are eight chunks */
        rig_send(rig, (RigChunk){.present = 1, .generation = 2});
    hand_expect_failed(&rig->main, "larger than the guest's memory");
    lose(rig);
    rig_check(rig);
}

static void source_that_gives_up_leaves_a_standby(void **state) {
    Rig *rig = first_epoch(state, 1);
    hand_say_failed(&rig->main, "cancelled there");
    lose(rig);
    promote(rig, "state 1");
}

static void standby_before_the_first_epoch_is_none(void **state) {
    GError *error = NULL;
    Rig *rig = *state;
    rig->hello.purpose = SNAP_WIRE_REPLICATE;
    rig_greeted(state, 1);
    rig_send(rig, (RigChunk){.present = 1, .generation = 1});
    expect_error(snap_incoming_promote(rig->incoming, TRUE, &error), &error, SNAP_ERROR_REFUSED, "");
    rig_close(rig);
    rig_expect_ended(rig, SNAP_ERROR_IO, "closed");
}

static void standby_can_be_cancelled(void **state) {
    Rig *rig = first_epoch(state, 1);
    assert_true(snap_incoming_cancel(rig->incoming, NULL));
    rig_expect_failed(rig, SNAP_ERROR_CANCELLED, "cancelled");
    rig_again(state);
    rig = first_epoch(state, 1);
    lose(rig);
    assert_true(snap_incoming_cancel(rig->incoming, NULL));
    g_usleep(50000);
    rig_expect_ended(rig, SNAP_ERROR_CANCELLED, "cancelled");
}

static void standby_whose_state_cannot_be_loaded_fails(void **state) {
    Rig *rig = first_epoch(state, 1);
    rig->no_load = true;
    assert_true(snap_incoming_promote(rig->incoming, TRUE, NULL));
    rig_expect_ended(rig, SNAP_ERROR_FAILED, "no such device");
    assert_false(snap_incoming_promote(rig->incoming, TRUE, NULL));
}

/* ---- from a file ----------------------------------------------------------------------------------------- */

/* @cut: bytes that are missing at its end. It is @expected that is in force then; 0: none. */
static void epochs_from_a_file(void **state, unsigned epochs, off_t cut, unsigned expected) {
    struct stat about;
    Rig *rig = rig_mapped(state);
    rig->hello.purpose = SNAP_WIRE_REPLICATE;
    rig_greet_file(rig);
    for (unsigned epoch = 1; epoch <= epochs; epoch++) {
        send_epoch(rig, epoch);
        rig_end_epoch(rig, epoch);
        if (epoch == expected)
            rig_put_in_force(rig);
    }
    rig_close(rig);
    const char *path = rig->uri + strlen("file:");
    assert_int_equal(stat(path, &about), 0);
    assert_int_equal(truncate(path, about.st_size - cut), 0);
    rig_listen(rig);
    if (expected > 0) {
        rig_expect_completed(rig);
        rig_check(rig);
    } else {
        rig_expect_ended(rig, SNAP_ERROR_IO, "before it is complete");
    }
}

static void file_of_epochs_gives_the_last(void **state) {
    epochs_from_a_file(state, 3, 0, 3);
}

static void file_that_is_torn_gives_the_last_that_is_whole(void **state) {
    epochs_from_a_file(state, 3, 1, 2);
    rig_again(state);
    epochs_from_a_file(state, 3, 64 + 10, 2); /* within a record before END */
}

static void file_without_a_whole_epoch_is_refused(void **state) {
    epochs_from_a_file(state, 1, 1, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(standby_has_the_last_epoch),
        TEST(standby_on_three_channels_has_the_last_epoch),
        TEST(epoch_that_is_not_complete_is_not_seen),
        TEST(channel_that_is_ahead_waits_for_the_others),
        TEST(source_lost_at_any_record_leaves_the_last_epoch),
        TEST(hand_over_starts_the_standby),
        TEST(hand_over_that_was_cut_is_resumed),
        TEST(source_of_a_promoted_standby_is_told),
        TEST(go_within_an_epoch_starts_nothing),
        TEST(epoch_out_of_order_is_dropped),
        TEST(epoch_that_is_too_large_is_dropped),
        TEST(source_that_gives_up_leaves_a_standby),
        TEST(standby_before_the_first_epoch_is_none),
        TEST(standby_can_be_cancelled),
        TEST(standby_whose_state_cannot_be_loaded_fails),
        TEST(file_of_epochs_gives_the_last),
        TEST(file_that_is_torn_gives_the_last_that_is_whole),
        TEST(file_without_a_whole_epoch_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
