/*
 * The records of the migration protocol, as bytes: docs/protocol.md. Pure: encoders and decoders on buffers.
 *
 * Happy path, sending: snap_wire_encode_*() fills the body, snap_wire_seal() the head in front of it. Receiving:
 * snap_wire_open() checks the head, which tells how much more there is; snap_wire_check() the head and body
 * together; snap_wire_decode_*() what is in the body.
 *
 * Decoders check everything that can be told from the bytes alone, so what they return is in range: the fields of
 * a decoded struct need no further look but at what only the state of the migration tells (is there such a region?
 * is it time for this record?). They return NULL, or what is wrong, for people: a static string. Decoded names and
 * bytes are borrowed from the body, and names are not terminated by NUL.
 *
 * Threads: any.
 */
#pragma once

#include "chunk.h"

#define SNAP_WIRE_VERSION 1u
#define SNAP_WIRE_HEAD_BYTES 32u
#define SNAP_WIRE_MAX_CHANNELS 8u
#define SNAP_WIRE_URGENT 0xffffu /* the number of the urgent channel */
#define SNAP_WIRE_MAX_REGIONS 65536u
#define SNAP_WIRE_MAX_NAME 1024u        /* bytes of a region's name */
#define SNAP_WIRE_MAX_PAGE_BYTES 65536u /* bytes of a page */
#define SNAP_WIRE_MAX_DRIVER 255u       /* bytes of the kind of guest */
#define SNAP_WIRE_MAX_SILENCE_MS 0x7fffffffu
#define SNAP_WIRE_MAX_TEXT 1024u  /* of FAILED */
#define SNAP_WIRE_MAX_MASKS 8192u /* in one MISSING */
#define SNAP_WIRE_MAX_STATES 1024u
#define SNAP_WIRE_MAX_STATE_NAME 255u
#define SNAP_WIRE_MAX_STATE_BYTES (UINT64_C(256) << 20) /* of all blobs together */
#define SNAP_WIRE_STATE_PART_BYTES (1u << 20)           /* of a blob in one record */
#define SNAP_WIRE_MAX_BODY_BYTES (SNAP_WIRE_STATE_PART_BYTES + 280u)
#define SNAP_WIRE_MAX_BULK_BYTES (64u * SNAP_WIRE_MAX_PAGE_BYTES)

/* X(NAME, number, sender: S, D or B(oth), most bytes of the body, flags that are defined) */
#define SNAP_WIRE_TABLE(X)                                                                                        \
    X(HELLO, 1, S, 512, 7)                                                                                        \
    X(REGION, 2, S, 1152, 1)                                                                                      \
    X(WELCOME, 3, D, 32, 0)                                                                                       \
    X(FAILED, 4, B, 1024, 0)                                                                                      \
    X(CHUNK, 5, S, 56, 0)                                                                                         \
    X(ROUND, 6, S, 32, 0)                                                                                         \
    X(MISSING, 7, B, 65560, 0)                                                                                    \
    X(STATE, 8, S, SNAP_WIRE_MAX_BODY_BYTES, 0)                                                                   \
    X(END, 9, S, 32, 1)                                                                                           \
    X(READY, 10, D, 16, 0)                                                                                        \
    X(GO, 11, S, 16, 0)                                                                                           \
    X(STARTED, 12, D, 16, 0)                                                                                      \
    X(REQUEST, 13, D, 24, 0)                                                                                      \
    X(ALL_SENT, 14, S, 16, 0)                                                                                     \
    X(COMPLETE, 15, D, 16, 0)                                                                                     \
    X(ALIVE, 16, B, 16, 0)                                                                                        \
    X(LAYOUT, 17, S, 16, 0)

typedef enum {
    SNAP_WIRE_NONE,
#define X(name, number, sender, body, flags) SNAP_WIRE_##name = (number),
    SNAP_WIRE_TABLE(X)
#undef X
        SNAP_WIRE_MAX
} SnapWireType;

