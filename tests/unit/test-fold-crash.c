/*
 * Merging an image into its child, in place: what is found when it was killed before or in the middle of any of
 * its steps, when any of its system calls failed, or when the power went.
 */
#include "fold-fixture.h"

/* ---- killed ---------------------------------------------------------------------------------------------- */

static void fold_killed_at_any_call_leaves_all_readable(void **state) {
    g_autoptr(Chain) chain = fold_make_chain(state, fold_seed());
    int n = 1;
    for (;; n++) {
        GError *error = NULL;
        fold_restore_chain(state);
        gboolean ended = fold_act_and_die(chain, fold_act_fold, n);
        fold_check_levels(chain, 1);
        fold_check_oldest(chain);
        if (n % 3 == 0) /* not by the next merge, but by whoever goes on with the folder */
            expect_ok(fold_act_recover(chain, &error), error);
        else if (access(chain->levels[0].dir, F_OK) == 0)
            expect_ok(fold_act_fold(chain, &error), error);
        else
            expect_ok(fold_act_recover(chain, &error), error);
        fold_check_recovered(state, chain);
        if (ended)
            break;
    }
    print_message("%d calls\n", n);
    assert_in_range(n, 60, 600);
}

/* And killed again while that is mended. */
static void recover_killed_at_any_call_leaves_all_readable(void **state) {
    guint32 seed = fold_seed();
    g_autoptr(Chain) chain = fold_make_chain(state, seed);
    g_autoptr(GRand) chance = g_rand_new_with_seed(seed);
    for (int n = 1; n < 150; n += 1 + n / 40) {
        GError *error = NULL;
        fold_restore_chain(state);
        fold_act_and_die(chain, fold_act_fold, g_rand_int_range(chance, 60, 400));
        fold_act_and_die(chain, fold_act_recover, n);
        fold_check_levels(chain, 1);
        fold_check_oldest(chain);
        expect_ok(fold_act_recover(chain, &error), error);
        fold_check_recovered(state, chain);
    }
}

/* A marked parent whose child is gone is nobody's to remove but the user's. */
static void recover_without_the_child_leaves_it_alone(void **state) {
    GError *error = NULL;
    g_autoptr(Chain) chain = fold_make_chain(state, 5);
    for (int n = 1; n < 400; n += 10) {
        fold_restore_chain(state);
        fold_act_and_die(chain, fold_act_fold, n);
        SnapImage *oldest = snap_image_open(chain->levels[0].dir, &error);
        snap_image_free(oldest);
        if (oldest)
            continue;
        if (error->code != SNAP_ERROR_INCOMPLETE) {
            g_clear_error(&error);
            break;
        }
        g_clear_error(&error);
        fix_remove(chain->levels[1].dir);
        expect_ok(fold_act_recover(chain, &error), error);
        assert_int_equal(access(chain->levels[0].dir, F_OK), 0);
        expect_ok(snap_image_delete(chain->levels[0].dir, &error), error);
    }
}

/* ---- calls that fail, and the power ---------------------------------------------------------------------- */

static void fold_every_call_failing_is_told_and_can_be_repeated(void **state) {
    g_autoptr(Chain) chain = fold_make_chain(state, fold_seed());
    static const int errnums[] = {EIO, ENOSPC};
    fold_allow_uring(FALSE);
    for (int n = 1;; n++) {
        GError *error = NULL;
        fold_restore_chain(state);
        int before = fix_count_entries("/proc/self/fd");
        fold_fuse_fail(n, errnums[n % 2]);
        gboolean good = fold_act_fold(chain, &error);
        gboolean fired = fold_fuse_take_out();
        assert_int_equal(fix_count_entries("/proc/self/fd"), before);
        if (!good)
            expect_error(&error, errnums[n % 2] == EIO ? SNAP_ERROR_IO : SNAP_ERROR_NO_SPACE, "/");
        fold_check_levels(chain, 1);
        fold_check_oldest(chain);
        expect_ok(fold_act_recover(chain, &error), error);
        if (access(chain->levels[0].dir, F_OK) == 0)
            expect_ok(fold_act_fold(chain, &error), error);
        fold_check_recovered(state, chain);
        if (!fired) {
            assert_true(good);
            break;
        }
    }
    fold_allow_uring(TRUE);
}

/* Whatever a step relies on is on disk before it: no order in which a disk may write things makes a difference. */
static void fold_every_step_is_on_disk_before_the_next(void **state) {
    guint32 seed = fold_seed();
    for (guint32 round = 0; round < 3; round++) {
        GError *error = NULL;
        g_autoptr(Chain) chain = fold_make_chain(state, seed + round);
        g_autofree char *good = fix_path(state, "good"), *now = fix_path(state, "now");
        fold_allow_uring(FALSE);
        fold_book_open(now);
        expect_ok(fold_act_fold(chain, &error), error);
        assert_int_equal(fold_book_close(), 2);
        fold_allow_uring(TRUE);
        fold_check_recovered(state, chain);
        fix_remove(good);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        FIX_TEST(fold_killed_at_any_call_leaves_all_readable),
        FIX_TEST(recover_killed_at_any_call_leaves_all_readable),
        FIX_TEST(recover_without_the_child_leaves_it_alone),
        FIX_TEST(fold_every_call_failing_is_told_and_can_be_repeated),
        FIX_TEST(fold_every_step_is_on_disk_before_the_next),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
