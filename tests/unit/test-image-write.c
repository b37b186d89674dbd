/* The image writer: what it makes, what it refuses, and that it leaves nothing behind. */
#include "chunk.h"
#include "image-fixture.h"
#include "image-writer.h"

#include <signal.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>

/* ---- what it makes --------------------------------------------------------------------------------------- */

static void expect_page(const char *raw, guint region, uint64_t page, uint64_t page_bytes) {
    g_autofree uint8_t *expected = g_malloc(page_bytes), *found = g_malloc(page_bytes);
    int fd = open(raw, O_RDONLY | O_CLOEXEC);
    assert_int_equal(pread(fd, found, page_bytes, (off_t)(page * page_bytes)), page_bytes);
    close(fd);
    fix_fill(region, page, page_bytes, expected);
    assert_memory_equal(found, expected, page_bytes);
}

static void commit_every_page_is_at_its_own_offset(void **state) {
    GError *error = NULL;
    g_autofree char *dir = fix_path(state, "image"), *raw = fix_path(state, "image/ram/pc.ram.img");
    struct stat status;
    expect_ok(fix_write_image(dir, &error), error);
    assert_int_equal(stat(raw, &status), 0);
    assert_int_equal(status.st_size, FIX_RAM_PAGES * FIX_PAGE);
    for (uint64_t page = 0; page < FIX_RAM_PAGES; page++)
        expect_page(raw, 0, page, FIX_PAGE);
    expect_ok(fix_check_image(dir, &error), error);
    assert_int_equal(fix_count_entries(dir), 3);
}

static void commit_files_are_for_the_owner_only(void **state) {
    GError *error = NULL;
    static const char *const names[] = {"image/ram/pc.ram.img", "image/ram/pc.ram.idx", "image/state/vcpu",
                                        "image/manifest.json"};
    g_autofree char *dir = fix_path(state, "image");
    struct stat status;
    expect_ok(fix_write_image(dir, &error), error);
    assert_int_equal(stat(dir, &status), 0);
    assert_int_equal(status.st_mode & 0777, 0700);
    for (guint i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autofree char *path = fix_path(state, names[i]);
        assert_int_equal(stat(path, &status), 0);
        assert_int_equal(status.st_mode & 0777, 0600);
    }
}

static void counts_are_of_pages_and_bytes(void **state) {
    GError *error = NULL;
    uint64_t zero = 0, data = FIX_ROM_PAGES;
    g_autofree char *dir = fix_path(state, "image");
    g_autoptr(SnapImageWriter) writer = snap_image_writer_new(dir, "test", FIX_PAGE, 3, &error);
    expect_ok(fix_put_all(writer, &error), error);
    for (uint64_t page = 0; page < FIX_RAM_PAGES; page++) {
        zero += fix_kind(0, page) == PAGE_ZERO;
        data += fix_kind(0, page) == PAGE_DATA;
    }
    assert_int_equal(snap_image_writer_zero_pages(writer), zero);
    assert_int_equal(snap_image_writer_bytes_written(writer), data * FIX_PAGE);
}

static void zero_pages_take_no_room(void **state) {
    GError *error = NULL;
    const uint64_t page_bytes = 4096, n_chunks = 64;
    g_autofree char *dir = fix_path(state, "image"), *raw = fix_path(state, "image/ram/ram.img");
    g_autoptr(SnapRegion) ram = fix_region("ram", 0, n_chunks * SNAP_CHUNK_PAGES, page_bytes);
    g_autoptr(SnapImageWriter) writer = snap_image_writer_new(dir, "test", page_bytes, 2, &error);
    struct stat status;
    expect_ok(snap_image_writer_add_region(writer, ram, &error), error);
    for (uint64_t i = 0; i < n_chunks; i++) {
        if (i % 2) {
            expect_ok(snap_image_writer_put_zero(writer, 0, i, UINT64_MAX, &error), error);
            continue;
        }
        SnapChunk *chunk = snap_image_writer_get(writer, -1, &error);
        memset(chunk->data, 0, SNAP_CHUNK_PAGES * page_bytes);
        chunk->index = i;
        chunk->present = UINT64_MAX;
        expect_ok(snap_image_writer_put(writer, chunk, &error), error);
    }
    assert_int_equal(snap_image_writer_zero_pages(writer), n_chunks * SNAP_CHUNK_PAGES);
    assert_int_equal(snap_image_writer_bytes_written(writer), 0);
    expect_ok(snap_image_writer_commit(writer, 0, NULL, 0, &error), error);
    assert_int_equal(stat(raw, &status), 0);
    assert_int_equal(status.st_blocks, 0);
    expect_ok(fix_check_image(dir, &error), error);
}

