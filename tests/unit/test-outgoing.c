/*
 * The source of a migration, against a destination that is made by hand: it speaks the protocol, up to where it
 * does not. At each point of it: closes, says garbage, gives up, is silent. What has to hold is that the guest
 * runs on here whatever fails before GO, and never after it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "expect.h"
#include "outgoing-fixture.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* ---- what the other side does ---------------------------------------------------------------------------- */

static void greet_another(Peer *peer) {
    peer->main.id.bytes[3] ^= 1;
    peer_welcome(&peer->main, SNAP_WIRE_AT_BEGIN);
    peer_keep_still(peer);
}

static void greet_as_started(Peer *peer) {
    peer_welcome(&peer->main, SNAP_WIRE_AT_STARTED);
    peer_keep_still(peer);
}

/* It takes everything, and is never heard of. */
static void be_mute(Peer *peer) {
    while (peer_next(peer, &peer->main) != SNAP_WIRE_NONE) {
    }
}

static void be_ready(Peer *peer) {
    hand_say_number(&peer->main, SNAP_WIRE_READY, 0);
    peer_live_on(peer);
}

static void be_ready_of_another_epoch(Peer *peer) {
    hand_say_number(&peer->main, SNAP_WIRE_READY, 7);
    peer_keep_still(peer);
}

static void start_another(Peer *peer) {
    peer->main.id.bytes[0] ^= 1;
    hand_say_id(&peer->main, SNAP_WIRE_STARTED);
    peer_keep_still(peer);
}

static void ask(Peer *peer, uint32_t region, uint64_t page) {
    uint8_t body[24];
    const SnapWireRequest request = {.region = region, .n_pages = 1, .first_page = page};
    hand_say(&peer->urgent, SNAP_WIRE_REQUEST, 0, body, snap_wire_encode_request(&request, body));
}

/* It runs the guest with pages missing, asks for one, and gets it; then it asks for one that there is not. */
static void ask_for_nonsense(Peer *peer) {
    peer_open(peer, &peer->urgent);
    peer_meet(peer, &peer->urgent);
    peer_check(peer, peer->hello.channel == SNAP_WIRE_URGENT);
    peer_welcome(&peer->urgent, SNAP_WIRE_AT_BEGIN);
    peer_reach(peer, PEER_AT_END, PEER_AT_GO);
    hand_say_id(&peer->main, SNAP_WIRE_STARTED);
    ask(peer, 0, 130);
    peer_check(peer, peer_next(peer, &peer->urgent) == SNAP_WIRE_CHUNK);
    ask(peer, 1, 0);
    peer_live_on(peer);
}

/* ---- what fails before GO -------------------------------------------------------------------------------- */

typedef struct {
    const char *name;
    PeerPoint until;
    PeerAct then;
    SnapErrorCode code;
    const char *words;
} Case;

static const Case cases[] = {
    {"close at once", PEER_CONNECTED, peer_leave, SNAP_ERROR_IO, ""},
    {"close in greeting", PEER_MET, peer_leave, SNAP_ERROR_IO, "closed"},
    {"garbage in greeting", PEER_MET, peer_babble, SNAP_ERROR_PROTOCOL, ""},
    {"refuse in greeting", PEER_MET, peer_refuse, SNAP_ERROR_REFUSED, "no room"},
    {"silent in greeting", PEER_MET, peer_keep_still, SNAP_ERROR_IO, "silent"},
    {"greet another", PEER_MET, greet_another, SNAP_ERROR_PROTOCOL, "id"},
    {"greet as started", PEER_MET, greet_as_started, SNAP_ERROR_PROTOCOL, ""},
    {"close in memory", PEER_IN_MEMORY, peer_leave, SNAP_ERROR_IO, "closed"},
    {"garbage in memory", PEER_IN_MEMORY, peer_babble, SNAP_ERROR_PROTOCOL, ""},
    {"refuse in memory", PEER_IN_MEMORY, peer_refuse, SNAP_ERROR_REFUSED, "no room"},
    {"stall in memory", PEER_IN_MEMORY, peer_keep_still, SNAP_ERROR_IO, "silent"},
    {"mute in memory", PEER_WELCOMED, be_mute, SNAP_ERROR_IO, "silent"},
    {"ready in memory", PEER_IN_MEMORY, be_ready, SNAP_ERROR_PROTOCOL, "READY"},
    {"close before READY", PEER_AT_END, peer_leave, SNAP_ERROR_IO, "closed"},
    {"refuse state", PEER_AT_END, peer_refuse, SNAP_ERROR_REFUSED, "no room"},
    {"never ready, silent", PEER_AT_END, peer_keep_still, SNAP_ERROR_IO, "silent"},
    {"never ready, alive", PEER_AT_END, peer_live_on, SNAP_ERROR_IO, "not ready"},
    {"ready of another epoch", PEER_AT_END, be_ready_of_another_epoch, SNAP_ERROR_PROTOCOL, "epoch"},
    {"garbage before READY", PEER_AT_END, peer_babble, SNAP_ERROR_PROTOCOL, ""},
    {"refuse to start", PEER_AT_GO, peer_refuse, SNAP_ERROR_REFUSED, "no room"},
};

