/*
 * A migration stream composed from an image: what QEMU would have sent, had it been migrated in the pause.
 */
#pragma once

#include "description.h"

/* How much of a RAM block goes into the stream. The block is listed in any case: QEMU checks its length. */
typedef enum {
    STREAM_ALL,    /* each page; a zero page as nine bytes */
    STREAM_DATA,   /* pages that are not zero: the destination's block is known to be zero */
    STREAM_NOTHING /* the destination's block has its content already */
} StreamContent;

/* Takes what was composed, piece by piece. */
typedef gboolean (*StreamWrite)(const void *data, size_t length, void *opaque, GError **error);

/**
 * stream_compose: compose the stream of @image and hand it to @write.
 * @description: (borrow) of the image.
 * @contents: (nullable) (borrow) of block i of the description; NULL is STREAM_ALL for all.
 * @progress: (nullable) called in this thread, with its own @progress_opaque.
 * Errors: INCOMPLETE, a block is not in the image, or shorter; CORRUPT; CANCELLED; IO; what @write returns.
 */
gboolean stream_compose(const SnapImage *image, const QemuDescription *description, const StreamContent *contents,
                        StreamWrite write, void *opaque, SnapProgressFunc progress, void *progress_opaque,
                        GError **error);
