/*
 * The journal of who ran when: a file that several programs append to, a line at a time.
 *
 *     NS NAME EVENT WORDS…        CLOCK_MONOTONIC, which all programs of a machine share; who; what
 *
 * `run` is written before the first thread of the guest starts, `stand` after the last has ended: the time between
 * the two holds all that the guest did. tests/lib/migrate.py reads it.
 *
 * Threads: any. A line is one write() with O_APPEND, so that lines never mix. What fails in writing ends the
 * program: a journal with holes proves nothing.
 */
#pragma once

#include <glib.h>

typedef struct {
    int fd; /* -1: none is kept */
    const char *name;
} Journal;

/* journal_open: @path: (nullable) without it nothing is kept. @name: (borrow) for the life of the journal. */
void journal_open(Journal *journal, const char *path, const char *name);

void journal_add(const Journal *journal, const char *format, ...) G_GNUC_PRINTF(2, 3);