static void source_fails_before_it_is_too_late_guest_runs_on(void **state) {
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        Rig *rig = *state;
        print_message("  %s\n", cases[i].name);
        rig_start(rig, cases[i].until, cases[i].then);
        rig_expect_stays(rig, cases[i].code, cases[i].words);
        assert_true(cases[i].until < PEER_AT_END || move_count(&rig->guest.resumes) == 1);
        rig_again(state);
    }
}

static void source_fails_other_side_is_told(void **state) {
    Rig *rig = *state;
    rig->guest.other_shape = true;
    rig_start(rig, PEER_WELCOMED, peer_live_on);
    rig_expect_stays(rig, SNAP_ERROR_REFUSED, "ram");
    rig_join(rig);
    assert_int_equal(rig->peer.n_records[SNAP_WIRE_FAILED], 1);
}

static void source_guest_cannot_be_stopped_fails(void **state) {
    Rig *rig = *state;
    rig->guest.fails_to_pause = true;
    rig_start(rig, PEER_WELCOMED, peer_live_on);
    rig_expect_stays(rig, SNAP_ERROR_FAILED, "the lid is open");
    assert_int_equal(move_count(&rig->guest.resumes), 1);
}

/* ---- what fails after GO --------------------------------------------------------------------------------- */

static const Case lost[] = {
    {"close after GO", PEER_AT_GO, peer_leave, SNAP_ERROR_IO, "closed"},
    {"silent after GO", PEER_AT_GO, peer_keep_still, SNAP_ERROR_IO, "silent"},
    {"garbage after GO", PEER_AT_GO, peer_babble, SNAP_ERROR_PROTOCOL, ""},
    {"started another", PEER_AT_GO, start_another, SNAP_ERROR_PROTOCOL, "another migration"},
};

static void source_lost_after_go_guest_stands_here(void **state) {
    for (size_t i = 0; i < G_N_ELEMENTS(lost); i++) {
        GError *error = NULL;
        Rig *rig = *state;
        print_message("  %s\n", lost[i].name);
        rig_start(rig, lost[i].until, lost[i].then);
        rig_expect_lost(rig, lost[i].code, lost[i].words, SNAP_MIGRATION_DEVICE);
        expect_error(snap_outgoing_cancel(rig->outgoing, &error), &error, SNAP_ERROR_REFUSED, "");
        move_guest_check_stands(&rig->guest);
        rig_join(rig);
        assert_int_equal(move_count(&rig->guest.resumes), 0);
        assert_int_equal(move_count(&rig->guest.hand_overs), 0);
        rig_again(state);
    }
}

