/*
 * A guest crosses from one piece of memory to another, with both ends of a migration in this process: its threads
 * go on there where they were stopped here, and look at every word that they write over; at the end all of it is
 * compared.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "expect.h"
#include "move-guest.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PATIENCE_MS = 30000, CANCELS = 25, CROSSINGS = 12 };
#define RAM_BYTES ((size_t)32 << 20)

typedef struct {
    MoveGuest guests[2];
    MoveGuest *source, *destination;
    SnapOutgoing *outgoing;
    SnapIncoming *incoming;
    SnapOutgoingOptions options;
    char folder[32];
    char uri[64];
} Move;

/* How a guest moves. */
typedef struct {
    const char *name;
    const char *kind;
    guint n_channels;
    SnapCompress compress;
    uint64_t period_ns; /* from one write of the guest to the next; 0: as fast as it goes */
} Way;

/* A guest that writes all of its memory in every round shows less than one that writes little: there what was
 * written last is not sent for another reason. */
static const Way slowly = {"anon, slowly", "anon", 1, SNAP_COMPRESS_NONE, 50000};

static const Way ways[] = {
    {"anon", "anon", 1, SNAP_COMPRESS_NONE, 5000},
    {"anon, as fast as it goes", "anon", 1, SNAP_COMPRESS_NONE, 0},
    {"anon, 4 channels", "anon", 4, SNAP_COMPRESS_NONE, 5000},
    {"anon, zstd", "anon", 1, SNAP_COMPRESS_ZSTD, 5000},
    {"anon, 3 channels, zstd", "anon", 3, SNAP_COMPRESS_ZSTD, 5000},
    {"huge pages by themselves", "thp", 1, SNAP_COMPRESS_NONE, 5000},
    {"memfd", "memfd", 1, SNAP_COMPRESS_NONE, 5000},
    {"memfd, 4 channels", "memfd", 4, SNAP_COMPRESS_NONE, 5000},
    {"hugetlb", "hugetlb", 1, SNAP_COMPRESS_NONE, 5000},
    {"hugetlb, 4 channels", "hugetlb", 4, SNAP_COMPRESS_NONE, 5000},
};

/* ---- one move -------------------------------------------------------------------------------------------- */

/* FALSE: such memory is not to be had. */
static bool move_init(Move *move, const Way *way) {
    *move = (Move){.source = &move->guests[0], .destination = &move->guests[1]};
    if (!move_guest_init(move->source, way->kind, RAM_BYTES, way->period_ns)) {
        print_message("  %s: skipped, there is no such memory to be had\n", way->name);
        return false;
    }
    if (!move_guest_init_empty(move->destination, way->kind, RAM_BYTES, way->period_ns)) {
        print_message("  %s: skipped, there is not enough such memory\n", way->name);
        move_guest_clear(move->source);
        return false;
    }
    strcpy(move->folder, "move-XXXXXX");
    assert_non_null(mkdtemp(move->folder));
    snprintf(move->uri, sizeof move->uri, "unix:%s/s", move->folder);
    move->options = (SnapOutgoingOptions){.uri = move->uri,
                                          .n_channels = way->n_channels,
                                          .compress = way->compress,
                                          .limits.downtime_limit_ms = 3000};
    print_message("  %s\n", way->name);
    return true;
}

static void move_receive(Move *move) {
    g_autoptr(GError) error = NULL;
    SnapIncomingOptions options = {.uri = move->uri};
    move->incoming = snap_incoming_start(move->destination->guest, &options, NULL, NULL, &error);
    fail_on(error);
}

static void move_send(Move *move) {
    g_autoptr(GError) error = NULL;
    move->outgoing = snap_outgoing_start(move->source->guest, &move->options, NULL, NULL, &error);
    fail_on(error);
}

static void move_begin(Move *move) {
    move_receive(move);
    move_send(move);
}

static void move_wait(Move *move) {
    g_autoptr(GError) error = NULL;
    snap_outgoing_wait(move->outgoing, PATIENCE_MS, &error);
    fail_on(error);
    snap_incoming_wait(move->incoming, PATIENCE_MS, &error);
    fail_on(error);
}

static void move_close(Move *move) {
    g_clear_pointer(&move->outgoing, snap_outgoing_free);
    g_clear_pointer(&move->incoming, snap_incoming_free);
}

