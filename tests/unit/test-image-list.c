/* Listing images: oldest first, each with its parent, and what is wrong with it. */
#include "chain-fixture.h"

#include <sys/resource.h>

static Chain *make_chain(const char *folder, guint n_levels) {
    Chain *chain = chain_new(23);
    assert_true(mkdir(folder, 0700) == 0 || errno == EEXIST);
    for (guint i = 0; i < n_levels; i++)
        chain_grow(chain, folder);
    return chain;
}

static GPtrArray *list(const char *dir) {
    GError *error = NULL;
    GPtrArray *entries = snap_image_list(dir, &error);
    expect_ok(entries != NULL, error);
    return entries;
}

static void expect_problem(const SnapImageEntry *entry, SnapErrorCode code, const char *text) {
    assert_non_null(entry->problem);
    assert_int_equal(entry->problem->code, code);
    assert_non_null(strstr(entry->problem->message, text));
}

static void list_chain_is_oldest_first_with_parents(void **state) {
    g_autoptr(Chain) chain = make_chain(*state, 4);
    /* By name they are in another order. */
    for (guint i = 0; i < 4; i++) {
        g_autofree char *to = g_strdup_printf("%s/%c", (char *)*state, 'z' - (int)i);
        assert_int_equal(rename(chain->levels[i].dir, to), 0);
        g_free(chain->levels[i].dir);
        chain->levels[i].dir = g_steal_pointer(&to);
    }
    g_autoptr(GPtrArray) entries = list(*state);
    assert_int_equal(entries->len, 4);
    for (guint i = 0; i < 4; i++) {
        GError *error = NULL;
        const SnapImageEntry *entry = entries->pdata[i];
        g_autoptr(SnapImage) image = snap_image_open(chain->levels[i].dir, &error);
        expect_ok(image != NULL, error);
        assert_null(entry->problem);
        assert_string_equal(entry->dir, chain->levels[i].dir);
        assert_string_equal(entry->info.id, snap_image_info(image)->id);
        assert_int_equal(entry->info.n_parents, i);
        assert_int_equal(entry->info.pages_held, snap_image_info(image)->pages_held);
        if (i > 0)
            assert_string_equal(entry->parent_dir, chain->levels[i - 1].dir);
        else
            assert_null(entry->parent_dir);
    }
}

static void list_missing_parent_is_the_problem_of_all_its_children(void **state) {
    g_autoptr(Chain) chain = make_chain(*state, 4);
    fix_remove(chain->levels[1].dir);
    g_autoptr(GPtrArray) entries = list(*state);
    const SnapImageEntry *const *entry = (const SnapImageEntry *const *)entries->pdata;
    assert_int_equal(entries->len, 3);
    assert_null(entry[0]->problem);
    expect_problem(entry[1], SNAP_ERROR_NOT_FOUND, "is missing");
    expect_problem(entry[2], SNAP_ERROR_NOT_FOUND, "is missing");
    assert_string_equal(entry[2]->dir, chain->levels[3].dir);
}

static void list_damaged_parent_is_the_problem_of_all_its_children(void **state) {
    g_autoptr(Chain) chain = make_chain(*state, 3);
    g_autofree char *idx = fix_path(state, "1/ram/pc.ram.idx");
    assert_int_equal(truncate(idx, 70), 0);
    g_autoptr(GPtrArray) entries = list(*state);
    const SnapImageEntry *const *entry = (const SnapImageEntry *const *)entries->pdata;
    assert_int_equal(entries->len, 3);
    assert_null(entry[0]->problem);
    expect_problem(entry[1], SNAP_ERROR_CORRUPT, idx); /* the child, which can be opened by itself */
    assert_string_equal(entry[1]->dir, chain->levels[2].dir);
    expect_problem(entry[2], SNAP_ERROR_CORRUPT, idx);
    assert_null(entry[2]->info.id);
}

