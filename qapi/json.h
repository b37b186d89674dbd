/*
 * Building result objects.
 *
 * Handlers return json_object trees; these few lines keep them short. json-c aborts nothing and reports
 * nothing when memory runs out, GLib aborts: here the first json_object_new_*() that fails does, too.
 */
#pragma once

#include <glib.h>
#include <json-c/json.h>
#include <stdint.h>

static inline void qapi_json_unref(json_object *object) {
    json_object_put(object);
}
G_DEFINE_AUTOPTR_CLEANUP_FUNC(json_object, qapi_json_unref)

/* @value: (take). */
static inline void qapi_json_add(json_object *object, const char *name, json_object *value) {
    g_assert(object && value);
    json_object_object_add(object, name, value);
}

/* A NULL string adds nothing: an absent member. */
static inline void qapi_json_add_string(json_object *object, const char *name, const char *value) {
    if (value)
        qapi_json_add(object, name, json_object_new_string(value));
}

static inline void qapi_json_add_uint(json_object *object, const char *name, uint64_t value) {
    qapi_json_add(object, name, json_object_new_uint64(value));
}

static inline void qapi_json_add_bool(json_object *object, const char *name, gboolean value) {
    qapi_json_add(object, name, json_object_new_boolean(value));
}

/* Rounded to three digits after the point: what is measured here is not known better. */
static inline void qapi_json_add_double(json_object *object, const char *name, double value) {
    char text[G_ASCII_DTOSTR_BUF_SIZE];
    g_ascii_formatd(text, sizeof(text), "%.3f", value);
    qapi_json_add(object, name, json_object_new_double_s(value, text));
}
