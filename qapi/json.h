/*
 * Building result objects, and reading arguments.
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
#ifndef JSON_OBJECT_AUTOPTR /* qemu/qmp.h has it too */
#define JSON_OBJECT_AUTOPTR
G_DEFINE_AUTOPTR_CLEANUP_FUNC(json_object, qapi_json_unref)
#endif

/* @value: (take). */
static inline void qapi_json_add(json_object *object, const char *name, json_object *value) {
    g_assert(object && value);
    json_object_object_add(object, name, value);
}

/* For another thread: json-c does not count references across threads. @object: (borrow). */
static inline json_object *qapi_json_copy(json_object *object) {
    json_object *copy = NULL;
    if (json_object_deep_copy(object, &copy, NULL) < 0)
        g_error("out of memory");
    return copy;
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
    qapi_json_add(object, name, json_object_new_double_s(g_ascii_strtod(text, NULL), text));
}

/* An integer as a uint64; a negative one is what C makes of it, as clients of QEMU may write 2^64 - 1 as -1. */
static inline uint64_t qapi_json_get_uint(json_object *value) {
    int64_t number = json_object_get_int64(value);
    return number < 0 ? (uint64_t)number : json_object_get_uint64(value);
}
