/* The destination of a replication against a source made by hand: epochs, and what is left when one is cut. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "incoming-rig.h"

#include "../../libsnap/transport.h"
#include "../lib/own-process.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PAGES = 200 };

static const SnapMemory both[] = {SNAP_MEMORY_ANON, SNAP_MEMORY_SHMEM};

/* Which generation each page has; 0: zeros. */
typedef struct {
    unsigned pages[2][PAGES];
} Model;

static void begin(Rig *rig, Hand *hands, unsigned n_channels) {
    rig_init(rig, both, G_N_ELEMENTS(both), PAGES);
    rig->hello.purpose = SNAP_WIRE_REPLICATE;
    rig->hello.n_channels = n_channels;
    rig_listen(rig);
    hand_open(&hands[0], rig);
    hand_greet(&hands[0], rig);
    for (unsigned i = 1; i < n_channels; i++)
        hand_join(&hands[i], rig, i);
}

static void end(Rig *rig, Hand *hands, uint64_t epoch) {
    for (unsigned i = 1; i < rig->hello.n_channels; i++)
        hand_end(&hands[i], epoch, 0, 0);
    char state[32];
    g_snprintf(state, sizeof state, "state %u", (unsigned)epoch);
    hand_state(&hands[0], "cpu", state, strlen(state) + 1);
    hand_end(&hands[0], epoch, 1, 0);
}

/* A chunk of an epoch, which the model gets to know. */
static void send(Rig *rig, Hand *hands, Model *model, HandChunk chunk) {
    hand_chunk(&hands[chunk.chunk % rig->hello.n_channels], rig, chunk);
    for (uint64_t left = chunk.present; left != 0; left &= left - 1) {
        uint64_t bit = (uint64_t)__builtin_ctzll(left);
        model->pages[chunk.region][chunk.chunk * 64 + bit] = chunk.zero >> bit & 1 ? 0 : chunk.generation;
    }
}

static void first_epoch(Rig *rig, Hand *hands, Model *model) {
    *model = (Model){0};
    for (uint64_t chunk = 0; chunk < 3; chunk++) {
        send(rig, hands, model, (HandChunk){.region = 0, .chunk = chunk, .present = UINT64_MAX, .generation = 1});
        send(rig, hands, model, (HandChunk){.region = 1, .chunk = chunk, .present = 0xff0, .generation = 1});
    }
    end(rig, hands, 1);
    hand_expect_ready(&hands[0], 1);
}

/* All kinds of chunks. */
static void other_epoch(Rig *rig, Hand *hands, Model *model, unsigned epoch) {
    send(rig, hands, model, (HandChunk){.region = 0, .chunk = 0, .present = 0xf0f, .generation = epoch});
    send(rig, hands, model,
         (HandChunk){
             .region = 0, .chunk = 1, .present = UINT64_MAX, .zero = epoch, .generation = epoch, .zstd = true});
    send(rig, hands, model,
         (HandChunk){.region = 1, .chunk = 2, .present = UINT64_C(3) << epoch % 60, .generation = epoch});
    send(rig, hands, model, (HandChunk){.region = 1, .chunk = 0, .present = 0x3f0, .zero = 0x3f0});
}

static void check(const Rig *rig, const Model *model) {
    for (unsigned region = 0; region < 2; region++) {
        for (uint64_t page = 0; page < PAGES; page++) {
            unsigned generation = model->pages[region][page];
            if (!(generation ? rig_is(rig, region, page, generation) : rig_is_zero(rig, region, page)))
                fail_msg("page %u of region %u is not of epoch %u", (unsigned)page, region, generation);
        }
    }
}

static void check_state(const Rig *rig, const char *expected) {
    assert_int_equal(rig->states->len, 1);
    const SnapState *state = g_ptr_array_index(rig->states, 0);
    assert_string_equal(g_bytes_get_data(state->data, NULL), expected);
}

static void close_all(const Rig *rig, Hand *hands) {
    for (unsigned i = 0; i < rig->hello.n_channels; i++)
        hand_close(&hands[i]);
}

