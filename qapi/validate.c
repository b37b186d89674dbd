/*
 * Validation: see validate.h.
 *
 * Happy path: value and type are walked down together. Of an object its members are looked at in the order of the
 * schema, then those of the variant that its tag chooses; that as many were found as there are means that none is
 * unexpected.
 *
 * Failure modes: the first complaint ends it. QEMU calls what is wrong by its full name ("a[0].b") in some
 * complaints, and by the last part of that in others, where an element of an array is called "null"; so do we.
 *
 * Invariants: nothing is changed; the depth of the walk is that of the value, which the stream limits.
 */
#include "validate.h"

#include <string.h>

#include "libsnap.h"

/* Where a value is: a member of what @parent says, or an element of it where @name is NULL. */
typedef struct Place {
    const struct Place *parent; /* NULL: the value that is validated */
    const char *name;           /* (nullable) */
    size_t index;
} Place;

typedef gboolean CheckFunc(const QapiType *type, json_object *value, const Place *place, GError **error);

static CheckFunc check;

/* ---- complaints ------------------------------------------------------------------------------------------ */

static gboolean is_unnamed_root(const Place *place) {
    return !place->parent && !place->name;
}

static void append_place(GString *text, const Place *place) {
    if (place->parent)
        append_place(text, place->parent);
    if (place->name)
        g_string_append_printf(text, "%s%s", place->parent && !is_unnamed_root(place->parent) ? "." : "",
                               place->name);
    else if (place->parent)
        g_string_append_printf(text, "[%zu]", place->index);
}

/* Return: (out) */
static char *full_name(const Place *place) {
    GString *text = g_string_new(is_unnamed_root(place) ? "<anonymous>" : NULL);
    append_place(text, place);
    return g_string_free(text, FALSE);
}

static const char *last_name(const Place *place) {
    return place->name ? place->name : "null";
}

static gboolean fail_type(const Place *place, const char *expected, GError **error) {
    g_autofree char *name = full_name(place);
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "Invalid parameter type for '%s', expected: %s", name,
                expected);
    return FALSE;
}

static gboolean fail_range(const char *name, const char *expected, GError **error) {
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "Parameter '%s' expects %s", name, expected);
    return FALSE;
}

static gboolean fail_missing(const Place *place, GError **error) {
    g_autofree char *name = full_name(place);
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "Parameter '%s' is missing", name);
    return FALSE;
}

/* ---- what has no parts ----------------------------------------------------------------------------------- */

/* The range, and how complaints call it. */
static const struct {
    gint64 min;
    guint64 max;
    const char *c_type;
} ranges[QAPI_TYPE_MAX] = {
    [QAPI_TYPE_INT] = {G_MININT64, G_MAXINT64, "int64_t"},
    [QAPI_TYPE_INT8] = {G_MININT8, G_MAXINT8, "int8_t"},
    [QAPI_TYPE_INT16] = {G_MININT16, G_MAXINT16, "int16_t"},
    [QAPI_TYPE_INT32] = {G_MININT32, G_MAXINT32, "int32_t"},
    [QAPI_TYPE_UINT8] = {0, G_MAXUINT8, "uint8_t"},
    [QAPI_TYPE_UINT16] = {0, G_MAXUINT16, "uint16_t"},
    [QAPI_TYPE_UINT32] = {0, G_MAXUINT32, "uint32_t"},
    [QAPI_TYPE_UINT64] = {0, G_MAXUINT64, "uint64_t"},
};

static gboolean check_signed(const QapiType *type, json_object *value, const Place *place, GError **error) {
    if (!json_object_is_type(value, json_type_int))
        return fail_type(place, "integer", error);
    gint64 number = json_object_get_int64(value);
    if (number >= 0 && json_object_get_uint64(value) > G_MAXINT64)
        return fail_type(place, "integer", error);
    if (number < ranges[type->kind].min || number > (gint64)ranges[type->kind].max)
        return fail_range(last_name(place), ranges[type->kind].c_type, error);
    return TRUE;
}

static gboolean check_unsigned(const QapiType *type, json_object *value, const Place *place, GError **error) {
    if (!json_object_is_type(value, json_type_int)) {
        g_autofree char *name = full_name(place);
        return fail_range(name, "uint64", error);
    }
    if (qapi_json_get_uint(value) > ranges[type->kind].max)
        return fail_range(last_name(place), ranges[type->kind].c_type, error);
    return TRUE;
}