/* Whoever has it has it as it was, and is alone. */
static void move_end(Move *move) {
    move_close(move);
    assert_true(move->source->lives != move->destination->lives);
    MoveGuest *guest = move->source->lives ? move->source : move->destination;
    move_guest_check_runs(guest);
    move_guest_check(guest);
    assert_int_equal(move_count(&move->source->throttle), 0);
    move_guest_clear(move->source);
    move_guest_clear(move->destination);
    assert_int_equal(rmdir(move->folder), 0);
}

static SnapMigrationStats stats_of(const Move *move) {
    SnapMigrationStats stats;
    snap_outgoing_get_stats(move->outgoing, &stats);
    return stats;
}

static SnapMigrationPhase where_is(const void *move) {
    return stats_of(move).phase;
}

static void await_phase(Move *move, SnapMigrationPhase phase) {
    expect_phase(where_is, move, phase, PATIENCE_MS);
}

/* ---- there ----------------------------------------------------------------------------------------------- */

static void guest_moved_each_way_is_whole(void **state) {
    (void)state;
    for (size_t i = 0; i < G_N_ELEMENTS(ways); i++) {
        Move move;
        if (!move_init(&move, &ways[i])) {
            continue;
        }
        move_begin(&move);
        move_wait(&move);
        SnapMigrationStats stats = stats_of(&move);
        assert_int_equal(stats.phase, SNAP_MIGRATION_COMPLETED);
        assert_true((stats.multifd_bytes > 0) == (ways[i].n_channels > 1));
        if (ways[i].compress == SNAP_COMPRESS_ZSTD) {
            assert_true(stats.sent_bytes < stats.pages_normal * stats.page_bytes);
        }
        assert_int_equal(move_count(&move.source->hand_overs), 1);
        assert_true(move.destination->lives);
        move_end(&move);
    }
}

/* From where it went before. */
static void move_on(Move *move, const Way *way) {
    MoveGuest *left = move->source;
    move_guest_clear(left);
    move->source = move->destination;
    move->destination = left;
    assert_true(move_guest_init_empty(left, way->kind, RAM_BYTES, way->period_ns));
    move_begin(move);
}

static void guest_moved_again_and_again_is_whole(void **state) {
    (void)state;
    Move move;
    assert_true(move_init(&move, &slowly));
    move_begin(&move);
    for (int i = 1; i < CROSSINGS; i++) {
        move_wait(&move);
        move_close(&move);
        move_guest_check_runs(move.destination);
        move_on(&move, &slowly);
    }
    move_wait(&move);
    move_end(&move);
}

static void guest_moved_through_a_file_is_whole(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    Move move;
    assert_true(move_init(&move, &ways[0]));
    snprintf(move.uri, sizeof move.uri, "file:%s/stream", move.folder);
    move_send(&move);
    snap_outgoing_wait(move.outgoing, PATIENCE_MS, &error);
    fail_on(error);
    move_receive(&move);
    snap_incoming_wait(move.incoming, PATIENCE_MS, &error);
    fail_on(error);
    assert_int_equal(unlink(move.uri + strlen("file:")), 0);
    move_end(&move);
}

/* ---- refused --------------------------------------------------------------------------------------------- */

static void expect_refused(Move *move, const char *words) {
    GError *error = NULL;
    move_begin(move);
    expect_error(snap_outgoing_wait(move->outgoing, PATIENCE_MS, &error), &error, SNAP_ERROR_REFUSED, words);
    assert_int_equal(move_count(&move->source->resumes), 1);
    assert_int_equal(move_count(&move->source->hand_overs), 0);
    move_end(move);
}

static void guest_whose_state_is_refused_stays(void **state) {
    (void)state;
    Move move;
    assert_true(move_init(&move, &ways[0]));
    move.destination->fails_to_load = true;
    expect_refused(&move, "the disk is not there");
}

static void guest_that_cannot_be_started_there_comes_back(void **state) {
    (void)state;
    Move move;
    assert_true(move_init(&move, &ways[0]));
    move.destination->fails_to_start = true;
    expect_refused(&move, "the key does not fit");
}

