/*
 * qapi/validate.c: each kind of type with what it takes and what it does not. That the complaints are QEMU's is
 * tests/qmp/validate-qemu.py's business; here are kinds that no command of QEMU has, too.
 */
#include "qapi/validate.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "libsnap.h"
#include "test-schema-handlers.h"

/* What is said to @json as the arguments of test-kinds, or of @command. NULL complaint: it is valid. */
typedef struct {
    const char *json;
    const char *complaint;
} Case;

static void check_one(const char *command, const char *name, const Case *one) {
    g_autoptr(json_object) value = json_tokener_parse(one->json);
    g_autoptr(GError) error = NULL;
    gboolean valid = qapi_validate(qapi_find_command(&test_qapi_schema, command)->arguments, value, name, &error);
    if (g_strcmp0(error ? error->message : NULL, one->complaint) != 0)
        fail_msg("%s: \"%s\", should be \"%s\"", one->json, error ? error->message : "valid",
                 one->complaint ? one->complaint : "valid");
    assert_int_equal(valid, error == NULL);
    assert_true(!error || g_error_matches(error, SNAP_ERROR, SNAP_ERROR_FAILED));
}

static void check_table(const char *command, const Case *table, size_t n) {
    for (size_t i = 0; i < n; i++)
        check_one(command, NULL, &table[i]);
}

static void integer_out_of_its_range_is_refused(void **state) {
    (void)state;
    static const Case table[] = {
        {"{\"numbers\":{\"i8\":127}}", NULL},
        {"{\"numbers\":{\"i8\":128}}", "Parameter 'i8' expects int8_t"},
        {"{\"numbers\":{\"i8\":-128}}", NULL},
        {"{\"numbers\":{\"i8\":-129}}", "Parameter 'i8' expects int8_t"},
        {"{\"numbers\":{\"i16\":32767}}", NULL},
        {"{\"numbers\":{\"i16\":-32769}}", "Parameter 'i16' expects int16_t"},
        {"{\"numbers\":{\"i32\":-2147483648}}", NULL},
        {"{\"numbers\":{\"i32\":2147483648}}", "Parameter 'i32' expects int32_t"},
        {"{\"numbers\":{\"i64\":-9223372036854775808}}", NULL},
        {"{\"numbers\":{\"i64\":9223372036854775807,\"i\":9223372036854775807}}", NULL},
        {"{\"numbers\":{\"i64\":9223372036854775808}}",
         "Invalid parameter type for 'numbers.i64', expected: integer"},
        {"{\"numbers\":{\"i\":9223372036854775808}}", "Invalid parameter type for 'numbers.i', expected: integer"},
        {"{\"numbers\":{\"u8\":255}}", NULL},
        {"{\"numbers\":{\"u8\":256}}", "Parameter 'u8' expects uint8_t"},
        {"{\"numbers\":{\"u8\":-1}}", "Parameter 'u8' expects uint8_t"},
        {"{\"numbers\":{\"u16\":65535}}", NULL},
        {"{\"numbers\":{\"u16\":65536}}", "Parameter 'u16' expects uint16_t"},
        {"{\"numbers\":{\"u32\":4294967295}}", NULL},
        {"{\"numbers\":{\"u32\":4294967296}}", "Parameter 'u32' expects uint32_t"},
        {"{\"numbers\":{\"u64\":18446744073709551615,\"size\":18446744073709551615}}", NULL},
        {"{\"numbers\":{\"u64\":-1,\"size\":-1}}", NULL},
        {"{\"numbers\":{\"u64\":1e3}}", "Parameter 'numbers.u64' expects uint64"},
        {"{\"numbers\":{\"size\":\"1\"}}", "Parameter 'numbers.size' expects uint64"},
        {"{\"numbers\":{\"u8\":null}}", "Parameter 'numbers.u8' expects uint64"},
        {"{\"numbers\":{\"i8\":true}}", "Invalid parameter type for 'numbers.i8', expected: integer"},
        {"{\"numbers\":{\"i8\":1.5}}", "Invalid parameter type for 'numbers.i8', expected: integer"},
        {"{\"sizes\":[1,-1,1.0]}", "Parameter 'sizes[2]' expects uint64"},
        {"{\"matrix\":[{\"cells\":[]},{\"cells\":[0,128]}]}", "Parameter 'null' expects int8_t"},
    };
    check_table("test-kinds", table, G_N_ELEMENTS(table));
}