/* "HELLO", …; NULL when out of range. */
const char *snap_wire_name(SnapWireType type);

typedef enum { SNAP_WIRE_FROM_SOURCE, SNAP_WIRE_FROM_DESTINATION } SnapWireSender;

typedef struct {
    uint8_t bytes[16];
} SnapWireId;

/* ---- head ------------------------------------------------------------------------------------------------ */

typedef struct {
    SnapWireType type;
    uint16_t flags;
    uint32_t body_bytes;
    uint32_t bulk_bytes;
    uint64_t number; /* records sent before it on this connection in this direction */
} SnapWireHead;

/* Write the head of @body into @ret_head. */
void snap_wire_seal(const SnapWireHead *head, const void *body, uint8_t ret_head[static SNAP_WIRE_HEAD_BYTES]);

/*
 * Read a head: magic, type, direction, lengths against their limits, flags, and that its number is @number. The
 * checksum is not looked at: snap_wire_check() does, when the body has come.
 */
const char *snap_wire_open(const uint8_t head[static SNAP_WIRE_HEAD_BYTES], SnapWireSender sender, uint64_t number,
                           SnapWireHead *ret_head);

/* The checksum of a head that snap_wire_open() has read, and its body. */
const char *snap_wire_check(const uint8_t head[static SNAP_WIRE_HEAD_BYTES], const void *body,
                            uint32_t body_bytes);

/* ---- bodies ---------------------------------------------------------------------------------------------- */
/* Encoders write into a buffer that has room for the type's longest body, and return how long it is. */

enum { SNAP_WIRE_ONE_WAY = 1, SNAP_WIRE_RESUME = 2, SNAP_WIRE_POSTCOPY = 4 }; /* flags of HELLO */
enum { SNAP_WIRE_KEPT = 1 };                                                  /* flag of REGION */
enum { SNAP_WIRE_PAGES_MISSING = 1 };                                         /* flag of END */

typedef enum { SNAP_WIRE_MOVE = 1, SNAP_WIRE_REPLICATE = 2 } SnapWirePurpose;

typedef struct {
    SnapWireId id;
    uint32_t version;
    uint32_t n_channels; /* 1 to 8 */
    uint32_t channel;    /* below n_channels, or SNAP_WIRE_URGENT */
    SnapWirePurpose purpose;
    uint64_t n_regions;
    uint64_t page_bytes;
    uint64_t silence_ms;
    const char *driver; /* (borrow) not terminated */
    uint16_t driver_bytes;
} SnapWireHello;

uint32_t snap_wire_encode_hello(const SnapWireHello *hello, uint8_t *ret_body);
const char *snap_wire_decode_hello(const SnapWireHead *head, const uint8_t *body, SnapWireHello *ret_hello);

typedef struct {
    uint64_t guest_address;
    uint64_t length_bytes;
    uint64_t page_bytes;
    uint64_t granule_bytes;
    uint64_t host_address;
    const char *name; /* (borrow) not terminated; valid UTF-8 */
    uint16_t name_bytes;
} SnapWireRegion;

uint32_t snap_wire_encode_region(const SnapWireRegion *region, uint8_t *ret_body);
const char *snap_wire_decode_region(const SnapWireHead *head, const uint8_t *body, SnapWireRegion *ret_region);

typedef enum { SNAP_WIRE_AT_BEGIN, SNAP_WIRE_AT_READY, SNAP_WIRE_AT_STARTED, SNAP_WIRE_AT_MAX } SnapWireAt;

typedef struct {
    SnapWireId id;
    uint32_t version;
    SnapWireAt at;
    uint64_t n_missing; /* records of it that follow */
} SnapWireWelcome;

uint32_t snap_wire_encode_welcome(const SnapWireWelcome *welcome, uint8_t *ret_body);
const char *snap_wire_decode_welcome(const SnapWireHead *head, const uint8_t *body, SnapWireWelcome *ret_welcome);

