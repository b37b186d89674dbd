/* Ranges that are owed: added in any order, settled in part. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../../libsnap/async-owed.h"

/* What is owed, in order, is exactly this. */
static void expect(const SnapOwed *owed, const SnapBytes *want, guint n) {
    uint64_t at = 0;
    for (guint i = 0; i < n; i++) {
        const SnapBytes *found = snap_owed_next(owed, at);
        assert_non_null(found);
        assert_int_equal(found->start, want[i].start);
        assert_int_equal(found->end, want[i].end);
        at = found->end;
    }
    assert_null(snap_owed_next(owed, at));
}
#define EXPECT(owed, ...)                                                                                         \
    expect(owed, (const SnapBytes[]){__VA_ARGS__}, sizeof((const SnapBytes[]){__VA_ARGS__}) / sizeof(SnapBytes))

static void ranges_are_kept_in_order(void **state) {
    (void)state;
    SnapOwed owed;
    snap_owed_init(&owed);
    expect(&owed, NULL, 0);
    snap_owed_add(&owed, 50, 60);
    snap_owed_add(&owed, 10, 20);
    snap_owed_add(&owed, 30, 40);
    EXPECT(&owed, {10, 20}, {30, 40}, {50, 60});
    assert_int_equal(snap_owed_next(&owed, 35)->start, 30);
    assert_int_equal(snap_owed_next(&owed, 40)->start, 50);
    snap_owed_clear(&owed);
}

static void what_is_added_twice_is_owed_once(void **state) {
    (void)state;
    SnapOwed owed;
    snap_owed_init(&owed);
    snap_owed_add(&owed, 10, 40);
    snap_owed_add(&owed, 20, 30);
    EXPECT(&owed, {10, 20}, {20, 30}, {30, 40});
    snap_owed_add(&owed, 5, 50);
    EXPECT(&owed, {5, 50});
    snap_owed_clear(&owed);
}

static void what_is_settled_is_cut_out(void **state) {
    (void)state;
    SnapOwed owed;
    snap_owed_init(&owed);
    snap_owed_add(&owed, 10, 20);
    snap_owed_add(&owed, 30, 60);
    snap_owed_settle(&owed, 0, 10);
    snap_owed_settle(&owed, 20, 30);
    EXPECT(&owed, {10, 20}, {30, 60});
    snap_owed_settle(&owed, 40, 50);
    EXPECT(&owed, {10, 20}, {30, 40}, {50, 60});
    snap_owed_settle(&owed, 15, 55);
    EXPECT(&owed, {10, 15}, {55, 60});
    snap_owed_settle(&owed, 0, 100);
    expect(&owed, NULL, 0);
    snap_owed_clear(&owed);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranges_are_kept_in_order),
        cmocka_unit_test(what_is_added_twice_is_owed_once),
        cmocka_unit_test(what_is_settled_is_cut_out),
    };
    return cmocka_run_group_tests_name("async-owed", tests, NULL, NULL);
}
