/*
 * A good record of each type, for the tests and the fuzzer of the migration protocol: how it is encoded, and
 * decoded and encoded again.
 */
#pragma once

#include "bytes.h"
#include "hash.h"
#include "wire.h"

#include <stdbool.h>
#include <string.h>

static const SnapWireId fix_id = {{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}};
enum { FIX_PAGE_BYTES = 4096 };

static inline uint32_t encode_hello(uint8_t *ret_body) {
    const SnapWireHello hello = {.id = fix_id,
                                 .version = 1,
                                 .n_channels = 3,
                                 .channel = 0,
                                 .purpose = SNAP_WIRE_MOVE,
                                 .n_regions = 5,
                                 .page_bytes = FIX_PAGE_BYTES,
                                 .silence_ms = 10000,
                                 .driver = "microvm",
                                 .driver_bytes = 7};
    return snap_wire_encode_hello(&hello, ret_body);
}

static inline uint32_t encode_region(uint8_t *ret_body) {
    const SnapWireRegion region = {.guest_address = 0x100000,
                                   .length_bytes = 0x40000000,
                                   .page_bytes = FIX_PAGE_BYTES,
                                   .granule_bytes = 0x200000,
                                   .host_address = 0x7f0000000000,
                                   .name = "pc.r\xc3\xa4m",
                                   .name_bytes = 7};
    return snap_wire_encode_region(&region, ret_body);
}

static inline uint32_t encode_welcome(uint8_t *ret_body) {
    const SnapWireWelcome welcome = {.id = fix_id, .version = 1, .at = SNAP_WIRE_AT_STARTED, .n_missing = 7};
    return snap_wire_encode_welcome(&welcome, ret_body);
}

static inline uint32_t encode_failed(uint8_t *ret_body) {
    return snap_wire_encode_failed("region \"pc.ram\": no such", ret_body);
}

/* Pages 0 to 3 are there, page 3 is zeros. */
static inline uint32_t encode_chunk(uint8_t *ret_body) {
    const SnapWireChunk chunk = {
        .region = 1,
        .chunk = 77,
        .record = {.present = 0xf, .zero = 0x8, .length_bytes = 3 * FIX_PAGE_BYTES, .xxh3 = 0x1122334455667788}};
    return snap_wire_encode_chunk(&chunk, ret_body);
}

static inline uint32_t encode_round(uint8_t *ret_body) {
    const SnapWireRound round = {.round = 2, .dirty_pages = 123456, .pages_per_second = 20000};
    return snap_wire_encode_round(&round, ret_body);
}

static inline uint32_t encode_missing(uint8_t *ret_body) {
    const SnapWireMissing missing = {.region = 1, .n_masks = 3, .first_chunk = 1000};
    const uint64_t masks[] = {1, UINT64_MAX, 0x8000000000000000};
    return snap_wire_encode_missing(&missing, masks, ret_body);
}

static inline uint32_t encode_state(uint8_t *ret_body) {
    const SnapWireState state = {.total_bytes = 100,
                                 .offset_bytes = 90,
                                 .name = "vcpu",
                                 .name_bytes = 4,
                                 .data = (const uint8_t *)"0123456789",
                                 .data_bytes = 10};
    return snap_wire_encode_state(&state, ret_body);
}

static inline uint32_t encode_end(uint8_t *ret_body) {
    const SnapWireEnd end = {.epoch = 3, .n_chunks = 10, .n_pages = 600, .n_states = 2};
    return snap_wire_encode_end(&end, ret_body);
}

static inline uint32_t encode_number(uint8_t *ret_body) {
    return snap_wire_encode_number(42, ret_body);
}

static inline uint32_t encode_id(uint8_t *ret_body) {
    return snap_wire_encode_id(&fix_id, ret_body);
}

static inline uint32_t encode_request(uint8_t *ret_body) {
    const SnapWireRequest request = {.region = 1, .n_pages = 512, .first_page = 4711};
    return snap_wire_encode_request(&request, ret_body);
}

/* Decoded, and encoded again into @ret_body. Returns what is wrong. */
#define RECODE(name, Type)                                                                                        \
    static inline const char *recode_##name(const SnapWireHead *head, const uint8_t *body, uint8_t *ret_body,     \
                                            uint32_t *ret_bytes) {                                                \
        Type value;                                                                                               \
        const char *wrong = snap_wire_decode_##name(head, body, &value);                                          \
        if (!wrong)                                                                                               \
            *ret_bytes = snap_wire_encode_##name(&value, ret_body);                                               \
        return wrong;                                                                                             \
    }
