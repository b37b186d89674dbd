/* Images with a parent: what they read as, how the parent is found, and what cannot be one. */
#include "chain-fixture.h"
#include "hash.h"

#include <sys/resource.h>

/* ---- reading --------------------------------------------------------------------------------------------- */

static void read_random_chain_is_as_the_rule_says(void **state) {
    guint32 seed = g_random_int();
    print_message("seed %u\n", seed);
    for (guint32 round = 0; round < 8; round++) {
        g_autoptr(Chain) chain = chain_new(seed + round);
        g_autofree char *name = g_strdup_printf("%u", round), *folder = fix_path(state, name);
        assert_int_equal(mkdir(folder, 0700), 0);
        for (guint i = 0; i < 5; i++)
            chain_grow(chain, folder);
        for (guint i = 0; i < 5; i++)
            chain_check_dir(chain, i, chain->levels[i].dir);
    }
}

/* Three levels of one region, by hand. */
static Chain *make_three(void **state) {
    Chain *chain = chain_new(1);
    for (guint i = 0; i < 3; i++) {
        ChainRegion *region = chain_add_plain(chain, *state, 130);
        if (i > 0) {
            region->pages[10 * i] = CHAIN_ZERO;
            region->pages[10 * i + 1] = 1000 * i;
        }
        chain_write_last(chain);
    }
    return chain;
}

static void open_chain_tells_its_parents(void **state) {
    GError *error = NULL;
    g_autoptr(Chain) chain = make_three(state);
    g_autoptr(SnapImage) first = snap_image_open(chain->levels[0].dir, &error);
    expect_ok(first != NULL, error);
    g_autoptr(SnapImage) second = snap_image_open(chain->levels[1].dir, &error);
    expect_ok(second != NULL, error);
    g_autoptr(SnapImage) third = snap_image_open(chain->levels[2].dir, &error);
    expect_ok(third != NULL, error);
    assert_null(snap_image_info(first)->parent_dir);
    assert_int_equal(snap_image_info(first)->n_parents, 0);
    assert_string_equal(snap_image_info(second)->parent_dir, chain->levels[0].dir);
    assert_string_equal(snap_image_info(second)->parent_id, snap_image_info(first)->id);
    assert_int_equal(snap_image_info(second)->n_parents, 1);
    assert_string_equal(snap_image_info(third)->parent_dir, chain->levels[1].dir);
    assert_int_equal(snap_image_info(third)->n_parents, 2);
    assert_int_equal(snap_image_info(first)->pages_held, 130);
    assert_int_equal(snap_image_info(third)->pages_held, 2);
    assert_non_null(snap_image_region(first, 0)->raw_path);
    assert_null(snap_image_region(third, 0)->raw_path);
}

static void read_zero_page_hides_the_parents(void **state) {
    g_autoptr(Chain) chain = make_three(state);
    assert_int_equal(chain_expect(chain, 2, "pc.ram", 10), CHAIN_ZERO);
    assert_int_equal(chain_expect(chain, 2, "pc.ram", 11), 1000);
    assert_int_equal(chain_expect(chain, 2, "pc.ram", 12), 13);
    for (guint i = 0; i < 3; i++)
        chain_check_dir(chain, i, chain->levels[i].dir);
}

/* A region that was gone for one level starts from zeros again. */
static void read_never_skips_a_level(void **state) {
    GError *error = NULL;
    g_autoptr(Chain) chain = make_three(state);
    ChainRegion *middle = &chain->levels[1].regions[0];
    fix_remove(chain->levels[1].dir);
    fix_remove(chain->levels[2].dir);
    g_strlcpy(middle->name, "other", sizeof middle->name);
    expect_ok(chain_write(&chain->levels[1], chain->levels[0].dir, 1714979289000001, &error), error);
    expect_ok(chain_write(&chain->levels[2], chain->levels[1].dir, 1714979289000002, &error), error);
    assert_int_equal(chain_expect(chain, 2, "pc.ram", 5), CHAIN_ZERO);
    chain_check_dir(chain, 2, chain->levels[2].dir);
}