/* At whatever moment: one side has it, and only one. */
static void guest_cancelled_at_any_time_is_somewhere(void **state) {
    (void)state;
    unsigned stayed = 0;
    for (unsigned i = 0; i < CANCELS; i++) {
        Move move;
        assert_true(move_init(&move, &ways[i % 3]));
        move.options.limits.max_bandwidth_bytes = i % 2 ? 400 << 20 : 0;
        move_begin(&move);
        g_usleep((gulong)g_random_int_range(0, i % 2 ? 250000 : 60000));
        gboolean cancelled = snap_outgoing_cancel(move.outgoing, NULL);
        gboolean moved = snap_outgoing_wait(move.outgoing, PATIENCE_MS, NULL);
        assert_true(cancelled != moved);
        snap_incoming_wait(move.incoming, PATIENCE_MS, NULL);
        assert_true(move.source->lives == (bool)cancelled);
        stayed += cancelled ? 1 : 0;
        move_end(&move);
    }
    print_message("  stayed %u of %u\n", stayed, CANCELS);
}

/* ---- post-copy ------------------------------------------------------------------------------------------- */

static void move_by_postcopy(const Way *way, bool at_once) {
    g_autoptr(GError) error = NULL;
    Move move;
    if (!move_init(&move, way)) {
        return;
    }
    move.options.may_postcopy = TRUE;
    move.options.limits.max_bandwidth_bytes = at_once ? 0 : 200 << 20;
    move.options.limits.max_postcopy_bandwidth_bytes = 200 << 20;
    move.options.limits.downtime_limit_ms = 1;
    move_begin(&move);
    if (!at_once) {
        await_phase(&move, SNAP_MIGRATION_ACTIVE);
        g_usleep(30000);
    }
    snap_outgoing_start_postcopy(move.outgoing, &error);
    if (error) { /* the guest was quicker than we */
        print_message("    %s\n", error->message);
    }
    move_wait(&move);
    if (!error && at_once &&
        way->compress == SNAP_COMPRESS_NONE) { /* packed, it may be there before it is touched */
        assert_true(stats_of(&move).postcopy_bytes > RAM_BYTES / 4);
        assert_true(stats_of(&move).postcopy_requests > 0);
    }
    move_end(&move);
}

static void guest_moved_by_postcopy_is_whole(void **state) {
    (void)state;
    for (size_t i = 0; i < G_N_ELEMENTS(ways); i++) {
        move_by_postcopy(&ways[i], false);
        move_by_postcopy(&ways[i], true);
    }
}

/* FALSE: the last word had come before. The other side may have all of it, and not be sure that this is known
 * here. */
static bool await_unconnected(Move *move) {
    g_autoptr(GError) error = NULL;
    if (snap_outgoing_wait(move->outgoing, PATIENCE_MS, &error)) {
        return false;
    }
    assert_true(g_error_matches(error, SNAP_ERROR, SNAP_ERROR_IO));
    snap_incoming_wait(move->incoming, PATIENCE_MS, NULL);
    assert_int_equal(stats_of(move).phase, SNAP_MIGRATION_UNCONNECTED);
    assert_int_equal(stats_of(move).since, SNAP_MIGRATION_POSTCOPY);
    return true;
}

/* FALSE: it is over; a guest that touches all of its memory has it soon. */
static bool await_postcopy(Move *move) {
    SnapMigrationPhase phase;
    do {
        g_usleep(1000);
        phase = stats_of(move).phase;
    } while (phase != SNAP_MIGRATION_POSTCOPY && phase != SNAP_MIGRATION_COMPLETED);
    return phase == SNAP_MIGRATION_POSTCOPY;
}

/* Lose the connection, and find it again. */
static bool cut(Move *move) {
    g_autoptr(GError) error = NULL;
    if (!await_postcopy(move)) {
        return false;
    }
    g_usleep(10000);
    if (!snap_outgoing_pause(move->outgoing, NULL) || !await_unconnected(move)) {
        return false;
    }
    assert_int_equal(move_count(&move->source->resumes), 0);
    snap_incoming_recover(move->incoming, move->uri, &error);
    fail_on(error);
    snap_outgoing_resume(move->outgoing, move->uri, &error);
    fail_on(error);
    return true;
}

static void guest_moved_by_postcopy_in_pieces_is_whole(void **state) {
    (void)state;
    static const Way seldom = {"anon, seldom", "anon", 1, SNAP_COMPRESS_NONE, 500000};
    static const Way *const chosen[] = {&seldom, &ways[2], &ways[6], &ways[8]};
    for (size_t i = 0; i < G_N_ELEMENTS(chosen); i++) {
        Move move;
        if (!move_init(&move, chosen[i])) {
            continue;
        }
        move.options.may_postcopy = TRUE;
        move.options.limits.max_postcopy_bandwidth_bytes = 40 << 20;
        move_begin(&move);
        assert_true(snap_outgoing_start_postcopy(move.outgoing, NULL));
        int cuts = 0;
        while (cuts < 3 && cut(&move)) {
            cuts++;
        }
        move_wait(&move);
        if (chosen[i] == &seldom) { /* the rest came by itself */
            SnapMigrationStats stats = stats_of(&move);
            assert_int_equal(cuts, 3);
            assert_true(stats.postcopy_requests < RAM_BYTES / stats.page_bytes / 2);
        }
        move_end(&move);
    }
}

