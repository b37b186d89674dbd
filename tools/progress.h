/*
 * Progress bar: one line on stderr, redrawn in place about ten times a second; nothing at all where stderr is
 * not a terminal.
 *
 *     progress_init → progress_of_…, as often as you like → progress_clear
 */
#pragma once

#include "libsnap.h"
#include "qapi/json.h"

typedef struct {
    gboolean on;
    const char *verb; /* "verifying" */
    gint64 start_us;
    gint64 drawn_us; /* when the line was drawn last; 0: never */
} Progress;

void progress_init(Progress *progress, const char *verb);

/* ClientProgressFuncs, of any job and of a save; @opaque is the Progress. */
void progress_of_job(json_object *statistics, void *opaque);
void progress_of_save_job(json_object *statistics, void *opaque);

/* A SnapProgressFunc and a QapiSaveProgressFunc. Return: FALSE when Ctrl-C was seen. */
gboolean progress_of_bytes(uint64_t done_bytes, uint64_t total_bytes, void *opaque);
gboolean progress_of_save(const SnapSaveStats *stats, void *opaque);

/* Take the line away again, so that what is printed next stands alone. */
void progress_clear(Progress *progress);
