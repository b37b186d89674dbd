/*
 * Merging an image into its child, in place: what it reads as afterwards, and what is refused. What is found when
 * it did not come to its end is in test-fold-crash.c, and who else uses the images in test-fold-readers.c.
 */
#include "fold-fixture.h"

static void fold_any_chain_reads_the_same(void **state) {
    guint32 seed = fold_seed();
    for (guint32 round = 0; round < 6; round++) {
        GError *error = NULL;
        g_autoptr(Chain) chain = fold_make_chain(state, seed + round);
        g_autofree char *good = fix_path(state, "good");
        for (guint i = 1; i < FOLD_LEVELS; i++) {
            expect_ok(snap_image_fold(chain->levels[i - 1].dir, chain->levels[i].dir, &error), error);
            assert_int_equal(fold_n_parents(chain->levels[i].dir), 0);
            fold_check_levels(chain, i);
            fold_check_folder(state, chain, i);
        }
        fix_remove(good);
    }
}

static void fold_keeps_identity_time_statistics_and_is_mappable(void **state) {
    GError *error = NULL;
    g_autoptr(Chain) chain = fold_make_chain(state, 7);
    g_autoptr(SnapImage) before = snap_image_open(chain->levels[1].dir, &error);
    expect_ok(before != NULL, error);
    g_autofree char *id = g_strdup(snap_image_info(before)->id),
                    *created = g_strdup(snap_image_info(before)->created);
    g_clear_pointer(&before, snap_image_free);
    expect_ok(snap_image_fold(chain->levels[0].dir, chain->levels[1].dir, &error), error);
    g_autoptr(SnapImage) after = snap_image_open(chain->levels[1].dir, &error);
    expect_ok(after != NULL, error);
    assert_string_equal(snap_image_info(after)->id, id);
    assert_string_equal(snap_image_info(after)->created, created);
    assert_null(snap_image_info(after)->parent_id);
    assert_int_equal(snap_image_statistic(after, "pause-us"), 812);
    for (guint i = 0; i < snap_image_info(after)->n_regions; i++) {
        const SnapImageRegion *region = snap_image_region(after, i);
        struct stat status;
        assert_non_null(region->raw_path);
        assert_int_equal(stat(region->raw_path, &status), 0);
        assert_int_equal(status.st_size, region->length_bytes);
        assert_int_equal(status.st_nlink, 1);
    }
}

static void fold_of_a_hard_linked_copy_is_refused(void **state) {
    GError *error = NULL;
    g_autoptr(Chain) chain = fold_make_chain(state, 3);
    g_autofree char *path = g_strconcat(chain->levels[0].dir, "/ram/pc.ram.img", NULL),
                    *copy = fix_path(state, "copy");
    assert_int_equal(link(path, copy), 0);
    assert_false(fold_act_fold(chain, &error));
    expect_error(&error, SNAP_ERROR_REFUSED, "hard link");
    fold_check_untouched(state, chain);
}

static void fold_of_what_is_not_the_oldest_and_its_only_child_is_refused(void **state) {
    GError *error = NULL;
    g_autoptr(Chain) chain = fold_make_chain(state, fold_seed());
    char *const *dir = (char *const[]){chain->levels[0].dir, chain->levels[1].dir, chain->levels[2].dir};
    assert_false(snap_image_fold(dir[0], dir[2], &error));
    expect_error(&error, SNAP_ERROR_REFUSED, "not its child");
    assert_false(snap_image_fold(dir[1], dir[2], &error));
    expect_error(&error, SNAP_ERROR_REFUSED, "parent itself");
    assert_false(snap_image_fold(dir[1], dir[0], &error));
    expect_error(&error, SNAP_ERROR_REFUSED, "not its child");
    g_autofree char *other = fix_path(state, "now/other"), *elsewhere = fix_path(state, "elsewhere");
    g_autofree char *other_dir = chain->levels[1].dir;
    chain->levels[1].dir = other;
    expect_ok(chain_write(&chain->levels[1], dir[0], G_GINT64_CONSTANT(1714979290000000), &error), error);
    chain->levels[1].dir = g_steal_pointer(&other_dir);
    assert_false(fold_act_fold(chain, &error));
    expect_error(&error, SNAP_ERROR_REFUSED, other);
    assert_int_equal(rename(dir[0], elsewhere), 0);
    assert_false(snap_image_fold(elsewhere, dir[1], &error));
    expect_error(&error, SNAP_ERROR_REFUSED, "another folder");
    assert_int_equal(rename(elsewhere, dir[0]), 0);
    assert_false(snap_image_fold(dir[0], elsewhere, &error));
    expect_error(&error, SNAP_ERROR_NOT_FOUND, elsewhere);
    fix_remove(other);
    fold_check_untouched(state, chain);
}

/* Damage of the parent or the child is found before anything has been changed. */
static void fold_of_a_damaged_image_is_corrupt_and_changes_nothing(void **state) {
    /* The parent's, in a chunk that the child has pages of; the child's. */
    static const uint64_t pages[] = {12, 11};
    g_autoptr(Chain) chain = chain_new(1);
    for (guint i = 0; i < 2; i++) {
        ChainRegion *region = chain_add_plain(chain, *state, 100);
        region->pages[11] = 12;
        chain_write_last(chain);
    }
    for (guint i = 0; i < 2; i++) {
        GError *error = NULL;
        uint8_t good, bad = 'x';
        g_autofree char *path = g_strconcat(chain->levels[i].dir, "/ram/pc.ram.img", NULL);
        int fd = open(path, O_RDWR | O_CLOEXEC);
        assert_int_equal(pread(fd, &good, 1, (off_t)(pages[i] * FIX_PAGE + 9)), 1);
        assert_int_equal(pwrite(fd, &bad, 1, (off_t)(pages[i] * FIX_PAGE + 9)), 1);
        assert_false(fold_act_fold(chain, &error));
        expect_error(&error, SNAP_ERROR_CORRUPT, path);
        assert_int_equal(fix_count_entries(*state), 2);
        assert_int_equal(pwrite(fd, &good, 1, (off_t)(pages[i] * FIX_PAGE + 9)), 1);
        close(fd);
        fold_check_levels(chain, 0);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        FIX_TEST(fold_any_chain_reads_the_same),
        FIX_TEST(fold_keeps_identity_time_statistics_and_is_mappable),
        FIX_TEST(fold_of_a_hard_linked_copy_is_refused),
        FIX_TEST(fold_of_what_is_not_the_oldest_and_its_only_child_is_refused),
        FIX_TEST(fold_of_a_damaged_image_is_corrupt_and_changes_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
