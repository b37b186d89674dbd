/* tools/units.c: sizes and numbers as people write and read them. */
#include "tools/units.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static void parse_size_valid_text_gives_bytes(void **state) {
    (void)state;
    static const struct {
        const char *text;
        uint64_t bytes;
    } cases[] = {
        {"0", 0},
        {"65536", 65536},
        {"64K", 65536},
        {"64k", 65536},
        {"1M", 1 << 20},
        {"3G", UINT64_C(3) << 30},
        {"2t", UINT64_C(2) << 40},
        {"0x10", 16},
        {"0X1f", 31},
        {"010", 10}, /* no octal */
        {"18446744073709551615", UINT64_MAX},
        {"16777215T", UINT64_C(16777215) << 40},
    };
    for (gsize i = 0; i < G_N_ELEMENTS(cases); i++) {
        uint64_t bytes = 1;
        assert_true(units_parse_size(cases[i].text, &bytes));
        assert_int_equal(bytes, cases[i].bytes);
    }
}

static void parse_size_other_text_is_refused(void **state) {
    (void)state;
    static const char *const cases[] = {
        "",     " ",   "K",   "-1",  "+1",     " 1",   "1 ",        "1 K",       "1KB",
        "1KiB", "1.5", "1e3", "0x",  "0xg",    "0x-1", "1X",        "64M\n",     "18446744073709551616",
        "nan",  "M1",  "1MM", "1\t", "0x 123", "0x+1", "99999999T", "16777216T",
    };
    for (gsize i = 0; i < G_N_ELEMENTS(cases); i++) {
        uint64_t bytes = 77;
        assert_false(units_parse_size(cases[i], &bytes));
        assert_int_equal(bytes, 77);
    }
}

static void parse_number_suffix_is_refused(void **state) {
    (void)state;
    uint64_t number = 77;
    assert_false(units_parse_number("1K", &number));
    assert_false(units_parse_number("", &number));
    assert_int_equal(number, 77);
    assert_true(units_parse_number("0x7fffdeadb000", &number));
    assert_int_equal(number, UINT64_C(0x7fffdeadb000));
}

static void format_size_has_at_most_four_digits(void **state) {
    (void)state;
    static const struct {
        uint64_t bytes;
        const char *text;
    } cases[] = {
        {0, "0 bytes"},
        {1023, "1023 bytes"},
        {1024, "1.00 KiB"},
        {1536, "1.50 KiB"},
        {100 * 1024, "100 KiB"},
        {1 << 20, "1.00 MiB"},
        {UINT64_C(45) << 30, "45.0 GiB"},
        {UINT64_MAX, "16.0 EiB"},
    };
    for (gsize i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *text = units_format_size(cases[i].bytes);
        assert_string_equal(text, cases[i].text);
    }
}

static void format_us_chooses_the_unit(void **state) {
    (void)state;
    static const struct {
        double us;
        const char *text;
    } cases[] = {{0, "0 µs"}, {5.1, "5.10 µs"}, {812, "812 µs"}, {1234, "1.23 ms"}, {2.5e6, "2.50 s"}};
    for (gsize i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *text = units_format_us(cases[i].us);
        assert_string_equal(text, cases[i].text);
    }
}

static void format_text_takes_control_characters_away(void **state) {
    (void)state;
    g_autofree char *text = units_format_text("a\033[2Jb\nc\x7f"
                                              "d\xc3\xa9");
    assert_string_equal(text, "a?[2Jb?c?d\xc3\xa9");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parse_size_valid_text_gives_bytes),
        cmocka_unit_test(parse_size_other_text_is_refused),
        cmocka_unit_test(parse_number_suffix_is_refused),
        cmocka_unit_test(format_size_has_at_most_four_digits),
        cmocka_unit_test(format_us_chooses_the_unit),
        cmocka_unit_test(format_text_takes_control_characters_away),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