static void *read_in_thread(void *opaque) {
    SnapImage *image = opaque;
    uint8_t expected[FIX_PAGE], found[FIX_PAGE];
    uintptr_t wrong = 0;
    for (int64_t i = 0; i < 4000; i++) {
        int64_t page = i * 37 % 130;
        uint64_t start = 0, end = 0;
        chain_fill(page == 10 || page == 20 ? 0 : page == 11 ? 1000 : page == 21 ? 2000 : page + 1, expected);
        wrong += !snap_image_read(image, 0, (uint64_t)page * FIX_PAGE, found, FIX_PAGE, NULL) ||
                 memcmp(found, expected, FIX_PAGE) != 0;
        wrong += !snap_image_next_data(image, 0, 11 * FIX_PAGE, &start, &end) || end != 20 * FIX_PAGE;
    }
    return (void *)wrong;
}

static void read_by_several_threads_is_right(void **state) {
    GError *error = NULL;
    GThread *threads[4];
    g_autoptr(Chain) chain = make_three(state);
    g_autoptr(SnapImage) image = snap_image_open(chain->levels[2].dir, &error);
    expect_ok(image != NULL, error);
    for (guint i = 0; i < G_N_ELEMENTS(threads); i++)
        threads[i] = g_thread_new("reader", read_in_thread, image);
    for (guint i = 0; i < G_N_ELEMENTS(threads); i++)
        assert_int_equal((uintptr_t)g_thread_join(threads[i]), 0);
}

/* 200 images with the descriptors and the stack of a small program. */
static void *open_and_read_long(void *opaque) {
    GError *error = NULL;
    uint8_t page[FIX_PAGE], expected[FIX_PAGE];
    SnapImage *image = snap_image_open(opaque, &error);
    expect_ok(image != NULL, error);
    assert_int_equal(snap_image_info(image)->n_parents, 199);
    for (guint k = 0; k < 4; k++) {
        for (guint i = 0; i < 200; i += 13) {
            expect_ok(snap_image_read(image, k, i * FIX_PAGE, page, FIX_PAGE, &error), error);
            chain_fill(i + 1, expected);
            assert_memory_equal(page, expected, FIX_PAGE);
        }
    }
    expect_ok(snap_image_verify(image, NULL, NULL, &error), error);
    snap_image_free(image);
    return NULL;
}

static void open_200_images_needs_few_descriptors_and_no_stack(void **state) {
    GError *error = NULL;
    g_autofree char *last = NULL;
    struct rlimit before, few;
    for (guint i = 0; i < 200; i++) {
        g_autofree ChainLevel *level = g_new0(ChainLevel, 1);
        g_autofree char *dir = g_strdup_printf("%s/%03u", (char *)*state, i);
        level->dir = dir;
        level->n_regions = 4;
        for (guint k = 0; k < 4; k++) {
            ChainRegion *region = &level->regions[k];
            g_snprintf(region->name, sizeof region->name, "region %u", k);
            region->host_address = (k + 1) * UINT64_C(0x100000000);
            region->n_pages = 200;
            for (int page = 0; page < 200; page++)
                region->pages[page] = page == (int)i ? page + 1 : i == 0 ? CHAIN_ZERO : CHAIN_ABSENT;
        }
        expect_ok(chain_write(level, last, 1714979289000000 + i, &error), error);
        g_free(last);
        last = g_steal_pointer(&dir);
    }
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    few = (struct rlimit){512, before.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
    pthread_attr_t attributes;
    pthread_t thread;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 128 * 1024);
    assert_int_equal(pthread_create(&thread, &attributes, open_and_read_long, last), 0);
    pthread_join(thread, NULL);
    pthread_attr_destroy(&attributes);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
}

/* ---- finding the parent ---------------------------------------------------------------------------------- */

static void move(const Chain *chain, guint level, const char *to) {
    assert_int_equal(rename(chain->levels[level].dir, to), 0);
}

static void open_parent_that_was_renamed_is_found_beside(void **state) {
    g_autoptr(Chain) chain = make_three(state);
    g_autofree char *elsewhere = fix_path(state, "renamed");
    move(chain, 0, elsewhere);
    chain_check_dir(chain, 2, chain->levels[2].dir);
    chain_check_dir(chain, 0, elsewhere);
}

