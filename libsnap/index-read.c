/* A cursor over an .idx file. See index-read.h. */
#include "index-read.h"

#include "image-file.h"

#include <errno.h>

static uint64_t record_offset(uint64_t index) {
    return SNAP_INDEX_HEADER_BYTES + index * SNAP_INDEX_RECORD_BYTES;
}

void snap_index_cursor_init(SnapIndexCursor *cursor, int fd, const SnapIndexHeader *header) {
    cursor->fd = fd;
    cursor->header = header;
    cursor->first = cursor->n = 0;
    cursor->most = SNAP_CURSOR_RECORDS;
}

static int load(SnapIndexCursor *cursor, uint64_t index) {
    uint64_t n = MIN(cursor->header->n_chunks - index, cursor->most);
    cursor->n = 0;
    int result =
        snap_file_read(cursor->fd, cursor->bytes, (size_t)(n * SNAP_INDEX_RECORD_BYTES), record_offset(index));
    if (result < 0)
        return result;
    cursor->first = index;
    cursor->n = n;
    return 0;
}

static gboolean is_loaded(const SnapIndexCursor *cursor, uint64_t index) {
    return index >= cursor->first && index - cursor->first < cursor->n;
}

int snap_index_cursor_get(SnapIndexCursor *cursor, uint64_t index, SnapChunkRecord *ret_record) {
    int result = is_loaded(cursor, index) ? 0 : load(cursor, index);
    if (result == 0)
        snap_chunk_record_decode(cursor->bytes + (index - cursor->first) * SNAP_INDEX_RECORD_BYTES, ret_record);
    return result;
}

int snap_index_cursor_skip(SnapIndexCursor *cursor, uint64_t *index) {
    uint64_t start = 0;
    if (is_loaded(cursor, *index))
        return 0;
    int result = snap_file_seek_data(cursor->fd, record_offset(*index), &start);
    if (result < 0 && result != -ENXIO)
        return result;
    uint64_t found =
        result == 0 ? (start - SNAP_INDEX_HEADER_BYTES) / SNAP_INDEX_RECORD_BYTES : cursor->header->n_chunks;
    *index = MIN(MAX(found, *index), cursor->header->n_chunks);
    return 0;
}

int snap_index_cursor_next(SnapIndexCursor *cursor, uint64_t *index, SnapChunkRecord *ret_record) {
    for (;; (*index)++) {
        int result = *index < cursor->header->n_chunks && !is_loaded(cursor, *index)
                         ? snap_index_cursor_skip(cursor, index)
                         : 0;
        if (result < 0)
            return result;
        if (*index >= cursor->header->n_chunks)
            return 0;
        result = snap_index_cursor_get(cursor, *index, ret_record);
        if (result < 0)
            return result;
        if ((ret_record->present & ~ret_record->zero) != 0)
            return 1;
    }
}

int snap_index_check(int fd, const SnapIndexHeader *header, uint64_t *held, int64_t *ret_chunk,
                     const char **ret_wrong) {
    uint8_t head[SNAP_INDEX_HEADER_BYTES];
    *ret_chunk = -1;
    int result = snap_file_read(fd, head, sizeof head, 0);
    if (result < 0 || (*ret_wrong = snap_index_header_check(head, header)))
        return result;
    SnapIndexCursor cursor;
    SnapChunkRecord record;
    snap_index_cursor_init(&cursor, fd, header);
    for (uint64_t i = 0; i < header->n_chunks; i++) {
        /* Not _next(): a record without pages has to be checked for being empty. Only holes are known to be. */
        if (!is_loaded(&cursor, i) && (result = snap_index_cursor_skip(&cursor, &i)) < 0)
            return result;
        if (i >= header->n_chunks)
            break;
        if ((result = snap_index_cursor_get(&cursor, i, &record)) < 0)
            return result;
        if ((*ret_wrong = snap_chunk_record_check(&record, header, i))) {
            *ret_chunk = (int64_t)i;
            return 0;
        }
        *held += (uint64_t)__builtin_popcountll(record.present);
    }
    return 0;
}
