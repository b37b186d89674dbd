/*
 * Values as QEMU writes them: qapi_json_write() of stream.h.
 *
 * It differs from json-c's own printer in spaces, in escapes, and in doubles: 17 digits, whatever text a double
 * was made from. What is infinite is written as "inf", as in QEMU, although that is no JSON: who sends 1e999 as an
 * id gets it. Members are in the order in which they were added.
 *
 * Failure modes: none. The recursion is as deep as the value, and what came from a client is at most
 * QAPI_STREAM_DEPTH_MAX deep.
 */
#include "json-string.h"
#include "stream.h"

#include <string.h>

static void write_integer(json_object *value, GString *out) {
    gint64 number = json_object_get_int64(value); /* INT64_MAX for what is greater */
    if (number == G_MAXINT64)
        g_string_append_printf(out, "%" G_GUINT64_FORMAT, (guint64)json_object_get_uint64(value));
    else
        g_string_append_printf(out, "%" G_GINT64_FORMAT, number);
}

static void write_double(json_object *value, GString *out) {
    char text[G_ASCII_DTOSTR_BUF_SIZE];
    g_string_append(out, g_ascii_formatd(text, sizeof(text), "%.17g", json_object_get_double(value)));
}

static void write_array(json_object *value, GString *out) {
    g_string_append_c(out, '[');
    for (gsize i = 0; i < json_object_array_length(value); i++) {
        if (i > 0)
            g_string_append(out, ", ");
        qapi_json_write(json_object_array_get_idx(value, i), out);
    }
    g_string_append_c(out, ']');
}

static void write_object(json_object *value, GString *out) {
    const char *separator = "";
    g_string_append_c(out, '{');
    json_object_object_foreach(value, name, member) {
        g_string_append(out, separator);
        qapi_string_write(name, strlen(name), out);
        g_string_append(out, ": ");
        qapi_json_write(member, out);
        separator = ", ";
    }
    g_string_append_c(out, '}');
}

void qapi_json_write(json_object *value, GString *out) {
    switch (json_object_get_type(value)) {
    case json_type_null:
        g_string_append(out, "null");
        break;
    case json_type_boolean:
        g_string_append(out, json_object_get_boolean(value) ? "true" : "false");
        break;
    case json_type_double:
        write_double(value, out);
        break;
    case json_type_int:
        write_integer(value, out);
        break;
    case json_type_object:
        write_object(value, out);
        break;
    case json_type_array:
        write_array(value, out);
        break;
    case json_type_string:
        qapi_string_write(json_object_get_string(value), (gsize)json_object_get_string_len(value), out);
        break;
    }
}
