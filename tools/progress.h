/*
 * Progress bar: one line on stderr, redrawn in place about ten times a second; nothing at all where stderr is
 * not a terminal.
 *
 *     progress_init → progress_bytes / progress_save, as often as you like → progress_clear
 */
#pragma once

#include "libsnap.h"

typedef struct {
    gboolean on;
    const char *verb; /* "verifying" */
    gint64 start_us;
    gint64 drawn_us; /* when the line was drawn last; 0: never */
} Progress;

void progress_init(Progress *progress, const char *verb);

/* A SnapProgressFunc; @opaque is the Progress. Return: FALSE when Ctrl-C was seen. */
gboolean progress_bytes(uint64_t done_bytes, uint64_t total_bytes, void *opaque);

/* A QapiSaveProgressFunc; otherwise as above. */
gboolean progress_save(const SnapSaveStats *stats, void *opaque);

/* Take the line away again, so that what is printed next stands alone. */
void progress_clear(Progress *progress);
