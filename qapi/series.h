/* Command family save: a chain of snapshots of one guest, one every so often. */
#pragma once

#include "save.h"

typedef struct {
    uint64_t every_us; /* from point in time to point in time; a snapshot that takes longer is followed at once */
    guint keep;        /* images; older ones are merged away. 0: all */
    guint count;       /* end after so many. 0: go on */
} QapiSeriesOptions;

/* Called after each snapshot with the object that qapi_save_guest() would return. */
typedef void (*QapiSeriesFunc)(json_object *saved, void *opaque);

/**
 * qapi_save_series: make the folder options->save.dir a chain: 000001, 000002 …, each an image whose parent is the
 *   one before, holding only what changed. The guest stays attached in between, and what it writes is logged. A
 *   folder that holds a chain is gone on with; what an interrupted run left incomplete is removed first.
 * @progress: (nullable) called in this thread, also between snapshots; FALSE ends the series, and takes away an
 *   image that is not complete.
 * Errors: as of qapi_open_guest() and qapi_save_guest(); REFUSED, the folder holds something else; those of
 *   snap_image_open(), it holds an image that is damaged, or has lost a parent. Complete images stay.
 * Return: TRUE when it ended by @progress or by count.
 */
gboolean qapi_save_series(const QapiSaveOptions *options, const QapiSeriesOptions *series, QapiSeriesFunc saved,
                          QapiSaveProgressFunc progress, void *opaque, GError **error);
