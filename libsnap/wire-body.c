/*
 * Bodies of the records that carry a guest, and of those that end the carrying: see wire.h.
 */
#include "wire.h"

#include "bytes.h"
#include "hash.h"

#include <stdbool.h>

enum { CHUNK_BYTES = 56, ROUND_BYTES = 32, MISSING_BYTES = 24, STATE_BYTES = 18, END_BYTES = 32 };
enum { SHORT_BYTES = 16, REQUEST_BYTES = 24 };

static const char *const wrong_length = "wrong length";
static const char *const not_reserved = "a reserved field is not 0";
static const char *const no_such_region = "there is no such region";

/*
 * CHUNK, 56 bytes and the bulk:
 *
 *     [4]  region
 *     [4]  0
 *     [8]  chunk
 *     [40] the record of the chunk, as in an index: present, zero, offset (0 here), length, codec, XXH3-64
 */
uint32_t snap_wire_encode_chunk(const SnapWireChunk *chunk, uint8_t *ret_body) {
    uint8_t *at = put32(ret_body, chunk->region);
    at = put32(at, 0);
    at = put64(at, chunk->chunk);
    snap_chunk_record_encode(&chunk->record, at);
    g_assert(at + SNAP_INDEX_RECORD_BYTES == ret_body + CHUNK_BYTES);
    return CHUNK_BYTES;
}

static unsigned stored_pages(const SnapChunkRecord *record) {
    return (unsigned)__builtin_popcountll(record->present & ~record->zero);
}

/* Of @page_bytes only what is known: at least, and at most. */
static bool length_fits(const SnapChunkRecord *record, uint64_t page_least, uint64_t page_most) {
    uint64_t pages = stored_pages(record);
    if (record->codec == SNAP_WIRE_CODEC_ZSTD)
        return record->length_bytes > 0 && record->length_bytes < pages * page_most;
    return record->length_bytes >= pages * page_least && record->length_bytes <= pages * page_most &&
           (pages == 0 || record->length_bytes % pages == 0);
}

static const char *check_record(const SnapChunkRecord *record) {
    if (record->present == 0)
        return "it has no pages";
    if ((record->zero & ~record->present) != 0)
        return "a page is zero but not present";
    if (record->offset != 0)
        return not_reserved;
    if (record->codec != SNAP_WIRE_CODEC_RAW && record->codec != SNAP_WIRE_CODEC_ZSTD)
        return "unknown codec";
    if (!length_fits(record, SNAP_PAGE_MIN_BYTES, SNAP_WIRE_MAX_PAGE_BYTES))
        return "the length does not fit the masks";
    if (stored_pages(record) == 0 && record->xxh3 != XXH3_64bits(NULL, 0))
        return "its checksum is not that of no pages";
    return NULL;
}

const char *snap_wire_decode_chunk(const SnapWireHead *head, const uint8_t *body, SnapWireChunk *ret_chunk) {
    if (head->body_bytes != CHUNK_BYTES)
        return wrong_length;
    SnapWireChunk read = {.region = get32(body), .chunk = get64(body + 8)};
    snap_chunk_record_decode(body + 16, &read.record);
    if (get32(body + 4) != 0)
        return not_reserved;
    if (read.region >= SNAP_WIRE_MAX_REGIONS)
        return no_such_region;
    if (read.record.length_bytes != head->bulk_bytes)
        return "the bulk has another length than the chunk";
    const char *wrong = check_record(&read.record);
    if (!wrong)
        *ret_chunk = read;
    return wrong;
}

const char *snap_wire_check_chunk(const SnapWireChunk *chunk, uint64_t region_bytes, uint64_t page_bytes) {
    if (chunk->chunk >= snap_chunk_count(region_bytes, page_bytes))
        return "there is no such chunk";
    if ((chunk->record.present & ~snap_chunk_pages(region_bytes, page_bytes, chunk->chunk)) != 0)
        return "it has pages beyond the end of the region";
    if (!length_fits(&chunk->record, page_bytes, page_bytes))
        return "the length does not fit the masks";
    return NULL;
}

/*
 * ROUND, 32 bytes:
 *
 *     [8]  number of the round that begins, from 1 on
 *     [8]  pages that are dirty as it begins
 *     [8]  dirty pages a second
 *     [8]  0
 */
uint32_t snap_wire_encode_round(const SnapWireRound *round, uint8_t *ret_body) {
    uint8_t *at = put64(ret_body, round->round);
    at = put64(at, round->dirty_pages);
    at = put64(at, round->pages_per_second);
    at = put64(at, 0);
    g_assert(at == ret_body + ROUND_BYTES);
    return ROUND_BYTES;
}