static gboolean check_str(const QapiType *type G_GNUC_UNUSED, json_object *value, const Place *place,
                          GError **error) {
    return json_object_is_type(value, json_type_string) || fail_type(place, "string", error);
}

static gboolean check_number(const QapiType *type G_GNUC_UNUSED, json_object *value, const Place *place,
                             GError **error) {
    return json_object_is_type(value, json_type_int) || json_object_is_type(value, json_type_double) ||
           fail_type(place, "number", error);
}

static gboolean check_bool(const QapiType *type G_GNUC_UNUSED, json_object *value, const Place *place,
                           GError **error) {
    return json_object_is_type(value, json_type_boolean) || fail_type(place, "boolean", error);
}

static gboolean check_null(const QapiType *type G_GNUC_UNUSED, json_object *value, const Place *place,
                           GError **error) {
    return !value || fail_type(place, "null", error);
}

static gboolean check_any(const QapiType *type G_GNUC_UNUSED, json_object *value G_GNUC_UNUSED,
                          const Place *place G_GNUC_UNUSED, GError **error G_GNUC_UNUSED) {
    return TRUE;
}

static gboolean check_enum(const QapiType *type, json_object *value, const Place *place, GError **error) {
    if (!check_str(type, value, place, error))
        return FALSE;
    const char *text = json_object_get_string(value);
    if (g_strv_contains(type->values, text))
        return TRUE;
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "Parameter '%s' does not accept value '%s'",
                last_name(place), text);
    return FALSE;
}

/* ---- arrays and alternates ------------------------------------------------------------------------------- */

static gboolean check_array(const QapiType *type, json_object *value, const Place *place, GError **error) {
    if (!json_object_is_type(value, json_type_array))
        return fail_type(place, "array", error);
    size_t n = json_object_array_length(value);
    for (size_t i = 0; i < n; i++) {
        Place here = {.parent = place, .index = i};
        if (!check(type->element, json_object_array_get_idx(value, i), &here, error))
            return FALSE;
    }
    return TRUE;
}

/* Whether an alternative is for values of this sort; whether it takes this very one is looked at then. */
static gboolean is_for(const QapiType *type, json_object *value) {
    switch (json_object_get_type(value)) {
    case json_type_null:
        return type->kind == QAPI_TYPE_NULL;
    case json_type_boolean:
        return type->kind == QAPI_TYPE_BOOL;
    case json_type_int:
    case json_type_double:
        return type->kind == QAPI_TYPE_NUMBER || ranges[type->kind].c_type;
    case json_type_string:
        return type->kind == QAPI_TYPE_STR || type->kind == QAPI_TYPE_ENUM;
    case json_type_array:
        return type->kind == QAPI_TYPE_ARRAY;
    case json_type_object:
        return type->kind == QAPI_TYPE_OBJECT;
    }
    return FALSE;
}

static gboolean check_alternate(const QapiType *type, json_object *value, const Place *place, GError **error) {
    for (guint i = 0; i < type->n_members; i++)
        if (is_for(type->members[i].type, value))
            return check(type->members[i].type, value, place, error);
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "Invalid parameter type for '%s', expected: %s",
                last_name(place), type->name);
    return FALSE;
}

/* ---- objects --------------------------------------------------------------------------------------------- */

/* What the tag adds. Return: (nullable). @object has been found to have the tag. */
static const QapiType *variant_of(const QapiType *type, json_object *object) {
    if (!type->tag)
        return NULL;
    const char *tag = json_object_get_string(json_object_object_get(object, type->tag));
    for (guint i = 0; i < type->n_variants; i++)
        if (g_str_equal(type->variants[i].tag_value, tag))
            return type->variants[i].type;
    return NULL;
}

/* @n_found: grows by the members that are there. */
static gboolean check_members(const QapiType *type, json_object *object, const Place *place, int *n_found,
                              GError **error) {
    for (guint i = 0; i < type->n_members; i++) {
        const QapiMember *member = &type->members[i];
        Place here = {.parent = place, .name = member->name};
        json_object *value;
        if (!json_object_object_get_ex(object, member->name, &value)) {
            if (!member->optional)
                return fail_missing(&here, error);
            continue;
        }
        if (!check(member->type, value, &here, error))
            return FALSE;
        ++*n_found;
    }
    const QapiType *variant = variant_of(type, object);
    return !variant || check_members(variant, object, place, n_found, error);
}