static void open_chain_that_was_moved_together_is_found(void **state) {
    g_autoptr(Chain) chain = make_three(state);
    g_autofree char *folder = fix_path(state, "folder");
    assert_int_equal(mkdir(folder, 0700), 0);
    for (guint i = 0; i < 3; i++) {
        g_autofree char *to = g_strdup_printf("%s/%u", folder, i);
        move(chain, i, to);
        if (i == 2)
            chain_check_dir(chain, 2, to);
    }
}

static void open_parent_in_another_folder_is_found_by_the_hint(void **state) {
    GError *error = NULL;
    g_autoptr(Chain) chain = make_three(state);
    g_autofree char *folder = fix_path(state, "a"), *deep = fix_path(state, "a/b"),
                    *link = fix_path(state, "link");
    assert_int_equal(mkdir(folder, 0700), 0);
    assert_int_equal(mkdir(deep, 0700), 0);
    fix_remove(chain->levels[2].dir);
    g_free(chain->levels[2].dir);
    /* By way of a link the names look different; what counts is where the directories are. */
    assert_int_equal(symlink("a/b", link), 0);
    chain->levels[2].dir = g_strdup_printf("%s/2", link);
    expect_ok(chain_write(&chain->levels[2], chain->levels[1].dir, 1714979289000002, &error), error);
    chain_check_dir(chain, 2, chain->levels[2].dir);
}

static void open_hint_at_another_image_looks_beside(void **state) {
    g_autoptr(Chain) chain = make_three(state);
    g_autofree char *elsewhere = fix_path(state, "renamed");
    move(chain, 1, elsewhere);
    move(chain, 0, chain->levels[1].dir); /* where level 1 was, there is level 0 now */
    chain_check_dir(chain, 2, chain->levels[2].dir);
}

static void expect_open_fails(const char *dir, SnapErrorCode code, const char *text, const char *path) {
    GError *error = NULL;
    SnapImage *image = snap_image_open(dir, &error);
    assert_null(image);
    if (!error || !strstr(error->message, path))
        fail_msg("no \"%s\" in: %s", path, error ? error->message : "(no error)");
    expect_error(&error, code, text);
}

static void open_without_parent_is_not_found(void **state) {
    g_autoptr(Chain) chain = make_three(state);
    fix_remove(chain->levels[0].dir);
    expect_open_fails(chain->levels[2].dir, SNAP_ERROR_NOT_FOUND, "is missing", chain->levels[1].dir);
    expect_open_fails(chain->levels[1].dir, SNAP_ERROR_NOT_FOUND, "is missing", chain->levels[0].dir);
}

static void open_with_incomplete_parent_is_incomplete(void **state) {
    g_autoptr(Chain) chain = make_three(state);
    g_autofree char *manifest = fix_path(state, "0/manifest.json");
    assert_int_equal(unlink(manifest), 0);
    expect_open_fails(chain->levels[2].dir, SNAP_ERROR_INCOMPLETE, "manifest.json", chain->levels[0].dir);
}

/* ---- what cannot be a parent ----------------------------------------------------------------------------- */

/* Change the manifest of @dir: the first @from becomes @to; the checksum is right again. */
static void forge(const char *dir, const char *from, const char *to) {
    g_autofree char *path = g_strconcat(dir, "/manifest.json", NULL), *text = NULL;
    assert_true(g_file_get_contents(path, &text, NULL, NULL));
    char *tail = strstr(text, "  \"checksum\"");
    assert_non_null(tail);
    *tail = '\0';
    char *at = strstr(text, from);
    assert_non_null(at);
    *at = '\0';
    g_autofree char *body = g_strconcat(text, to, at + strlen(from), NULL);
    g_autofree char *whole = g_strdup_printf("%s  \"checksum\": \"%016" G_GINT64_MODIFIER "x\"\n}\n", body,
                                             (guint64)XXH3_64bits(body, strlen(body)));
    assert_true(g_file_set_contents(path, whole, -1, NULL));
}

static char *id_of(const char *dir) {
    GError *error = NULL;
    g_autoptr(SnapImage) image = snap_image_open(dir, &error);
    expect_ok(image != NULL, error);
    return g_strdup(snap_image_info(image)->id);
}