static void list_parent_elsewhere_is_found(void **state) {
    g_autofree char *folder = fix_path(state, "a"), *other = fix_path(state, "b");
    g_autoptr(Chain) chain = make_chain(folder, 2);
    GError *error = NULL;
    assert_int_equal(mkdir(other, 0700), 0);
    ChainLevel *level = &chain->levels[chain->n_levels++];
    level->dir = g_strconcat(other, "/image", NULL);
    expect_ok(chain_write(level, chain->levels[1].dir, G_GINT64_CONSTANT(1714979299000000), &error), error);
    g_autoptr(GPtrArray) entries = list(other);
    const SnapImageEntry *entry = entries->pdata[0];
    assert_int_equal(entries->len, 1);
    assert_null(entry->problem);
    assert_int_equal(entry->info.n_parents, 2);
    assert_string_equal(entry->parent_dir, chain->levels[1].dir);
}

static void list_image_itself_is_one_entry(void **state) {
    g_autoptr(Chain) chain = make_chain(*state, 2);
    g_autoptr(GPtrArray) entries = list(chain->levels[1].dir);
    const SnapImageEntry *entry = entries->pdata[0];
    assert_int_equal(entries->len, 1);
    assert_null(entry->problem);
    assert_int_equal(entry->info.n_parents, 1);
}

static void list_leaves_out_what_is_hidden_or_no_image(void **state) {
    g_autofree char *hidden = fix_path(state, ".hidden"), *file = fix_path(state, "file"),
                    *folder = fix_path(state, "folder"), *begun = fix_path(state, "begun"),
                    *ram = fix_path(state, "begun/ram");
    g_autoptr(Chain) chain = make_chain(*state, 2);
    assert_int_equal(rename(chain->levels[1].dir, hidden), 0);
    assert_true(g_file_set_contents(file, "x", 1, NULL));
    assert_true(mkdir(folder, 0700) == 0 && mkdir(begun, 0700) == 0 && mkdir(ram, 0700) == 0);
    g_autoptr(GPtrArray) entries = list(*state);
    const SnapImageEntry *const *entry = (const SnapImageEntry *const *)entries->pdata;
    assert_int_equal(entries->len, 2);
    assert_string_equal(entry[0]->dir, chain->levels[0].dir);
    assert_string_equal(entry[1]->dir, begun);
    expect_problem(entry[1], SNAP_ERROR_INCOMPLETE, "begun");
}

static void list_many_images_needs_few_descriptors(void **state) {
    GError *error = NULL;
    struct rlimit before, few = {64, 0};
    g_autofree char *last = NULL;
    g_autofree ChainLevel *level = g_new0(ChainLevel, 1);
    level->n_regions = 1;
    level->regions[0] = (ChainRegion){.name = "pc.ram", .host_address = 4096, .n_pages = 1, .pages = {1}};
    for (guint i = 0; i < 100; i++) {
        g_autofree char *dir = g_strdup_printf("%s/%03u", (char *)*state, i);
        level->dir = dir;
        expect_ok(chain_write(level, last, 1714979289000000 + i, &error), error);
        g_free(last);
        last = g_steal_pointer(&dir);
    }
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    few.rlim_max = before.rlim_max;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
    g_autoptr(GPtrArray) entries = list(*state);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    assert_int_equal(entries->len, 100);
    for (guint i = 0; i < 100; i++) {
        const SnapImageEntry *entry = entries->pdata[i];
        assert_null(entry->problem);
        assert_int_equal(entry->info.n_parents, i);
    }
}

static void list_nothing_there_is_not_found(void **state) {
    GError *error = NULL;
    g_autofree char *none = fix_path(state, "none");
    assert_null(snap_image_list(none, &error));
    assert_true(g_error_matches(error, SNAP_ERROR, SNAP_ERROR_NOT_FOUND));
    g_clear_error(&error);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        FIX_TEST(list_chain_is_oldest_first_with_parents),
        FIX_TEST(list_missing_parent_is_the_problem_of_all_its_children),
        FIX_TEST(list_damaged_parent_is_the_problem_of_all_its_children),
        FIX_TEST(list_parent_elsewhere_is_found),
        FIX_TEST(list_image_itself_is_one_entry),
        FIX_TEST(list_leaves_out_what_is_hidden_or_no_image),
        FIX_TEST(list_many_images_needs_few_descriptors),
        FIX_TEST(list_nothing_there_is_not_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
