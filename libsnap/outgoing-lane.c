/*
 * A lane: one channel, and what it takes to send chunks on it. See outgoing.h.
 *
 * Happy path: pages are read into the staging buffer, one behind the other; checked for zeros; hashed; compressed
 * where that is wanted and gains anything; and sent as one record. Then what was sent is counted.
 *
 * Failure modes: those of reading and of the channel. The pages were taken out of the set, so after an error the
 * sets say nothing any more.
 */
#include "outgoing.h"

#include "chunk.h"
#include "hash.h"

static uint64_t staging_bytes(const SnapOutgoing *outgoing) {
    uint64_t page_bytes = 0;
    for (guint i = 0; i < outgoing->sources->len; i++) {
        page_bytes = MAX(page_bytes, snap_outgoing_region(outgoing, i)->page_bytes);
    }
    return SNAP_CHUNK_PAGES * page_bytes;
}

void snap_lane_init(SnapLane *lane, SnapOutgoing *outgoing, uint32_t number) {
    *lane = (SnapLane){.outgoing = outgoing, .number = number};
    snap_lock_init(&lane->lock);
    if (outgoing->options.compress == SNAP_COMPRESS_ZSTD) {
        lane->zstd = ZSTD_createCCtx();
    }
    snap_lane_fit(lane);
}

void snap_lane_fit(SnapLane *lane) {
    uint64_t bytes = staging_bytes(lane->outgoing);
    lane->staging = g_realloc(lane->staging, bytes);
    if (lane->zstd) {
        lane->packed = g_realloc(lane->packed, bytes);
    }
}

/* Also of one that never was, or is no more. */
void snap_lane_clear(SnapLane *lane) {
    if (lane->staging) {
        snap_lock_clear(&lane->lock);
    }
    g_clear_pointer(&lane->staging, g_free);
    g_clear_pointer(&lane->packed, g_free);
    g_clear_pointer(&lane->zstd, ZSTD_freeCCtx);
}

/* ---- records --------------------------------------------------------------------------------------------- */

static void add(uint64_t *count, uint64_t more) {
    __atomic_fetch_add(count, more, __ATOMIC_RELAXED);
}

static void count_locked(SnapLane *lane) SNAP_REQUIRES(lane->lock) {
    SnapOutgoing *outgoing = lane->outgoing;
    uint64_t sent = __atomic_load_n(&lane->channel.sent_bytes, __ATOMIC_RELAXED);
    uint64_t more = sent - lane->counted_bytes;
    lane->counted_bytes = sent;
    add(&outgoing->part_bytes[g_atomic_int_get(&outgoing->part)], more);
    if (lane->number != 0 && lane->number != SNAP_WIRE_URGENT) {
        add(&outgoing->multifd_bytes, more);
    }
}

gboolean snap_lane_transmit(SnapLane *lane, SnapWireType type, uint16_t flags, const void *body,
                            uint32_t body_bytes, const struct iovec *bulk, GError **error) {
    int n_bulk = bulk && bulk->iov_len ? 1 : 0;
    snap_lock(&lane->lock);
    gboolean sent = snap_channel_send(&lane->channel, type, flags, body, body_bytes, bulk, n_bulk, error);
    count_locked(lane);
    snap_unlock(&lane->lock);
    return sent;
}

void snap_lane_transmit_failed(SnapLane *lane, const char *text) {
    snap_lock(&lane->lock);
    snap_channel_send_failed(&lane->channel, text);
    count_locked(lane);
    snap_unlock(&lane->lock);
}

/* ---- chunks ---------------------------------------------------------------------------------------------- */

/* A frame of @pages where that is shorter. Return: its length, or 0. */
static uint64_t pack(SnapLane *lane, const uint8_t *pages, uint64_t length) {
    if (!lane->zstd || length == 0) {
        return 0;
    }
    int level = lane->outgoing->options.compress_level;
    size_t packed = ZSTD_compressCCtx(lane->zstd, lane->packed, length - 1, pages, length, level);
    return ZSTD_isError(packed) ? 0 : packed;
}

