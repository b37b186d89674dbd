/* qapi/schema.c and the tables that gen-schema.py makes of tests/unit/schema. */
#include "qapi/schema.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "test-schema-handlers.h"

static const QapiType *member_type(const QapiType *type, const char *name) {
    for (guint i = 0; i < type->n_members; i++)
        if (g_str_equal(type->members[i].name, name))
            return type->members[i].type;
    return NULL;
}

static const QapiType *argument_type(const char *name) {
    return member_type(qapi_find_command(&test_qapi_schema, "test-kinds")->arguments, name);
}

static void command_each_is_found_by_its_name(void **state) {
    (void)state;
    assert_int_equal(test_qapi_schema.n_commands, 14);
    for (guint i = 0; i < test_qapi_schema.n_commands; i++) {
        const QapiCommand *command = &test_qapi_schema.commands[i];
        assert_ptr_equal(qapi_find_command(&test_qapi_schema, command->name), command);
        assert_true(i == 0 || strcmp(command[-1].name, command->name) < 0);
    }
}

static void command_unknown_is_not_found(void **state) {
    (void)state;
    static const char *const names[] = {"", "a", "test", "test-kinds2", "TEST-KINDS", "zzz", "test-gone"};
    static const QapiSchema empty;
    for (guint i = 0; i < G_N_ELEMENTS(names); i++)
        assert_null(qapi_find_command(&test_qapi_schema, names[i]));
    assert_null(qapi_find_command(&empty, "test-kinds"));
    assert_null(qapi_find_event(&empty, "TEST_PLAIN"));
}

static void event_each_is_found_by_its_name(void **state) {
    (void)state;
    assert_int_equal(test_qapi_schema.n_events, 3);
    for (guint i = 0; i < test_qapi_schema.n_events; i++)
        assert_ptr_equal(qapi_find_event(&test_qapi_schema, test_qapi_schema.events[i].name),
                         &test_qapi_schema.events[i]);
    assert_null(qapi_find_event(&test_qapi_schema, "TEST"));
}

static void command_has_what_the_schema_says(void **state) {
    (void)state;
    const QapiCommand *kinds = qapi_find_command(&test_qapi_schema, "test-kinds");
    assert_ptr_equal(kinds->handler, test_qmp_test_kinds);
    assert_false(kinds->allow_oob);
    assert_false(kinds->no_response);
    assert_string_equal(kinds->features[0], "unstable");
    assert_int_equal(kinds->returns->kind, QAPI_TYPE_ARRAY);
    assert_string_equal(kinds->returns->element->name, "Either");
    const QapiCommand *oob = qapi_find_command(&test_qapi_schema, "test_oob");
    assert_ptr_equal(oob->handler, test_qmp_test_oob);
    assert_true(oob->allow_oob);
    assert_true(oob->no_response);
    assert_null(oob->features);
    assert_int_equal(oob->arguments->kind, QAPI_TYPE_OBJECT);
    assert_int_equal(oob->arguments->n_members, 0);
    assert_ptr_equal(oob->returns, oob->arguments);
    const QapiCommand *boxed = qapi_find_command(&test_qapi_schema, "test-boxed");
    assert_ptr_equal(boxed->arguments, argument_type("painted"));
}

static void condition_decides_what_is_there(void **state) {
    (void)state;
    assert_non_null(argument_type("there"));
    assert_null(argument_type("gone"));
    static const char *const colours[] = {"red", "green", "blue", "ultraviolet", NULL};
    const QapiType *colour = member_type(argument_type("painted"), "colour");
    assert_true(g_strv_equal(colour->values, colours));
    assert_null(argument_type("tree")->features[1]);
}

static void struct_has_the_members_of_its_bases_first(void **state) {
    (void)state;
    static const char *const names[] = {"old", "young", "mine"};
    const QapiType *type = argument_type("grandchild");
    assert_int_equal(type->n_members, G_N_ELEMENTS(names));
    for (guint i = 0; i < G_N_ELEMENTS(names); i++) {
        assert_string_equal(type->members[i].name, names[i]);
        assert_false(type->members[i].optional);
    }
}

static void feature_is_with_what_has_it(void **state) {
    (void)state;
    const QapiType *tree = argument_type("tree"), *colour = member_type(argument_type("painted"), "colour");
    assert_string_equal(tree->features[0], "leafy");
    assert_null(tree->members[0].features);
    assert_string_equal(tree->members[1].features[0], "deprecated");
    assert_null(colour->value_features[1]);
    assert_string_equal(colour->value_features[2][0], "unstable");
    assert_string_equal(qapi_find_event(&test_qapi_schema, "TEST_DATA")->features[0], "deprecated");
}

static void union_has_a_variant_for_each_value(void **state) {
    (void)state;
    static const struct {
        const char *value;
        const char *type;
    } wanted[] = {{"blue", "Child"}, {"green", "Nothing"}, {"red", NULL}, {"ultraviolet", NULL}};
    const QapiType *type = argument_type("painted");
    assert_string_equal(type->tag, "colour");
    assert_int_equal(type->n_variants, G_N_ELEMENTS(wanted));
    for (guint i = 0; i < G_N_ELEMENTS(wanted); i++) {
        const QapiType *variant = type->variants[i].type;
        assert_string_equal(type->variants[i].tag_value, wanted[i].value);
        assert_int_equal(g_strcmp0(variant ? variant->name : NULL, wanted[i].type), 0);
    }
}

static void member_of_any_variant_is_known(void **state) {
    (void)state;
    const QapiType *type = qapi_find_command(&test_qapi_schema, "test-boxed")->arguments;
    assert_true(qapi_type_has_member(type, "colour"));
    assert_true(qapi_type_has_member(type, "young"));
    assert_true(qapi_type_has_member(type, "old"));
    assert_false(qapi_type_has_member(type, "mine"));
    assert_false(qapi_type_has_member(argument_type("sizes"), "colour"));
    assert_false(qapi_type_has_member(argument_type("either")->element, "count"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(command_each_is_found_by_its_name),
        cmocka_unit_test(command_unknown_is_not_found),
        cmocka_unit_test(event_each_is_found_by_its_name),
        cmocka_unit_test(command_has_what_the_schema_says),
        cmocka_unit_test(condition_decides_what_is_there),
        cmocka_unit_test(struct_has_the_members_of_its_bases_first),
        cmocka_unit_test(feature_is_with_what_has_it),
        cmocka_unit_test(union_has_a_variant_for_each_value),
        cmocka_unit_test(member_of_any_variant_is_known),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
