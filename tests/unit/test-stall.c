/*
 * Tests of the histogram in which the process guest counts how long its writes took.
 */
#include "stall.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static void bucket_of_any_time_ends_where_the_next_begins(void **state) {
    (void)state;
    for (unsigned bucket = 0; bucket < 400; bucket++) {
        uint64_t last_ns = stall_bucket_ns(bucket);
        assert_int_equal(stall_bucket(last_ns), bucket);
        assert_int_equal(stall_bucket(last_ns + 1), bucket + 1);
    }
    assert_true(stall_bucket(UINT64_MAX) < STALL_BUCKETS);
}

static void percentile_of_known_times_is_exact_to_an_eighth(void **state) {
    static Stall stall, previous, window;

    (void)state;
    for (uint64_t us = 1; us <= 1000; us++)
        stall_add(&stall, us * 1000);
    assert_int_equal(stall_take(&stall, &previous, &window), 1000000);
    assert_in_range(stall_percentile_ns(&window, 500), 500000, 500000 * 9 / 8);
    assert_in_range(stall_percentile_ns(&window, 990), 990000, 1000000);
    assert_int_equal(stall_percentile_ns(&window, 1000), 1000000);
}

static void window_taken_starts_a_new_one(void **state) {
    static Stall stall, previous, window;

    (void)state;
    stall_add(&stall, 5000);
    stall_take(&stall, &previous, &window);
    stall_add(&stall, 7);
    assert_int_equal(stall_take(&stall, &previous, &window), 7);
    assert_int_equal(stall_percentile_ns(&window, 999), 7);
    assert_int_equal(stall_take(&stall, &previous, &window), 0);
    assert_int_equal(stall_percentile_ns(&window, 500), 0);
}

int main(void) {
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(bucket_of_any_time_ends_where_the_next_begins),
        cmocka_unit_test(percentile_of_known_times_is_exact_to_an_eighth),
        cmocka_unit_test(window_taken_starts_a_new_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