static void chunks_in_any_order_give_the_same_image(void **state) {
    GError *error = NULL;
    static const uint64_t order[] = {5, 0, 6, 7, 3, 1, 2, 4, 8};
    g_autofree char *dir = fix_path(state, "image");
    g_autoptr(SnapRegion) ram = fix_region("ram", 0, G_N_ELEMENTS(order) * SNAP_CHUNK_PAGES, FIX_PAGE);
    g_autoptr(SnapImageWriter) writer = snap_image_writer_new(dir, "test", FIX_PAGE, 4, &error);
    expect_ok(snap_image_writer_add_region(writer, ram, &error), error);
    for (guint i = 0; i < G_N_ELEMENTS(order); i++) {
        SnapChunk *chunk = snap_image_writer_get(writer, -1, &error);
        memset(chunk->data, (int)order[i] + 1, FIX_CHUNK);
        chunk->index = order[i];
        chunk->present = UINT64_MAX;
        expect_ok(snap_image_writer_put(writer, chunk, &error), error);
    }
    expect_ok(snap_image_writer_commit(writer, 0, NULL, 0, &error), error);
    g_autoptr(SnapImage) image = snap_image_open(dir, &error);
    expect_ok(image && snap_image_verify(image, NULL, NULL, &error), error);
    for (guint i = 0; i < G_N_ELEMENTS(order); i++) {
        uint8_t page[FIX_PAGE];
        expect_ok(snap_image_read(image, 0, i * FIX_CHUNK, page, FIX_PAGE, &error), error);
        assert_int_equal(page[0], i + 1);
    }
}

/* More regions than descriptors: files are closed and opened again. */
static void regions_by_the_hundred_need_few_descriptors(void **state) {
    GError *error = NULL;
    const guint n_regions = 600;
    struct rlimit old, limit;
    g_autofree char *dir = fix_path(state, "image");
    g_autoptr(SnapImageWriter) writer = snap_image_writer_new(dir, "process", FIX_PAGE, 8, &error);
    getrlimit(RLIMIT_NOFILE, &old);
    limit = old;
    limit.rlim_cur = 448;
    setrlimit(RLIMIT_NOFILE, &limit);
    for (guint i = 0; i < n_regions; i++) {
        g_autofree char *name = g_strdup_printf("/usr/lib/lib%u.so", i);
        g_autoptr(SnapRegion) region = fix_region(name, (uint64_t)i << 20, 70, FIX_PAGE);
        expect_ok(snap_image_writer_add_region(writer, region, &error), error);
    }
    for (uint64_t pass = 0; pass < 2; pass++) {
        for (guint i = 0; i < n_regions; i++) {
            SnapChunk *chunk = snap_image_writer_get(writer, -1, &error);
            expect_ok(chunk != NULL, error);
            memset(chunk->data, (int)(i % 255) + 1, FIX_CHUNK);
            chunk->region = i;
            chunk->index = pass;
            chunk->present = pass ? 0x3F : UINT64_MAX;
            expect_ok(snap_image_writer_put(writer, chunk, &error), error);
        }
    }
    expect_ok(snap_image_writer_commit(writer, 0, NULL, 0, &error), error);
    expect_ok(fix_check_image(dir, &error), error);
    setrlimit(RLIMIT_NOFILE, &old);
}

