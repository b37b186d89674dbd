/* Reading images: memory, runs of data, state, and what is refused. */
#include "image-fixture.h"

static SnapImage *open_image(void **state) {
    GError *error = NULL;
    g_autofree char *dir = fix_path(state, "image");
    expect_ok(fix_write_image(dir, &error), error);
    SnapImage *image = snap_image_open(dir, &error);
    expect_ok(image != NULL, error);
    return image;
}

static void open_tells_what_was_saved(void **state) {
    g_autoptr(SnapImage) image = open_image(state);
    g_autofree char *dir = fix_path(state, "image"), *raw = fix_path(state, "image/ram/%2From@etc%2Facpi.img");
    const SnapImageInfo *info = snap_image_info(image);
    assert_string_equal(info->dir, dir);
    assert_true(g_uuid_string_is_valid(info->id));
    assert_null(info->parent_id);
    assert_string_equal(info->driver, "test");
    assert_string_equal(info->created, "2024-05-06T07:08:09.123456Z");
    assert_int_equal(info->page_bytes, FIX_PAGE);
    assert_int_equal(info->n_regions, 2);
    assert_int_equal(info->n_states, 1);
    const SnapImageRegion *ram = snap_image_region(image, 0), *rom = snap_image_region(image, 1);
    assert_string_equal(ram->name, "pc.ram");
    assert_string_equal(ram->memory, "anon");
    assert_true(ram->guest_address == 0 && rom->guest_address == SNAP_NO_ADDRESS);
    assert_int_equal(ram->host_address, 0x7f0000000000);
    assert_int_equal(ram->length_bytes, FIX_RAM_PAGES * FIX_PAGE);
    assert_string_equal(rom->raw_path, raw);
    assert_int_equal(access(rom->raw_path, R_OK), 0);
    assert_int_equal(snap_image_find_region(image, "/rom@etc/acpi"), 1);
    assert_int_equal(snap_image_find_region(image, "rom"), -1);
    assert_int_equal(snap_image_statistic(image, "pause-us"), 812);
    assert_int_equal(snap_image_statistic(image, "nothing"), 0);
}

static void open_by_a_relative_path_or_link_works(void **state) {
    GError *error = NULL;
    g_autofree char *dir = fix_path(state, "image"), *link = fix_path(state, "link"), *here = g_get_current_dir();
    expect_ok(fix_write_image(dir, &error), error);
    assert_int_equal(symlink("image", link), 0);
    assert_int_equal(chdir(*state), 0);
    g_autoptr(SnapImage) relative = snap_image_open("image/", &error);
    expect_ok(relative != NULL, error);
    assert_int_equal(chdir(here), 0);
    g_autoptr(SnapImage) linked = snap_image_open(link, &error);
    expect_ok(linked != NULL, error);
    assert_string_equal(snap_image_info(relative)->dir, dir);
    assert_string_equal(snap_image_info(linked)->dir, dir);
}

static void open_no_image_is_not_found_or_incomplete(void **state) {
    GError *error = NULL;
    g_autofree char *none = fix_path(state, "none"), *file = fix_path(state, "file");
    assert_null(snap_image_open(none, &error));
    expect_error(&error, SNAP_ERROR_NOT_FOUND, "none");
    assert_true(g_file_set_contents(file, "x", 1, NULL));
    assert_null(snap_image_open(file, &error));
    expect_error(&error, SNAP_ERROR_NOT_FOUND, "file");
    assert_null(snap_image_open(*state, &error));
    expect_error(&error, SNAP_ERROR_INCOMPLETE, "manifest.json");
}

/* Every range of pages, first with nothing checked yet, then with everything. */
static void read_every_range_is_as_it_was(void **state) {
    GError *error = NULL;
    static uint8_t expected[FIX_RAM_PAGES * FIX_PAGE], found[sizeof expected];
    g_autoptr(SnapImage) image = open_image(state);
    for (uint64_t page = 0; page < FIX_RAM_PAGES; page++)
        fix_fill(0, page, FIX_PAGE, expected + page * FIX_PAGE);
    for (uint64_t first = 0; first < FIX_RAM_PAGES; first++) {
        for (uint64_t last = first; last < FIX_RAM_PAGES; last += 1 + last / 7) {
            size_t length = (last - first + 1) * FIX_PAGE;
            memset(found, 0xEE, sizeof found);
            expect_ok(snap_image_read(image, 0, first * FIX_PAGE, found, length, &error), error);
            assert_memory_equal(found, expected + first * FIX_PAGE, length);
            assert_int_equal(found[MIN(length, sizeof found - 1)],
                             length < sizeof found ? 0xEE : found[length - 1]);
        }
    }
}