static void number_is_an_integer_or_not(void **state) {
    (void)state;
    static const Case table[] = {
        {"{\"numbers\":{\"number\":1}}", NULL},
        {"{\"numbers\":{\"number\":1e300}}", NULL},
        {"{\"numbers\":{\"number\":18446744073709551615}}", NULL},
        {"{\"numbers\":{\"number\":\"1\"}}", "Invalid parameter type for 'numbers.number', expected: number"},
        {"{\"numbers\":{\"number\":null}}", "Invalid parameter type for 'numbers.number', expected: number"},
    };
    check_table("test-kinds", table, G_N_ELEMENTS(table));
}

static void null_is_a_value_of_its_own(void **state) {
    (void)state;
    static const Case table[] = {
        {"{\"tree\":{\"null\":null}}", NULL},
        {"{\"tree\":{\"null\":0}}", "Invalid parameter type for 'tree.null', expected: null"},
        {"{\"tree\":null}", "Invalid parameter type for 'tree', expected: object"},
        {"{\"there\":null}", "Invalid parameter type for 'there', expected: boolean"},
        {"null", "Invalid parameter type for '<anonymous>', expected: object"},
    };
    check_table("test-kinds", table, G_N_ELEMENTS(table));
}

static void name_is_the_whole_way(void **state) {
    (void)state;
    static const Case table[] = {
        {"{\"tree\":{\"children\":[{},{\"children\":[{\"children\":[]},{\"x\":1}]}]}}",
         "Parameter 'tree.children[1].children[1].x' is unexpected"},
        {"{\"tree\":{\"children\":[{},[]]}}", "Invalid parameter type for 'tree.children[1]', expected: object"},
        {"{\"matrix\":[{}]}", "Parameter 'matrix[0].cells' is missing"},
        {"{\"\":1}", "Parameter '' is unexpected"},
        {"{\"tree\":{\"\":1}}", "Parameter 'tree.' is unexpected"},
    };
    check_table("test-kinds", table, G_N_ELEMENTS(table));
}

static void name_given_is_where_the_way_begins(void **state) {
    (void)state;
    static const Case table[] = {
        {"[]", "Invalid parameter type for 'return', expected: object"},
        {"{\"x\":1}", "Parameter 'return.x' is unexpected"},
        {"{\"sizes\":[1,\"\"]}", "Parameter 'return.sizes[1]' expects uint64"},
    };
    for (guint i = 0; i < G_N_ELEMENTS(table); i++)
        check_one("test-kinds", "return", &table[i]);
}

static void value_is_not_of_the_type_itself(void **state) {
    (void)state;
    const QapiType *type = qapi_find_command(&test_qapi_schema, "test-kinds")->returns;
    g_autoptr(json_object) value = json_tokener_parse("[1, true, \"red\", \"grey\"]");
    g_autoptr(GError) error = NULL;
    assert_false(qapi_validate(type, value, NULL, &error));
    assert_string_equal(error->message, "Parameter 'null' does not accept value 'grey'");
    g_clear_error(&error);
    assert_false(qapi_validate(type->element, json_object_array_get_idx(value, 3), "x", &error));
    assert_string_equal(error->message, "Parameter 'x' does not accept value 'grey'");
}

static void alternate_takes_what_one_of_it_takes(void **state) {
    (void)state;
    static const Case table[] = {
        {"{\"either\":[1,true,\"red\",[1,2],{\"null\":null},null]}", NULL},
        {"{\"either\":[65536]}", "Parameter 'null' expects uint16_t"},
        {"{\"either\":[0,1.5]}", "Parameter 'either[1]' expects uint64"},
        {"{\"either\":[\"infrared\"]}", "Parameter 'null' does not accept value 'infrared'"},
        {"{\"either\":[[1,\"2\"]]}", "Invalid parameter type for 'either[0][1]', expected: integer"},
        {"{\"either\":[0,{\"leaf\":1}]}", "Parameter 'either[1].leaf' is unexpected"},
    };
    check_table("test-kinds", table, G_N_ELEMENTS(table));
    static const Case other[] = {
        {"{\"tls-creds\":1}", "Invalid parameter type for 'tls-creds', expected: StrOrNull"},
        {"{\"tls-creds\":true}", "Invalid parameter type for 'tls-creds', expected: StrOrNull"},
        {"{\"tls-creds\":{}}", "Invalid parameter type for 'tls-creds', expected: StrOrNull"},
    };
    check_table("migrate-set-parameters", other, G_N_ELEMENTS(other));
}

