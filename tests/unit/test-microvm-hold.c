/* The reasons for which a microvm's guest stands, all combinations of them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../../vmm-glue/microvm/hold.h"

#include <errno.h>

static void guest_without_reason_runs(void **state) {
    (void)state;
    Holds holds = {0};
    assert_true(hold_none(&holds));
    assert_true(hold_looks_running(&holds));
}

static void any_reason_keeps_it_from_running(void **state) {
    (void)state;
    for (unsigned reasons = 1; reasons < 1u << HOLD_MAX; reasons++) {
        Holds holds = {reasons};
        assert_false(hold_none(&holds));
        assert_int_equal(hold_looks_running(&holds), reasons == 1u << HOLD_COPY);
    }
}

static void reason_removed_leaves_the_others(void **state) {
    (void)state;
    for (unsigned reasons = 0; reasons < 1u << HOLD_MAX; reasons++)
        for (Hold hold = 0; hold < HOLD_MAX; hold++) {
            Holds holds = {reasons};
            bool final = hold == HOLD_HANDED_OVER || hold == HOLD_ENDED;
            bool there = reasons & 1u << hold;
            int result = hold_remove(&holds, hold);
            assert_int_equal(result, final && there ? -EPERM : 0);
            assert_int_equal(holds.reasons, result < 0 ? reasons : reasons & ~(1u << hold));
        }
}

static void reason_added_twice_is_removed_once(void **state) {
    (void)state;
    Holds holds = {0};
    hold_add(&holds, HOLD_CLIENT);
    hold_add(&holds, HOLD_CLIENT);
    assert_true(hold_has(&holds, HOLD_CLIENT));
    assert_int_equal(hold_remove(&holds, HOLD_CLIENT), 0);
    assert_true(hold_none(&holds));
}

static void each_reason_has_a_text(void **state) {
    (void)state;
    for (Hold hold = 0; hold < HOLD_MAX; hold++)
        assert_non_null(hold_text(hold));
    assert_null(hold_text(HOLD_MAX));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(guest_without_reason_runs),        cmocka_unit_test(any_reason_keeps_it_from_running),
        cmocka_unit_test(reason_removed_leaves_the_others), cmocka_unit_test(reason_added_twice_is_removed_once),
        cmocka_unit_test(each_reason_has_a_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
