/*
 * query-qmp-schema: see introspect.h.
 *
 * Happy path: commands and events are told, and each type that they name gets a place in a queue; then the queue
 * is told, which may name further types, until it is empty. So every type comes once, and none that nobody names.
 *
 * Failure modes: none.
 *
 * Invariants: a built-in type keeps its name, and integers of all sizes are "int"; an array is called by its
 * element in brackets; every other type is a number, by its turn in the queue.
 */
#include "introspect.h"

typedef struct {
    GPtrArray *queue;    /* of QapiType */
    GHashTable *numbers; /* QapiType: its number */
    GHashTable *told;    /* names of built-in types and arrays that are in the queue; owned */
    guint n_numbers;
    json_object *entities;
} Teller;

/* ---- names ----------------------------------------------------------------------------------------------- */

/* JSON's name for what has no parts; NULL for the rest. */
static const char *const json_types[QAPI_TYPE_MAX] = {
    [QAPI_TYPE_STR] = "string",    [QAPI_TYPE_INT] = "int",      [QAPI_TYPE_INT8] = "int",
    [QAPI_TYPE_INT16] = "int",     [QAPI_TYPE_INT32] = "int",    [QAPI_TYPE_UINT8] = "int",
    [QAPI_TYPE_UINT16] = "int",    [QAPI_TYPE_UINT32] = "int",   [QAPI_TYPE_UINT64] = "int",
    [QAPI_TYPE_NUMBER] = "number", [QAPI_TYPE_BOOL] = "boolean", [QAPI_TYPE_NULL] = "null",
    [QAPI_TYPE_ANY] = "value",
};

static const char *builtin_name(const QapiType *type) {
    const char *json_type = json_types[type->kind];
    return json_type && g_str_equal(json_type, "int") ? json_type : type->name;
}

static void enqueue_by_name(Teller *teller, const QapiType *type, const char *name) {
    if (g_hash_table_add(teller->told, g_strdup(name)))
        g_ptr_array_add(teller->queue, (gpointer)type);
}

static char *number_of(Teller *teller, const QapiType *type) {
    gpointer number;
    if (!g_hash_table_lookup_extended(teller->numbers, type, NULL, &number)) {
        number = GUINT_TO_POINTER(teller->n_numbers++);
        g_hash_table_insert(teller->numbers, (gpointer)type, number);
        g_ptr_array_add(teller->queue, (gpointer)type);
    }
    return g_strdup_printf("%u", GPOINTER_TO_UINT(number));
}

/* What a type is called from now on, as it is in the queue. Return: (out) */
static char *name_of(Teller *teller, const QapiType *type) {
    if (json_types[type->kind]) {
        enqueue_by_name(teller, type, builtin_name(type));
        return g_strdup(builtin_name(type));
    }
    if (type->kind != QAPI_TYPE_ARRAY)
        return number_of(teller, type);
    g_autofree char *element = name_of(teller, type->element);
    char *name = g_strdup_printf("[%s]", element);
    enqueue_by_name(teller, type, name);
    return name;
}

static void add_type(Teller *teller, json_object *object, const char *key, const QapiType *type) {
    g_autofree char *name = name_of(teller, type);
    qapi_json_add_string(object, key, name);
}

/* ---- parts ----------------------------------------------------------------------------------------------- */

static json_object *strings(const char *const *list) {
    json_object *array = json_object_new_array();
    for (; *list; list++)
        json_object_array_add(array, json_object_new_string(*list));
    return array;
}

static void add_features(json_object *object, const char *const *features) {
    if (features)
        qapi_json_add(object, "features", strings(features));
}

static json_object *add_entity(Teller *teller, const char *name, const char *meta_type,
                               const char *const *features) {
    json_object *entity = json_object_new_object();
    qapi_json_add_string(entity, "name", name);
    qapi_json_add_string(entity, "meta-type", meta_type);
    add_features(entity, features);
    json_object_array_add(teller->entities, entity);
    return entity;
}

static json_object *members(Teller *teller, const QapiType *type) {
    json_object *array = json_object_new_array();
    for (guint i = 0; i < type->n_members; i++) {
        const QapiMember *member = &type->members[i];
        json_object *object = json_object_new_object();
        qapi_json_add_string(object, "name", member->name);
        add_type(teller, object, "type", member->type);
        if (member->optional)
            json_object_object_add(object, "default", NULL);
        add_features(object, member->features);
        json_object_array_add(array, object);
    }
    return array;
}

