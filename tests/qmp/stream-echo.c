/*
 * The JSON stream by itself: bytes on standard input, a line for each message on standard output.
 *
 *     stream-echo [PIECE-BYTES]       how much is fed at a time; 65536 unless told
 *
 * A line is the value as qapi_json_write() has it, or "error CLASS TEXT" with TEXT as a JSON string. A message
 * that is not complete at the end of the input gives none. Exit status 2 for wrong usage, 1 when reading or
 * writing fails.
 */
#include "libsnap.h"
#include "qapi/stream.h"

#include <stdio.h>
#include <unistd.h>

static void write_error(const GError *error, GString *line) {
    g_autoptr(json_object) text = json_object_new_string(error->message);
    g_string_append_printf(line, "error %s ", snap_error_qmp_class(error->code));
    qapi_json_write(text, line);
}

static gboolean print_message(json_object *value, GError *error, void *opaque) {
    GString *line = (GString *)opaque;
    g_string_truncate(line, 0);
    if (error)
        write_error(error, line);
    else
        qapi_json_write(value, line);
    g_string_append_c(line, '\n');
    fwrite(line->str, 1, line->len, stdout);
    json_object_put(value);
    g_clear_error(&error);
    return TRUE;
}

static gssize copy_input(QapiStream *stream, gsize piece_bytes) {
    g_autofree char *piece = g_malloc(piece_bytes);
    gssize length = 0;
    while ((length = read(STDIN_FILENO, piece, piece_bytes)) > 0)
        qapi_stream_feed(stream, piece, (gsize)length);
    return length;
}

int main(int argc, char **argv) {
    guint64 piece_bytes = 65536;
    if (argc > 2 || (argc == 2 && !g_ascii_string_to_unsigned(argv[1], 10, 1, 1 << 30, &piece_bytes, NULL))) {
        fprintf(stderr, "usage: stream-echo [PIECE-BYTES]\n");
        return 2;
    }
    GString *line = g_string_new(NULL);
    g_autoptr(QapiStream) stream = qapi_stream_new(print_message, line);
    gssize result = copy_input(stream, piece_bytes);
    g_string_free(line, TRUE);
    return result < 0 || fflush(stdout) ? 1 : 0;
}
