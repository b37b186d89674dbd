/* When a migration switches over, slows its guest down, or is given up: by tables of rounds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <glib.h>
#include <string.h>

#include "../../libsnap/converge.h"

#define MS UINT64_C(1000000)
#define MB UINT64_C(1000000)

static const SnapConvergeOptions plain = {.downtime_limit_ns = 100 * MS,
                                          .throttle_initial = 20,
                                          .throttle_increment = 10,
                                          .throttle_max = 99,
                                          .max_useless_rounds = 3};

/* A round that takes as long as it takes to send. */
static SnapConvergeRound sent(uint64_t sent_bytes, uint64_t ms, uint64_t dirty_bytes) {
    return (SnapConvergeRound){
        .sent_bytes = sent_bytes, .send_ns = ms * MS, .dirty_bytes = dirty_bytes, .round_ns = ms * MS};
}

/* ---- switching ------------------------------------------------------------------------------------------- */

typedef struct {
    const char *name;
    SnapConvergeRound rounds[6];
    const char *verdicts; /* I, S, F: of each round */
} Case;

#define FIRST                                                                                                     \
    {                                                                                                             \
        .sent_bytes = 1000 * MB, .send_ns = 1000 * MS, .round_ns = 1000 * MS
#define SMALL(mb, next_mb)                                                                                        \
    { .sent_bytes = (mb)*MB, .send_ns = (mb)*MS, .dirty_bytes = (next_mb)*MB, .round_ns = (mb)*MS }

static const Case cases[] = {{"nothing dirty: at once", {FIRST}}, "S"},
                  {"a guest of zeros, and nothing dirty", {{.round_ns = 5 * MS}}, "S"},
                  {"more than the limit: again", {FIRST, .dirty_bytes = 200 * MB}}, "I"
}
,
    {"shrinks below the limit: as long as it does so clearly",
     {FIRST, .dirty_bytes = 80 * MB},
     SMALL(80, 7),
     SMALL(7, 6),
     SMALL(6, 6)},
    "IIIS"
}
,
    {"shrinks after all: on from there",
     {FIRST, .dirty_bytes = 80 * MB},
     SMALL(80, 70),
     SMALL(70, 8),
     SMALL(8, 7),
     SMALL(7, 8)},
    "IIIIS"
}
,
    {"worse than it was: not now, but not for ever either",
     {FIRST, .dirty_bytes = 10 * MB},
     SMALL(10, 9),
     SMALL(9, 20),
     SMALL(20, 40),
     SMALL(40, 50)},
    "IIIIS"
}
, {"nothing is left: at once, wherever it is", {FIRST, .dirty_bytes = 10 * MB}, SMALL(10, 9), SMALL(9, 0)}, "IIS"
}
,
    {"what it costs beside counts against the limit",
     {FIRST, .dirty_bytes = 10 * MB, .fixed_ns = 95 * MS},
     SMALL(10, 0)},
    "IS"
}
,
    {"only zeros were sent, and something is dirty: how fast it would be is not known",
     {{.send_ns = 10 * MS, .dirty_bytes = 4096, .round_ns = 10 * MS}},
     "I"},
    {"a tiny round that was slow says little",
     {FIRST, .dirty_bytes = 50 * MB},
     {.sent_bytes = 4096, .send_ns = 10 * MS, .dirty_bytes = 50 * MB, .round_ns = 10 * MS},
     {.sent_bytes = 4096, .send_ns = 10 * MS, .dirty_bytes = 50 * MB, .round_ns = 10 * MS}},
    "IIS"
}
,
}
;

static char letter(SnapConvergeVerdict verdict) {
    return "ISF"[verdict];
}

static void rounds_of_each_kind_end_as_they_should(void **state) {
    (void)state;
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        SnapConverge converge = {0};
        char verdicts[8] = "";
        for (size_t n = 0; n < strlen(cases[i].verdicts); n++) {
            verdicts[n] = letter(snap_converge_round(&converge, &plain, &cases[i].rounds[n]));
        }
        if (strcmp(verdicts, cases[i].verdicts) != 0) {
            fail_msg("%s: %s, and not %s", cases[i].name, verdicts, cases[i].verdicts);
        }
    }
}