/* ---- which of several is unexpected ---------------------------------------------------------------------- */

/*
 * QEMU names the first that its hash table comes upon, which depends on all that was in the table and on the order
 * in which it went in: that of QEMU's dictionaries, which have a row of lists, by the hash of gdbm. The same done
 * here names the same.
 */
typedef struct {
    const char *name;
    guint list;   /* of the dictionary */
    guint number; /* in which the object has it; the last comes first in a list */
} DictName;

static guint list_of(const char *name) {
    guint32 hash = (guint32)strlen(name) * 0x238F13AFu;
    for (guint i = 0; name[i]; i++)
        hash += (guint32)(guint8)name[i] << (5 * i % 24);
    return (hash * 1103515243u + 12345u) % 512;
}

static gint compare_dict_names(gconstpointer a, gconstpointer b) {
    const DictName *one = a, *other = b;
    return one->list != other->list ? (one->list > other->list) - (one->list < other->list)
                                    : (one->number < other->number) - (one->number > other->number);
}

static GHashTable *names_of(json_object *object) {
    g_autoptr(GArray) names = g_array_new(FALSE, FALSE, sizeof(DictName));
    json_object_object_foreach(object, key, value) {
        (void)value;
        DictName name = {key, list_of(key), names->len};
        g_array_append_val(names, name);
    }
    g_array_sort(names, compare_dict_names);
    GHashTable *table = g_hash_table_new(g_str_hash, g_str_equal);
    for (guint i = 0; i < names->len; i++)
        g_hash_table_add(table, (gpointer)g_array_index(names, DictName, i).name);
    return table;
}

static void forget_members(const QapiType *type, json_object *object, GHashTable *names) {
    for (guint i = 0; i < type->n_members; i++)
        g_hash_table_remove(names, type->members[i].name);
    const QapiType *variant = variant_of(type, object);
    if (variant)
        forget_members(variant, object, names);
}

static gboolean fail_unexpected(const QapiType *type, json_object *object, const Place *place, GError **error) {
    g_autoptr(GHashTable) names = names_of(object);
    forget_members(type, object, names);
    GHashTableIter iter;
    gpointer name = NULL;
    g_hash_table_iter_init(&iter, names);
    gboolean found = g_hash_table_iter_next(&iter, &name, NULL);
    g_assert(found);
    Place here = {.parent = place, .name = name};
    g_autofree char *text = full_name(&here);
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "Parameter '%s' is unexpected", text);
    return FALSE;
}

static gboolean check_object(const QapiType *type, json_object *value, const Place *place, GError **error) {
    if (!json_object_is_type(value, json_type_object))
        return fail_type(place, "object", error);
    int n_found = 0;
    if (!check_members(type, value, place, &n_found, error))
        return FALSE;
    return n_found == json_object_object_length(value) || fail_unexpected(type, value, place, error);
}

/* ---- all ------------------------------------------------------------------------------------------------- */

static gboolean check(const QapiType *type, json_object *value, const Place *place, GError **error) {
    static CheckFunc *const checks[QAPI_TYPE_MAX] = {
        [QAPI_TYPE_STR] = check_str,
        [QAPI_TYPE_INT] = check_signed,
        [QAPI_TYPE_INT8] = check_signed,
        [QAPI_TYPE_INT16] = check_signed,
        [QAPI_TYPE_INT32] = check_signed,
        [QAPI_TYPE_UINT8] = check_unsigned,
        [QAPI_TYPE_UINT16] = check_unsigned,
        [QAPI_TYPE_UINT32] = check_unsigned,
        [QAPI_TYPE_UINT64] = check_unsigned,
        [QAPI_TYPE_NUMBER] = check_number,
        [QAPI_TYPE_BOOL] = check_bool,
        [QAPI_TYPE_NULL] = check_null,
        [QAPI_TYPE_ANY] = check_any,
        [QAPI_TYPE_ENUM] = check_enum,
        [QAPI_TYPE_ARRAY] = check_array,
        [QAPI_TYPE_OBJECT] = check_object,
        [QAPI_TYPE_ALTERNATE] = check_alternate,
    };
    return checks[type->kind](type, value, place, error);
}

gboolean qapi_validate(const QapiType *type, json_object *value, const char *name, GError **error) {
    Place root = {.name = name};
    return check(type, value, &root, error);
}