static void promote(Rig *rig) {
    g_autoptr(GError) error = NULL;
    snap_incoming_promote(rig->incoming, TRUE, &error); /* connected, perhaps */
    fail_on(error);
    rig_wait(rig, 0, NULL);
}

/* ---- the good way ---------------------------------------------------------------------------------------- */

static void standby_that_is_promoted(unsigned n_channels) {
    Rig rig;
    Hand hands[4];
    Model model;
    begin(&rig, hands, n_channels);
    first_epoch(&rig, hands, &model);
    for (unsigned epoch = 2; epoch <= 5; epoch++) {
        other_epoch(&rig, hands, &model, epoch);
        end(&rig, hands, epoch);
        hand_expect_ready(&hands[0], epoch);
        check(&rig, &model);
    }
    SnapMigrationStats stats;
    snap_incoming_get_stats(rig.incoming, &stats);
    assert_int_equal(stats.phase, SNAP_MIGRATION_STANDBY);
    assert_int_equal(stats.epoch, 5);
    assert_int_equal(rig.loads, 0);
    assert_false(snap_incoming_promote(rig.incoming, FALSE, NULL)); /* the source is there */
    promote(&rig);
    close_all(&rig, hands);
    check(&rig, &model);
    check_state(&rig, "state 5");
    snap_incoming_get_stats(rig.incoming, &stats);
    assert_int_equal(stats.phase, SNAP_MIGRATION_COMPLETED);
    assert_int_equal(stats.downtime_ns, 0); /* nobody knows */
    rig_clear(&rig, 1);
}

static void standby_has_the_last_epoch(void **state) {
    (void)state;
    standby_that_is_promoted(1);
}

static void standby_on_three_channels_has_the_last_epoch(void **state) {
    (void)state;
    standby_that_is_promoted(3);
}

static void epoch_that_is_not_complete_is_not_seen(void **state) {
    (void)state;
    Rig rig;
    Hand hands[1];
    Model model, next;
    begin(&rig, hands, 1);
    first_epoch(&rig, hands, &model);
    next = model;
    other_epoch(&rig, hands, &next, 2);
    g_usleep(50000);
    check(&rig, &model);
    promote(&rig);
    hand_expect_end(&hands[0]); /* cut, and nothing said: it runs here now */
    close_all(&rig, hands);
    check(&rig, &model);
    check_state(&rig, "state 1");
    rig_clear(&rig, 1);
}

/* One channel is ahead of the others: what it says behind its END is of the next epoch. */
static void channel_that_is_ahead_waits_for_the_others(void **state) {
    (void)state;
    Rig rig;
    Hand hands[2];
    Model model, next;
    begin(&rig, hands, 2);
    first_epoch(&rig, hands, &model);
    for (unsigned epoch = 2; epoch < 5; epoch++) {
        hand_end(&hands[1], epoch, 0, 0);
        next = model;
        send(&rig, hands, &next, (HandChunk){.chunk = 1, .present = 0xff, .generation = epoch});
        g_usleep(30000);
        hand_state(&hands[0], "cpu", "x", 1);
        hand_end(&hands[0], epoch, 1, 0);
        hand_expect_ready(&hands[0], epoch);
        g_usleep(30000);
        check(&rig, &model);
        model = next; /* it is in force with the next one */
    }
    close_all(&rig, hands);
    rig_wait_lost(&rig, SNAP_MIGRATION_STANDBY);
    rig_clear(&rig, 0);
}