RECODE(hello, SnapWireHello)
RECODE(region, SnapWireRegion)
RECODE(welcome, SnapWireWelcome)
RECODE(chunk, SnapWireChunk)
RECODE(round, SnapWireRound)
RECODE(state, SnapWireState)
RECODE(end, SnapWireEnd)
RECODE(id, SnapWireId)
RECODE(request, SnapWireRequest)

static inline const char *recode_number(const SnapWireHead *head, const uint8_t *body, uint8_t *ret_body,
                                        uint32_t *ret_bytes) {
    uint64_t number = 0;
    const char *wrong = snap_wire_decode_number(head, body, &number);
    if (!wrong)
        *ret_bytes = snap_wire_encode_number(number, ret_body);
    return wrong;
}

static inline const char *recode_missing(const SnapWireHead *head, const uint8_t *body, uint8_t *ret_body,
                                         uint32_t *ret_bytes) {
    g_autofree uint64_t *masks = g_new(uint64_t, SNAP_WIRE_MAX_MASKS);
    SnapWireMissing missing;
    const char *wrong = snap_wire_decode_missing(head, body, &missing, masks);
    if (!wrong)
        *ret_bytes = snap_wire_encode_missing(&missing, masks, ret_body);
    return wrong;
}

static inline const char *recode_failed(const SnapWireHead *head, const uint8_t *body, uint8_t *ret_body,
                                        uint32_t *ret_bytes) {
    g_autofree char *text = snap_wire_decode_failed(head, body);
    *ret_bytes = snap_wire_encode_failed(text, ret_body);
    return NULL;
}

typedef struct {
    SnapWireSender sender;
    uint16_t flags;
    uint32_t bulk_bytes;
    uint32_t (*encode)(uint8_t *ret_body);
    const char *(*recode)(const SnapWireHead *head, const uint8_t *body, uint8_t *ret_body, uint32_t *ret_bytes);
} FixRecord;

#define FROM_S SNAP_WIRE_FROM_SOURCE
#define FROM_D SNAP_WIRE_FROM_DESTINATION
static const FixRecord fix_records[] = {
    [SNAP_WIRE_HELLO] = {FROM_S, SNAP_WIRE_POSTCOPY, 0, encode_hello, recode_hello},
    [SNAP_WIRE_REGION] = {FROM_S, 0, 0, encode_region, recode_region},
    [SNAP_WIRE_WELCOME] = {FROM_D, 0, 0, encode_welcome, recode_welcome},
    [SNAP_WIRE_FAILED] = {FROM_D, 0, 0, encode_failed, recode_failed},
    [SNAP_WIRE_CHUNK] = {FROM_S, 0, 3 * FIX_PAGE_BYTES, encode_chunk, recode_chunk},
    [SNAP_WIRE_ROUND] = {FROM_S, 0, 0, encode_round, recode_round},
    [SNAP_WIRE_MISSING] = {FROM_S, 0, 0, encode_missing, recode_missing},
    [SNAP_WIRE_STATE] = {FROM_S, 0, 0, encode_state, recode_state},
    [SNAP_WIRE_END] = {FROM_S, SNAP_WIRE_PAGES_MISSING, 0, encode_end, recode_end},
    [SNAP_WIRE_READY] = {FROM_D, 0, 0, encode_number, recode_number},
    [SNAP_WIRE_GO] = {FROM_S, 0, 0, encode_id, recode_id},
    [SNAP_WIRE_STARTED] = {FROM_D, 0, 0, encode_id, recode_id},
    [SNAP_WIRE_REQUEST] = {FROM_D, 0, 0, encode_request, recode_request},
    [SNAP_WIRE_ALL_SENT] = {FROM_S, 0, 0, encode_id, recode_id},
    [SNAP_WIRE_COMPLETE] = {FROM_D, 0, 0, encode_id, recode_id},
    [SNAP_WIRE_ALIVE] = {FROM_D, 0, 0, encode_number, recode_number},
    [SNAP_WIRE_LAYOUT] = {FROM_S, 0, 0, encode_number, recode_number},
};
G_STATIC_ASSERT(G_N_ELEMENTS(fix_records) == SNAP_WIRE_MAX);

/* The good record of @type, sealed with @number, in @ret_body and @ret_head. Returns its decoded head. */
static inline SnapWireHead fix_seal(SnapWireType type, uint64_t number, uint8_t *ret_head, uint8_t *ret_body) {
    const FixRecord *record = &fix_records[type];
    SnapWireHead head = {.type = type, .flags = record->flags, .bulk_bytes = record->bulk_bytes, .number = number};
    head.body_bytes = record->encode(ret_body);
    snap_wire_seal(&head, ret_body, ret_head);
    return head;
}
