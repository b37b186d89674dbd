/*
 * CHUNK: pages of a chunk, to where they belong.
 *
 * Happy path, a first copy: the record says which pages; they are received straight into the guest's memory, run
 * by run, in one system call, and the checksum is taken over them in place. Pages of zeros cost nothing where
 * nothing was put before. In other places, and where they are compressed, pages are received into a buffer of the
 * lane's and checked there first.
 *
 * Failure modes: PROTOCOL, the record says what cannot be; CORRUPT, the checksum of the pages is wrong. What is in
 * memory then is of no use to anybody: the guest is not started.
 */
#include "incoming.h"

#include "hash.h"

#include <sys/mman.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14; what is older refuses it, and nothing is lost */
#endif

/* ---- receiving ------------------------------------------------------------------------------------------- */

static gboolean corrupt(const SnapIncomingLane *lane, const SnapIncomingRegion *region, const SnapWireChunk *chunk,
                        const char *what, GError **error) {
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_CORRUPT,
                "record %" G_GUINT64_FORMAT " (CHUNK): region \"%s\", chunk %" G_GUINT64_FORMAT ": %s",
                lane->channel.n_received - 1, region->region->name, chunk->chunk, what);
    return FALSE;
}

static uint64_t stored_pages(const SnapWireChunk *chunk) {
    return chunk->record.present & ~chunk->record.zero;
}

static gboolean receive(SnapIncomingLane *lane, void *data, uint32_t length_bytes, GError **error) {
    const struct iovec part = {data, length_bytes};
    return length_bytes == 0 || snap_channel_receive_bulk(&lane->channel, &part, 1, error);
}

/* Exactly @length_bytes come out of it; a frame that would give more is an error of the decoder. */
static gboolean unpack(SnapIncomingLane *lane, uint32_t packed_bytes, uint8_t *ret_pages, size_t length_bytes,
                       GError **error) {
    if (!lane->zstd)
        lane->zstd = ZSTD_createDCtx();
    if (!lane->zstd) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "there is no memory for zstd");
        return FALSE;
    }
    size_t got = ZSTD_decompressDCtx(lane->zstd, ret_pages, length_bytes, lane->packed, packed_bytes);
    if (!ZSTD_isError(got) && got == length_bytes)
        return TRUE;
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_CORRUPT, "%s",
                ZSTD_isError(got) ? ZSTD_getErrorName(got) : "too few bytes");
    return FALSE;
}

gboolean snap_incoming_read_pages(SnapIncomingLane *lane, const SnapIncomingRegion *region,
                                  const SnapWireChunk *chunk, uint8_t *ret_pages, GError **error) {
    const SnapChunkRecord *record = &chunk->record;
    size_t length_bytes = (size_t)__builtin_popcountll(stored_pages(chunk)) * region->region->page_bytes;
    g_autoptr(GError) why = NULL;
    bool packed = record->codec == SNAP_WIRE_CODEC_ZSTD;
    if (!receive(lane, packed ? lane->packed : ret_pages, record->length_bytes, error))
        return FALSE;
    if (packed && !unpack(lane, record->length_bytes, ret_pages, length_bytes, &why))
        return corrupt(lane, region, chunk, why->message, error);
    if (XXH3_64bits(ret_pages, length_bytes) != record->xxh3)
        return corrupt(lane, region, chunk, "the checksum is wrong", error);
    return TRUE;
}

/* ---- into memory ----------------------------------------------------------------------------------------- */

/* @mask of a chunk's pages, as parts of memory. Return: how many. */
static int make_parts(const SnapIncomingRegion *region, uint64_t chunk, uint64_t mask,
                      struct iovec ret_parts[static SNAP_CHUNK_PAGES]) {
    uint64_t page_bytes = region->region->page_bytes;
    unsigned first = 0, count = 0;
    int n = 0;
    while (snap_chunk_take_run(&mask, &first, &count))
        ret_parts[n++] =
            (struct iovec){region->memory + (chunk * SNAP_CHUNK_PAGES + first) * page_bytes, count * page_bytes};
    return n;
}

/* Pages of zeros, where something else may be. */
static void clear_pages(SnapIncomingRegion *region, uint64_t chunk, uint64_t zero) {
    struct iovec parts[SNAP_CHUNK_PAGES];
    int n = make_parts(region, chunk, zero & region->put[chunk], parts);
    for (int i = 0; i < n; i++)
        memset(parts[i].iov_base, 0, parts[i].iov_len);
    region->put[chunk] &= ~zero;
}

void snap_incoming_put_pages(SnapIncomingRegion *region, uint64_t chunk, uint64_t present, uint64_t zero,
                             const uint8_t *pages) {
    struct iovec parts[SNAP_CHUNK_PAGES];
    int n = make_parts(region, chunk, present & ~zero, parts);
    region->put[chunk] |= present & ~zero;
    clear_pages(region, chunk, zero);
    for (int i = 0; i < n; i++) {
        memcpy(parts[i].iov_base, pages, parts[i].iov_len);
        pages += parts[i].iov_len;
    }
}

