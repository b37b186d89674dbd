/* Extents that the guest moves and drops. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>

#include "../../libsnap/layout.h"

static int setup(void **state) {
    SnapLayout *layout = calloc(1, sizeof *layout);
    snap_layout_add(layout, 1, 0, 0x20000, 0x10000);
    snap_layout_add(layout, 0, 0, 0x10000, 0x8000);
    *state = layout;
    return 0;
}

static int teardown(void **state) {
    snap_layout_clear(*state);
    free(*state);
    return 0;
}

static void find_inside_and_outside_of_extents(void **state) {
    const SnapLayout *layout = *state;
    assert_null(snap_layout_find(layout, 0xffff));
    assert_int_equal(snap_layout_find(layout, 0x10000)->area, 0);
    assert_int_equal(snap_layout_find(layout, 0x17fff)->area, 0);
    assert_null(snap_layout_find(layout, 0x18000));
    assert_int_equal(snap_layout_find(layout, 0x2ffff)->area, 1);
    assert_null(snap_layout_find(layout, 0x30000));
}

static void move_of_the_middle_splits_and_follows(void **state) {
    SnapLayout *layout = *state;
    assert_int_equal(snap_layout_move(layout, 0x24000, 0x90000, 0x4000), 0);
    assert_int_equal(snap_layout_locate(layout, 1, 0x3fff)->address, 0x20000);
    const SnapExtent *moved = snap_layout_locate(layout, 1, 0x4000);
    assert_int_equal(moved->address, 0x90000);
    assert_int_equal(moved->offset, 0x4000);
    assert_int_equal(moved->length, 0x4000);
    assert_int_equal(snap_layout_locate(layout, 1, 0x8000)->address, 0x28000);
    assert_null(snap_layout_find(layout, 0x24000));
    assert_int_equal(snap_layout_find(layout, 0x91000)->area, 1);
}

static void move_over_two_areas_moves_both(void **state) {
    SnapLayout *layout = *state;
    assert_int_equal(snap_layout_move(layout, 0x14000, 0x54000, 0x10000), 0);
    assert_int_equal(snap_layout_locate(layout, 0, 0x4000)->address, 0x54000);
    assert_int_equal(snap_layout_locate(layout, 1, 0)->address, 0x60000);
    assert_int_equal(snap_layout_locate(layout, 1, 0x4000)->address, 0x24000);
}

static void move_onto_its_own_old_place_keeps_content_order(void **state) {
    SnapLayout *layout = *state;
    assert_int_equal(snap_layout_move(layout, 0x20000, 0x28000, 0x10000), 0);
    assert_int_equal(snap_layout_locate(layout, 1, 0)->address, 0x28000);
    assert_int_equal(snap_layout_locate(layout, 1, 0xf000)->address, 0x28000);
}

static void cut_of_the_middle_names_what_was_cut(void **state) {
    SnapLayout *layout = *state;
    SnapExtent cut;
    assert_int_equal(snap_layout_cut(layout, 0x22000, 0x23000, &cut), 1);
    assert_int_equal(cut.area, 1);
    assert_int_equal(cut.offset, 0x2000);
    assert_int_equal(cut.length, 0x1000);
    assert_int_equal(snap_layout_cut(layout, 0x22000, 0x23000, &cut), 0);
    assert_null(snap_layout_locate(layout, 1, 0x2000));
    assert_int_equal(snap_layout_locate(layout, 1, 0x3000)->address, 0x23000);
}

static void cut_over_everything_returns_each_extent(void **state) {
    SnapLayout *layout = *state;
    SnapExtent cut;
    int n = 0;
    while (snap_layout_cut(layout, 0, UINT64_MAX, &cut) == 1) {
        n++;
    }
    assert_int_equal(n, 2);
    assert_int_equal(layout->n_extents, 0);
}

static void cut_without_room_for_a_split_fails(void **state) {
    SnapLayout *layout = *state;
    SnapExtent cut;
    int result = 1;
    for (uint64_t at = 0x20001; result == 1 && at < 0x30000; at += 2) {
        result = snap_layout_cut(layout, at, at + 1, &cut);
    }
    assert_int_equal(result, -ENOSPC);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(find_inside_and_outside_of_extents, setup, teardown),
        cmocka_unit_test_setup_teardown(move_of_the_middle_splits_and_follows, setup, teardown),
        cmocka_unit_test_setup_teardown(move_over_two_areas_moves_both, setup, teardown),
        cmocka_unit_test_setup_teardown(move_onto_its_own_old_place_keeps_content_order, setup, teardown),
        cmocka_unit_test_setup_teardown(cut_of_the_middle_names_what_was_cut, setup, teardown),
        cmocka_unit_test_setup_teardown(cut_over_everything_returns_each_extent, setup, teardown),
        cmocka_unit_test_setup_teardown(cut_without_room_for_a_split_fails, setup, teardown),
    };
    return cmocka_run_group_tests_name("layout", tests, NULL, NULL);
}