static void open_parent_of_another_kind_of_guest_is_corrupt(void **state) {
    g_autoptr(Chain) chain = make_three(state);
    forge(chain->levels[0].dir, "\"driver\": \"test\"", "\"driver\": \"qemu\"");
    expect_open_fails(chain->levels[2].dir, SNAP_ERROR_CORRUPT, "another kind of guest", chain->levels[0].dir);
}

static void open_parent_of_another_guest_is_corrupt(void **state) {
    g_autoptr(Chain) chain = make_three(state);
    forge(chain->levels[0].dir, "\"driver\": \"test\"", "\"driver\": \"test\",\n  \"guest\": \"one\"");
    chain_check_dir(chain, 2, chain->levels[2].dir); /* nobody else says which guest it was */
    forge(chain->levels[1].dir, "\"driver\": \"test\"", "\"driver\": \"test\",\n  \"guest\": \"one\"");
    chain_check_dir(chain, 2, chain->levels[2].dir);
    forge(chain->levels[1].dir, "\"guest\": \"one\"", "\"guest\": null");
    chain_check_dir(chain, 2, chain->levels[2].dir);
    forge(chain->levels[1].dir, "\"guest\": null", "\"guest\": \"two\"");
    expect_open_fails(chain->levels[2].dir, SNAP_ERROR_CORRUPT, "another guest", chain->levels[0].dir);
}

static void open_parent_newer_than_its_child_is_corrupt(void **state) {
    g_autoptr(Chain) chain = make_three(state);
    forge(chain->levels[0].dir, "\"created\": \"2024", "\"created\": \"2025");
    expect_open_fails(chain->levels[2].dir, SNAP_ERROR_CORRUPT, "newer", chain->levels[0].dir);
}

static void open_circle_is_corrupt(void **state) {
    g_autoptr(Chain) chain = make_three(state);
    g_autofree char *id = id_of(chain->levels[2].dir), *own = id_of(chain->levels[0].dir);
    g_autofree char *to = g_strdup_printf("\"parent-id\": \"%s\"", id);
    g_autofree char *to_itself = g_strdup_printf("\"parent-id\": \"%s\"", own);
    forge(chain->levels[2].dir, "\"created\": \"2024-05-06T07:08:09.000002Z",
          "\"created\": \"2024-05-06T07:08:09.000000Z");
    forge(chain->levels[1].dir, "\"created\": \"2024-05-06T07:08:09.000001Z",
          "\"created\": \"2024-05-06T07:08:09.000000Z");
    forge(chain->levels[0].dir, "\"parent-id\": null", to);
    for (guint i = 0; i < 3; i++)
        expect_open_fails(chain->levels[i].dir, SNAP_ERROR_CORRUPT, "circle", "leads back");
    forge(chain->levels[0].dir, to, to_itself);
    expect_open_fails(chain->levels[0].dir, SNAP_ERROR_CORRUPT, "circle", own);
    expect_open_fails(chain->levels[2].dir, SNAP_ERROR_CORRUPT, "circle", own);
}

static void open_parent_with_other_pages_is_corrupt(void **state) {
    GError *error = NULL;
    g_autoptr(Chain) chain = make_three(state);
    g_autofree char *id = id_of(chain->levels[0].dir);
    fix_remove(chain->levels[0].dir);
    g_autoptr(SnapImageWriter) writer = snap_image_writer_new(chain->levels[0].dir, "test", 1024, 3, &error);
    g_autoptr(SnapRegion) region = fix_region("pc.ram", 0x7f0000000000, 65, 1024);
    expect_ok(writer && snap_image_writer_add_region(writer, region, &error) &&
                  snap_image_writer_commit(writer, 1714979289000000, NULL, 0, &error),
              error);
    g_autofree char *now = id_of(chain->levels[0].dir);
    forge(chain->levels[0].dir, now, id);
    expect_open_fails(chain->levels[1].dir, SNAP_ERROR_CORRUPT, "page sizes", "pc.ram");
}

/* ---- writing --------------------------------------------------------------------------------------------- */

