/* qapi/introspect.c: the shapes are those of QEMU 7.2's query-qmp-schema, as its clients read them. */
#include "qapi/introspect.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "test-schema-handlers.h"

static json_object *entities;

static int introspect(void **state) {
    (void)state;
    entities = qapi_introspect(&test_qapi_schema);
    return 0;
}

static int forget(void **state) {
    (void)state;
    return json_object_put(entities) == 1 ? 0 : -1;
}

static const char *get(json_object *object, const char *key) {
    return json_object_get_string(json_object_object_get(object, key));
}

/* The entity of that name; it is there once. */
static json_object *entity(const char *name) {
    json_object *found = NULL;
    for (size_t i = 0; i < json_object_array_length(entities); i++) {
        json_object *each = json_object_array_get_idx(entities, i);
        if (!g_str_equal(get(each, "name"), name))
            continue;
        assert_null(found);
        found = each;
    }
    if (!found)
        fail_msg("there is no \"%s\"", name);
    return found;
}

/* The type of a member of the type called @type. Return: (borrow) its entity. */
static json_object *member(json_object *object, const char *name) {
    json_object *members = json_object_object_get(object, "members");
    for (size_t i = 0; i < json_object_array_length(members); i++)
        if (g_str_equal(get(json_object_array_get_idx(members, i), "name"), name))
            return json_object_array_get_idx(members, i);
    fail_msg("there is no member \"%s\"", name);
    return NULL;
}

static json_object *argument_type(const char *command, const char *name) {
    return entity(get(member(entity(get(entity(command), "arg-type")), name), "type"));
}

/* @wanted: JSON, with N for each name that is a number. */
static void assert_shape(json_object *object, const char *wanted) {
    g_autoptr(GRegex) number = g_regex_new("\"\\d+\"|(?<=\\[)\\d+(?=\\])", 0, 0, NULL);
    const char *text = json_object_to_json_string_ext(object, JSON_C_TO_STRING_PLAIN);
    g_autofree char *masked = g_regex_replace_literal(number, text, -1, 0, "N", 0, NULL);
    assert_string_equal(masked, wanted);
}

static void command_is_told_with_its_types(void **state) {
    (void)state;
    assert_shape(entity("send-key"),
                 "{\"name\":\"send-key\",\"meta-type\":\"command\",\"arg-type\":N,\"ret-type\":N}");
    assert_shape(entity("test_oob"), "{\"name\":\"test_oob\",\"meta-type\":\"command\",\"arg-type\":N,"
                                     "\"ret-type\":N,\"allow-oob\":true}");
    assert_shape(entity("test-kinds"), "{\"name\":\"test-kinds\",\"meta-type\":\"command\","
                                       "\"features\":[\"unstable\"],\"arg-type\":N,\"ret-type\":\"[N]\"}");
    assert_shape(entity("human-monitor-command"), "{\"name\":\"human-monitor-command\",\"meta-type\":\"command\","
                                                  "\"arg-type\":N,\"ret-type\":\"str\"}");
}

static void event_is_told_with_its_data(void **state) {
    (void)state;
    assert_shape(entity("TEST_DATA"), "{\"name\":\"TEST_DATA\",\"meta-type\":\"event\","
                                      "\"features\":[\"deprecated\"],\"arg-type\":N}");
    assert_shape(entity("TEST_PLAIN"), "{\"name\":\"TEST_PLAIN\",\"meta-type\":\"event\",\"arg-type\":N}");
    assert_string_equal(get(entity("TEST_PLAIN"), "arg-type"), get(entity("test_oob"), "ret-type"));
}

static void empty_object_is_told_once(void **state) {
    (void)state;
    assert_shape(entity(get(entity("test_oob"), "arg-type")),
                 "{\"name\":N,\"meta-type\":\"object\",\"members\":[]}");
}

static void object_is_told_with_defaults_and_features(void **state) {
    (void)state;
    assert_shape(argument_type("test-kinds", "tree"),
                 "{\"name\":N,\"meta-type\":\"object\",\"features\":[\"leafy\"],\"members\":["
                 "{\"name\":\"children\",\"type\":\"[N]\",\"default\":null},"
                 "{\"name\":\"null\",\"type\":\"null\",\"default\":null,\"features\":[\"deprecated\"]}]}");
}