static void round_measured_is_told(void **state) {
    (void)state;
    SnapConverge converge = {0};
    SnapConvergeRound round = sent(1000 * MB, 500, 300 * MB);
    round.fixed_ns = 7 * MS;
    assert_int_equal(snap_converge_round(&converge, &plain, &round), SNAP_CONVERGE_ITERATE);
    assert_int_equal(converge.bytes_per_second, 2000 * MB);
    assert_int_equal(converge.dirty_bytes_per_second, 600 * MB);
    assert_int_equal(converge.expected_downtime_ns, 157 * MS);
}

/* ---- giving up ------------------------------------------------------------------------------------------- */

/* The same round again and again. Return: how many until it is not ITERATE. */
static unsigned repeat(SnapConverge *converge, const SnapConvergeOptions *options, const SnapConvergeRound *round,
                       unsigned at_most, SnapConvergeVerdict *ret_verdict) {
    unsigned n = 0;
    do {
        *ret_verdict = snap_converge_round(converge, options, round);
        n++;
    } while (*ret_verdict == SNAP_CONVERGE_ITERATE && n < at_most);
    return n;
}

static void useless_rounds_too_many_fail(void **state) {
    (void)state;
    SnapConverge converge = {0};
    SnapConvergeVerdict verdict;
    SnapConvergeRound round = sent(500 * MB, 500, 500 * MB);
    assert_int_equal(repeat(&converge, &plain, &round, 100, &verdict), 4); /* the first is the best so far */
    assert_int_equal(verdict, SNAP_CONVERGE_FAIL);
    assert_int_equal(converge.throttle_percent, 0);
}

static void useless_rounds_without_a_limit_go_on(void **state) {
    (void)state;
    SnapConverge converge = {0};
    SnapConvergeOptions options = plain;
    SnapConvergeVerdict verdict;
    SnapConvergeRound round = sent(500 * MB, 500, 500 * MB);
    options.max_useless_rounds = 0;
    assert_int_equal(repeat(&converge, &options, &round, 1000, &verdict), 1000);
    assert_int_equal(verdict, SNAP_CONVERGE_ITERATE);
}

static void rounds_that_come_nearer_slowly_are_not_useless(void **state) {
    (void)state;
    SnapConverge converge = {0};
    uint64_t dirty = 900 * MB;
    SnapConvergeVerdict verdict = SNAP_CONVERGE_ITERATE;
    for (int i = 0; i < 100 && verdict == SNAP_CONVERGE_ITERATE; i++) {
        SnapConvergeRound round = sent(1000 * MB, 1000, dirty);
        verdict = snap_converge_round(&converge, &plain, &round);
        dirty -= dirty / 18;
    }
    assert_int_equal(verdict, SNAP_CONVERGE_SWITCH);
}

/* A connection that is fast for a limit that is tiny: a hundred rounds in a moment prove nothing. */
static void useless_rounds_that_are_short_count_as_one(void **state) {
    (void)state;
    SnapConverge converge = {0};
    SnapConvergeOptions options = plain;
    SnapConvergeVerdict verdict;
    SnapConvergeRound round = sent(3 * MB, 1, 3 * MB);
    options.downtime_limit_ns = MS / 2;
    assert_int_equal(repeat(&converge, &options, &round, 10000, &verdict), 400);
    assert_int_equal(verdict, SNAP_CONVERGE_FAIL);
}

/* ---- slowing down ---------------------------------------------------------------------------------------- */

static void auto_converge_raises_by_steps_then_fails(void **state) {
    (void)state;
    static const unsigned expected[] = {0, 30, 55, 70, 70, 70};
    SnapConverge converge = {0};
    SnapConvergeOptions options = plain;
    SnapConvergeRound round = sent(500 * MB, 500, 500 * MB);
    options.auto_converge = true;
    options.throttle_initial = 30;
    options.throttle_increment = 25;
    options.throttle_max = 70;
    for (size_t i = 0; i < G_N_ELEMENTS(expected); i++) {
        assert_int_equal(snap_converge_round(&converge, &options, &round), SNAP_CONVERGE_ITERATE);
        assert_int_equal(converge.throttle_percent, expected[i]);
    }
    assert_int_equal(snap_converge_round(&converge, &options, &round), SNAP_CONVERGE_FAIL);
}

