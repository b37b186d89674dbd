/*
 * A running save whose bandwidth is limited, and changed while it waits; and the histogram of its faults. Its
 * guest is this process.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "save-control-fixture.h"

#include <stdio.h>

/* ---- bandwidth ------------------------------------------------------------------------------------------- */

static void save_limited_is_slow_and_says_so(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig, &kinds[0]);
    rig_begin(&rig, 4 * MIB);
    rig_await_sweep(&rig);
    g_usleep(1500000);
    SnapSaveStats stats = rig_stats(&rig);
    print_message("%lu bytes after 1.5 s, %lu a second\n", stats.bytes_written, stats.bytes_per_second);
    assert_in_range(stats.bytes_written, 4 * MIB, 8 * MIB);
    assert_in_range(stats.bytes_per_second, 2 * MIB, 6 * MIB);
    snap_save_set_max_bandwidth(rig.save, 0);
    rig_end(&rig);
    rig_check_image_is_before(&rig);
    rig_clear(&rig);
}

/* At 1000 bytes a second the second chunk would come after minutes. */
static void save_waiting_for_bandwidth_sees_a_new_limit_at_once(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig, &kinds[0]);
    rig_begin(&rig, 1000);
    rig_await_sweep(&rig);
    assert_true(rig_settled(&rig) < rig_stats(&rig).pages_total);
    uint64_t start_ns = clock_ns();
    snap_save_set_max_bandwidth(rig.save, 0);
    rig_end(&rig);
    print_message("%lu ms from 1000 bytes a second to the end without a limit\n", (clock_ns() - start_ns) / MS);
    assert_true(clock_ns() - start_ns < 5000 * MS);
    rig_check_image_is_before(&rig);
    rig_clear(&rig);
}

/* Not by looking now and then. */
static void save_waiting_for_bandwidth_is_woken(void **state) {
    enum { TIMES = 6 };
    (void)state;
    Rig rig;
    rig_init(&rig, &kinds[0]);
    rig_begin(&rig, 1000);
    rig_await_sweep(&rig);
    int quick = 0;
    for (int i = 0; i < TIMES; i++) {
        uint64_t done = rig_settled(&rig), start_ns = clock_ns();
        snap_save_set_max_bandwidth(rig.save, 64 * MIB);
        while (rig_stats(&rig).pages_done == done && clock_ns() - start_ns < 1000 * MS) {
            g_usleep(500);
        }
        quick += clock_ns() - start_ns < 60 * MS;
        snap_save_set_max_bandwidth(rig.save, 1000);
    }
    assert_true(quick >= TIMES - 1);
    rig_clear(&rig);
}

static void save_limited_while_it_runs_becomes_slow(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig, &kinds[0]);
    rig_begin_paused(&rig);
    snap_save_set_max_bandwidth(rig.save, MIB);
    snap_save_resume(rig.save);
    g_usleep(1000000);
    assert_in_range(rig_stats(&rig).bytes_written, MIB / 4, 2 * MIB);
    uint64_t start_ns = clock_ns();
    snap_save_cancel(rig.save);
    g_autoptr(GError) error = NULL;
    assert_false(snap_save_wait(rig.save, 10000, &error));
    assert_true(clock_ns() - start_ns < HELD_UP_NS);
    rig_clear(&rig);
}

/* ---- what is told ---------------------------------------------------------------------------------------- */

static uint64_t faults_in_histogram(Rig *rig) {
    SnapHistogram histogram;
    snap_save_get_histogram(rig->save, &histogram);
    uint64_t sum = 0;
    for (guint i = 0; i < SNAP_HISTOGRAM_BUCKETS; i++) {
        sum += histogram.buckets[i].count;
    }
    return sum;
}

static void histogram_has_every_fault(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig, &kinds[0]);
    rig_begin_paused(&rig);
    assert_int_equal(faults_in_histogram(&rig), 0);
    rig_write_pages(&rig, 0, 100 * rig.backing.page_bytes);
    assert_int_equal(faults_in_histogram(&rig), 100);
    assert_int_equal(rig_stats(&rig).faults, 100);
    snap_save_resume(rig.save);
    rig_end(&rig);
    assert_int_equal(faults_in_histogram(&rig), rig_stats(&rig).faults);
    rig_clear(&rig);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(save_limited_is_slow_and_says_so),
        cmocka_unit_test(save_waiting_for_bandwidth_sees_a_new_limit_at_once),
        cmocka_unit_test(save_waiting_for_bandwidth_is_woken),
        cmocka_unit_test(save_limited_while_it_runs_becomes_slow),
        cmocka_unit_test(histogram_has_every_fault),
    };
    if (snap_uffd_open() < 0) {
        puts("skip: userfaultfd is not permitted here");
        return 77;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
