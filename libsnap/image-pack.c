/*
 * Writing chunks of which little is stored: scattered pages, as an image with a parent mostly has them.
 *
 * Happy path: the few pages are copied into a buffer that they share with those of other chunks, each with a write
 * of its own, and the chunk's buffer is free at once. So as many single pages are under way as the sink takes, and
 * not as many as there are buffers; and they are handed to the sink BATCH at a time.
 *
 * Failure modes: no buffer is free to be shared: the caller writes from the chunk's own.
 *
 * Invariants: one buffer is being filled at a time, and counts itself as one write in flight until it is closed.
 * What has not been handed to the sink is, before anybody waits for the sink.
 */
#include "image-writer.h"

#include <string.h>

#define BATCH 16u
/*
 * Chunks of at most so many pages: copying them costs less than what a write each would have waited for.
 */
#define FEW_PAGES 16u

static void submit_pending(SnapImageWriter *writer) {
    SnapBuffer *pack = writer->pack;
    if (pack->n_submitted == pack->n_writes)
        return;
    SnapSinkRequest *first = &pack->writes[pack->n_submitted].request;
    pack->n_submitted = pack->n_writes;
    snap_sink_submit(writer->sink, first);
}

void snap_image_pack_close(SnapImageWriter *writer) {
    if (!writer->pack)
        return;
    submit_pending(writer);
    snap_image_writer_written(writer, writer->pack);
    writer->pack = NULL;
}

/* A buffer with room for @n_writes writes of @length_bytes together; NULL when none is free. */
static SnapBuffer *find_room(SnapImageWriter *writer, guint n_writes, size_t length_bytes) {
    SnapBuffer *pack = writer->pack;
    if (pack && pack->n_writes + n_writes <= SNAP_MAX_WRITES &&
        pack->used_bytes + length_bytes <= writer->area.buffer_bytes)
        return pack;
    snap_image_pack_close(writer);
    if (!writer->free)
        return NULL;
    pack = (SnapBuffer *)snap_image_writer_take(writer);
    pack->chunk.writes_in_flight = 1;
    pack->n_writes = pack->n_submitted = 0;
    pack->used_bytes = 0;
    writer->pack = pack;
    return pack;
}

gboolean snap_image_pack_put(SnapImageWriter *writer, SnapRegionFiles *files, const SnapChunk *chunk,
                             uint64_t stored) {
    uint64_t page_bytes = files->header.page_bytes;
    guint n_pages = (guint)__builtin_popcountll(stored);
    if (n_pages > FEW_PAGES || writer->area.n_buffers < 2)
        return FALSE;
    SnapBuffer *pack = find_room(writer, n_pages, n_pages * page_bytes);
    if (!pack)
        return FALSE;
    unsigned first = 0, count = 0;
    while (snap_chunk_take_run(&stored, &first, &count)) {
        uint8_t *data = pack->chunk.data + pack->used_bytes;
        memcpy(data, chunk->data + first * page_bytes, count * page_bytes);
        pack->used_bytes += count * page_bytes;
        snap_image_writer_add_write(writer, pack, files, data,
                                    (chunk->index * SNAP_CHUNK_PAGES + first) * page_bytes, count * page_bytes);
    }
    if (pack->n_writes - pack->n_submitted >= BATCH)
        submit_pending(writer);
    return TRUE;
}
