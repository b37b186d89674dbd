/*
 * Output: a file that is there when it is complete, and not before.
 *
 *     open → write into ->fd (or to ->path) … → commit      or → free alone, and nothing is left behind
 *
 * A regular file is written beside its place under a name of its own and renamed. "-" is standard output; a
 * device or FIFO that exists is written as it is: there is no half file to hide.
 */
#pragma once

#include <glib.h>

typedef struct {
    char *name; /* what the user asked for */
    char *path; /* (nullable) where it is written until commit; NULL when fd is the only way */
    int fd;
    gboolean sparse; /* a regular file: may be extended and written at offsets, in any order */
} QapiOutput;

/**
 * qapi_output_open: begin an output.
 * @name: (borrow) a file name, or "-".
 * Errors: by errno, naming the file.
 * Return: (out) free with qapi_output_free().
 */
QapiOutput *qapi_output_open(const char *name, GError **error);

/** qapi_output_new_fd: the same with a file or pipe that is open already. @fd: (take). Return: (out). */
QapiOutput *qapi_output_new_fd(int fd);

/** qapi_output_commit: all is written: put it in its place. Errors: IO, NO_SPACE. */
gboolean qapi_output_commit(QapiOutput *output, GError **error);

/** qapi_output_free: without a commit before, remove what was written. NULL is allowed. */
void qapi_output_free(QapiOutput *output);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(QapiOutput, qapi_output_free)