/* Page by page, as they are received, fresh anonymous memory is made at a fault each (7 % of the receiver's time
 * measured); for a whole run in one call. Of a memfd that gains nothing. */
static void make_ready(const SnapIncomingRegion *region, uint64_t chunk, const struct iovec *run) {
    if (region->region->memory == SNAP_MEMORY_ANON && region->put[chunk] == 0)
        madvise(run->iov_base, run->iov_len, MADV_POPULATE_WRITE);
}

static gboolean receive_in_place(SnapIncomingLane *lane, SnapIncomingRegion *region, const SnapWireChunk *chunk,
                                 GError **error) {
    uint64_t page_bytes = region->region->page_bytes, stored = stored_pages(chunk);
    struct iovec parts[SNAP_CHUNK_PAGES];
    int n = make_parts(region, chunk->chunk, stored, parts);
    if (n == 1)
        make_ready(region, chunk->chunk, &parts[0]);
    region->put[chunk->chunk] |= stored;
    clear_pages(region, chunk->chunk, chunk->record.zero);
    if (n > 0 && !snap_channel_receive_bulk(&lane->channel, parts, n, error))
        return FALSE;
    const uint8_t *data = region->memory + chunk->chunk * SNAP_CHUNK_PAGES * page_bytes;
    if (snap_chunk_hash(data, page_bytes, stored) != chunk->record.xxh3)
        return corrupt(lane, region, chunk, "the checksum is wrong", error);
    return TRUE;
}

static gboolean into_memory(SnapIncomingLane *lane, SnapIncomingRegion *region, const SnapWireChunk *chunk,
                            GError **error) {
    if (chunk->record.codec == SNAP_WIRE_CODEC_RAW)
        return receive_in_place(lane, region, chunk, error);
    if (!snap_incoming_read_pages(lane, region, chunk, lane->pages, error))
        return FALSE;
    snap_incoming_put_pages(region, chunk->chunk, chunk->record.present, chunk->record.zero, lane->pages);
    return TRUE;
}

/* ---- the record ------------------------------------------------------------------------------------------ */

static gboolean (*const places[SNAP_PLACE_MAX])(SnapIncomingLane *, SnapIncomingRegion *, const SnapWireChunk *,
                                                GError **) = {
    [SNAP_PLACE_MEMORY] = into_memory,
    [SNAP_PLACE_KEPT] = snap_arrivals_take,
    [SNAP_PLACE_MISSING] = snap_missing_take,
    [SNAP_PLACE_IMAGE] = snap_incoming_image_take,
};

/* Each chunk has its channel: its copies arrive in the order in which they were sent, and in one thread. */
static const char *check(const SnapIncomingLane *lane, const SnapWireChunk *chunk) {
    const SnapIncoming *incoming = lane->incoming;
    if (chunk->region >= incoming->regions->len)
        return "there is no such region";
    if (lane->number != SNAP_WIRE_URGENT && chunk->chunk % lane->link->n_channels != lane->number)
        return "it belongs to another channel";
    const SnapIncomingRegion *region = g_ptr_array_index(incoming->regions, chunk->region);
    return snap_wire_check_chunk(chunk, region->region->length_bytes, region->region->page_bytes);
}

static void count(SnapIncoming *incoming, const SnapWireChunk *chunk) {
    uint64_t zero = (uint64_t)__builtin_popcountll(chunk->record.zero);
    uint64_t all = (uint64_t)__builtin_popcountll(chunk->record.present);
    __atomic_add_fetch(&incoming->n_chunks, 1, __ATOMIC_RELAXED);
    __atomic_add_fetch(&incoming->pages_zero, zero, __ATOMIC_RELAXED);
    __atomic_add_fetch(&incoming->pages_normal, all - zero, __ATOMIC_RELAXED);
}

gboolean snap_incoming_take_chunk(SnapIncomingLane *lane, const SnapWireHead *head, GError **error) {
    SnapIncoming *incoming = lane->incoming;
    SnapWireChunk chunk;
    const char *wrong = snap_wire_decode_chunk(head, lane->body, &chunk);
    if (!wrong)
        wrong = check(lane, &chunk);
    if (wrong)
        return snap_incoming_wrong(lane, head->type, wrong, error);
    SnapPlace place = lane->number == SNAP_WIRE_URGENT ? SNAP_PLACE_MISSING : incoming->place;
    if (!places[place](lane, g_ptr_array_index(incoming->regions, chunk.region), &chunk, error))
        return FALSE;
    lane->n_chunks++;
    lane->n_pages += (uint64_t)__builtin_popcountll(chunk.record.present);
    count(incoming, &chunk);
    return TRUE;
}