static void read_whole_region_at_once_is_as_it_was(void **state) {
    GError *error = NULL;
    static uint8_t expected[FIX_PAGE], found[FIX_RAM_PAGES * FIX_PAGE];
    g_autoptr(SnapImage) image = open_image(state);
    expect_ok(snap_image_read(image, 0, 0, found, sizeof found, &error), error);
    for (uint64_t page = 0; page < FIX_RAM_PAGES; page++) {
        fix_fill(0, page, FIX_PAGE, expected);
        assert_memory_equal(found + page * FIX_PAGE, expected, FIX_PAGE);
    }
}

static void read_outside_or_unaligned_is_usage(void **state) {
    GError *error = NULL;
    uint8_t data[FIX_PAGE];
    const uint64_t end = FIX_RAM_PAGES * FIX_PAGE;
    const struct {
        guint region;
        uint64_t offset, length;
    } cases[] = {{0, 1, FIX_PAGE},   {0, 0, FIX_PAGE - 1},
                 {0, end, FIX_PAGE}, {0, end - FIX_PAGE, 2 * FIX_PAGE},
                 {2, 0, FIX_PAGE},   {0, UINT64_MAX - FIX_PAGE + 1, FIX_PAGE}};
    g_autoptr(SnapImage) image = open_image(state);
    for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
        assert_false(snap_image_read(image, cases[i].region, cases[i].offset, data, cases[i].length, &error));
        expect_error(&error, SNAP_ERROR_USAGE, "whole pages");
    }
    expect_ok(snap_image_read(image, 0, end, data, 0, &error), error);
}

static void *read_in_thread(void *opaque) {
    SnapImage *image = opaque;
    uint8_t expected[FIX_PAGE], found[FIX_PAGE];
    uintptr_t wrong = 0;
    for (uint64_t i = 0; i < 20 * FIX_RAM_PAGES; i++) {
        uint64_t page = i * 37 % FIX_RAM_PAGES;
        fix_fill(0, page, FIX_PAGE, expected);
        wrong += !snap_image_read(image, 0, page * FIX_PAGE, found, FIX_PAGE, NULL) ||
                 memcmp(found, expected, FIX_PAGE) != 0;
    }
    return (void *)wrong;
}

static void read_by_several_threads_is_right(void **state) {
    g_autoptr(SnapImage) image = open_image(state);
    GThread *threads[4];
    for (guint i = 0; i < G_N_ELEMENTS(threads); i++)
        threads[i] = g_thread_new("reader", read_in_thread, image);
    for (guint i = 0; i < G_N_ELEMENTS(threads); i++)
        assert_null(g_thread_join(threads[i]));
}

static void next_data_gives_all_runs_and_nothing_else(void **state) {
    g_autoptr(SnapImage) image = open_image(state);
    uint64_t page = 0, start = 0, end = 0;
    while (snap_image_next_data(image, 0, page * FIX_PAGE, &start, &end)) {
        for (; page < start / FIX_PAGE; page++)
            assert_int_not_equal(fix_kind(0, page), PAGE_DATA);
        assert_true(end > start);
        for (; page < end / FIX_PAGE; page++)
            assert_int_equal(fix_kind(0, page), PAGE_DATA);
    }
    for (; page < FIX_RAM_PAGES; page++)
        assert_int_not_equal(fix_kind(0, page), PAGE_DATA);
    assert_true(snap_image_next_data(image, 1, FIX_PAGE, &start, &end));
    assert_int_equal(start, FIX_PAGE);
    assert_int_equal(end, FIX_ROM_PAGES * FIX_PAGE);
    assert_false(snap_image_next_data(image, 1, FIX_ROM_PAGES * FIX_PAGE, &start, &end));
    assert_false(snap_image_next_data(image, 1, UINT64_MAX, &start, &end));
}

