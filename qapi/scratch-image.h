/*
 * An image that is only a step to something else: a dump, a stream.
 *
 * It is made in the snapshot folder under a name that begins with a dot, which listings leave out, and removed
 * when it is freed. The name has the process's number: what a killed helper has left is removed by the next one
 * there.
 */
#pragma once

#include "jobs.h"

typedef struct {
    char *dir;
    SnapImage *image;
    uint64_t pause_ns;
    uint64_t length_bytes; /* of its regions */
    uint64_t data_bytes;   /* of these, not zero */
} QapiScratchImage;

/**
 * qapi_scratch_image_take: a snapshot of a guest, now.
 * @max_bandwidth_bytes: a second; 0: no limit.
 * @progress: called now and then, with 0 bytes of those that memory has, as far as that is known; FALSE ends it.
 * Errors: those of a save; CANCELLED.
 * Return: (out) free with qapi_scratch_image_free().
 */
QapiScratchImage *qapi_scratch_image_take(QapiTarget *target, uint64_t max_bandwidth_bytes,
                                          SnapProgressFunc progress, void *opaque, GError **error);
void qapi_scratch_image_free(QapiScratchImage *scratch);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(QapiScratchImage, qapi_scratch_image_free)

/** qapi_scratch_clean: remove what killed helpers have left in the helper's snapshot folder. */
void qapi_scratch_clean(const QapiHelper *helper);