/* After so many records of the second epoch. */
static void source_lost_at_any_record_leaves_the_last_epoch(void **state) {
    (void)state;
    for (unsigned cut = 0; cut < 6; cut++) {
        Rig rig;
        Hand hands[2];
        Model model, next;
        begin(&rig, hands, 2);
        first_epoch(&rig, hands, &model);
        next = model;
        if (cut > 0)
            send(&rig, hands, &next, (HandChunk){.chunk = 0, .present = 0xf, .generation = 2});
        if (cut > 1)
            send(&rig, hands, &next, (HandChunk){.chunk = 1, .present = 0xf, .generation = 2});
        if (cut > 2)
            hand_end(&hands[1], 2, 0, 0);
        if (cut > 3)
            hand_state(&hands[0], "cpu", "state 2", 8);
        if (cut > 4)
            hand_end(&hands[0], 2, 1, 0);
        if (cut > 4)
            hand_expect_ready(&hands[0], 2);
        close_all(&rig, hands);
        rig_wait_lost(&rig, SNAP_MIGRATION_STANDBY);
        promote(&rig);
        check(&rig, cut > 4 ? &next : &model);
        check_state(&rig, cut > 4 ? "state 2" : "state 1");
        rig_clear(&rig, 1);
    }
}

static void hand_over_starts_the_standby(void **state) {
    (void)state;
    Rig rig;
    Hand hands[1];
    Model model;
    begin(&rig, hands, 1);
    first_epoch(&rig, hands, &model);
    other_epoch(&rig, hands, &model, 2);
    end(&rig, hands, 2);
    hand_expect_ready(&hands[0], 2);
    hand_id(&hands[0], &rig, SNAP_WIRE_GO);
    hand_expect(&hands[0], SNAP_WIRE_STARTED);
    close_all(&rig, hands);
    rig_wait(&rig, 0, NULL);
    check(&rig, &model);
    check_state(&rig, "state 2");
    rig_clear(&rig, 1);
}

static void hand_over_that_was_cut_is_resumed(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    Rig rig;
    Hand hands[1];
    Model model;
    begin(&rig, hands, 1);
    first_epoch(&rig, hands, &model);
    close_all(&rig, hands);
    rig_wait_lost(&rig, SNAP_MIGRATION_STANDBY);
    assert_true(snap_incoming_recover(rig.incoming, rig.uri, &error));
    rig.flags = SNAP_WIRE_RESUME;
    hand_open(&hands[0], &rig);
    hand_say_hello(&hands[0], &rig, 0);
    hand_expect(&hands[0], SNAP_WIRE_WELCOME);
    hand_id(&hands[0], &rig, SNAP_WIRE_GO);
    hand_expect(&hands[0], SNAP_WIRE_STARTED);
    close_all(&rig, hands);
    rig_wait(&rig, 0, NULL);
    check(&rig, &model);
    rig_clear(&rig, 1);
}

/* GO was lost on its way, and the owner has decided: the source hears that it need not wait any more. */
static void source_of_a_promoted_standby_is_told(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    Rig rig;
    Hand hands[1];
    Model model;
    SnapWireWelcome welcome;
    begin(&rig, hands, 1);
    first_epoch(&rig, hands, &model);
    close_all(&rig, hands);
    rig_wait_lost(&rig, SNAP_MIGRATION_STANDBY);
    promote(&rig);
    g_usleep(50000);
    snap_incoming_recover(rig.incoming, rig.uri, &error);
    fail_on(error);
    rig.flags = SNAP_WIRE_RESUME;
    hand_open(&hands[0], &rig);
    hand_say_hello(&hands[0], &rig, 0);
    hand_expect(&hands[0], SNAP_WIRE_WELCOME);
    assert_null(snap_wire_decode_welcome(&hands[0].head, hands[0].body, &welcome));
    assert_int_equal(welcome.at, SNAP_WIRE_AT_STARTED);
    hand_expect(&hands[0], SNAP_WIRE_STARTED);
    close_all(&rig, hands);
    rig_wait(&rig, 0, NULL);
    rig_clear(&rig, 1);
}

/* ---- what is wrong --------------------------------------------------------------------------------------- */

