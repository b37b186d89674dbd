/* Percentiles of latencies against sorted values, their histogram against counting, and rates. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>

#include "../../libsnap/stats.h"

static void quantile_of_nothing_is_zero(void **state) {
    (void)state;
    static SnapLatency h;
    assert_int_equal(snap_latency_quantile(&h, 500), 0);
}

static void quantile_of_one_value_is_it(void **state) {
    (void)state;
    static SnapLatency h;
    snap_latency_add(&h, 12345);
    assert_int_equal(snap_latency_quantile(&h, 500), 12345);
    assert_int_equal(snap_latency_quantile(&h, 999), 12345);
}

static int by_value(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void quantiles_are_right_to_a_sixteenth(void **state) {
    (void)state;
    static SnapLatency h;
    static uint64_t values[10000];
    unsigned seed = 1;
    for (int i = 0; i < 10000; i++) {
        values[i] = (uint64_t)(rand_r(&seed) % 1000 + 1) << (rand_r(&seed) % 30);
        snap_latency_add(&h, values[i]);
    }
    qsort(values, 10000, sizeof values[0], by_value);
    for (unsigned q = 1; q <= 1000; q++) {
        uint64_t exact = values[(10000ull * q + 999) / 1000 - 1];
        uint64_t got = snap_latency_quantile(&h, q);
        assert_true(got >= exact);
        assert_true(got <= exact + exact / 16 + 1);
    }
    assert_int_equal(snap_latency_quantile(&h, 1000), values[9999]);
}

static void the_largest_value_has_a_bucket(void **state) {
    (void)state;
    static SnapLatency h;
    snap_latency_add(&h, UINT64_MAX);
    assert_true(snap_latency_quantile(&h, 500) == UINT64_MAX);
}

static void histogram_counts_every_value_in_its_bucket(void **state) {
    (void)state;
    static SnapLatency h;
    static uint64_t expected[SNAP_HISTOGRAM_BUCKETS];
    SnapHistogram histogram;
    unsigned seed = 1;
    for (int i = 0; i < 100000; i++) {
        uint64_t value = (uint64_t)rand_r(&seed) << (rand_r(&seed) % 12) >> (rand_r(&seed) % 31);
        snap_latency_add(&h, value);
        unsigned bucket = 0;
        while (bucket < SNAP_HISTOGRAM_BUCKETS - 1 && value >= UINT64_C(1024) << bucket) {
            bucket++;
        }
        expected[bucket]++;
    }
    snap_latency_histogram(&h, &histogram);
    for (unsigned i = 0; i < SNAP_HISTOGRAM_BUCKETS; i++) {
        assert_true(expected[i] > 0);
        assert_int_equal(histogram.buckets[i].count, expected[i]);
        assert_true(i == 0 || histogram.buckets[i].upper_ns > histogram.buckets[i - 1].upper_ns);
    }
    assert_true(histogram.buckets[SNAP_HISTOGRAM_BUCKETS - 1].upper_ns == UINT64_MAX);
}

#define MS UINT64_C(1000000)

static void rate_of_steady_bytes_is_theirs(void **state) {
    (void)state;
    SnapRate rate = {0};
    for (uint64_t ms = 1; ms < 5000; ms += 7) {
        uint64_t per_second = snap_rate_look(&rate, ms * MS, ms * 2000);
        assert_true(ms == 1 || (per_second >= 1990000 && per_second <= 2010000));
    }
}

static void rate_a_second_after_the_last_byte_is_zero(void **state) {
    (void)state;
    SnapRate rate = {0};
    for (uint64_t ms = 1; ms < 3000; ms += 100) {
        snap_rate_look(&rate, ms * MS, ms * 2000);
    }
    uint64_t per_second = 1;
    for (uint64_t ms = 3000; ms <= 4100; ms += 100) {
        per_second = snap_rate_look(&rate, ms * MS, 6000000);
    }
    assert_int_equal(per_second, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(quantile_of_nothing_is_zero),
        cmocka_unit_test(quantile_of_one_value_is_it),
        cmocka_unit_test(quantiles_are_right_to_a_sixteenth),
        cmocka_unit_test(the_largest_value_has_a_bucket),
        cmocka_unit_test(histogram_counts_every_value_in_its_bucket),
        cmocka_unit_test(rate_of_steady_bytes_is_theirs),
        cmocka_unit_test(rate_a_second_after_the_last_byte_is_zero),
    };
    return cmocka_run_group_tests_name("stats", tests, NULL, NULL);
}