static void auto_converge_that_helps_goes_no_further(void **state) {
    (void)state;
    SnapConverge converge = {0};
    SnapConvergeOptions options = plain;
    SnapConvergeRound round = sent(500 * MB, 500, 500 * MB), better = sent(500 * MB, 500, 300 * MB);
    options.auto_converge = true;
    snap_converge_round(&converge, &options, &round);
    snap_converge_round(&converge, &options, &round);
    assert_int_equal(converge.throttle_percent, 20);
    snap_converge_round(&converge, &options, &better);
    assert_int_equal(converge.throttle_percent, 20);
}

/* A guest that dirties 800 MB/s when it may, as a function of its throttle. */
static uint64_t dirtied(const SnapConverge *converge, uint64_t ms) {
    return 800 * MB * ms / 1000 * (100 - converge->throttle_percent) / 100;
}

static void dirty_limit_holds_the_rate_below(void **state) {
    (void)state;
    SnapConverge converge = {0};
    SnapConvergeOptions options = plain;
    options.max_useless_rounds = 0;
    options.dirty_limit_bytes = 200 * MB;
    for (int i = 0; i < 10; i++) {
        SnapConvergeRound round = sent(200 * MB, 1000, dirtied(&converge, 1000));
        snap_converge_round(&converge, &options, &round);
    }
    assert_true(converge.dirty_bytes_per_second <= 200 * MB);
    assert_true(converge.dirty_bytes_per_second >= 180 * MB); /* and no more than has to be */
}

static void dirty_limit_of_a_quiet_guest_does_nothing(void **state) {
    (void)state;
    SnapConverge converge = {0};
    SnapConvergeOptions options = plain;
    options.dirty_limit_bytes = 900 * MB;
    SnapConvergeRound round = sent(1000 * MB, 1000, dirtied(&converge, 1000));
    snap_converge_round(&converge, &options, &round);
    assert_int_equal(converge.throttle_percent, 0);
}

/* ---- a throttled guest that sleeps ----------------------------------------------------------------------- */

/* A round takes at least so long, whatever is sent in it. */
#define MIN_ROUND_NS (MS / 5)
#define NAP_NS (10 * MS)

static const SnapConvergeOptions halved = {.downtime_limit_ns = MS,
                                           .auto_converge = true,
                                           .throttle_initial = 50,
                                           .throttle_increment = 1,
                                           .throttle_max = 50};

static void throttle_by_half(SnapConverge *converge) {
    SnapConvergeRound useless = sent(500 * MB, 500, 500 * MB);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(snap_converge_round(converge, &halved, &useless), SNAP_CONVERGE_ITERATE);
    }
    assert_int_equal(converge->throttle_percent, 50);
}

/* It writes so much a second as long as it is awake, which it is in the first half of each NAP_NS. */
typedef struct {
    uint64_t awake_bytes_per_second;
    uint64_t now_ns;
    uint64_t dirty_bytes;
} Sleeper;

static uint64_t awake_until(uint64_t ns) {
    return ns / NAP_NS * NAP_NS / 2 + MIN(ns % NAP_NS, NAP_NS / 2);
}

/* One round, over a connection of 1000 MB/s. */
static SnapConvergeRound run_round(Sleeper *sleeper) {
    uint64_t before_ns = sleeper->now_ns, rest = sleeper->dirty_bytes;
    uint64_t send_ns = rest * 1000000000 / (1000 * MB);
    sleeper->now_ns += send_ns + MIN_ROUND_NS;
    uint64_t awake_ns = awake_until(sleeper->now_ns) - awake_until(before_ns);
    sleeper->dirty_bytes = sleeper->awake_bytes_per_second * awake_ns / 1000000000;
    return (SnapConvergeRound){.sent_bytes = rest,
                               .send_ns = send_ns,
                               .dirty_bytes = sleeper->dirty_bytes,
                               .round_ns = sleeper->now_ns - before_ns};
}

