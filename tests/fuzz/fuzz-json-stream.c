/*
 * Fuzzing the JSON stream: any bytes may come in; none may crash, in whatever pieces they come they make the same
 * messages, and a value that was written can be read again.
 *
 *     clang -g -O1 -D_GNU_SOURCE -fsanitize=fuzzer,address,undefined -I. -Ilibsnap tests/fuzz/fuzz-json-stream.c \
 *         qapi/{stream,message,json-string,json-write}.c libsnap/error.c \
 *         $(pkg-config --cflags --libs glib-2.0 json-c) -o fuzz-json-stream
 *     ./fuzz-json-stream -max_total_time=60
 *
 * The first byte says how long the pieces are, and whether to stop after each message.
 */
#include "qapi/stream.h"

#include <stddef.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length);

typedef struct {
    GString *lines;
    gboolean stops;
    gboolean has_error;
} Log;

static gboolean log_message(json_object *value, GError *error, void *opaque) {
    Log *log = (Log *)opaque;
    if (error)
        g_string_append(log->lines, error->message);
    else
        qapi_json_write(value, log->lines);
    g_string_append_c(log->lines, '\n');
    log->has_error |= error != NULL;
    json_object_put(value);
    g_clear_error(&error);
    return !log->stops;
}

static GString *feed(const uint8_t *data, size_t length, size_t piece, gboolean stops, gboolean *ret_error) {
    Log log = {.lines = g_string_new(NULL), .stops = stops};
    g_autoptr(QapiStream) stream = qapi_stream_new(log_message, &log);
    for (size_t at = 0; at < length; at += piece)
        qapi_stream_feed(stream, data + at, MIN(piece, length - at));
    while (!qapi_stream_continue(stream))
        ;
    *ret_error = log.has_error;
    return log.lines;
}

/* What is written is read without error. Once -0.0 has become 0, and 1e3 an integer, it is written as it was read.
 */
static void check_written(const GString *lines) {
    gboolean has_error = FALSE;
    GString *again = feed((const uint8_t *)lines->str, lines->len, lines->len, FALSE, &has_error);
    g_assert(!has_error);
    GString *third = feed((const uint8_t *)again->str, again->len, again->len, FALSE, &has_error);
    g_assert(!has_error && g_string_equal(again, third));
    g_string_free(again, TRUE);
    g_string_free(third, TRUE);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length) {
    if (length < 2)
        return 0;
    gboolean has_error = FALSE;
    gboolean has_error_again = FALSE;
    GString *whole = feed(data + 1, length - 1, length, FALSE, &has_error);
    GString *pieces = feed(data + 1, length - 1, data[0] / 2 + 1, data[0] % 2, &has_error_again);
    g_assert(g_string_equal(whole, pieces));
    g_assert(has_error == has_error_again);
    gboolean may_be_infinite = strstr(whole->str, "inf") != NULL; /* which is written as no JSON */
    if (!has_error && !may_be_infinite)
        check_written(whole);
    g_string_free(whole, TRUE);
    g_string_free(pieces, TRUE);
    return 0;
}