/* ---- replication ----------------------------------------------------------------------------------------- */

/* FALSE: such memory is not to be had. */
static bool replicate(Move *move, const Way *way) {
    if (!move_init(move, way)) {
        return false;
    }
    move->options.epoch_ms = 10;
    move_begin(move);
    return true;
}

static void await_epoch(Move *move, uint64_t epoch) {
    for (int ms = 0; ms < PATIENCE_MS && stats_of(move).epoch < epoch; ms++) {
        g_usleep(1000);
    }
    SnapMigrationStats stats = stats_of(move);
    assert_true(stats.epoch >= epoch);
    assert_int_equal(stats.phase, SNAP_MIGRATION_STANDBY);
    assert_true(stats.epoch_pause_ns > 0);
}

/* The source is gone, and its guest with it: what stands by goes on from the last epoch. */
static void standby_promoted_goes_on_from_an_epoch(void **state) {
    (void)state;
    for (size_t i = 0; i < G_N_ELEMENTS(ways); i++) {
        g_autoptr(GError) error = NULL;
        SnapMigrationStats stats;
        Move move;
        if (!replicate(&move, &ways[i])) {
            continue;
        }
        await_epoch(&move, 5);
        move_guest_check_runs(move.source);
        g_clear_pointer(&move.outgoing, snap_outgoing_free);
        move_guest_check_runs(move.source);
        move_guest_check(move.source);
        move.source->lives = false;
        snap_incoming_wait(move.incoming, PATIENCE_MS, NULL);
        snap_incoming_get_stats(move.incoming, &stats);
        assert_true(stats.epoch >= 5);
        snap_incoming_promote(move.incoming, FALSE, &error);
        fail_on(error);
        snap_incoming_wait(move.incoming, PATIENCE_MS, &error);
        fail_on(error);
        assert_int_equal(move_count(&move.destination->starts), 1);
        move_end(&move);
    }
}

static void standby_handed_over_is_whole(void **state) {
    (void)state;
    static const size_t chosen[] = {0, 1, 2, 6, 8};
    for (size_t i = 0; i < G_N_ELEMENTS(chosen); i++) {
        g_autoptr(GError) error = NULL;
        Move move;
        if (!replicate(&move, &ways[chosen[i]])) {
            continue;
        }
        await_epoch(&move, 3);
        snap_outgoing_hand_over(move.outgoing, &error);
        fail_on(error);
        move_wait(&move);
        assert_int_equal(move_count(&move.source->hand_overs), 1);
        move_end(&move);
    }
}

static void replicated_guest_whose_standby_goes_runs_on(void **state) {
    (void)state;
    Move move;
    assert_true(replicate(&move, &ways[0]));
    await_epoch(&move, 2);
    g_clear_pointer(&move.incoming, snap_incoming_free);
    assert_false(snap_outgoing_wait(move.outgoing, PATIENCE_MS, NULL));
    assert_int_equal(move_count(&move.source->resumes), move_count(&move.source->pauses));
    move_end(&move);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(guest_moved_each_way_is_whole),
        cmocka_unit_test(guest_moved_again_and_again_is_whole),
        cmocka_unit_test(guest_moved_through_a_file_is_whole),
        cmocka_unit_test(guest_whose_state_is_refused_stays),
        cmocka_unit_test(guest_that_cannot_be_started_there_comes_back),
        cmocka_unit_test(guest_cancelled_at_any_time_is_somewhere),
        cmocka_unit_test(guest_moved_by_postcopy_is_whole),
        cmocka_unit_test(guest_moved_by_postcopy_in_pieces_is_whole),
        cmocka_unit_test(standby_promoted_goes_on_from_an_epoch),
        cmocka_unit_test(standby_handed_over_is_whole),
        cmocka_unit_test(replicated_guest_whose_standby_goes_runs_on),
    };
    if (!move_can_run()) {
        return 77;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