static gboolean send_record(SnapLane *lane, SnapPosition place, SnapChunkRecord record, const uint8_t *pages,
                            GError **error) {
    uint8_t body[56];
    uint64_t packed = pack(lane, pages, record.length_bytes);
    struct iovec bulk = {.iov_base = (void *)(uintptr_t)(packed ? lane->packed : pages)};
    if (packed) {
        record.codec = SNAP_WIRE_CODEC_ZSTD;
        record.length_bytes = (uint32_t)packed;
    }
    bulk.iov_len = record.length_bytes;
    SnapWireChunk chunk = {.region = place.region, .chunk = place.chunk, .record = record};
    if (lane->number != SNAP_WIRE_URGENT) {
        snap_pace_spend(&lane->outgoing->pace, SNAP_WIRE_HEAD_BYTES + sizeof body + bulk.iov_len);
    }
    return snap_lane_transmit(lane, SNAP_WIRE_CHUNK, 0, body, snap_wire_encode_chunk(&chunk, body), &bulk, error);
}

/* Pages of @mask that are not in @zero. */
static gboolean send_pages(SnapLane *lane, SnapPosition place, uint64_t mask, uint64_t zero, const uint8_t *pages,
                           GError **error) {
    SnapOutgoing *outgoing = lane->outgoing;
    uint64_t page_bytes = snap_outgoing_region(outgoing, place.region)->page_bytes;
    uint64_t n = (uint64_t)__builtin_popcountll(mask & ~zero), n_zero = (uint64_t)__builtin_popcountll(zero);
    SnapChunkRecord record = {.present = mask,
                              .zero = zero,
                              .length_bytes = (uint32_t)(n * page_bytes),
                              .codec = SNAP_WIRE_CODEC_RAW,
                              .xxh3 = XXH3_64bits(pages, n * page_bytes)};
    if (!send_record(lane, place, record, pages, error)) {
        return FALSE;
    }
    lane->n_chunks++;
    lane->n_pages += n + n_zero;
    add(&outgoing->n_chunks, 1);
    add(&outgoing->pages_zero, n_zero);
    add(&outgoing->pages_normal, n);
    add(&outgoing->normal_bytes, n * page_bytes);
    return TRUE;
}

/* A guest that runs, and may map and unmap as it likes: what it has now is looked at when it stands. */
static bool may_skip(const SnapOutgoing *outgoing) {
    return snap_outgoing_can_announce(outgoing) && !outgoing->stands;
}

gboolean snap_lane_send(SnapLane *lane, SnapPosition place, uint64_t mask, GError **error) {
    SnapOutgoing *outgoing = lane->outgoing;
    uint64_t zero;
    GError *failure = NULL;
    if (snap_outgoing_read(outgoing, place, mask, lane->staging, &zero, &failure)) {
        return send_pages(lane, place, mask, zero, lane->staging, error);
    }
    if (may_skip(outgoing) && g_error_matches(failure, SNAP_ERROR, SNAP_ERROR_NOT_FOUND)) {
        SnapKeptChunk skipped = {.place = place, .mask = mask};
        g_array_append_val(outgoing->skipped, skipped);
        g_error_free(failure);
        return TRUE;
    }
    g_propagate_error(error, failure);
    return FALSE;
}

gboolean snap_lane_send_kept(SnapLane *lane, SnapPosition place, uint64_t mask, uint8_t *pages, GError **error) {
    uint64_t page_bytes = snap_outgoing_region(lane->outgoing, place.region)->page_bytes;
    uint64_t zero = snap_outgoing_drop_zeros(pages, page_bytes, mask);
    return send_pages(lane, place, mask, zero, pages, error);
}

gboolean snap_lane_end(SnapLane *lane, uint16_t flags, uint64_t epoch, uint64_t n_states, GError **error) {
    uint8_t body[32];
    SnapWireEnd end = {.epoch = epoch, .n_chunks = lane->n_chunks, .n_pages = lane->n_pages, .n_states = n_states};
    lane->n_chunks = lane->n_pages = 0;
    return snap_lane_transmit(lane, SNAP_WIRE_END, flags, body, snap_wire_encode_end(&end, body), NULL, error);
}