static SnapConvergeVerdict run_sleeper(SnapConverge *converge, uint64_t awake_bytes_per_second, uint64_t for_ns) {
    Sleeper sleeper = {.awake_bytes_per_second = awake_bytes_per_second, .dirty_bytes = 100 * MB};
    SnapConvergeVerdict verdict = SNAP_CONVERGE_ITERATE;
    while (verdict == SNAP_CONVERGE_ITERATE && sleeper.now_ns < for_ns) {
        SnapConvergeRound round = run_round(&sleeper);
        verdict = snap_converge_round(converge, &halved, &round);
    }
    return verdict;
}

/* When it sleeps nothing is dirty, and when it wakes the connection does not keep up. */
static void throttled_guest_asleep_is_not_taken_for_a_quiet_one(void **state) {
    (void)state;
    SnapConverge converge = {0};
    throttle_by_half(&converge);
    assert_int_equal(run_sleeper(&converge, 1500 * MB, 5000 * MS), SNAP_CONVERGE_ITERATE);
    assert_true(converge.expected_downtime_ns > halved.downtime_limit_ns);
}

static void throttled_guest_quiet_when_awake_is_switched_over(void **state) {
    (void)state;
    SnapConverge converge = {0};
    throttle_by_half(&converge);
    assert_int_equal(run_sleeper(&converge, 100 * MB, 5000 * MS), SNAP_CONVERGE_SWITCH);
    assert_true(converge.expected_downtime_ns <= halved.downtime_limit_ns);
    assert_true(converge.expected_downtime_ns > 0); /* awake it writes */
}

static void throttled_guest_rate_is_that_of_a_whole_period(void **state) {
    (void)state;
    SnapConverge converge = {0};
    SnapConvergeRound awake = sent(30 * MB, 25, 10 * MB), asleep = sent(10 * MB, 25, 0);
    throttle_by_half(&converge);
    snap_converge_round(&converge, &halved, &awake);
    for (int i = 0; i < 2; i++) {
        snap_converge_round(&converge, &halved, &asleep);
    }
    assert_in_range(converge.dirty_bytes_per_second, 10 * MB * 1000 / 75 - 1, 200 * MB);
    assert_int_equal(converge.expected_downtime_ns / MS, 10 * MB / (converge.bytes_per_second / 1000));
}

static void guest_not_throttled_is_judged_by_its_last_round(void **state) {
    (void)state;
    SnapConverge converge = {0};
    SnapConvergeRound busy = sent(300 * MB, 300, 200 * MB), idle = sent(200 * MB, 1, 0);
    assert_int_equal(snap_converge_round(&converge, &plain, &busy), SNAP_CONVERGE_ITERATE);
    assert_int_equal(snap_converge_round(&converge, &plain, &idle), SNAP_CONVERGE_SWITCH);
    assert_int_equal(converge.dirty_bytes_per_second, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rounds_of_each_kind_end_as_they_should),
        cmocka_unit_test(round_measured_is_told),
        cmocka_unit_test(useless_rounds_too_many_fail),
        cmocka_unit_test(useless_rounds_without_a_limit_go_on),
        cmocka_unit_test(rounds_that_come_nearer_slowly_are_not_useless),
        cmocka_unit_test(useless_rounds_that_are_short_count_as_one),
        cmocka_unit_test(auto_converge_raises_by_steps_then_fails),
        cmocka_unit_test(auto_converge_that_helps_goes_no_further),
        cmocka_unit_test(dirty_limit_holds_the_rate_below),
        cmocka_unit_test(dirty_limit_of_a_quiet_guest_does_nothing),
        cmocka_unit_test(throttled_guest_asleep_is_not_taken_for_a_quiet_one),
        cmocka_unit_test(throttled_guest_quiet_when_awake_is_switched_over),
        cmocka_unit_test(throttled_guest_rate_is_that_of_a_whole_period),
        cmocka_unit_test(guest_not_throttled_is_judged_by_its_last_round),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