/* @text: cut to what fits, between characters. */
uint32_t snap_wire_encode_failed(const char *text, uint8_t *ret_body);
/* Return: (out) the text as valid UTF-8 without control characters, whatever was sent. */
char *snap_wire_decode_failed(const SnapWireHead *head, const uint8_t *body);

typedef struct {
    uint32_t region;
    uint64_t chunk;
    SnapChunkRecord record; /* its offset is 0 */
} SnapWireChunk;

enum { SNAP_WIRE_CODEC_RAW = 0, SNAP_WIRE_CODEC_ZSTD = 1 };

uint32_t snap_wire_encode_chunk(const SnapWireChunk *chunk, uint8_t *ret_body);
/*
 * Without the bulk, whose checksum is that of the pages. @page_bytes of a region is not known here: whoever knows
 * it calls snap_wire_check_chunk() next.
 */
const char *snap_wire_decode_chunk(const SnapWireHead *head, const uint8_t *body, SnapWireChunk *ret_chunk);
/* Against the region it says it is of: that the chunk exists, its masks and length. */
const char *snap_wire_check_chunk(const SnapWireChunk *chunk, uint64_t region_bytes, uint64_t page_bytes);

typedef struct {
    uint64_t round;
    uint64_t dirty_pages;
    uint64_t pages_per_second;
} SnapWireRound;

uint32_t snap_wire_encode_round(const SnapWireRound *round, uint8_t *ret_body);
const char *snap_wire_decode_round(const SnapWireHead *head, const uint8_t *body, SnapWireRound *ret_round);

typedef struct {
    uint32_t region;
    uint32_t n_masks; /* 1 to 8192 */
    uint64_t first_chunk;
} SnapWireMissing;

/* @masks: n_masks of them. */
uint32_t snap_wire_encode_missing(const SnapWireMissing *missing, const uint64_t *masks, uint8_t *ret_body);
/* @ret_masks: room for SNAP_WIRE_MAX_MASKS. */
const char *snap_wire_decode_missing(const SnapWireHead *head, const uint8_t *body, SnapWireMissing *ret_missing,
                                     uint64_t *ret_masks);

typedef struct {
    uint64_t total_bytes;
    uint64_t offset_bytes;
    const char *name; /* (borrow) not terminated; valid UTF-8 */
    uint16_t name_bytes;
    const uint8_t *data; /* (borrow) */
    uint32_t data_bytes;
} SnapWireState;

uint32_t snap_wire_encode_state(const SnapWireState *state, uint8_t *ret_body);
const char *snap_wire_decode_state(const SnapWireHead *head, const uint8_t *body, SnapWireState *ret_state);

typedef struct {
    uint64_t epoch;
    uint64_t n_chunks;
    uint64_t n_pages;
    uint64_t n_states;
} SnapWireEnd;

uint32_t snap_wire_encode_end(const SnapWireEnd *end, uint8_t *ret_body);
const char *snap_wire_decode_end(const SnapWireHead *head, const uint8_t *body, SnapWireEnd *ret_end);

/* READY (an epoch), ALIVE and LAYOUT (counts). */
uint32_t snap_wire_encode_number(uint64_t number, uint8_t *ret_body);
const char *snap_wire_decode_number(const SnapWireHead *head, const uint8_t *body, uint64_t *ret_number);

/* GO, STARTED, ALL_SENT, COMPLETE. */
uint32_t snap_wire_encode_id(const SnapWireId *id, uint8_t *ret_body);
const char *snap_wire_decode_id(const SnapWireHead *head, const uint8_t *body, SnapWireId *ret_id);

typedef struct {
    uint32_t region;
    uint32_t n_pages;
    uint64_t first_page;
} SnapWireRequest;

uint32_t snap_wire_encode_request(const SnapWireRequest *request, uint8_t *ret_body);
const char *snap_wire_decode_request(const SnapWireHead *head, const uint8_t *body, SnapWireRequest *ret_request);