static void pages_of_different_sizes_share_the_buffers(void **state) {
    GError *error = NULL;
    g_autofree char *dir = fix_path(state, "image");
    g_autoptr(SnapRegion) small = fix_region("small", 0, 100, 4096);
    g_autoptr(SnapRegion) large = fix_region("large", 1 << 30, 65, 65536);
    g_autoptr(SnapImageWriter) writer = snap_image_writer_new(dir, "test", 65536, 2, &error);
    expect_ok(snap_image_writer_add_region(writer, small, &error), error);
    expect_ok(snap_image_writer_add_region(writer, large, &error), error);
    expect_ok(fix_put_region(writer, 0, 100, 4096, &error), error);
    expect_ok(fix_put_region(writer, 1, 65, 65536, &error), error);
    expect_ok(fix_commit(writer, &error), error);
    expect_ok(fix_check_image(dir, &error), error);
}

static void image_without_regions_or_chunks_is_complete(void **state) {
    GError *error = NULL;
    g_autofree char *empty = fix_path(state, "empty"), *untouched = fix_path(state, "untouched");
    g_autoptr(SnapImageWriter) none = snap_image_writer_new(empty, "test", FIX_PAGE, 1, &error);
    expect_ok(fix_commit(none, &error), error);
    expect_ok(fix_check_image(empty, &error), error);
    g_autoptr(SnapRegion) ram = fix_region("ram", 0, 1000, FIX_PAGE);
    g_autoptr(SnapImageWriter) writer = snap_image_writer_new(untouched, "test", FIX_PAGE, 1, &error);
    expect_ok(snap_image_writer_add_region(writer, ram, &error), error);
    expect_ok(fix_commit(writer, &error), error);
    expect_ok(fix_check_image(untouched, &error), error);
}

/* ---- buffers --------------------------------------------------------------------------------------------- */

static void get_all_buffers_out_returns_none_and_no_error(void **state) {
    GError *error = NULL;
    g_autofree char *dir = fix_path(state, "image");
    g_autoptr(SnapImageWriter) writer = snap_image_writer_new(dir, "test", FIX_PAGE, 2, &error);
    assert_int_equal(snap_image_writer_free_buffers(writer), 2);
    assert_non_null(snap_image_writer_get(writer, 0, &error));
    assert_non_null(snap_image_writer_get(writer, 0, &error));
    assert_int_equal(snap_image_writer_free_buffers(writer), 0);
    assert_null(snap_image_writer_get(writer, 0, &error));
    assert_null(snap_image_writer_get(writer, 10, &error));
    assert_null(error);
}

static void put_nothing_to_store_frees_the_buffer_at_once(void **state) {
    GError *error = NULL;
    g_autofree char *dir = fix_path(state, "image");
    g_autoptr(SnapRegion) ram = fix_region("ram", 0, 10, FIX_PAGE);
    g_autoptr(SnapImageWriter) writer = snap_image_writer_new(dir, "test", FIX_PAGE, 1, &error);
    expect_ok(snap_image_writer_add_region(writer, ram, &error), error);
    SnapChunk *chunk = snap_image_writer_get(writer, 0, &error);
    assert_int_equal((uintptr_t)chunk->data % 4096, 0);
    memset(chunk->data, 0, FIX_CHUNK);
    chunk->present = 0x3FF;
    expect_ok(snap_image_writer_put(writer, chunk, &error), error);
    assert_int_equal(snap_image_writer_free_buffers(writer), 1);
}

/* ---- what it refuses ------------------------------------------------------------------------------------- */

static void new_where_something_is_exists(void **state) {
    GError *error = NULL;
    g_autofree char *file = fix_path(state, "file"), *full = fix_path(state, "full"),
                    *inside = fix_path(state, "full/note");
    assert_true(g_file_set_contents(file, "x", 1, NULL));
    mkdir(full, 0700);
    assert_true(g_file_set_contents(inside, "x", 1, NULL));
    assert_null(snap_image_writer_new(file, "test", FIX_PAGE, 1, &error));
    expect_error(&error, SNAP_ERROR_EXISTS, "not a directory");
    assert_null(snap_image_writer_new(full, "test", FIX_PAGE, 1, &error));
    expect_error(&error, SNAP_ERROR_EXISTS, "not empty");
    assert_int_equal(fix_count_entries(full), 1);
    assert_int_equal(access(file, F_OK), 0);
}