static void set_parent_of_another_guest_is_refused(void **state) {
    GError *error = NULL;
    g_autofree char *first = fix_path(state, "first"), *second = fix_path(state, "second");
    g_autoptr(SnapImageWriter) writer = snap_image_writer_new(first, "test", FIX_PAGE, 1, &error);
    expect_ok(snap_image_writer_set_guest(writer, "one", &error) &&
                  snap_image_writer_commit(writer, 1714979289000000, NULL, 0, &error),
              error);
    g_autoptr(SnapImage) parent = snap_image_open(first, &error);
    expect_ok(parent != NULL, error);
    assert_string_equal(snap_image_info(parent)->guest, "one");

    g_autoptr(SnapImageWriter) kind = snap_image_writer_new(second, "qemu", FIX_PAGE, 1, &error);
    assert_false(snap_image_writer_set_parent(kind, parent, &error));
    expect_error(&error, SNAP_ERROR_REFUSED, "another kind of guest");
    g_clear_pointer(&kind, snap_image_writer_free);

    g_autoptr(SnapImageWriter) before = snap_image_writer_new(second, "test", FIX_PAGE, 1, &error);
    expect_ok(snap_image_writer_set_guest(before, "two", &error), error);
    assert_false(snap_image_writer_set_parent(before, parent, &error));
    expect_error(&error, SNAP_ERROR_REFUSED, "another guest");
    g_clear_pointer(&before, snap_image_writer_free);

    g_autoptr(SnapImageWriter) after = snap_image_writer_new(second, "test", FIX_PAGE, 1, &error);
    expect_ok(snap_image_writer_set_parent(after, parent, &error), error);
    assert_false(snap_image_writer_set_guest(after, "two", &error));
    expect_error(&error, SNAP_ERROR_REFUSED, "another guest");
    assert_false(snap_image_writer_set_guest(after, "\xff", &error));
    expect_error(&error, SNAP_ERROR_USAGE, "UTF-8");
    expect_ok(snap_image_writer_set_guest(after, "one", &error), error);
}

static void set_parent_with_other_pages_is_usage(void **state) {
    GError *error = NULL;
    g_autoptr(Chain) chain = make_three(state);
    g_autofree char *dir = fix_path(state, "child");
    g_autoptr(SnapRegion) region = fix_region("pc.ram", 0x7f0000000000, 65, 1024);
    g_autoptr(SnapImage) parent = snap_image_open(chain->levels[2].dir, &error);
    expect_ok(parent != NULL, error);
    g_autoptr(SnapImageWriter) writer = snap_image_writer_new(dir, "test", 1024, 1, &error);
    expect_ok(snap_image_writer_set_parent(writer, parent, &error), error);
    assert_false(snap_image_writer_add_region(writer, region, &error));
    expect_error(&error, SNAP_ERROR_USAGE, "parent");
    g_clear_pointer(&writer, snap_image_writer_free);
    writer = snap_image_writer_new(dir, "test", 1024, 1, &error);
    expect_ok(snap_image_writer_add_region(writer, region, &error), error);
    assert_false(snap_image_writer_set_parent(writer, parent, &error));
    expect_error(&error, SNAP_ERROR_USAGE, "parent");
}

/* The clock was set back between the two: the child is as old as its parent, and not older. */
static void commit_after_the_clock_went_back_can_be_opened(void **state) {
    GError *error = NULL;
    g_autoptr(Chain) chain = make_three(state);
    fix_remove(chain->levels[2].dir);
    expect_ok(chain_write(&chain->levels[2], chain->levels[1].dir, 1614979289000000, &error), error);
    g_autoptr(SnapImage) image = snap_image_open(chain->levels[2].dir, &error);
    expect_ok(image != NULL, error);
    assert_string_equal(snap_image_info(image)->created, "2024-05-06T07:08:09.000001Z");
}

/* ---- damage ---------------------------------------------------------------------------------------------- */

/* Verify the chain with file @path as it is now. */
static void expect_damage(const char *dir, const char *path) {
    GError *error = NULL;
    if (fix_check_image(dir, &error))
        fail_msg("damage of %s is not seen", path);
    expect_error(&error, SNAP_ERROR_CORRUPT, path);
}