static json_object *alternatives(Teller *teller, const QapiType *type) {
    json_object *array = json_object_new_array();
    for (guint i = 0; i < type->n_members; i++) {
        json_object *object = json_object_new_object();
        add_type(teller, object, "type", type->members[i].type);
        json_object_array_add(array, object);
    }
    return array;
}

static json_object *enum_members(const QapiType *type) {
    json_object *array = json_object_new_array();
    for (guint i = 0; type->values[i]; i++) {
        json_object *object = json_object_new_object();
        qapi_json_add_string(object, "name", type->values[i]);
        add_features(object, type->value_features ? type->value_features[i] : NULL);
        json_object_array_add(array, object);
    }
    return array;
}

static json_object *variants(Teller *teller, const QapiType *type) {
    static const QapiType nothing = {.kind = QAPI_TYPE_OBJECT, .name = ""};
    json_object *array = json_object_new_array();
    for (guint i = 0; i < type->n_variants; i++) {
        const QapiVariant *variant = &type->variants[i];
        json_object *object = json_object_new_object();
        qapi_json_add_string(object, "case", variant->tag_value);
        add_type(teller, object, "type", variant->type ? variant->type : &nothing);
        json_object_array_add(array, object);
    }
    return array;
}

/* ---- entities -------------------------------------------------------------------------------------------- */

static void tell_object(Teller *teller, const QapiType *type, json_object *entity) {
    qapi_json_add(entity, "members", members(teller, type));
    if (!type->tag)
        return;
    qapi_json_add_string(entity, "tag", type->tag);
    qapi_json_add(entity, "variants", variants(teller, type));
}

static void tell_enum(const QapiType *type, json_object *entity) {
    qapi_json_add(entity, "members", enum_members(type));
    qapi_json_add(entity, "values", strings(type->values));
}

static void tell_type(Teller *teller, const QapiType *type) {
    static const char *const meta_types[QAPI_TYPE_MAX] = {[QAPI_TYPE_ENUM] = "enum",
                                                          [QAPI_TYPE_ARRAY] = "array",
                                                          [QAPI_TYPE_OBJECT] = "object",
                                                          [QAPI_TYPE_ALTERNATE] = "alternate"};
    const char *meta_type = meta_types[type->kind];
    g_autofree char *name = name_of(teller, type);
    json_object *entity = add_entity(teller, name, meta_type ? meta_type : "builtin", type->features);
    if (!meta_type)
        qapi_json_add_string(entity, "json-type", json_types[type->kind]);
    else if (type->kind == QAPI_TYPE_ENUM)
        tell_enum(type, entity);
    else if (type->kind == QAPI_TYPE_ARRAY)
        add_type(teller, entity, "element-type", type->element);
    else if (type->kind == QAPI_TYPE_ALTERNATE)
        qapi_json_add(entity, "members", alternatives(teller, type));
    else
        tell_object(teller, type, entity);
}

static void tell_command(Teller *teller, const QapiCommand *command) {
    json_object *entity = add_entity(teller, command->name, "command", command->features);
    add_type(teller, entity, "arg-type", command->arguments);
    add_type(teller, entity, "ret-type", command->returns);
    if (command->allow_oob)
        qapi_json_add_bool(entity, "allow-oob", TRUE);
}

json_object *qapi_introspect(const QapiSchema *schema) {
    Teller teller = {.queue = g_ptr_array_new(),
                     .numbers = g_hash_table_new(NULL, NULL),
                     .told = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL),
                     .entities = json_object_new_array()};
    for (guint i = 0; i < schema->n_commands; i++)
        tell_command(&teller, &schema->commands[i]);
    for (guint i = 0; i < schema->n_events; i++) {
        const QapiEvent *event = &schema->events[i];
        add_type(&teller, add_entity(&teller, event->name, "event", event->features), "arg-type", event->data);
    }
    for (guint i = 0; i < teller.queue->len; i++) /* it grows */
        tell_type(&teller, g_ptr_array_index(teller.queue, i));
    g_ptr_array_unref(teller.queue);
    g_hash_table_unref(teller.numbers);
    g_hash_table_unref(teller.told);
    return teller.entities;
}