static void new_second_writer_exists_and_first_goes_on(void **state) {
    GError *error = NULL;
    g_autofree char *dir = fix_path(state, "image");
    g_autoptr(SnapImageWriter) writer = snap_image_writer_new(dir, "test", FIX_PAGE, 3, &error);
    assert_null(snap_image_writer_new(dir, "test", FIX_PAGE, 1, &error));
    expect_error(&error, SNAP_ERROR_EXISTS, "image");
    expect_ok(fix_put_all(writer, &error) && fix_commit(writer, &error), error);
    expect_ok(fix_check_image(dir, &error), error);
}

static void new_where_it_cannot_be_made_says_why(void **state) {
    GError *error = NULL;
    g_autofree char *orphan = fix_path(state, "no/such/image");
    assert_null(snap_image_writer_new(orphan, "test", FIX_PAGE, 1, &error));
    expect_error(&error, SNAP_ERROR_NOT_FOUND, "no/such/image");
    assert_null(snap_image_writer_new("/proc/image", "test", FIX_PAGE, 1, &error));
    expect_error(&error, SNAP_ERROR_NOT_FOUND, "/proc/image");
    assert_null(snap_image_writer_new("/sys/kernel/image", "test", FIX_PAGE, 1, &error));
    expect_error(&error, SNAP_ERROR_PERMISSION, "/sys/kernel/image");
}

static void add_region_nonsense_is_refused(void **state) {
    GError *error = NULL;
    static const struct {
        const char *name;
        uint64_t address, length, page, granule;
        SnapErrorCode code;
        const char *text;
    } cases[] = {
        {"ram", 1 << 20, 4096, 4096, 4096, SNAP_ERROR_EXISTS, "of that name"},
        {"", 1 << 20, 4096, 4096, 4096, SNAP_ERROR_USAGE, "name"},
        {"\xff", 1 << 20, 4096, 4096, 4096, SNAP_ERROR_USAGE, "UTF-8"},
        {"a\nb", 1 << 20, 4097, 4096, 4096, SNAP_ERROR_USAGE, "multiple"},
        {"a", 1 << 20, 0, 4096, 4096, SNAP_ERROR_USAGE, "multiple"},
        {"a", 1 << 20, 4096, 1000, 4096, SNAP_ERROR_USAGE, "page size"},
        {"a", 1 << 20, 8192, 8192, 8192, SNAP_ERROR_USAGE, "larger"},
        {"a", 1 << 20, 4096, 4096, 0, SNAP_ERROR_USAGE, "granule"},
        {"a", 4096, 4096, 4096, 4096, SNAP_ERROR_USAGE, "overlaps"},
        {"a", 0, 8192, 4096, 4096, SNAP_ERROR_USAGE, "overlaps"},
        {"a", UINT64_MAX - 4095, 8192, 4096, 4096, SNAP_ERROR_USAGE, "address space"},
    };
    g_autofree char *dir = fix_path(state, "image");
    g_autoptr(SnapRegion) ram = fix_region("ram", 4096, 2, 4096);
    g_autoptr(SnapImageWriter) writer = snap_image_writer_new(dir, "test", 4096, 1, &error);
    expect_ok(snap_image_writer_add_region(writer, ram, &error), error);
    for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autoptr(SnapRegion) region = fix_region(cases[i].name, cases[i].address, 1, cases[i].page);
        region->length_bytes = cases[i].length;
        region->granule_bytes = cases[i].granule;
        assert_false(snap_image_writer_add_region(writer, region, &error));
        expect_error(&error, cases[i].code, cases[i].text);
    }
    g_autoptr(SnapRegion) below = fix_region("below", 0, 1, 4096);
    expect_ok(snap_image_writer_add_region(writer, below, &error), error);
    expect_ok(fix_commit(writer, &error), error);
    expect_ok(fix_check_image(dir, &error), error);
}