static void go_within_an_epoch_starts_nothing(void **state) {
    (void)state;
    Rig rig;
    Hand hands[2];
    Model model, next;
    for (unsigned channel = 0; channel < 2; channel++) {
        begin(&rig, hands, 2);
        first_epoch(&rig, hands, &model);
        next = model;
        send(&rig, hands, &next, (HandChunk){.chunk = channel, .present = 0xf, .generation = 2});
        g_usleep(50000);
        hand_id(&hands[0], &rig, SNAP_WIRE_GO);
        rig_wait_lost(&rig, SNAP_MIGRATION_STANDBY);
        close_all(&rig, hands);
        check(&rig, &model);
        rig_clear(&rig, 0);
    }
}

static void epoch_out_of_order_is_dropped(void **state) {
    (void)state;
    Rig rig;
    Hand hands[1];
    Model model, next;
    begin(&rig, hands, 1);
    first_epoch(&rig, hands, &model);
    next = model;
    other_epoch(&rig, hands, &next, 3);
    end(&rig, hands, 3);
    hand_expect_failed(&hands[0], "epoch 3, and 2 was to come");
    close_all(&rig, hands);
    rig_wait_lost(&rig, SNAP_MIGRATION_STANDBY);
    promote(&rig);
    check(&rig, &model);
    rig_clear(&rig, 1);
}

static void epoch_that_is_too_large_is_dropped(void **state) {
    (void)state;
    Rig rig;
    Hand hands[1];
    Model model, next;
    begin(&rig, hands, 1);
    first_epoch(&rig, hands, &model);
    next = model;
    for (unsigned i = 0; i < 9; i++) /* there are eight chunks */
        send(&rig, hands, &next, (HandChunk){.chunk = 0, .present = 1, .generation = 2});
    hand_expect_failed(&hands[0], "larger than the guest's memory");
    close_all(&rig, hands);
    rig_wait_lost(&rig, SNAP_MIGRATION_STANDBY);
    check(&rig, &model);
    rig_clear(&rig, 0);
}

static void source_that_gives_up_leaves_a_standby(void **state) {
    (void)state;
    Rig rig;
    Hand hands[1];
    Model model;
    begin(&rig, hands, 1);
    first_epoch(&rig, hands, &model);
    snap_channel_send_failed(&hands[0].channel, "cancelled there");
    close_all(&rig, hands);
    rig_wait_lost(&rig, SNAP_MIGRATION_STANDBY);
    promote(&rig);
    check(&rig, &model);
    rig_clear(&rig, 1);
}

static void standby_before_the_first_epoch_is_none(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    Rig rig;
    Hand hands[1];
    begin(&rig, hands, 1);
    hand_chunk(&hands[0], &rig, (HandChunk){.present = 1, .generation = 1});
    assert_false(snap_incoming_promote(rig.incoming, TRUE, &error));
    assert_int_equal(error->code, SNAP_ERROR_REFUSED);
    close_all(&rig, hands);
    rig_wait(&rig, SNAP_ERROR_IO, "closed");
    rig_clear(&rig, 0);
}

static void standby_can_be_cancelled(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    Rig rig;
    Hand hands[1];
    Model model;
    for (unsigned lost = 0; lost < 2; lost++) {
        begin(&rig, hands, 1);
        first_epoch(&rig, hands, &model);
        if (lost) {
            close_all(&rig, hands);
            rig_wait_lost(&rig, SNAP_MIGRATION_STANDBY);
        }
        assert_true(snap_incoming_cancel(rig.incoming, &error));
        if (!lost) {
            hand_expect_failed(&hands[0], "cancelled");
            close_all(&rig, hands);
        } else {
            g_usleep(50000);
        }
        rig_wait(&rig, SNAP_ERROR_CANCELLED, "cancelled");
        rig_clear(&rig, 0);
    }
}

static void standby_whose_state_cannot_be_loaded_fails(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    Rig rig;
    Hand hands[1];
    Model model;
    begin(&rig, hands, 1);
    first_epoch(&rig, hands, &model);
    rig.no_load = true;
    assert_true(snap_incoming_promote(rig.incoming, TRUE, &error));
    rig_wait(&rig, SNAP_ERROR_FAILED, "no such device");
    assert_false(snap_incoming_promote(rig.incoming, TRUE, &error));
    close_all(&rig, hands);
    rig_clear(&rig, 0);
}

