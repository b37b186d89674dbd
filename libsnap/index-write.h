/*
 * Writing an .idx file: records are gathered while they follow each other and written in one go; the index is
 * never in memory as a whole, and a chunk without a record is a hole of the file.
 *
 *     begin → put… → finish
 */
#pragma once

#include "chunk.h"

#define SNAP_RECORD_BATCH 64u

typedef struct {
    uint64_t first; /* chunk of the first record in bytes */
    guint n;
    uint8_t bytes[SNAP_RECORD_BATCH * SNAP_INDEX_RECORD_BYTES];
} SnapRecordBatch;

/* All return 0 or -errno; @fd is readable and writable. */

/* The head, and the file at its full length. */
int snap_index_begin(int fd, const SnapIndexHeader *header);

/* The record of chunk @index; none may be put twice. @batch: {0} at first. */
int snap_index_put(int fd, SnapRecordBatch *batch, uint64_t index, const SnapChunkRecord *record);

/* Write what is gathered. */
int snap_index_flush(int fd, SnapRecordBatch *batch);
