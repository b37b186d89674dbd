/* What /proc says of the buffers that are registered with io_uring. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../../vmm-glue/process/rings.h"

#define BEFORE "pos:\t0\nflags:\t02000002\nSqMask:\t0x7\nSQEs:\t0\nCQEs:\t0\nUserFiles:\t1\n    0: 0x1000/16\n"
#define AFTER "PollList:\n  op=6, task_works=0\nCqOverflowList:\n"

static GArray *parse(const char *text, gboolean told) {
    GArray *ranges = g_array_new(FALSE, FALSE, sizeof(SnapRange));
    assert_int_equal(rings_parse_buffers(text, ranges), told);
    return ranges;
}

static void buffers_of_a_ring_are_listed(void **state) {
    (void)state;
    g_autoptr(GArray) ranges = parse(
        BEFORE "UserBufs:\t3\n    0: 0x7f4050195000/65536\n    1: <none>\n    2: 0x7f40501b5000/4096\n" AFTER,
        TRUE);
    assert_int_equal(ranges->len, 2);
    assert_int_equal(g_array_index(ranges, SnapRange, 0).address, 0x7f4050195000);
    assert_int_equal(g_array_index(ranges, SnapRange, 0).length_bytes, 65536);
    assert_int_equal(g_array_index(ranges, SnapRange, 1).address, 0x7f40501b5000);
    assert_int_equal(g_array_index(ranges, SnapRange, 1).length_bytes, 4096);
}

static void ring_without_buffers_has_none(void **state) {
    (void)state;
    g_autoptr(GArray) ranges = parse(BEFORE "UserBufs:\t0\n" AFTER, TRUE);
    g_autoptr(GArray) at_the_end = parse(BEFORE "UserBufs:\t0", TRUE);
    assert_int_equal(ranges->len + at_the_end->len, 0);
}

static void ring_that_is_busy_does_not_tell(void **state) {
    (void)state;
    g_autoptr(GArray) ranges = parse("pos:\t0\nflags:\t02000002\n", FALSE);
    g_autoptr(GArray) empty = parse("", FALSE);
    assert_int_equal(ranges->len + empty->len, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(buffers_of_a_ring_are_listed),
        cmocka_unit_test(ring_without_buffers_has_none),
        cmocka_unit_test(ring_that_is_busy_does_not_tell),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