static void add_state_twice_or_unnamed_is_refused(void **state) {
    GError *error = NULL;
    g_autofree char *dir = fix_path(state, "image");
    g_autoptr(SnapState) blob = snap_state_new("a/b", g_bytes_new(NULL, 0));
    g_autoptr(SnapState) unnamed = snap_state_new("", g_bytes_new(NULL, 0));
    g_autoptr(SnapImageWriter) writer = snap_image_writer_new(dir, "test", 4096, 1, &error);
    expect_ok(snap_image_writer_add_state(writer, blob, &error), error);
    assert_false(snap_image_writer_add_state(writer, blob, &error));
    expect_error(&error, SNAP_ERROR_EXISTS, "a%2Fb");
    assert_false(snap_image_writer_add_state(writer, unnamed, &error));
    expect_error(&error, SNAP_ERROR_USAGE, "state");
    expect_ok(fix_commit(writer, &error), error);
    expect_ok(fix_check_image(dir, &error), error);
}

/* ---- bad days -------------------------------------------------------------------------------------------- */

static void free_without_commit_removes_everything(void **state) {
    GError *error = NULL;
    g_autofree char *dir = fix_path(state, "image");
    SnapImageWriter *writer = snap_image_writer_new(dir, "test", FIX_PAGE, 3, &error);
    expect_ok(fix_put_all(writer, &error), error);
    assert_int_equal(fix_count_entries(dir), 2);
    snap_image_writer_free(writer);
    assert_int_equal(fix_count_entries(dir), -1);
    snap_image_writer_free(NULL);
}

static void free_in_a_directory_that_was_there_leaves_it(void **state) {
    GError *error = NULL;
    g_autofree char *dir = fix_path(state, "image");
    mkdir(dir, 0755);
    SnapImageWriter *writer = snap_image_writer_new(dir, "test", FIX_PAGE, 3, &error);
    expect_ok(fix_put_all(writer, &error), error);
    snap_image_writer_free(writer);
    assert_int_equal(fix_count_entries(dir), 0);
    expect_ok(fix_write_image(dir, &error), error);
    expect_ok(fix_check_image(dir, &error), error);
}

/* A killed writer leaves what it made: visibly incomplete, and removable. */
static void killed_before_the_commit_is_incomplete(void **state) {
    GError *error = NULL;
    g_autofree char *dir = fix_path(state, "image");
    pid_t child = fork();
    if (child == 0) {
        SnapImageWriter *writer = snap_image_writer_new(dir, "test", FIX_PAGE, 3, NULL);
        fix_put_all(writer, NULL);
        kill(getpid(), SIGKILL);
    }
    assert_true(child > 0 && waitpid(child, NULL, 0) == child);
    assert_null(snap_image_open(dir, &error));
    expect_error(&error, SNAP_ERROR_INCOMPLETE, "manifest.json");
    expect_ok(snap_image_delete(dir, &error), error);
    assert_int_equal(fix_count_entries(dir), -1);
}

static gboolean fill_disk(const char *dir, SnapImageWriter **ret_writer, GError **error) {
    g_autoptr(SnapRegion) ram = fix_region("ram", 0, 1024, 4096);
    *ret_writer = snap_image_writer_new(dir, "test", 4096, 4, error);
    if (!*ret_writer || !snap_image_writer_add_region(*ret_writer, ram, error))
        return FALSE;
    for (uint64_t i = 0; i < 1024 / SNAP_CHUNK_PAGES; i++) {
        SnapChunk *chunk = snap_image_writer_get(*ret_writer, -1, error);
        if (!chunk)
            return FALSE;
        memset(chunk->data, 1, SNAP_CHUNK_PAGES * 4096);
        chunk->index = i;
        chunk->present = UINT64_MAX;
        if (!snap_image_writer_put(*ret_writer, chunk, error))
            return FALSE;
    }
    return fix_commit(*ret_writer, error);
}

