/* Writing an .idx file. See index-write.h. */
#include "index-write.h"

#include "image-file.h"

#include <errno.h>
#include <unistd.h>

static uint64_t record_offset(uint64_t index) {
    return SNAP_INDEX_HEADER_BYTES + index * SNAP_INDEX_RECORD_BYTES;
}

int snap_index_begin(int fd, const SnapIndexHeader *header) {
    uint8_t head[SNAP_INDEX_HEADER_BYTES];
    if (ftruncate(fd, (off_t)record_offset(header->n_chunks)) != 0)
        return -errno;
    snap_index_header_encode(header, head);
    return snap_file_write(fd, head, sizeof head, 0);
}

int snap_index_flush(int fd, SnapRecordBatch *batch) {
    int result =
        snap_file_write(fd, batch->bytes, (size_t)batch->n * SNAP_INDEX_RECORD_BYTES, record_offset(batch->first));
    batch->n = 0;
    return result;
}

int snap_index_put(int fd, SnapRecordBatch *batch, uint64_t index, const SnapChunkRecord *record) {
    gboolean follows = batch->n < SNAP_RECORD_BATCH && index == batch->first + batch->n;
    int result = batch->n > 0 && !follows ? snap_index_flush(fd, batch) : 0;
    if (result < 0)
        return result;
    if (batch->n == 0)
        batch->first = index;
    snap_chunk_record_encode(record, batch->bytes + (size_t)batch->n++ * SNAP_INDEX_RECORD_BYTES);
    return 0;
}