static void source_lost_after_go_is_taken_back_by_its_owner(void **state) {
    g_autoptr(GError) error = NULL;
    Rig *rig = *state;
    rig_start(rig, PEER_AT_GO, peer_leave);
    rig_expect_lost(rig, SNAP_ERROR_IO, "closed", SNAP_MIGRATION_DEVICE);
    snap_outgoing_reclaim(rig->outgoing, &error);
    fail_on(error);
    rig_expect_stays(rig, SNAP_ERROR_FAILED, "taken back");
    assert_false(snap_outgoing_reclaim(rig->outgoing, NULL));
    assert_int_equal(move_count(&rig->guest.resumes), 1);
}

static void source_resumed_hands_over(void **state) {
    for (SnapWireAt at = SNAP_WIRE_AT_READY; at < SNAP_WIRE_AT_MAX; at++) {
        g_autoptr(GError) error = NULL;
        Rig *rig = *state;
        rig->peer.met_at = at;
        rig_listen(rig, PEER_AT_GO, peer_meet_again);
        rig_begin(rig);
        rig_expect_lost(rig, SNAP_ERROR_IO, "", SNAP_MIGRATION_DEVICE);
        snap_outgoing_resume(rig->outgoing, rig->uri, &error);
        fail_on(error);
        rig_expect_completed(rig);
        rig_again(state);
    }
}

static void source_resumed_nobody_there_is_unconnected_again(void **state) {
    GError *error = NULL;
    Rig *rig = *state;
    rig_start(rig, PEER_AT_GO, peer_leave);
    rig_expect_lost(rig, SNAP_ERROR_IO, "", SNAP_MIGRATION_DEVICE);
    expect_error(snap_outgoing_resume(rig->outgoing, "file:x", &error), &error, SNAP_ERROR_REFUSED, "");
    snap_outgoing_resume(rig->outgoing, "unix:nobody-listens-here", &error);
    fail_on(error);
    rig_expect_lost(rig, SNAP_ERROR_IO, "", SNAP_MIGRATION_DEVICE);
}

static void source_asked_for_nonsense_is_unconnected(void **state) {
    g_autoptr(GError) error = NULL;
    Rig *rig = *state;
    rig->options.may_postcopy = TRUE;
    rig->options.limits.max_postcopy_bandwidth_bytes = 1 << 20;
    rig_listen(rig, PEER_WELCOMED, ask_for_nonsense);
    rig_begin(rig);
    snap_outgoing_start_postcopy(rig->outgoing, &error);
    fail_on(error);
    rig_expect_lost(rig, SNAP_ERROR_PROTOCOL, "REQUEST", SNAP_MIGRATION_POSTCOPY);
    assert_int_equal(rig_stats(rig).postcopy_requests, 1);
    rig_join(rig);
    assert_int_equal(rig->peer.urgent.n_pages, 1);
}

/* ---- what goes well -------------------------------------------------------------------------------------- */

static void source_moved_memory_is_there(void **state) {
    g_autofree uint8_t *copy = g_malloc0(RAM_BYTES);
    SeqReport report;
    Rig *rig = *state;
    rig->peer.copy = copy;
    rig_start(rig, PEER_AT_GO, peer_take_it);
    rig_expect_completed(rig);
    SnapMigrationStats stats = rig_stats(rig);
    assert_int_equal(stats.total_bytes, RAM_BYTES);
    assert_int_equal(stats.remaining_bytes, 0);
    assert_true(stats.downtime_ns > 0 && stats.downtime_ns < stats.total_ns);
    assert_true(stats.sent_bytes > RAM_BYTES);
    assert_true(stats.pages_normal >= RAM_BYTES / 4096);
    assert_true(seq_check(copy, RAM_BYTES, &rig->guest.writers.layout, &report));
    assert_int_equal(report.n, move_written(&rig->guest));
}

/* A guest that takes its time to be stopped is no silence. */
static void source_busy_with_its_guest_says_that_it_lives(void **state) {
    Rig *rig = *state;
    rig->guest.slow_ms = 2 * SILENCE_MS;
    rig_start(rig, PEER_AT_GO, peer_take_it);
    rig_expect_completed(rig);
    rig_join(rig);
    assert_true(rig->peer.n_records[SNAP_WIRE_ALIVE] >= 4);
}

