/* Deleting images: all of an image, and nothing else. */
#include "image-fixture.h"

static void delete_complete_image_leaves_nothing(void **state) {
    GError *error = NULL;
    g_autofree char *dir = fix_path(state, "image");
    expect_ok(fix_write_image(dir, &error), error);
    expect_ok(snap_image_delete(dir, &error), error);
    assert_int_equal(fix_count_entries(dir), -1);
}

static void delete_what_a_killed_save_left_works(void **state) {
    GError *error = NULL;
    static const char *const dirs[] = {"image", "image/ram", "image/state"};
    static const char *const files[] = {"image/ram/pc.ram.img", "image/ram/pc.ram.idx", "image/ram/old.zst",
                                        "image/state/vcpu", "image/manifest.json.new"};
    g_autofree char *image = fix_path(state, "image");
    /* Killed after each step of a save. */
    for (guint steps = 1; steps <= G_N_ELEMENTS(dirs) + G_N_ELEMENTS(files); steps++) {
        for (guint i = 0; i < steps; i++) {
            g_autofree char *path = fix_path(state, i < 3 ? dirs[i] : files[i - 3]);
            assert_true(i < 3 ? mkdir(path, 0700) == 0 : g_file_set_contents(path, "x", 1, NULL));
        }
        expect_ok(snap_image_delete(image, &error), error);
        assert_int_equal(fix_count_entries(image), -1);
    }
}

static void delete_foreign_things_are_refused_and_all_stays(void **state) {
    static const struct {
        const char *path;
        enum { FILE_, DIR_, LINK_ } kind;
    } cases[] = {
        {"image/note.txt", FILE_},       {"image/ram/pc.ram.img.bak", FILE_},
        {"image/ram/.hidden", FILE_},    {"image/ram/.img", FILE_},
        {"image/ram/sub.img", DIR_},     {"image/state/a b", FILE_},
        {"image/state/more", DIR_},      {"image/extra", DIR_},
        {"image/ram/link.img", LINK_},   {"image/state/link", LINK_},
        {"image/manifest.json~", FILE_},
    };
    GError *error = NULL;
    g_autofree char *dir = fix_path(state, "image");
    expect_ok(fix_write_image(dir, &error), error);
    for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *path = fix_path(state, cases[i].path);
        if (cases[i].kind == DIR_)
            assert_int_equal(mkdir(path, 0700), 0);
        else if (cases[i].kind == LINK_)
            assert_int_equal(symlink("/etc/passwd", path), 0);
        else
            assert_true(g_file_set_contents(path, "x", 1, NULL));
        assert_false(snap_image_delete(dir, &error));
        expect_error(&error, SNAP_ERROR_REFUSED, cases[i].path);
        assert_int_equal(remove(path), 0);
        expect_ok(fix_check_image(dir, &error), error);
    }
}

static void delete_ram_that_is_a_link_is_refused(void **state) {
    GError *error = NULL;
    g_autofree char *dir = fix_path(state, "image"), *ram = fix_path(state, "image/ram"),
                    *elsewhere = fix_path(state, "elsewhere");
    expect_ok(fix_write_image(dir, &error), error);
    assert_int_equal(rename(ram, elsewhere), 0);
    assert_int_equal(symlink(elsewhere, ram), 0);
    assert_false(snap_image_delete(dir, &error));
    expect_error(&error, SNAP_ERROR_REFUSED, "image/ram");
    assert_int_equal(fix_count_entries(elsewhere), 4);
}

/* @parent: (nullable). */
static void write_empty(const char *dir, const char *parent) {
    GError *error = NULL;
    g_autoptr(SnapImageWriter) writer = snap_image_writer_new(dir, "test", FIX_PAGE, 1, &error);
    g_autoptr(SnapImage) image = parent ? snap_image_open(parent, &error) : NULL;
    expect_ok(!parent || (image && snap_image_writer_set_parent(writer, image, &error)), error);
    expect_ok(snap_image_writer_commit(writer, 0, NULL, 0, &error), error);
}

static void delete_parent_beside_its_child_is_refused(void **state) {
    GError *error = NULL;
    g_autofree char *first = fix_path(state, "first"), *second = fix_path(state, "second"),
                    *manifest = fix_path(state, "first/manifest.json");
    write_empty(first, NULL);
    write_empty(second, first);
    assert_false(snap_image_delete(first, &error));
    expect_error(&error, SNAP_ERROR_REFUSED, second);
    expect_ok(fix_check_image(second, &error), error);
    expect_ok(snap_image_delete(second, &error), error);
    expect_ok(snap_image_delete(first, &error), error);
    /* One that is damaged or incomplete is nobody's parent any more. */
    write_empty(first, NULL);
    write_empty(second, first);
    assert_int_equal(truncate(manifest, 20), 0);
    expect_ok(snap_image_delete(first, &error), error);
}

static void delete_nothing_there_is_not_found(void **state) {
    GError *error = NULL;
    g_autofree char *none = fix_path(state, "none"), *file = fix_path(state, "file");
    assert_false(snap_image_delete(none, &error));
    expect_error(&error, SNAP_ERROR_NOT_FOUND, "none");
    assert_true(g_file_set_contents(file, "x", 1, NULL));
    assert_false(snap_image_delete(file, &error));
    expect_error(&error, SNAP_ERROR_NOT_FOUND, "file");
    assert_int_equal(access(file, F_OK), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        FIX_TEST(delete_complete_image_leaves_nothing),
        FIX_TEST(delete_what_a_killed_save_left_works),
        FIX_TEST(delete_foreign_things_are_refused_and_all_stays),
        FIX_TEST(delete_ram_that_is_a_link_is_refused),
        FIX_TEST(delete_parent_beside_its_child_is_refused),
        FIX_TEST(delete_nothing_there_is_not_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
