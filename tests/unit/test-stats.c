/* Percentiles of the histogram against sorted values. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>

#include "../../libsnap/stats.h"

static void quantile_of_nothing_is_zero(void **state) {
    (void)state;
    static SnapHistogram h;
    assert_int_equal(snap_histogram_quantile(&h, 500), 0);
}

static void quantile_of_one_value_is_it(void **state) {
    (void)state;
    static SnapHistogram h;
    snap_histogram_add(&h, 12345);
    assert_int_equal(snap_histogram_quantile(&h, 500), 12345);
    assert_int_equal(snap_histogram_quantile(&h, 999), 12345);
}

static int by_value(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void quantiles_are_right_to_a_sixteenth(void **state) {
    (void)state;
    static SnapHistogram h;
    static uint64_t values[10000];
    unsigned seed = 1;
    for (int i = 0; i < 10000; i++) {
        values[i] = (uint64_t)(rand_r(&seed) % 1000 + 1) << (rand_r(&seed) % 30);
        snap_histogram_add(&h, values[i]);
    }
    qsort(values, 10000, sizeof values[0], by_value);
    for (unsigned q = 1; q <= 1000; q++) {
        uint64_t exact = values[(10000ull * q + 999) / 1000 - 1];
        uint64_t got = snap_histogram_quantile(&h, q);
        assert_true(got >= exact);
        assert_true(got <= exact + exact / 16 + 1);
    }
    assert_int_equal(snap_histogram_quantile(&h, 1000), values[9999]);
}

static void the_largest_value_has_a_bucket(void **state) {
    (void)state;
    static SnapHistogram h;
    snap_histogram_add(&h, UINT64_MAX);
    assert_true(snap_histogram_quantile(&h, 500) == UINT64_MAX);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(quantile_of_nothing_is_zero),
        cmocka_unit_test(quantile_of_one_value_is_it),
        cmocka_unit_test(quantiles_are_right_to_a_sixteenth),
        cmocka_unit_test(the_largest_value_has_a_bucket),
    };
    return cmocka_run_group_tests_name("stats", tests, NULL, NULL);
}
