/* Merging a chain into one full image: equal to it, in its place, or not there at all. */
#include "chain-fixture.h"

static gboolean merge(const char *dir, const char *out, SnapProgressFunc progress, void *opaque, GError **error) {
    g_autoptr(SnapImage) image = snap_image_open(dir, error);
    return image && snap_image_merge(image, out, progress, opaque, error);
}

static void merge_any_chain_is_equal_to_it(void **state) {
    guint32 seed = g_random_int();
    print_message("seed %u\n", seed);
    for (guint32 round = 0; round < 6; round++) {
        GError *error = NULL;
        g_autoptr(Chain) chain = chain_new(seed + round);
        g_autofree char *name = g_strdup_printf("%u", round), *folder = fix_path(state, name);
        g_autofree char *out = g_strconcat(folder, "-merged", NULL);
        assert_int_equal(mkdir(folder, 0700), 0);
        for (guint i = 0; i < 4; i++)
            chain_grow(chain, folder);
        expect_ok(merge(chain->levels[3].dir, out, NULL, NULL, &error), error);
        fix_remove(folder); /* it needs nothing of the chain */
        chain_check_dir(chain, 3, out);
    }
}

static Chain *make_chain(void **state, guint n_levels) {
    Chain *chain = chain_new(17);
    for (guint i = 0; i < n_levels; i++)
        chain_grow(chain, *state);
    return chain;
}

static void merge_has_identity_time_and_statistics_and_no_parent(void **state) {
    GError *error = NULL;
    g_autoptr(Chain) chain = make_chain(state, 3);
    g_autofree char *out = fix_path(state, "out");
    expect_ok(merge(chain->levels[2].dir, out, NULL, NULL, &error), error);
    g_autoptr(SnapImage) from = snap_image_open(chain->levels[2].dir, &error);
    expect_ok(from != NULL, error);
    g_autoptr(SnapImage) to = snap_image_open(out, &error);
    expect_ok(to != NULL, error);
    assert_string_equal(snap_image_info(to)->id, snap_image_info(from)->id);
    assert_string_equal(snap_image_info(to)->created, snap_image_info(from)->created);
    assert_int_equal(snap_image_statistic(to, "pause-us"), 812);
    assert_null(snap_image_info(to)->parent_id);
    assert_non_null(snap_image_region(to, 0)->raw_path);
}

/* What was merged can be deleted: its children find the full image in its place. */
static void merge_takes_the_place_of_what_was_merged(void **state) {
    GError *error = NULL;
    g_autoptr(Chain) chain = make_chain(state, 4);
    g_autofree char *out = fix_path(state, "out");
    assert_false(snap_image_delete(chain->levels[2].dir, &error));
    expect_error(&error, SNAP_ERROR_REFUSED, chain->levels[3].dir);
    expect_ok(merge(chain->levels[2].dir, out, NULL, NULL, &error), error);
    expect_ok(snap_image_delete(chain->levels[2].dir, &error), error);
    expect_ok(snap_image_delete(chain->levels[1].dir, &error), error);
    expect_ok(snap_image_delete(chain->levels[0].dir, &error), error);
    chain_check_dir(chain, 3, chain->levels[3].dir);
    assert_false(snap_image_delete(out, &error));
    expect_error(&error, SNAP_ERROR_REFUSED, chain->levels[3].dir);
}

static void merge_into_something_is_exists(void **state) {
    GError *error = NULL;
    g_autoptr(Chain) chain = make_chain(state, 2);
    assert_false(merge(chain->levels[1].dir, chain->levels[0].dir, NULL, NULL, &error));
    expect_error(&error, SNAP_ERROR_EXISTS, chain->levels[0].dir);
    assert_false(merge(chain->levels[1].dir, chain->levels[1].dir, NULL, NULL, &error));
    expect_error(&error, SNAP_ERROR_EXISTS, chain->levels[1].dir);
    chain_check_dir(chain, 1, chain->levels[1].dir);
}

static void merge_cancelled_leaves_nothing(void **state) {
    GError *error = NULL;
    g_autoptr(Chain) chain = make_chain(state, 2);
    g_autofree char *out = fix_path(state, "out");
    FixProgress all = {0};
    expect_ok(merge(chain->levels[1].dir, out, fix_note_progress, &all, &error), error);
    assert_int_equal(all.last, all.total);
    fix_remove(out);
    for (guint i = 1; i <= all.calls; i++) {
        FixProgress some = {.cancel_at = i};
        assert_false(merge(chain->levels[1].dir, out, fix_note_progress, &some, &error));
        expect_error(&error, SNAP_ERROR_CANCELLED, "cancelled");
        assert_int_equal(fix_count_entries(out), -1);
    }
}

/* Every chunk of every image that counts, damaged: told, and nothing is left. */
static void merge_of_a_damaged_chain_is_corrupt_and_leaves_nothing(void **state) {
    g_autoptr(Chain) chain = make_chain(state, 3);
    g_autofree char *out = fix_path(state, "out");
    guint n_told = 0;
    for (guint level = 0; level < 3; level++) {
        GError *error = NULL;
        uint8_t good = 0, bad = 0;
        const ChainRegion *region = chain_region(&chain->levels[level], "pc.ram");
        g_autofree char *path = g_strconcat(chain->levels[level].dir, "/ram/pc.ram.img", NULL);
        int fd = open(path, O_RDWR | O_CLOEXEC);
        for (uint64_t page = 0; page < MIN(region->n_pages, chain->levels[2].regions[0].n_pages); page++) {
            if (region->pages[page] <= 0 || chain_expect(chain, 2, "pc.ram", page) != region->pages[page])
                continue; /* none, or hidden */
            assert_int_equal(pread(fd, &good, 1, (off_t)(page * FIX_PAGE)), 1);
            bad = good ^ 4;
            assert_int_equal(pwrite(fd, &bad, 1, (off_t)(page * FIX_PAGE)), 1);
            assert_false(merge(chain->levels[2].dir, out, NULL, NULL, &error));
            expect_error(&error, SNAP_ERROR_CORRUPT, path);
            assert_int_equal(fix_count_entries(out), -1);
            assert_int_equal(pwrite(fd, &good, 1, (off_t)(page * FIX_PAGE)), 1);
            n_told++;
            page += SNAP_CHUNK_PAGES / 4;
        }
        close(fd);
    }
    assert_in_range(n_told, 3, 100);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        FIX_TEST(merge_any_chain_is_equal_to_it),
        FIX_TEST(merge_has_identity_time_and_statistics_and_no_parent),
        FIX_TEST(merge_takes_the_place_of_what_was_merged),
        FIX_TEST(merge_into_something_is_exists),
        FIX_TEST(merge_cancelled_leaves_nothing),
        FIX_TEST(merge_of_a_damaged_chain_is_corrupt_and_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