/* ---- from a file ----------------------------------------------------------------------------------------- */

/* @cut: bytes that are missing at its end. */
static void epochs_from_a_file(unsigned epochs, off_t cut, unsigned expected) {
    g_autoptr(GError) error = NULL;
    Rig rig;
    Hand hand = {.body = g_malloc(SNAP_WIRE_MAX_BODY_BYTES)};
    Model models[5] = {0};
    int in = -1, out = -1;
    rig_init(&rig, both, G_N_ELEMENTS(both), PAGES);
    g_autofree char *path = g_build_filename(rig.dir, "file", NULL);
    g_snprintf(rig.uri, sizeof rig.uri, "file:%s", path);
    g_autoptr(SnapTransport) transport = snap_transport_new_source(rig.uri, &error);
    assert_true(snap_transport_connect(transport, 0, &in, &out, &error));
    assert_true(snap_channel_init(&hand.channel, SNAP_WIRE_FROM_SOURCE, in, out, 0, &error));
    rig.hello.purpose = SNAP_WIRE_REPLICATE;
    rig.flags = SNAP_WIRE_ONE_WAY;
    hand_say_hello(&hand, &rig, 0);
    hand_say_regions(&hand, &rig);
    for (unsigned epoch = 1; epoch <= epochs; epoch++) {
        models[epoch] = models[epoch - 1];
        other_epoch(&rig, &hand, &models[epoch], epoch);
        end(&rig, &hand, epoch);
    }
    assert_true(snap_transport_keep(transport, &error));
    hand_close(&hand);
    struct stat about;
    assert_int_equal(stat(path, &about), 0);
    assert_int_equal(truncate(path, about.st_size - cut), 0);
    rig_listen(&rig);
    if (expected > 0) {
        rig_wait(&rig, 0, NULL);
        check(&rig, &models[expected]);
    } else {
        rig_wait(&rig, SNAP_ERROR_IO, "before it is complete");
    }
    unlink(path);
    rig_clear(&rig, expected > 0);
}

static void file_of_epochs_gives_the_last(void **state) {
    (void)state;
    epochs_from_a_file(3, 0, 3);
}

static void file_that_is_torn_gives_the_last_that_is_whole(void **state) {
    (void)state;
    epochs_from_a_file(3, 1, 2);
    epochs_from_a_file(3, 64 + 10, 2); /* within a record before END */
}

static void file_without_a_whole_epoch_is_refused(void **state) {
    (void)state;
    epochs_from_a_file(1, 1, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(standby_has_the_last_epoch),
        cmocka_unit_test(standby_on_three_channels_has_the_last_epoch),
        cmocka_unit_test(epoch_that_is_not_complete_is_not_seen),
        cmocka_unit_test(channel_that_is_ahead_waits_for_the_others),
        cmocka_unit_test(source_lost_at_any_record_leaves_the_last_epoch),
        cmocka_unit_test(hand_over_starts_the_standby),
        cmocka_unit_test(hand_over_that_was_cut_is_resumed),
        cmocka_unit_test(source_of_a_promoted_standby_is_told),
        cmocka_unit_test(go_within_an_epoch_starts_nothing),
        cmocka_unit_test(epoch_out_of_order_is_dropped),
        cmocka_unit_test(epoch_that_is_too_large_is_dropped),
        cmocka_unit_test(source_that_gives_up_leaves_a_standby),
        cmocka_unit_test(standby_before_the_first_epoch_is_none),
        cmocka_unit_test(standby_can_be_cancelled),
        cmocka_unit_test(standby_whose_state_cannot_be_loaded_fails),
        cmocka_unit_test(file_of_epochs_gives_the_last),
        cmocka_unit_test(file_that_is_torn_gives_the_last_that_is_whole),
        cmocka_unit_test(file_without_a_whole_epoch_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