/* A run goes on over chunks and over the blocks that an index is read in; a terabyte of nothing is skipped. */
static void next_data_in_a_large_sparse_region_is_quick(void **state) {
    GError *error = NULL;
    const uint64_t page_bytes = 4096, chunk_bytes = SNAP_CHUNK_PAGES * page_bytes, n_chunks = 1 << 22;
    const uint64_t first = n_chunks - 400, n_data = 300;
    g_autofree char *dir = fix_path(state, "image");
    g_autoptr(SnapRegion) ram = fix_region("ram", 0, n_chunks * SNAP_CHUNK_PAGES, page_bytes);
    g_autoptr(SnapImageWriter) writer = snap_image_writer_new(dir, "test", page_bytes, 8, &error);
    expect_ok(snap_image_writer_add_region(writer, ram, &error), error);
    for (uint64_t i = 0; i < n_data; i++) {
        SnapChunk *chunk = snap_image_writer_get(writer, -1, &error);
        memset(chunk->data, (int)i | 1, chunk_bytes);
        chunk->index = first + i;
        chunk->present = UINT64_MAX;
        expect_ok(snap_image_writer_put(writer, chunk, &error), error);
    }
    expect_ok(fix_commit(writer, &error), error);
    gint64 begin_us = g_get_monotonic_time();
    uint64_t start = 0, end = 0;
    g_autoptr(SnapImage) image = snap_image_open(dir, &error);
    expect_ok(image && snap_image_verify(image, NULL, NULL, &error), error);
    assert_true(snap_image_next_data(image, 0, 0, &start, &end));
    assert_int_equal(start, first * chunk_bytes);
    assert_int_equal(end, (first + n_data) * chunk_bytes);
    assert_false(snap_image_next_data(image, 0, end, &start, &end));
    assert_in_range(g_get_monotonic_time() - begin_us, 0, 10 * G_USEC_PER_SEC);
}

static void state_is_as_it_was(void **state) {
    GError *error = NULL;
    g_autoptr(SnapImage) image = open_image(state);
    assert_string_equal(snap_image_state_name(image, 0), "vcpu");
    g_autoptr(GBytes) blob = snap_image_state(image, "vcpu", &error);
    expect_ok(blob != NULL, error);
    assert_int_equal(g_bytes_get_size(blob), strlen(FIX_STATE));
    assert_memory_equal(g_bytes_get_data(blob, NULL), FIX_STATE, strlen(FIX_STATE));
    assert_null(snap_image_state(image, "gpu", &error));
    expect_error(&error, SNAP_ERROR_NOT_FOUND, "gpu");
}

/* ---- verify ---------------------------------------------------------------------------------------------- */

static void verify_reports_progress_to_the_end(void **state) {
    GError *error = NULL;
    FixProgress progress = {0};
    g_autoptr(SnapImage) image = open_image(state);
    expect_ok(snap_image_verify(image, fix_note_progress, &progress, &error), error);
    assert_int_equal(progress.total, (FIX_RAM_PAGES + FIX_ROM_PAGES) * FIX_PAGE);
    assert_int_equal(progress.last, progress.total);
}

static void verify_told_to_stop_is_cancelled(void **state) {
    GError *error = NULL;
    FixProgress progress = {.cancel_at = 2};
    g_autoptr(SnapImage) image = open_image(state);
    assert_false(snap_image_verify(image, fix_note_progress, &progress, &error));
    expect_error(&error, SNAP_ERROR_CANCELLED, "cancelled");
}

/* A copy that has filled the holes is the same image. */
static void verify_copy_without_holes_is_good(void **state) {
    GError *error = NULL;
    g_autofree char *dir = fix_path(state, "image"), *copy = fix_path(state, "copy");
    expect_ok(fix_write_image(dir, &error), error);
    const char *const command[] = {"cp", "-r", "--sparse=never", dir, copy, NULL};
    int status = 1;
    assert_true(
        g_spawn_sync(NULL, (char **)command, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL, NULL, NULL, &status, &error));
    assert_int_equal(status, 0);
    expect_ok(fix_check_image(copy, &error), error);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        FIX_TEST(open_tells_what_was_saved),
        FIX_TEST(open_by_a_relative_path_or_link_works),
        FIX_TEST(open_no_image_is_not_found_or_incomplete),
        FIX_TEST(read_every_range_is_as_it_was),
        FIX_TEST(read_whole_region_at_once_is_as_it_was),
        FIX_TEST(read_outside_or_unaligned_is_usage),
        FIX_TEST(read_by_several_threads_is_right),
        FIX_TEST(next_data_gives_all_runs_and_nothing_else),
        FIX_TEST(next_data_in_a_large_sparse_region_is_quick),
        FIX_TEST(state_is_as_it_was),
        FIX_TEST(verify_reports_progress_to_the_end),
        FIX_TEST(verify_told_to_stop_is_cancelled),
        FIX_TEST(verify_copy_without_holes_is_good),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