const char *snap_wire_decode_round(const SnapWireHead *head, const uint8_t *body, SnapWireRound *ret_round) {
    if (head->body_bytes != ROUND_BYTES)
        return wrong_length;
    if (get64(body + 24) != 0)
        return not_reserved;
    if (get64(body) == 0)
        return "rounds are counted from 1";
    *ret_round = (SnapWireRound){
        .round = get64(body), .dirty_pages = get64(body + 8), .pages_per_second = get64(body + 16)};
    return NULL;
}

/*
 * MISSING, 24 bytes and masks:
 *
 *     [4]  region
 *     [4]  number of masks, 1 to 8192
 *     [8]  first chunk
 *     [8]  0
 *     [..] [8] a mask each
 */
uint32_t snap_wire_encode_missing(const SnapWireMissing *missing, const uint64_t *masks, uint8_t *ret_body) {
    g_assert(missing->n_masks >= 1 && missing->n_masks <= SNAP_WIRE_MAX_MASKS);
    uint8_t *at = put32(ret_body, missing->region);
    at = put32(at, missing->n_masks);
    at = put64(at, missing->first_chunk);
    at = put64(at, 0);
    for (uint32_t i = 0; i < missing->n_masks; i++)
        at = put64(at, masks[i]);
    return (uint32_t)(at - ret_body);
}

const char *snap_wire_decode_missing(const SnapWireHead *head, const uint8_t *body, SnapWireMissing *ret_missing,
                                     uint64_t *ret_masks) {
    if (head->body_bytes < MISSING_BYTES)
        return wrong_length;
    SnapWireMissing read = {.region = get32(body), .n_masks = get32(body + 4), .first_chunk = get64(body + 8)};
    if (read.n_masks < 1 || read.n_masks > SNAP_WIRE_MAX_MASKS)
        return "the number of masks is out of range";
    if (head->body_bytes != MISSING_BYTES + read.n_masks * (uint32_t)sizeof *ret_masks)
        return wrong_length;
    if (get64(body + 16) != 0)
        return not_reserved;
    if (read.region >= SNAP_WIRE_MAX_REGIONS)
        return no_such_region;
    if (read.first_chunk > UINT64_MAX - read.n_masks)
        return "there are no such chunks";
    for (uint32_t i = 0; i < read.n_masks; i++)
        ret_masks[i] = get64(body + MISSING_BYTES + i * sizeof *ret_masks);
    *ret_missing = read;
    return NULL;
}

/*
 * STATE, 18 bytes, a name, and bytes:
 *
 *     [8]  length of the blob, at most 256 MiB, of all blobs together too
 *     [8]  where these bytes are in it
 *     [2]  length of the name, 1 to 255
 *     [..] name
 *     [..] bytes, 1 to 1 MiB of them; 0 only where the blob is empty
 */
uint32_t snap_wire_encode_state(const SnapWireState *state, uint8_t *ret_body) {
    g_assert(state->name_bytes <= SNAP_WIRE_MAX_STATE_NAME && state->data_bytes <= SNAP_WIRE_STATE_PART_BYTES);
    uint8_t *at = put64(ret_body, state->total_bytes);
    at = put64(at, state->offset_bytes);
    at = put16(at, state->name_bytes);
    at = (uint8_t *)memcpy(at, state->name, state->name_bytes) + state->name_bytes;
    if (state->data_bytes > 0)
        memcpy(at, state->data, state->data_bytes);
    return STATE_BYTES + state->name_bytes + state->data_bytes;
}

static const char *check_state(const SnapWireState *state) {
    if (state->name_bytes < 1 || state->name_bytes > SNAP_WIRE_MAX_STATE_NAME ||
        !g_utf8_validate_len(state->name, state->name_bytes, NULL))
        return "the name is no text, or too long";
    if (state->total_bytes > SNAP_WIRE_MAX_STATE_BYTES)
        return "the blob is longer than it may be";
    if (state->data_bytes > SNAP_WIRE_STATE_PART_BYTES || (state->data_bytes == 0) != (state->total_bytes == 0))
        return "wrong length";
    if (state->offset_bytes > state->total_bytes || state->data_bytes > state->total_bytes - state->offset_bytes)
        return "the bytes are beyond the end of the blob";
    return NULL;
}

