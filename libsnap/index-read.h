/*
 * Reading an .idx file record by record, a block at a time: the index is never in memory as a whole, and its
 * holes are jumped over.
 */
#pragma once

#include "chunk.h"

#define SNAP_CURSOR_RECORDS 256u

/* One reader's place in an index; on its stack. */
typedef struct {
    int fd; /* (borrow) */
    const SnapIndexHeader *header;
    uint64_t first; /* chunk of the first record in bytes */
    uint64_t n;
    uint64_t most; /* records that are read at once; a reader that wants few says so */
    uint8_t bytes[SNAP_CURSOR_RECORDS * SNAP_INDEX_RECORD_BYTES];
} SnapIndexCursor;

/* @header: (borrow) what the index should say; from the manifest. */
void snap_index_cursor_init(SnapIndexCursor *cursor, int fd, const SnapIndexHeader *header);

/* The record of chunk @index < n_chunks. 0 or -errno; -ENODATA where the file ends too early. */
int snap_index_cursor_get(SnapIndexCursor *cursor, uint64_t index, SnapChunkRecord *ret_record);

/*
 * The next chunk from *@index on that has a stored page; *@index moves to it. 1; 0 when there is none, *@index is
 * n_chunks then; or -errno.
 */
int snap_index_cursor_next(SnapIndexCursor *cursor, uint64_t *index, SnapChunkRecord *ret_record);

/*
 * Move *@index over a hole of the file, to the first record that may have a page in it; n_chunks when there is
 * none. 0 or -errno.
 */
int snap_index_cursor_skip(SnapIndexCursor *cursor, uint64_t *index);

/*
 * Check the head and every record. 0, *@ret_wrong stays NULL or says what is wrong with which chunk (-1: the
 * head); or -errno. *@held goes up by the pages that are present.
 */
int snap_index_check(int fd, const SnapIndexHeader *header, uint64_t *held, int64_t *ret_chunk,
                     const char **ret_wrong);