/* @medium: (nullable) a file to make an ext4 file system in; otherwise a tmpfs. FALSE: it cannot be had here. */
static gboolean mount_small(const char *point, const char *medium) {
    mkdir(point, 0700);
    if (!medium)
        return mount("none", point, "tmpfs", 0, "size=1M") == 0;
    g_autofree char *command =
        g_strdup_printf("truncate -s 3M '%s' && mkfs.ext4 -q -m 0 '%s' 2>/dev/null && mount -o loop '%s' '%s' "
                        "2>/dev/null && rmdir '%s/lost+found'",
                        medium, medium, medium, point, point);
    return system(command) == 0;
}

static void disk_full(void **state, const char *medium) {
    GError *error = NULL, *again = NULL;
    g_autofree char *point = fix_path(state, "small"), *dir = fix_path(state, "small/image");
    SnapImageWriter *writer = NULL;
    if (!mount_small(point, medium))
        skip(); /* needs root, and loop devices for the second kind */
    gboolean good = fill_disk(dir, &writer, &error);
    SnapChunk *chunk = writer ? snap_image_writer_get(writer, -1, &again) : NULL;
    snap_image_writer_free(writer);
    int left = fix_count_entries(dir);
    umount2(point, MNT_DETACH);
    assert_false(good);
    expect_error(&error, SNAP_ERROR_NO_SPACE, "free some room");
    assert_null(chunk); /* the error stays */
    expect_error(&again, SNAP_ERROR_NO_SPACE, "image/ram/ram.img: no space left");
    assert_int_equal(left, -1);
}

static void disk_full_tmpfs_one_line_and_nothing_left(void **state) {
    disk_full(state, NULL);
}

static void disk_full_ext4_one_line_and_nothing_left(void **state) {
    g_autofree char *medium = fix_path(state, "medium");
    disk_full(state, medium);
}

static void file_too_long_for_the_file_system_is_not_supported(void **state) {
    GError *error = NULL;
    struct rlimit old, limit;
    g_autofree char *dir = fix_path(state, "image");
    g_autoptr(SnapImageWriter) writer = snap_image_writer_new(dir, "test", FIX_PAGE, 3, &error);
    getrlimit(RLIMIT_FSIZE, &old);
    limit = old;
    limit.rlim_cur = 4096;
    setrlimit(RLIMIT_FSIZE, &limit);
    gboolean good = fix_put_all(writer, &error);
    setrlimit(RLIMIT_FSIZE, &old);
    assert_false(good);
    expect_error(&error, SNAP_ERROR_NOT_SUPPORTED, "pc.ram.img");
}

int main(void) {
    signal(SIGXFSZ, SIG_IGN);
    const struct CMUnitTest tests[] = {
        FIX_TEST(commit_every_page_is_at_its_own_offset),
        FIX_TEST(commit_files_are_for_the_owner_only),
        FIX_TEST(counts_are_of_pages_and_bytes),
        FIX_TEST(zero_pages_take_no_room),
        FIX_TEST(chunks_in_any_order_give_the_same_image),
        FIX_TEST(regions_by_the_hundred_need_few_descriptors),
        FIX_TEST(pages_of_different_sizes_share_the_buffers),
        FIX_TEST(image_without_regions_or_chunks_is_complete),
        FIX_TEST(get_all_buffers_out_returns_none_and_no_error),
        FIX_TEST(put_nothing_to_store_frees_the_buffer_at_once),
        FIX_TEST(new_where_something_is_exists),
        FIX_TEST(new_second_writer_exists_and_first_goes_on),
        FIX_TEST(new_where_it_cannot_be_made_says_why),
        FIX_TEST(add_region_nonsense_is_refused),
        FIX_TEST(add_state_twice_or_unnamed_is_refused),
        FIX_TEST(free_without_commit_removes_everything),
        FIX_TEST(free_in_a_directory_that_was_there_leaves_it),
        FIX_TEST(killed_before_the_commit_is_incomplete),
        FIX_TEST(disk_full_tmpfs_one_line_and_nothing_left),
        FIX_TEST(disk_full_ext4_one_line_and_nothing_left),
        FIX_TEST(file_too_long_for_the_file_system_is_not_supported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