static void source_of_a_sparse_guest_sends_what_is_there(void **state) {
    g_autoptr(GError) error = NULL;
    MoveGuest sparse;
    Rig *rig = *state;
    assert_true(move_guest_init_empty(&sparse, "anon", RAM_BYTES, 0));
    madvise(sparse.backing.arena, RAM_BYTES, MADV_NOHUGEPAGE);
    memset((uint8_t *)sparse.backing.arena + RAM_BYTES / 2, 1, 3 * 4096);
    sparse.lives = true;
    rig_pair(rig, PEER_AT_GO, peer_take_it);
    rig->outgoing = snap_outgoing_start(sparse.guest, &rig->options, NULL, NULL, &error);
    fail_on(error);
    snap_outgoing_wait(rig->outgoing, HAND_PATIENCE_MS, &error);
    fail_on(error);
    rig_join(rig);
    assert_in_range(rig->peer.main.n_pages, 3, 512); /* what one page table maps */
    move_guest_clear(&sparse);
}

static void source_to_a_file_leaves_it_complete(void **state) {
    Rig *rig = *state;
    g_snprintf(rig->uri, sizeof rig->uri, "file:%s/stream", rig->folder);
    rig_begin(rig);
    rig_expect_completed(rig);
    rig_join(rig);
    assert_int_equal(unlink(rig->uri + strlen("file:")), 0);
}

/* ---- what is asked of it --------------------------------------------------------------------------------- */

static void source_waits_before_switchover_until_told(void **state) {
    g_autoptr(GError) error = NULL;
    Rig *rig = *state;
    rig->options.pause_before_switchover = TRUE;
    rig_start(rig, PEER_AT_GO, peer_take_it);
    assert_false(snap_outgoing_continue(rig->outgoing, NULL));
    rig_expect_phase(rig, SNAP_MIGRATION_PRE_SWITCHOVER);
    move_guest_check_stands(&rig->guest);
    snap_outgoing_continue(rig->outgoing, &error);
    fail_on(error);
    rig_expect_completed(rig);
}

/* While the guest stands nobody writes, so what is sent then, and was not just dirtied, is what was told. */
static void source_told_of_writes_sends_the_pages_again(void **state) {
    g_autoptr(GError) error = NULL;
    Rig *rig = *state;
    rig->options.pause_before_switchover = TRUE;
    rig_start(rig, PEER_AT_GO, peer_take_it);
    rig_expect_phase(rig, SNAP_MIGRATION_PRE_SWITCHOVER);
    uint64_t before = rig_stats(rig).pages_normal, page_bytes = rig_stats(rig).page_bytes;
    snap_guest_mark_dirty(rig->guest.guest, (uintptr_t)rig->guest.backing.arena, RAM_BYTES);
    snap_guest_mark_dirty(rig->guest.guest, 0, page_bytes); /* none of the guest's */
    snap_outgoing_continue(rig->outgoing, &error);
    fail_on(error);
    rig_expect_completed(rig);
    assert_true(rig_stats(rig).pages_normal - before >= RAM_BYTES / page_bytes);
    snap_guest_mark_dirty(rig->guest.guest, (uintptr_t)rig->guest.backing.arena, RAM_BYTES); /* it is over */
}

/* Other memory is mapped where the guest's was, and there is next to nothing in it. */
static void source_mapped_anew_sends_holes_as_well(void **state) {
    g_autoptr(GError) error = NULL;
    g_autofree uint8_t *copy = g_malloc0(RAM_BYTES), *was = NULL;
    Rig *rig = *state;
    uint8_t *arena = rig->guest.backing.arena;
    rig->options.pause_before_switchover = TRUE;
    rig->peer.copy = copy;
    rig_start(rig, PEER_AT_GO, peer_take_it);
    rig_expect_phase(rig, SNAP_MIGRATION_PRE_SWITCHOVER);
    was = g_memdup2(arena, RAM_BYTES);
    assert_ptr_equal(
        mmap(arena, RAM_BYTES, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), arena);
    arena[RAM_BYTES / 2] = 1;
    snap_outgoing_continue(rig->outgoing, &error);
    fail_on(error);
    rig_expect_completed(rig);
    rig_join(rig);
    assert_memory_equal(copy, arena, RAM_BYTES);
    memcpy(arena, was, RAM_BYTES);
}