const char *snap_wire_decode_state(const SnapWireHead *head, const uint8_t *body, SnapWireState *ret_state) {
    if (head->body_bytes < STATE_BYTES || head->body_bytes < STATE_BYTES + (uint32_t)get16(body + 16))
        return wrong_length;
    SnapWireState read = {
        .total_bytes = get64(body),
        .offset_bytes = get64(body + 8),
        .name = (const char *)body + STATE_BYTES,
        .name_bytes = get16(body + 16),
    };
    read.data = body + STATE_BYTES + read.name_bytes;
    read.data_bytes = head->body_bytes - STATE_BYTES - read.name_bytes;
    const char *wrong = check_state(&read);
    if (!wrong)
        *ret_state = read;
    return wrong;
}

/*
 * END, 32 bytes:
 *
 *     [8]  epoch; 0 in a move
 *     [8]  CHUNK records on this connection since HELLO, or since the END before
 *     [8]  pages in them
 *     [8]  STATE blobs since then
 */
uint32_t snap_wire_encode_end(const SnapWireEnd *end, uint8_t *ret_body) {
    uint8_t *at = put64(ret_body, end->epoch);
    at = put64(at, end->n_chunks);
    at = put64(at, end->n_pages);
    at = put64(at, end->n_states);
    g_assert(at == ret_body + END_BYTES);
    return END_BYTES;
}

const char *snap_wire_decode_end(const SnapWireHead *head, const uint8_t *body, SnapWireEnd *ret_end) {
    if (head->body_bytes != END_BYTES)
        return wrong_length;
    SnapWireEnd read = {.epoch = get64(body),
                        .n_chunks = get64(body + 8),
                        .n_pages = get64(body + 16),
                        .n_states = get64(body + 24)};
    uint64_t least_chunks = read.n_pages / SNAP_CHUNK_PAGES + (read.n_pages % SNAP_CHUNK_PAGES != 0);
    if (read.n_pages < read.n_chunks || read.n_chunks < least_chunks)
        return "so many chunks cannot have so many pages";
    if (read.n_states > SNAP_WIRE_MAX_STATES)
        return "too many blobs of state";
    *ret_end = read;
    return NULL;
}

/*
 * READY, 16 bytes:
 *
 *     [8]  epoch; 0 in a move
 *     [8]  0
 *
 * ALIVE, 16 bytes:
 *
 *     [8]  CHUNK records of all channels that are in place (destination) or have been sent (source)
 *     [8]  0
 *
 * LAYOUT, 16 bytes:
 *
 *     [8]  number of REGION records that follow
 *     [8]  0
 */
uint32_t snap_wire_encode_number(uint64_t number, uint8_t *ret_body) {
    put64(put64(ret_body, number), 0);
    return SHORT_BYTES;
}

const char *snap_wire_decode_number(const SnapWireHead *head, const uint8_t *body, uint64_t *ret_number) {
    if (head->body_bytes != SHORT_BYTES)
        return wrong_length;
    if (get64(body + 8) != 0)
        return not_reserved;
    *ret_number = get64(body);
    return NULL;
}

/*
 * GO, STARTED, ALL_SENT and COMPLETE, 16 bytes:
 *
 *     [16] id of the migration
 */
uint32_t snap_wire_encode_id(const SnapWireId *id, uint8_t *ret_body) {
    memcpy(ret_body, id->bytes, SHORT_BYTES);
    return SHORT_BYTES;
}

const char *snap_wire_decode_id(const SnapWireHead *head, const uint8_t *body, SnapWireId *ret_id) {
    if (head->body_bytes != SHORT_BYTES)
        return wrong_length;
    memcpy(ret_id->bytes, body, SHORT_BYTES);
    return NULL;
}

/*
 * REQUEST, 24 bytes:
 *
 *     [4]  region
 *     [4]  number of pages, at most those of a granule; 1 where the granule is a page
 *     [8]  first page
 *     [8]  0
 */
uint32_t snap_wire_encode_request(const SnapWireRequest *request, uint8_t *ret_body) {
    uint8_t *at = put32(ret_body, request->region);
    at = put32(at, request->n_pages);
    at = put64(at, request->first_page);
    at = put64(at, 0);
    g_assert(at == ret_body + REQUEST_BYTES);
    return REQUEST_BYTES;
}

const char *snap_wire_decode_request(const SnapWireHead *head, const uint8_t *body, SnapWireRequest *ret_request) {
    if (head->body_bytes != REQUEST_BYTES)
        return wrong_length;
    SnapWireRequest read = {.region = get32(body), .n_pages = get32(body + 4), .first_page = get64(body + 8)};
    if (get64(body + 16) != 0)
        return not_reserved;
    if (read.region >= SNAP_WIRE_MAX_REGIONS)
        return no_such_region;
    if (read.n_pages == 0 || read.first_page > UINT64_MAX - read.n_pages)
        return "there are no such pages";
    *ret_request = read;
    return NULL;
}
