/* Parsing /proc/PID/maps and smaps. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/sysmacros.h>

#include <cmocka.h>

#include "libsnap.h"
#include "maps.h"

static ProcMaps *parse(const char *text) {
    g_autoptr(GError) error = NULL;
    ProcMaps *maps = maps_parse(text, strlen(text), &error);
    assert_non_null(maps);
    return maps;
}

static const struct {
    const char *line;
    ProcMap expected;
} lines[] = {
    {"55d0c0a00000-55d0c0a21000 rw-p 00000000 00:00 0                          [heap]\n",
     {0x55d0c0a00000, 0x55d0c0a21000, 0, 0, 0, "[heap]", TRUE, TRUE, FALSE, FALSE, FALSE}},
    {"7f0000000000-7f0000001000 ---p 00000000 00:00 0 \n",
     {0x7f0000000000, 0x7f0000001000, 0, 0, 0, "", FALSE, FALSE, FALSE, FALSE, FALSE}},
    {"7f0000000000-7f0000001000 rw-s 00002000 00:01 1028                       /memfd:pc.ram (deleted)\n",
     {0x7f0000000000, 0x7f0000001000, 0x2000, 1, 1028, "/memfd:pc.ram", TRUE, TRUE, FALSE, TRUE, TRUE}},
    {"7f0000000000-7f0000001000 r-xp 00028000 fe:0a 18446744073709551615       /usr/lib/a b  c.so\n",
     {0x7f0000000000, 0x7f0000001000, 0x28000, 0xfe0a, UINT64_MAX, "/usr/lib/a b  c.so", TRUE, FALSE, TRUE, FALSE,
      FALSE}},
    {"ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n",
     {0xffffffffff600000, 0xffffffffff601000, 0, 0, 0, "[vsyscall]", FALSE, FALSE, TRUE, FALSE, FALSE}},
    {"1000-2000 r--p 00000000 00:2a 7                                          /tmp/two\\012lines (deleted)\n",
     {0x1000, 0x2000, 0, 0x2a, 7, "/tmp/two\nlines", TRUE, FALSE, FALSE, FALSE, TRUE}},
    {"1000-2000 r--p 00000000 00:2a 7                                          /tmp/ (deleted)",
     {0x1000, 0x2000, 0, 0x2a, 7, "/tmp/", TRUE, FALSE, FALSE, FALSE, TRUE}},
};

static void line_of_each_kind_is_understood(void **state) {
    (void)state;
    for (size_t i = 0; i < G_N_ELEMENTS(lines); i++) {
        g_autoptr(ProcMaps) maps = parse(lines[i].line);
        const ProcMap *want = &lines[i].expected, *got = &maps->entries[0];
        assert_int_equal(maps->n_entries, 1);
        assert_true(got->start == want->start && got->end == want->end && got->offset == want->offset);
        assert_true(got->ino == want->ino);
        assert_true(got->dev == makedev((unsigned)want->dev >> 8, (unsigned)want->dev & 0xff));
        assert_string_equal(got->path, want->path);
        assert_int_equal(got->readable, want->readable);
        assert_int_equal(got->writable, want->writable);
        assert_int_equal(got->executable, want->executable);
        assert_int_equal(got->shared, want->shared);
        assert_int_equal(got->deleted, want->deleted);
    }
}

static void line_not_understood_fails_with_its_text(void **state) {
    (void)state;
    static const char *const bad[] = {
        "hello\n",
        "1000-2000 rw-p 0000000 00:00\n",
        "2000-1000 rw-p 00000000 00:00 0 \n",
        "1000-2000 rw 00000000 00:00 0 \n",
        "1000 2000 rw-p 00000000 00:00 0 \n",
        "-2000 rw-p 00000000 00:00 0 \n",
        "1000-2000 rw-p 00000000 0000 0 \n",
    };
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GError) error = NULL;
        g_autofree char *text = g_strconcat(lines[0].line, bad[i], NULL);
        assert_null(maps_parse(text, strlen(text), &error));
        assert_true(g_error_matches(error, SNAP_ERROR, SNAP_ERROR_PROTOCOL));
        g_autofree char *line = g_strndup(bad[i], strlen(bad[i]) - 1);
        assert_non_null(strstr(error->message, line));
    }
}

static void empty_text_has_no_mappings(void **state) {
    (void)state;
    g_autoptr(ProcMaps) maps = parse("");
    assert_int_equal(maps->n_entries, 0);
    assert_null(maps_find(maps, 0));
}

static void address_in_mapping_is_found(void **state) {
    (void)state;
    g_autoptr(ProcMaps) maps = parse("1000-2000 rw-p 00000000 00:00 0 \n"
                                     "2000-3000 r--p 00000000 00:00 0 \n"
                                     "8000-9000 rw-p 00000000 00:00 0 \n");
    static const struct {
        uint64_t address;
        int index; /* -1: none */
    } cases[] = {{0xfff, -1},  {0x1000, 0},  {0x1fff, 0}, {0x2000, 1}, {0x2fff, 1},
                 {0x3000, -1}, {0x7fff, -1}, {0x8000, 2}, {0x8fff, 2}, {0x9000, -1}};
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        const ProcMap *expected = cases[i].index < 0 ? NULL : &maps->entries[cases[i].index];
        assert_ptr_equal(maps_find(maps, cases[i].address), expected);
    }
}

static const char smaps[] = "1000-2000 rw-p 00000000 00:00 0                          [heap]\n"
                            "Size:                  4 kB\n"
                            "KernelPageSize:        4 kB\n"
                            "THPeligible:           0\n"
                            "VmFlags: rd wr mr mw me ac uw sd \n"
                            "8000-9000 rw-p 00000000 00:00 0 \n"
                            "Private_Hugetlb:       0 kB\n"
                            "VmFlags: rd wr mr mw me ac sd \n";

static void smaps_attributes_are_no_mappings(void **state) {
    (void)state;
    g_autoptr(ProcMaps) maps = parse(smaps);
    assert_int_equal(maps->n_entries, 2);
}

static void vm_flags_tell_who_is_watched(void **state) {
    (void)state;
    g_autoptr(GArray) flags = maps_parse_vm_flags(smaps, strlen(smaps));
    assert_int_equal(flags->len, 2);
    const ProcVmFlags *first = &g_array_index(flags, ProcVmFlags, 0);
    const ProcVmFlags *second = &g_array_index(flags, ProcVmFlags, 1);
    assert_true(first->userfault && first->start == 0x1000 && first->end == 0x2000);
    assert_false(second->userfault);
}

static void own_maps_are_understood(void **state) {
    (void)state;
    g_autofree char *text = NULL;
    gsize length = 0;
    assert_true(g_file_get_contents("/proc/self/maps", &text, &length, NULL));
    g_autoptr(ProcMaps) maps = parse(text);
    const ProcMap *here = maps_find(maps, (uintptr_t)&own_maps_are_understood);
    const ProcMap *stack = maps_find(maps, (uintptr_t)&length);
    assert_true(here && here->executable && !here->writable);
    assert_true(stack && strcmp(stack->path, "[stack]") == 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(line_of_each_kind_is_understood),
        cmocka_unit_test(line_not_understood_fails_with_its_text),
        cmocka_unit_test(empty_text_has_no_mappings),
        cmocka_unit_test(address_in_mapping_is_found),
        cmocka_unit_test(smaps_attributes_are_no_mappings),
        cmocka_unit_test(vm_flags_tell_who_is_watched),
        cmocka_unit_test(own_maps_are_understood),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