static void source_cancelled_before_switchover_guest_runs(void **state) {
    Rig *rig = *state;
    rig->options.pause_before_switchover = TRUE;
    rig_start(rig, PEER_WELCOMED, peer_live_on);
    rig_expect_phase(rig, SNAP_MIGRATION_PRE_SWITCHOVER);
    assert_true(snap_outgoing_cancel(rig->outgoing, NULL));
    rig_expect_stays(rig, SNAP_ERROR_CANCELLED, "");
    rig_join(rig);
    assert_int_equal(rig->peer.n_records[SNAP_WIRE_FAILED], 1);
}

static const struct {
    const char *name;
    PeerPoint until;
    PeerAct then;
    SnapMigrationPhase when;
} moments[] = {
    {"greeting", PEER_MET, peer_keep_still, SNAP_MIGRATION_SETUP},
    {"a stalled connection", PEER_IN_MEMORY, peer_keep_still, SNAP_MIGRATION_ACTIVE},
    {"waiting for READY", PEER_AT_END, peer_live_on, SNAP_MIGRATION_DEVICE},
};

static void source_cancelled_ends_at_once(void **state) {
    for (size_t i = 0; i < G_N_ELEMENTS(moments); i++) {
        Rig *rig = *state;
        print_message("  %s\n", moments[i].name);
        rig->options.silence_ms = HAND_PATIENCE_MS;
        rig_start(rig, moments[i].until, moments[i].then);
        rig_expect_phase(rig, moments[i].when);
        g_usleep(50000);
        int64_t start_us = g_get_monotonic_time();
        assert_true(snap_outgoing_cancel(rig->outgoing, NULL));
        snap_outgoing_wait(rig->outgoing, HAND_PATIENCE_MS, NULL);
        assert_true(g_get_monotonic_time() - start_us < HAND_PATIENCE_MS * 1000 / 4);
        rig_expect_stays(rig, SNAP_ERROR_CANCELLED, "");
        rig_again(state);
    }
}

static void source_freed_while_under_way_guest_runs(void **state) {
    Rig *rig = *state;
    rig->options.silence_ms = HAND_PATIENCE_MS;
    rig_start(rig, PEER_IN_MEMORY, peer_keep_still);
    rig_expect_phase(rig, SNAP_MIGRATION_ACTIVE);
    g_clear_pointer(&rig->outgoing, snap_outgoing_free);
    move_guest_check_runs(&rig->guest);
}

static void source_second_at_once_is_refused(void **state) {
    GError *error = NULL;
    Rig *rig = *state;
    rig_start(rig, PEER_WELCOMED, peer_live_on);
    rig->options.uri = "unix:elsewhere";
    expect_error(snap_outgoing_start(rig->guest.guest, &rig->options, NULL, NULL, &error), &error,
                 SNAP_ERROR_REFUSED, "");
}

static const SnapOutgoingOptions wrong_options[] = {
    {.uri = NULL},
    {.uri = "pigeon:1"},
    {.uri = "unix:x", .n_channels = 9},
    {.uri = "file:x", .n_channels = 2},
    {.uri = "exec:cat", .may_postcopy = TRUE},
    {.uri = "unix:x", .compress_level = 20},
    {.uri = "unix:x", .throttle_max = 100},
    {.uri = "unix:x", .silence_ms = UINT64_C(1) << 31},
    {.uri = "unix:x", .epoch_ms = UINT64_C(1) << 32},
    {.uri = "unix:x", .may_postcopy = TRUE, .epoch_ms = 5},
};