static void union_has_the_members_of_its_tag(void **state) {
    (void)state;
    static const Case table[] = {
        {"{\"colour\":\"red\"}", NULL},
        {"{\"colour\":\"green\",\"name\":\"grass\"}", NULL},
        {"{\"colour\":\"blue\",\"young\":true,\"old\":[null]}", NULL},
        {"{\"name\":\"grass\"}", "Parameter 'colour' is missing"},
        {"{\"colour\":\"grey\",\"young\":true}", "Parameter 'colour' does not accept value 'grey'"},
        {"{\"colour\":1}", "Invalid parameter type for 'colour', expected: string"},
        {"{\"colour\":\"blue\",\"young\":1}", "Parameter 'old' is missing"},
        {"{\"colour\":\"blue\",\"old\":1,\"young\":1}", "Invalid parameter type for 'young', expected: boolean"},
        {"{\"colour\":\"green\",\"young\":true}", "Parameter 'young' is unexpected"},
        {"{\"colour\":\"red\",\"young\":true}", "Parameter 'young' is unexpected"},
        {"{\"colour\":\"blue\",\"young\":true,\"old\":1,\"mine\":\"\"}", "Parameter 'mine' is unexpected"},
    };
    check_table("test-boxed", table, G_N_ELEMENTS(table));
}

static void member_is_looked_at_in_the_order_of_the_schema(void **state) {
    (void)state;
    static const Case table[] = {
        {"{\"x\":1,\"mine\":1,\"young\":1}", "Parameter 'grandchild.old' is missing"},
        {"{\"x\":1,\"mine\":1,\"young\":1,\"old\":1}",
         "Invalid parameter type for 'grandchild.young', expected: boolean"},
        {"{\"x\":1,\"mine\":1,\"young\":true,\"old\":1}",
         "Invalid parameter type for 'grandchild.mine', expected: string"},
        {"{\"x\":1,\"mine\":\"\",\"young\":true,\"old\":1}", "Parameter 'grandchild.x' is unexpected"},
    };
    for (guint i = 0; i < G_N_ELEMENTS(table); i++) {
        g_autofree char *json = g_strdup_printf("{\"grandchild\":%s}", table[i].json);
        Case one = {json, table[i].complaint};
        check_one("test-kinds", NULL, &one);
    }
}

static void nothing_is_refused_where_there_are_no_arguments(void **state) {
    (void)state;
    static const Case table[] = {{"{}", NULL}, {"{\"x\":null}", "Parameter 'x' is unexpected"}};
    check_table("test_oob", table, G_N_ELEMENTS(table));
}

static void negative_number_is_what_c_makes_of_it(void **state) {
    (void)state;
    static const struct {
        const char *json;
        uint64_t number;
    } table[] = {{"0", 0},
                 {"-1", UINT64_MAX},
                 {"-9223372036854775808", (uint64_t)1 << 63},
                 {"9223372036854775807", INT64_MAX},
                 {"18446744073709551615", UINT64_MAX}};
    for (guint i = 0; i < G_N_ELEMENTS(table); i++) {
        g_autoptr(json_object) value = json_tokener_parse(table[i].json);
        assert_true(qapi_json_get_uint(value) == table[i].number);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(integer_out_of_its_range_is_refused),
        cmocka_unit_test(number_is_an_integer_or_not),
        cmocka_unit_test(null_is_a_value_of_its_own),
        cmocka_unit_test(name_is_the_whole_way),
        cmocka_unit_test(name_given_is_where_the_way_begins),
        cmocka_unit_test(value_is_not_of_the_type_itself),
        cmocka_unit_test(alternate_takes_what_one_of_it_takes),
        cmocka_unit_test(union_has_the_members_of_its_tag),
        cmocka_unit_test(member_is_looked_at_in_the_order_of_the_schema),
        cmocka_unit_test(nothing_is_refused_where_there_are_no_arguments),
        cmocka_unit_test(negative_number_is_what_c_makes_of_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
