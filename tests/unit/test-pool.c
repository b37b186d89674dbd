/* The page buffers' cap and reuse. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "../../libsnap/pool.h"

#define PAGE 8192u

static void take_beyond_the_cap_returns_none(void **state) {
    (void)state;
    SnapPool *pool = snap_pool_new(PAGE, 2);
    assert_int_not_equal(snap_pool_take(pool, 7), SNAP_POOL_NONE);
    assert_int_not_equal(snap_pool_take(pool, 8), SNAP_POOL_NONE);
    assert_int_equal(snap_pool_available(pool), 0);
    assert_int_equal(snap_pool_taken(pool), 2);
    assert_int_equal(snap_pool_take(pool, 9), SNAP_POOL_NONE);
    snap_pool_free(pool);
}

static void take_keeps_page_and_data_apart(void **state) {
    (void)state;
    SnapPool *pool = snap_pool_new(PAGE, 2);
    uint32_t a = snap_pool_take(pool, 7), b = snap_pool_take(pool, 8);
    memset(snap_pool_data(pool, a), 0xaa, PAGE);
    memset(snap_pool_data(pool, b), 0xbb, PAGE);
    assert_int_equal(snap_pool_data(pool, a)[PAGE - 1], 0xaa);
    assert_int_equal(snap_pool_data(pool, b)[0], 0xbb);
    assert_int_equal(snap_pool_page(pool, a), 7);
    assert_int_equal(snap_pool_page(pool, b), 8);
    snap_pool_free(pool);
}

static void give_makes_the_last_one_the_next(void **state) {
    (void)state;
    SnapPool *pool = snap_pool_new(PAGE, 4);
    uint32_t a = snap_pool_take(pool, 1), b = snap_pool_take(pool, 2);
    snap_pool_give(pool, a);
    snap_pool_give(pool, b);
    assert_int_equal(snap_pool_take(pool, 3), b);
    assert_int_equal(snap_pool_take(pool, 3), a);
    assert_int_equal(snap_pool_peak(pool), 2);
    snap_pool_free(pool);
}

static void an_empty_pool_gives_nothing(void **state) {
    (void)state;
    SnapPool *pool = snap_pool_new(PAGE, 0);
    assert_int_equal(snap_pool_take(pool, 0), SNAP_POOL_NONE);
    snap_pool_free(pool);
    snap_pool_free(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(take_beyond_the_cap_returns_none),
        cmocka_unit_test(take_keeps_page_and_data_apart),
        cmocka_unit_test(give_makes_the_last_one_the_next),
        cmocka_unit_test(an_empty_pool_gives_nothing),
    };
    return cmocka_run_group_tests_name("pool", tests, NULL, NULL);
}