static void source_wrong_options_are_refused(void **state) {
    static const SnapOutgoingOptions right = {.uri = "unix:nobody-listens-here", .auto_converge = TRUE};
    static const SnapMoveOps none = {0};
    GError *error = NULL;
    SnapGuest *guest = ((Rig *)*state)->guest.guest;
    for (size_t i = 0; i < G_N_ELEMENTS(wrong_options); i++) {
        expect_error(snap_outgoing_start(guest, &wrong_options[i], NULL, NULL, &error), &error, SNAP_ERROR_USAGE,
                     "");
    }
    snap_guest_set_move_ops(guest, &none);
    expect_error(snap_outgoing_start(guest, &right, NULL, NULL, &error), &error, SNAP_ERROR_REFUSED, "");
}

/* ---- guests that do not converge ------------------------------------------------------------------------- */

static void source_that_does_not_converge_fails_with_figures(void **state) {
    Rig *rig = *state;
    rig->options.limits = (SnapMigrationLimits){.max_bandwidth_bytes = 20 << 20, .downtime_limit_ms = 1};
    rig->options.max_useless_rounds = 2;
    rig_start(rig, PEER_WELCOMED, peer_live_on);
    rig_expect_stays(rig, SNAP_ERROR_FAILED, "does not converge");
    assert_int_equal(move_count(&rig->guest.pauses), 0);
}

static void source_auto_converge_throttles_and_lets_go(void **state) {
    Rig *rig = *state;
    rig->options.limits = (SnapMigrationLimits){.max_bandwidth_bytes = 40 << 20, .downtime_limit_ms = 1};
    rig->options.max_useless_rounds = 1;
    rig->options.auto_converge = TRUE;
    rig->options.throttle_initial = 30;
    rig->options.throttle_increment = 40;
    rig->options.throttle_max = 80;
    rig_start(rig, PEER_WELCOMED, peer_live_on);
    rig_expect_stays(rig, SNAP_ERROR_FAILED, "throttled as far as");
    assert_int_equal(rig->guest.throttle_max, 80);
    assert_true(move_count(&rig->guest.throttles) >= 4); /* 30, 70, 80, 0 */
}

/* With the limit lifted, it is over at once. */
static void source_limits_changed_hold_at_once(void **state) {
    GError *error = NULL;
    Rig *rig = *state;
    rig->options.limits.max_bandwidth_bytes = 100 << 10;
    rig_start(rig, PEER_AT_GO, peer_take_it);
    rig_expect_phase(rig, SNAP_MIGRATION_ACTIVE);
    expect_error(snap_outgoing_wait(rig->outgoing, 700, &error), &error, SNAP_ERROR_TIMED_OUT, "");
    assert_int_equal(rig_stats(rig).phase, SNAP_MIGRATION_ACTIVE); /* and it is no silence */
    snap_outgoing_set_limits(rig->outgoing, &(SnapMigrationLimits){0}, NULL);
    rig_expect_completed(rig);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(source_fails_before_it_is_too_late_guest_runs_on),
        TEST(source_fails_other_side_is_told),
        TEST(source_guest_cannot_be_stopped_fails),
        TEST(source_lost_after_go_guest_stands_here),
        TEST(source_lost_after_go_is_taken_back_by_its_owner),
        TEST(source_resumed_hands_over),
        TEST(source_resumed_nobody_there_is_unconnected_again),
        TEST(source_asked_for_nonsense_is_unconnected),
        TEST(source_moved_memory_is_there),
        TEST(source_busy_with_its_guest_says_that_it_lives),
        TEST(source_of_a_sparse_guest_sends_what_is_there),
        TEST(source_to_a_file_leaves_it_complete),
        TEST(source_waits_before_switchover_until_told),
        TEST(source_told_of_writes_sends_the_pages_again),
        TEST(source_mapped_anew_sends_holes_as_well),
        TEST(source_cancelled_before_switchover_guest_runs),
        TEST(source_cancelled_ends_at_once),
        TEST(source_freed_while_under_way_guest_runs),
        TEST(source_second_at_once_is_refused),
        TEST(source_wrong_options_are_refused),
        TEST(source_that_does_not_converge_fails_with_figures),
        TEST(source_auto_converge_throttles_and_lets_go),
        TEST(source_limits_changed_hold_at_once),
    };
    if (!move_can_run()) {
        return 77;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
