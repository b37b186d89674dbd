/* The limit of bytes a second, by a clock of its own. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../../libsnap/throttle.h"

#define SECOND UINT64_C(1000000000)
#define START (1000 * SECOND)

static void first_bytes_do_not_wait(void **state) {
    (void)state;
    SnapThrottle t = {0};
    assert_int_equal(snap_throttle_wait_ns(&t, START, 1), 0);
}

static void bytes_spent_are_waited_for(void **state) {
    (void)state;
    SnapThrottle t = {0};
    snap_throttle_wait_ns(&t, START, 1000);
    snap_throttle_spend(&t, 2000);
    uint64_t wait = snap_throttle_wait_ns(&t, START, 1000);
    assert_in_range(wait, 2 * SECOND, 2 * SECOND + 2);
    assert_in_range(snap_throttle_wait_ns(&t, START + SECOND, 1000), SECOND, SECOND + 2);
    assert_int_equal(snap_throttle_wait_ns(&t, START + wait, 1000), 0);
}

static void limit_raised_shortens_the_wait(void **state) {
    (void)state;
    SnapThrottle t = {0};
    snap_throttle_wait_ns(&t, START, 1000);
    snap_throttle_spend(&t, 100000);
    assert_in_range(snap_throttle_wait_ns(&t, START, 1000), 100 * SECOND, 100 * SECOND + 2);
    assert_in_range(snap_throttle_wait_ns(&t, START, 100000), SECOND, SECOND + 2);
}

static void limit_taken_away_ends_the_wait(void **state) {
    (void)state;
    SnapThrottle t = {0};
    snap_throttle_spend(&t, 100000);
    assert_int_equal(snap_throttle_wait_ns(&t, START, 0), 0);
    assert_int_equal(snap_throttle_wait_ns(&t, START, 1), 0); /* nothing is left of it */
}

static void idle_time_is_not_saved_up(void **state) {
    (void)state;
    SnapThrottle t = {0};
    snap_throttle_wait_ns(&t, START, 1000);
    assert_int_equal(snap_throttle_wait_ns(&t, START + 50 * SECOND, 1000), 0);
    snap_throttle_spend(&t, 1000);
    assert_in_range(snap_throttle_wait_ns(&t, START + 50 * SECOND, 1000), SECOND, SECOND + 2);
}

static void rate_over_a_long_time_is_the_limit(void **state) {
    (void)state;
    SnapThrottle t = {0};
    uint64_t now = START, spent = 0;
    while (now < START + 100 * SECOND) {
        now += snap_throttle_wait_ns(&t, now, 1000000);
        snap_throttle_spend(&t, 262144);
        spent += 262144;
        now += 1000; /* as if the work itself took a moment */
    }
    assert_in_range(spent, 100000000 - 262144, 100000000 + 2 * 262144); /* the first is free */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(first_bytes_do_not_wait),        cmocka_unit_test(bytes_spent_are_waited_for),
        cmocka_unit_test(limit_raised_shortens_the_wait), cmocka_unit_test(limit_taken_away_ends_the_wait),
        cmocka_unit_test(idle_time_is_not_saved_up),      cmocka_unit_test(rate_over_a_long_time_is_the_limit),
    };
    return cmocka_run_group_tests_name("throttle", tests, NULL, NULL);
}
