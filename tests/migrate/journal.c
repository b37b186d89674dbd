/* See journal.h. */
#include "journal.h"

#include "../guest/writers.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static _Noreturn void die(const char *what) {
    fprintf(stderr, "journal: cannot %s: %s\n", what, strerror(errno));
    _exit(EXIT_FAILURE);
}

void journal_open(Journal *journal, const char *path, const char *name) {
    *journal = (Journal){-1, name};
    if (!path)
        return;
    journal->fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (journal->fd < 0)
        die("open it");
}

void journal_add(const Journal *journal, const char *format, ...) {
    va_list arguments;

    if (journal->fd < 0)
        return;
    va_start(arguments, format);
    g_autofree char *words = g_strdup_vprintf(format, arguments);
    va_end(arguments);
    g_autofree char *line = g_strdup_printf("%" PRIu64 " %s %s\n", clock_ns(), journal->name, words);
    size_t length = strlen(line);
    if (write(journal->fd, line, length) != (ssize_t)length)
        die("write it");
}