static void verify_parent_damaged_anywhere_is_told_with_its_file(void **state) {
    static const char *const files[] = {"manifest.json", "ram/pc.ram.img", "ram/pc.ram.idx", "state/name"};
    g_autoptr(Chain) chain = make_three(state);
    for (guint level = 0; level < 2; level++) {
        for (guint i = 0; i < G_N_ELEMENTS(files); i++) {
            g_autofree char *path = g_strdup_printf("%s/%s", chain->levels[level].dir, files[i]), *data = NULL;
            size_t length = 0;
            assert_true(g_file_get_contents(path, &data, &length, NULL));
            int fd = open(path, O_RDWR | O_CLOEXEC);
            size_t step = i == 1 ? FIX_PAGE - 1 : 7;
            for (size_t at = 0; at < length; at += step) {
                char flipped = (char)(data[at] ^ 1 << at % 8);
                assert_int_equal(pwrite(fd, &flipped, 1, (off_t)at), 1);
                expect_damage(chain->levels[2].dir, path);
                assert_int_equal(pwrite(fd, data + at, 1, (off_t)at), 1);
            }
            for (size_t cut = 0; cut < length; cut += 1 + length / 9) {
                assert_int_equal(ftruncate(fd, (off_t)cut), 0);
                expect_damage(chain->levels[2].dir, path);
                assert_int_equal(pwrite(fd, data, length, 0), length);
            }
            close(fd);
            assert_int_equal(unlink(path), 0);
            GError *error = NULL;
            assert_false(fix_check_image(chain->levels[2].dir, &error));
            expect_error(&error, i == 0 ? SNAP_ERROR_INCOMPLETE : SNAP_ERROR_CORRUPT, chain->levels[level].dir);
            assert_true(g_file_set_contents(path, data, (gssize)length, NULL));
            chain_check_dir(chain, 2, chain->levels[2].dir);
        }
    }
}

/* A page that the child hides is not read for the child; but it is the parent's, and verify looks at it. */
static void read_of_a_damaged_parent_is_corrupt_where_it_is_needed(void **state) {
    GError *error = NULL;
    uint8_t page[FIX_PAGE];
    g_autoptr(Chain) chain = make_three(state);
    g_autofree char *path = fix_path(state, "0/ram/pc.ram.img");
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    assert_int_equal(pwrite(fd, "x", 1, 100 * FIX_PAGE), 1);
    close(fd);
    g_autoptr(SnapImage) image = snap_image_open(chain->levels[2].dir, &error);
    expect_ok(image != NULL, error);
    expect_ok(snap_image_read(image, 0, 5 * FIX_PAGE, page, FIX_PAGE, &error), error);
    assert_false(snap_image_read(image, 0, 99 * FIX_PAGE, page, FIX_PAGE, &error));
    expect_error(&error, SNAP_ERROR_CORRUPT, path);
    expect_ok(snap_image_read(image, 0, 21 * FIX_PAGE, page, FIX_PAGE, &error), error);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        FIX_TEST(read_random_chain_is_as_the_rule_says),
        FIX_TEST(open_chain_tells_its_parents),
        FIX_TEST(read_zero_page_hides_the_parents),
        FIX_TEST(read_never_skips_a_level),
        FIX_TEST(read_by_several_threads_is_right),
        FIX_TEST(open_200_images_needs_few_descriptors_and_no_stack),
        FIX_TEST(open_parent_that_was_renamed_is_found_beside),
        FIX_TEST(open_chain_that_was_moved_together_is_found),
        FIX_TEST(open_parent_in_another_folder_is_found_by_the_hint),
        FIX_TEST(open_hint_at_another_image_looks_beside),
        FIX_TEST(open_without_parent_is_not_found),
        FIX_TEST(open_with_incomplete_parent_is_incomplete),
        FIX_TEST(open_parent_of_another_kind_of_guest_is_corrupt),
        FIX_TEST(open_parent_of_another_guest_is_corrupt),
        FIX_TEST(open_parent_newer_than_its_child_is_corrupt),
        FIX_TEST(open_circle_is_corrupt),
        FIX_TEST(open_parent_with_other_pages_is_corrupt),
        FIX_TEST(set_parent_of_another_guest_is_refused),
        FIX_TEST(set_parent_with_other_pages_is_usage),
        FIX_TEST(commit_after_the_clock_went_back_can_be_opened),
        FIX_TEST(verify_parent_damaged_anywhere_is_told_with_its_file),
        FIX_TEST(read_of_a_damaged_parent_is_corrupt_where_it_is_needed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