static void union_is_told_with_all_its_cases(void **state) {
    (void)state;
    json_object *painted = argument_type("test-kinds", "painted");
    assert_shape(painted,
                 "{\"name\":N,\"meta-type\":\"object\",\"members\":["
                 "{\"name\":\"colour\",\"type\":N},{\"name\":\"name\",\"type\":\"str\",\"default\":null}],"
                 "\"tag\":\"colour\",\"variants\":[{\"case\":\"blue\",\"type\":N},"
                 "{\"case\":\"green\",\"type\":N},{\"case\":\"red\",\"type\":N},"
                 "{\"case\":\"ultraviolet\",\"type\":N}]}");
    json_object *variants = json_object_object_get(painted, "variants");
    const char *blue = get(json_object_array_get_idx(variants, 0), "type");
    assert_shape(entity(blue), "{\"name\":N,\"meta-type\":\"object\",\"members\":["
                               "{\"name\":\"old\",\"type\":\"any\"},{\"name\":\"young\",\"type\":\"bool\"}]}");
    const char *red = get(json_object_array_get_idx(variants, 2), "type");
    assert_shape(entity(red), "{\"name\":N,\"meta-type\":\"object\",\"members\":[]}");
    assert_string_equal(get(entity("test-boxed"), "arg-type"), get(painted, "name"));
}

static void enum_is_told_in_both_ways(void **state) {
    (void)state;
    json_object *painted = argument_type("test-kinds", "painted");
    assert_shape(entity(get(member(painted, "colour"), "type")),
                 "{\"name\":N,\"meta-type\":\"enum\",\"members\":[{\"name\":\"red\"},{\"name\":\"green\"},"
                 "{\"name\":\"blue\",\"features\":[\"unstable\"]},{\"name\":\"ultraviolet\"}],"
                 "\"values\":[\"red\",\"green\",\"blue\",\"ultraviolet\"]}");
}

static void alternate_is_told_without_names(void **state) {
    (void)state;
    json_object *list = argument_type("test-kinds", "either");
    assert_shape(list, "{\"name\":\"[N]\",\"meta-type\":\"array\",\"element-type\":N}");
    assert_shape(entity(get(list, "element-type")),
                 "{\"name\":N,\"meta-type\":\"alternate\",\"members\":[{\"type\":\"int\"},{\"type\":\"bool\"},"
                 "{\"type\":N},{\"type\":\"[int]\"},{\"type\":N},{\"type\":\"null\"}]}");
}

static void integer_of_any_size_is_int(void **state) {
    (void)state;
    json_object *numbers = json_object_object_get(argument_type("test-kinds", "numbers"), "members");
    for (size_t i = 0; i + 1 < json_object_array_length(numbers); i++)
        assert_string_equal(get(json_object_array_get_idx(numbers, i), "type"), "int");
    assert_shape(argument_type("test-kinds", "sizes"),
                 "{\"name\":\"[int]\",\"meta-type\":\"array\",\"element-type\":\"int\"}");
}

static void builtin_type_keeps_its_name(void **state) {
    (void)state;
    static const char *const types[][2] = {{"str", "string"},   {"int", "int"},   {"number", "number"},
                                           {"bool", "boolean"}, {"null", "null"}, {"any", "value"}};
    guint n = 0;
    for (size_t i = 0; i < json_object_array_length(entities); i++)
        n += g_str_equal(get(json_object_array_get_idx(entities, i), "meta-type"), "builtin");
    assert_int_equal(n, G_N_ELEMENTS(types));
    for (guint i = 0; i < G_N_ELEMENTS(types); i++)
        assert_string_equal(get(entity(types[i][0]), "json-type"), types[i][1]);
}

/* What stands for a type, wherever it is. */
static void check_names(json_object *value, guint *n) {
    if (json_object_is_type(value, json_type_array)) {
        for (size_t i = 0; i < json_object_array_length(value); i++)
            check_names(json_object_array_get_idx(value, i), n);
    } else if (json_object_is_type(value, json_type_object)) {
        json_object_object_foreach(value, key, part) {
            if (g_str_has_suffix(key, "type") && !g_str_equal(key, "meta-type") &&
                !g_str_equal(key, "json-type")) {
                entity(json_object_get_string(part));
                ++*n;
            }
            check_names(part, n);
        }
    }
}

static void type_each_named_is_told_once(void **state) {
    (void)state;
    guint n = 0;
    check_names(entities, &n);
    assert_in_range(n, 100, 1000);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(command_is_told_with_its_types),
        cmocka_unit_test(event_is_told_with_its_data),
        cmocka_unit_test(empty_object_is_told_once),
        cmocka_unit_test(object_is_told_with_defaults_and_features),
        cmocka_unit_test(union_is_told_with_all_its_cases),
        cmocka_unit_test(enum_is_told_in_both_ways),
        cmocka_unit_test(alternate_is_told_without_names),
        cmocka_unit_test(integer_of_any_size_is_int),
        cmocka_unit_test(builtin_type_keeps_its_name),
        cmocka_unit_test(type_each_named_is_told_once),
    };
    return cmocka_run_group_tests(tests, introspect, forget);
}
