/* File names and whole-file checksums. */
#include "hash.h"
#include "image-file.h"
#include "image-fixture.h"

static void base_name_plain_stays_odd_is_encoded(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"pc.ram", "pc.ram"},
        {"0000:00:02.0/vga.vram", "0000:00:02.0%2Fvga.vram"},
        {"/rom@etc/acpi/tables", "%2From@etc%2Facpi%2Ftables"},
        {"..", "%2E."},
        {".hidden", "%2Ehidden"},
        {"a+b-c_d:e@f", "a+b-c_d:e@f"},
        {"100%", "100%25"},
        {"~", "%7E"},
        {"[heap] é\n", "%5Bheap%5D%20%C3%A9%0A"},
    };
    for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *base = snap_file_base_name(cases[i][0]);
        assert_string_equal(base, cases[i][1]);
        assert_true(snap_file_base_name_ok(base));
    }
}

static void base_name_long_ones_stay_different(void **state) {
    (void)state;
    g_autofree char *long_a = g_strnfill(4000, '/'), *long_b = g_strnfill(4001, '/');
    g_autofree char *exact = g_strnfill(200, 'x'), *over = g_strnfill(201, 'x');
    g_autofree char *a = snap_file_base_name(long_a), *b = snap_file_base_name(long_b);
    g_autofree char *c = snap_file_base_name(exact), *d = snap_file_base_name(over);
    assert_string_not_equal(a, b);
    assert_int_equal(strlen(a), 200);
    assert_string_equal(c, exact);
    assert_int_equal(strlen(d), 200);
    assert_true(snap_file_base_name_ok(a) && snap_file_base_name_ok(d));
}

static void base_name_ok_refuses_what_leads_elsewhere(void **state) {
    (void)state;
    g_autofree char *over = g_strnfill(201, 'x');
    const char *const cases[] = {"", ".", "..", ".a", "a/b", "/", "a b", "a\n", "\xc3\xa9", over};
    for (guint i = 0; i < G_N_ELEMENTS(cases); i++)
        assert_false(snap_file_base_name_ok(cases[i]));
}

static void hash_holes_count_as_zeros(void **state) {
    g_autofree char *path = fix_path(state, "sparse");
    const size_t length = 3 * 1024 * 1024 + 17;
    g_autofree uint8_t *whole = g_malloc0(length);
    uint64_t xxh3 = 0, bytes = 0;
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_int_equal(ftruncate(fd, (off_t)length), 0);
    assert_int_equal(snap_file_hash(fd, &xxh3, &bytes), 0);
    assert_true(xxh3 == XXH3_64bits(whole, length));
    memset(whole + 1024 * 1024, 0xA5, 300000);
    assert_int_equal(snap_file_write(fd, whole + 1024 * 1024, 300000, 1024 * 1024), 0);
    assert_int_equal(snap_file_hash(fd, &xxh3, &bytes), 0);
    assert_true(xxh3 == XXH3_64bits(whole, length));
    assert_true(bytes == length);
    close(fd);
}

static void read_beyond_the_end_is_no_data(void **state) {
    g_autofree char *path = fix_path(state, "short");
    char byte = 'x';
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_int_equal(snap_file_write(fd, "abc", 3, 0), 0);
    assert_int_equal(snap_file_read(fd, &byte, 1, 2), 0);
    assert_int_equal(byte, 'c');
    assert_int_equal(snap_file_read(fd, &byte, 1, 3), -ENODATA);
    close(fd);
    assert_int_equal(snap_file_read(fd, &byte, 1, 0), -EBADF);
    assert_int_equal(snap_file_write(fd, &byte, 1, 0), -EBADF);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(base_name_plain_stays_odd_is_encoded),
        cmocka_unit_test(base_name_long_ones_stay_different),
        cmocka_unit_test(base_name_ok_refuses_what_leads_elsewhere),
        FIX_TEST(hash_holes_count_as_zeros),
        FIX_TEST(read_beyond_the_end_is_no_data),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
