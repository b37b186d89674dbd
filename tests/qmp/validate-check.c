/*
 * Validation by itself: lines "COMMAND ARGUMENTS" on standard input, for each a line on standard output: null
 * where the arguments are valid for that command of the test schema, and the complaint as a JSON string where they
 * are not.
 *
 * Exit status 2 where a line is not of that form, and 1 when writing fails.
 */
#include "qapi/stream.h"
#include "qapi/validate.h"

#include <stdio.h>
#include <string.h>

#include "test-schema-handlers.h"

typedef struct {
    const QapiCommand *command;
    guint n_answers; /* to this line */
} Checker;

static gboolean answer(json_object *value, GError *error, void *opaque) {
    Checker *checker = (Checker *)opaque;
    g_autoptr(GError) complaint = error;
    g_autoptr(json_object) arguments = value;
    g_autoptr(GString) line = g_string_new(NULL);
    if (!complaint)
        qapi_validate(checker->command->arguments, arguments, NULL, &complaint);
    g_autoptr(json_object) text = complaint ? json_object_new_string(complaint->message) : NULL;
    qapi_json_write(text, line);
    puts(line->str);
    checker->n_answers++;
    return TRUE;
}

static gboolean check_line(QapiStream *stream, Checker *checker, char *line) {
    char *arguments = strchr(line, ' ');
    if (!arguments)
        return FALSE;
    *arguments++ = '\0';
    checker->n_answers = 0;
    checker->command = qapi_find_command(&test_qapi_schema, line);
    if (!checker->command)
        return FALSE;
    qapi_stream_feed(stream, arguments, strlen(arguments));
    return checker->n_answers == 1;
}

int main(void) {
    Checker checker = {0};
    g_autoptr(QapiStream) stream = qapi_stream_new(answer, &checker);
    char *line = NULL;
    size_t size = 0;
    gboolean good = TRUE;
    while (good && getline(&line, &size, stdin) > 0) {
        good = check_line(stream, &checker, line);
        if (!good)
            fprintf(stderr, "not \"COMMAND ARGUMENTS\": %s\n", line);
    }
    free(line);
    return !good ? 2 : fflush(stdout) ? 1 : 0;
}
