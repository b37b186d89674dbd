/*
 * The bodies of the migration protocol's records, field by field: at their limits they are taken, beyond them
 * refused, and what is refused leaves the result alone. A case takes the good record of wire-fixture.h and changes
 * some of its bytes.
 */
#include "wire-fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

typedef struct {
    uint32_t at, size;
    uint64_t value;
} Poke;

typedef struct {
    SnapWireType type;
    int flags;  /* -1: those of the good record */
    int longer; /* the body, by so many bytes, zeros at first */
    Poke pokes[4];
    const char *wrong; /* NULL: it is taken */
} Case;

enum { ROOM_BYTES = SNAP_WIRE_MAX_BODY_BYTES + 4096 };

static const char *decode_case(const Case *this) {
    g_autofree uint8_t *body = g_malloc0(ROOM_BYTES), *again = g_malloc0(ROOM_BYTES);
    const FixRecord *record = &fix_records[this->type];
    SnapWireHead head = {.type = this->type, .flags = record->flags, .bulk_bytes = record->bulk_bytes};
    uint32_t again_bytes = 0;
    head.body_bytes = (uint32_t)((int)record->encode(body) + this->longer);
    if (this->flags >= 0)
        head.flags = (uint16_t)this->flags;
    for (size_t i = 0; i < G_N_ELEMENTS(this->pokes); i++) {
        uint8_t value[8];
        put64(value, this->pokes[i].value);
        memcpy(body + this->pokes[i].at, value, this->pokes[i].size);
    }
    if (this->type == SNAP_WIRE_CHUNK && this->flags == -1)
        head.bulk_bytes = get32(body + 40);
    /* exactly as long as it says, so that a sanitizer sees what is read behind its end */
    uint8_t *exact = malloc(head.body_bytes + !head.body_bytes);
    memcpy(exact, body, head.body_bytes);
    const char *wrong = record->recode(&head, exact, again, &again_bytes);
    if (!wrong && this->type != SNAP_WIRE_FAILED) {
        assert_int_equal(again_bytes, head.body_bytes);
        assert_memory_equal(again, exact, again_bytes);
    }
    free(exact);
    return wrong;
}

static void expect_cases(const Case *cases, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const char *wrong = decode_case(&cases[i]);
        if (g_strcmp0(wrong, cases[i].wrong) != 0)
            fail_msg("%s, case %zu: %s instead of %s", snap_wire_name(cases[i].type), i, wrong, cases[i].wrong);
    }
}

static const char *const wrong_length = "wrong length";
static const char *const reserved = "a reserved field is not 0";
static const char *const channels = "the number of channels is out of range";
static const char *const one_way =
    "what is one-way has one channel, and is neither resumed nor followed by a post-copy";

static void hello_field_by_field_is_checked(void **state) {
    (void)state;
    static const char *const no_channel = "there is no such channel", *const regions = "too many regions";
    static const char *const page = "impossible size of a page", *const silence =
                                                                     "the time of silence is out of range";
    static const char *const text = "the kind of guest is no text, or too long";
    const Case cases[] = {
#define C(...) {SNAP_WIRE_HELLO, __VA_ARGS__}
        C(-1, 0, {{16, 4, 0}}, "there is no such version"),
        C(-1, 0, {{16, 4, 2}}, NULL), /* a later source: it is told that 1 will be spoken */
        C(1, 0, {{16, 4, 2}, {20, 4, 1}}, "unknown version"), /* but nobody tells it so in a file */
        C(-1, 0, {{20, 4, 0}}, channels),
        C(-1, 0, {{20, 4, 1}}, NULL),
        C(-1, 0, {{20, 4, 8}}, NULL),
        C(-1, 0, {{20, 4, 9}}, channels),
        C(-1, 0, {{24, 4, 2}, {32, 8, 0}}, NULL),
        C(-1, 0, {{24, 4, 3}, {32, 8, 0}}, no_channel),
        C(-1, 0, {{24, 4, SNAP_WIRE_URGENT}, {32, 8, 0}}, NULL),
        C(-1, 0, {{24, 4, SNAP_WIRE_URGENT + 1}, {32, 8, 0}}, no_channel),
        C(-1, 0, {{28, 4, 0}}, "unknown purpose"),
        C(-1, 0, {{28, 4, 2}}, NULL),
        C(-1, 0, {{28, 4, 3}}, "unknown purpose"),
        C(-1, 0, {{32, 8, 0}}, NULL),
        C(-1, 0, {{32, 8, SNAP_WIRE_MAX_REGIONS}}, NULL),
        C(-1, 0, {{32, 8, SNAP_WIRE_MAX_REGIONS + 1}}, regions),
        C(-1, 0, {{24, 4, 1}, {32, 8, 1}}, regions),
        C(SNAP_WIRE_RESUME, 0, {{32, 8, 1}}, regions),
        C(SNAP_WIRE_RESUME, 0, {{32, 8, 0}}, NULL),
        C(-1, 0, {{40, 8, 0}}, page),
        C(-1, 0, {{40, 8, 6144}}, page),
        C(-1, 0, {{40, 8, 512}}, NULL),
        C(-1, 0, {{40, 8, SNAP_WIRE_MAX_PAGE_BYTES}}, NULL),
        C(-1, 0, {{40, 8, 2 * SNAP_WIRE_MAX_PAGE_BYTES}}, page),
        C(-1, 0, {{48, 8, 0}}, silence),
        C(-1, 0, {{48, 8, 1}}, NULL),
        C(-1, 0, {{48, 8, SNAP_WIRE_MAX_SILENCE_MS}}, NULL),
        C(-1, 0, {{48, 8, SNAP_WIRE_MAX_SILENCE_MS + 1}}, silence),
        C(-1, 0, {{56, 2, 6}}, wrong_length),
        C(-1, 0, {{56, 2, 8}}, wrong_length),
        C(-1, 0, {{56, 2, 0xffff}}, wrong_length),
        C(-1, -7, {{56, 2, 0}}, NULL),
        C(-1, 248, {{56, 2, 255}, {67, 1, 'x'}}, text), /* NULs */
        C(-1, 249, {{56, 2, 256}}, text),
        C(-1, 0, {{60, 1, 0xff}}, text),
        C(-1, 0, {{66, 1, 0xc3}}, text), /* half a character */
        C(-1, 0, {{58, 2, 1}}, reserved),
        C(1, 0, {{20, 4, 1}}, NULL),
        C(1, 0, {{20, 4, 2}}, one_way),
        C(1, 0, {{20, 4, 1}, {24, 4, SNAP_WIRE_URGENT}, {32, 8, 0}}, one_way),
        C(1 | SNAP_WIRE_RESUME, 0, {{20, 4, 1}, {32, 8, 0}}, one_way),
        C(1 | SNAP_WIRE_POSTCOPY, 0, {{20, 4, 1}}, one_way),
#undef C
    };
    expect_cases(cases, G_N_ELEMENTS(cases));
}

static void region_field_by_field_is_checked(void **state) {
    (void)state;
    static const char *const length = "impossible length of a region", *const page = "impossible size of a page";
    static const char *const granule = "the granule is no multiple of a page";
    static const char *const name = "the name is no text, or too long";
    static const char *const guest = "the region is beyond the end of the guest's addresses";
    const uint64_t bytes = 0x40000000;
    const Case cases[] = {
#define C(...) {SNAP_WIRE_REGION, -1, __VA_ARGS__}
        C(0, {{0, 8, UINT64_MAX}}, NULL),
        C(0, {{0, 8, UINT64_MAX - bytes}}, NULL),
        C(0, {{0, 8, UINT64_MAX - bytes + 1}}, guest),
        C(0, {{0, 8, UINT64_MAX - 1}}, guest),
        C(0, {{8, 8, 0}}, length),
        C(0, {{8, 8, FIX_PAGE_BYTES}}, NULL),
        C(0, {{8, 8, FIX_PAGE_BYTES + 512}}, length),
        C(0, {{8, 8, (UINT64_C(1) << 63) - FIX_PAGE_BYTES}}, NULL),
        C(0, {{8, 8, UINT64_C(1) << 63}}, length),
        C(0, {{16, 8, 0}}, page),
        C(0, {{16, 8, 1}}, page),
        C(0, {{16, 8, SNAP_WIRE_MAX_PAGE_BYTES}}, NULL),
        C(0, {{16, 8, 2 * SNAP_WIRE_MAX_PAGE_BYTES}}, page),
        C(0, {{24, 8, 0}}, granule),
        C(0, {{24, 8, 512}}, granule),
        C(0, {{24, 8, FIX_PAGE_BYTES}}, NULL),
        C(0, {{24, 8, FIX_PAGE_BYTES + 1}}, granule),
        C(0, {{32, 8, UINT64_MAX - bytes}}, NULL),
        C(0, {{32, 8, UINT64_MAX - bytes + 1}}, "the region is beyond the end of the address space"),
        C(-7, {{40, 2, 0}}, name),
        C(-6, {{40, 2, 1}}, NULL),
        C(1017, {{40, 2, 1024}}, name), /* NULs */
        C(1018, {{40, 2, 1025}}, name),
        C(0, {{40, 2, 6}}, wrong_length),
        C(0, {{40, 2, 8}}, wrong_length),
        C(0, {{46, 1, 'a'}}, name),
#undef C
    };
    expect_cases(cases, G_N_ELEMENTS(cases));
}

/* Names of just the length that is allowed. */
static void names_of_the_greatest_length_are_taken(void **state) {
    (void)state;
    g_autofree uint8_t *body = g_malloc(ROOM_BYTES), *again = g_malloc(ROOM_BYTES);
    g_autofree char *name = g_strnfill(SNAP_WIRE_MAX_NAME, 'n');
    uint32_t again_bytes = 0;
    encode_region(body);
    memcpy(put16(body + 40, SNAP_WIRE_MAX_NAME), name, SNAP_WIRE_MAX_NAME);
    SnapWireHead head = {.type = SNAP_WIRE_REGION, .body_bytes = 42 + SNAP_WIRE_MAX_NAME};
    assert_null(recode_region(&head, body, again, &again_bytes));
    encode_hello(body);
    put16(body + 56, SNAP_WIRE_MAX_DRIVER);
    memcpy(body + 60, name, SNAP_WIRE_MAX_DRIVER);
    head = (SnapWireHead){.type = SNAP_WIRE_HELLO, .body_bytes = 60 + SNAP_WIRE_MAX_DRIVER};
    assert_null(recode_hello(&head, body, again, &again_bytes));
    const SnapWireState longest = {.total_bytes = SNAP_WIRE_MAX_STATE_BYTES,
                                   .offset_bytes = SNAP_WIRE_MAX_STATE_BYTES - SNAP_WIRE_STATE_PART_BYTES,
                                   .name = name,
                                   .name_bytes = SNAP_WIRE_MAX_STATE_NAME,
                                   .data = again,
                                   .data_bytes = SNAP_WIRE_STATE_PART_BYTES};
    head = (SnapWireHead){.type = SNAP_WIRE_STATE, .body_bytes = snap_wire_encode_state(&longest, body)};
    assert_true(head.body_bytes <= SNAP_WIRE_MAX_BODY_BYTES);
    assert_null(recode_state(&head, body, again, &again_bytes));
}

static void welcome_field_by_field_is_checked(void **state) {
    (void)state;
    static const char *const version = "unknown version";
    const Case cases[] = {
#define C(...) {SNAP_WIRE_WELCOME, -1, __VA_ARGS__}
        C(0, {{16, 4, 0}}, version),
        C(0, {{16, 4, 2}}, version),
        C(0, {{20, 4, SNAP_WIRE_AT_BEGIN}, {24, 8, 0}}, NULL),
        C(0, {{20, 4, SNAP_WIRE_AT_MAX}}, "unknown state of the destination"),
        C(0, {{20, 4, UINT32_MAX}}, "unknown state of the destination"),
        C(0, {{20, 4, SNAP_WIRE_AT_READY}}, "nothing can be missing before the guest is started"),
        C(0, {{24, 8, UINT64_MAX}}, NULL),
        C(-1, {{0}}, wrong_length),
        C(1, {{0}}, wrong_length),
#undef C
    };
    expect_cases(cases, G_N_ELEMENTS(cases));
}

static void chunk_field_by_field_is_checked(void **state) {
    (void)state;
    static const char *const fit = "the length does not fit the masks";
    static const char *const region = "there is no such region";
    const uint64_t no_pages = XXH3_64bits(NULL, 0);
    const Case cases[] = {
#define C(...) {SNAP_WIRE_CHUNK, -1, __VA_ARGS__}
        C(0, {{0, 4, 65535}}, NULL),
        C(0, {{0, 4, 65536}}, region),
        C(0, {{4, 4, 1}}, reserved),
        C(0, {{8, 8, UINT64_MAX}}, NULL), /* a matter of the region */
        C(0, {{16, 8, 0}, {24, 8, 0}, {40, 4, 0}, {48, 8, 0}}, "it has no pages"),
        C(0, {{24, 8, 0x10}}, "a page is zero but not present"),
        C(0, {{32, 8, 1}}, reserved), /* the offset */
        C(0, {{40, 4, 3 * 512}}, NULL),
        C(0, {{40, 4, 3 * 512 - 3}}, fit),
        C(0, {{40, 4, 3 * FIX_PAGE_BYTES + 1}}, fit),
        C(0, {{40, 4, 3 * SNAP_WIRE_MAX_PAGE_BYTES}}, NULL),
        C(0, {{40, 4, 3 * SNAP_WIRE_MAX_PAGE_BYTES + 3}}, fit),
        C(0, {{40, 4, 0}}, fit),
        C(0, {{44, 4, SNAP_WIRE_CODEC_ZSTD}}, NULL),
        C(0, {{44, 4, SNAP_WIRE_CODEC_ZSTD}, {40, 4, 1}}, NULL),
        C(0, {{44, 4, SNAP_WIRE_CODEC_ZSTD}, {40, 4, 0}}, fit),
        C(0, {{44, 4, SNAP_WIRE_CODEC_ZSTD}, {40, 4, 3 * SNAP_WIRE_MAX_PAGE_BYTES}}, fit),
        C(0, {{44, 4, 2}}, "unknown codec"),
        C(0, {{24, 8, 0xf}, {40, 4, 0}, {48, 8, no_pages}}, NULL),
        C(0, {{24, 8, 0xf}, {40, 4, 0}, {48, 8, no_pages + 1}}, "its checksum is not that of no pages"),
        C(0, {{24, 8, 0xf}, {40, 4, 512}, {48, 8, no_pages}}, fit),
        C(0, {{24, 8, 0xf}, {40, 4, 0}, {44, 4, SNAP_WIRE_CODEC_ZSTD}, {48, 8, no_pages}}, fit),
        C(-1, {{0}}, wrong_length),
        C(1, {{0}}, wrong_length),
        {SNAP_WIRE_CHUNK, 0, 0, {{40, 4, 2 * FIX_PAGE_BYTES}}, "the bulk has another length than the chunk"},
#undef C
    };
    expect_cases(cases, G_N_ELEMENTS(cases));
}

static void chunk_against_its_region_is_checked(void **state) {
    (void)state;
    const uint64_t page = FIX_PAGE_BYTES, bytes = 150 * page; /* chunks 0, 1, and 22 pages of 2 */
    static const char *const fit = "the length does not fit the masks";
    const struct {
        uint64_t chunk, present, zero;
        uint32_t length_bytes, codec;
        const char *wrong;
    } cases[] = {
        {0, UINT64_MAX, 0, 64 * FIX_PAGE_BYTES, 0, NULL},
        {1, 1, 0, FIX_PAGE_BYTES, 0, NULL},
        {1, 1, 0, FIX_PAGE_BYTES / 2, 0, fit}, /* would be right for smaller pages */
        {1, 1, 0, FIX_PAGE_BYTES * 2, 0, fit},
        {1, 3, 1, FIX_PAGE_BYTES, 0, NULL},
        {1, 3, 3, 0, 0, NULL},
        {2, 1 << 21, 0, FIX_PAGE_BYTES, 0, NULL},
        {2, 1 << 22, 0, FIX_PAGE_BYTES, 0, "it has pages beyond the end of the region"},
        {3, 1, 0, FIX_PAGE_BYTES, 0, "there is no such chunk"},
        {UINT64_MAX, 1, 0, FIX_PAGE_BYTES, 0, "there is no such chunk"},
        {UINT64_C(1) << 58, 1, 0, FIX_PAGE_BYTES, 0, "there is no such chunk"}, /* times 64 is 0 */
        {0, 3, 0, 2 * FIX_PAGE_BYTES - 1, 1, NULL},
        {0, 3, 0, 2 * FIX_PAGE_BYTES, 1, fit},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        const SnapWireChunk chunk = {.chunk = cases[i].chunk,
                                     .record = {.present = cases[i].present,
                                                .zero = cases[i].zero,
                                                .length_bytes = cases[i].length_bytes,
                                                .codec = cases[i].codec}};
        const char *wrong = snap_wire_check_chunk(&chunk, bytes, page);
        if (g_strcmp0(wrong, cases[i].wrong) != 0)
            fail_msg("case %zu: %s instead of %s", i, wrong, cases[i].wrong);
    }
}

static void missing_field_by_field_is_checked(void **state) {
    (void)state;
    static const char *const number = "the number of masks is out of range";
    const Case cases[] = {
#define C(...) {SNAP_WIRE_MISSING, -1, __VA_ARGS__}
        C(0, {{0, 4, 65535}}, NULL),
        C(0, {{0, 4, 65536}}, "there is no such region"),
        C(-24, {{4, 4, 0}}, number),
        C(-16, {{4, 4, 1}}, NULL),
        C(0, {{4, 4, 2}}, wrong_length),
        C(0, {{4, 4, 4}}, wrong_length),
        C(8 * 8189, {{4, 4, 8192}}, NULL),
        C(8 * 8190, {{4, 4, 8193}}, number),
        C(0, {{4, 4, UINT32_MAX}}, number),
        C(0, {{4, 4, (UINT32_C(1) << 29) + 3}}, number), /* times 8 is 24 in 32 bits */
        C(0, {{8, 8, UINT64_MAX - 3}}, NULL),
        C(0, {{8, 8, UINT64_MAX - 2}}, "there are no such chunks"),
        C(0, {{16, 8, 1}}, reserved),
        C(1, {{0}}, wrong_length),
        C(-48, {{0}}, wrong_length),
        C(-25, {{0}}, wrong_length),
#undef C
    };
    expect_cases(cases, G_N_ELEMENTS(cases));
}

static void state_field_by_field_is_checked(void **state) {
    (void)state;
    static const char *const name = "the name is no text, or too long";
    static const char *const beyond = "the bytes are beyond the end of the blob";
    const int mib = 1 << 20;
    const Case cases[] = {
#define C(...) {SNAP_WIRE_STATE, -1, __VA_ARGS__}
        C(0, {{0, 8, SNAP_WIRE_MAX_STATE_BYTES}}, NULL),
        C(0, {{0, 8, SNAP_WIRE_MAX_STATE_BYTES + 1}}, "the blob is longer than it may be"),
        C(0, {{0, 8, 99}}, beyond),
        C(0, {{8, 8, 91}}, beyond),
        C(0, {{8, 8, 100}}, beyond),
        C(0, {{8, 8, 101}}, beyond),
        C(0, {{8, 8, UINT64_MAX - 5}}, beyond),
        C(0, {{0, 8, 0}, {8, 8, 0}}, wrong_length),
        C(-10, {{0, 8, 0}, {8, 8, 0}}, NULL),
        C(-10, {{0, 8, 0}, {8, 8, 1}}, beyond),
        C(-10, {{8, 8, 100}}, wrong_length), /* no bytes, but the blob has some */
        C(mib - 10, {{0, 8, 1 << 30}}, "the blob is longer than it may be"),
        C(mib - 10, {{0, 8, 1 << 27}}, NULL),
        C(mib - 9, {{0, 8, 1 << 27}}, wrong_length),
        C(0, {{16, 2, 0}}, name),
        C(0, {{16, 2, 1}, {0, 8, 103}}, NULL),
        C(0, {{16, 2, 15}}, wrong_length),
        C(300, {{16, 2, 256}}, name),
        C(0, {{18, 1, 0}}, name),
        C(0, {{18, 1, 0x80}}, name),
        C(-15, {{0}}, wrong_length),
#undef C
    };
    expect_cases(cases, G_N_ELEMENTS(cases));
}

static void end_field_by_field_is_checked(void **state) {
    (void)state;
    static const char *const pages = "so many chunks cannot have so many pages";
    const Case cases[] = {
#define C(...) {SNAP_WIRE_END, -1, __VA_ARGS__}
        C(0, {{0, 8, UINT64_MAX}}, NULL),
        C(0, {{16, 8, 640}}, NULL),
        C(0, {{16, 8, 641}}, pages),
        C(0, {{16, 8, 10}}, NULL),
        C(0, {{16, 8, 9}}, pages),
        C(0, {{8, 8, 0}}, pages),
        C(0, {{8, 8, 0}, {16, 8, 0}}, NULL),
        C(0, {{8, 8, UINT64_MAX}, {16, 8, UINT64_MAX}}, NULL),
        C(0, {{24, 8, SNAP_WIRE_MAX_STATES}}, NULL),
        C(0, {{24, 8, SNAP_WIRE_MAX_STATES + 1}}, "too many blobs of state"),
        C(-1, {{0}}, wrong_length),
        C(1, {{0}}, wrong_length),
#undef C
    };
    expect_cases(cases, G_N_ELEMENTS(cases));
}

static void short_ones_field_by_field_are_checked(void **state) {
    (void)state;
    static const char *const pages = "there are no such pages";
    const Case cases[] = {
        {SNAP_WIRE_ROUND, -1, 0, {{0, 8, 1}}, NULL},
        {SNAP_WIRE_ROUND, -1, 0, {{0, 8, 0}}, "rounds are counted from 1"},
        {SNAP_WIRE_ROUND, -1, 0, {{24, 8, 1}}, reserved},
        {SNAP_WIRE_ROUND, -1, 1, {{0}}, wrong_length},
        {SNAP_WIRE_ROUND, -1, -1, {{0}}, wrong_length},
        {SNAP_WIRE_READY, -1, 0, {{0, 8, UINT64_MAX}}, NULL},
        {SNAP_WIRE_READY, -1, 0, {{8, 8, 1}}, reserved},
        {SNAP_WIRE_READY, -1, 1, {{0}}, wrong_length},
        {SNAP_WIRE_ALIVE, -1, 0, {{15, 1, 1}}, reserved},
        {SNAP_WIRE_ALIVE, -1, -1, {{0}}, wrong_length},
        {SNAP_WIRE_LAYOUT, -1, 0, {{0, 8, UINT64_MAX}}, NULL},
        {SNAP_WIRE_LAYOUT, -1, 0, {{8, 8, 1}}, reserved},
        {SNAP_WIRE_GO, -1, -1, {{0}}, wrong_length},
        {SNAP_WIRE_STARTED, -1, 1, {{0}}, wrong_length},
        {SNAP_WIRE_REQUEST, -1, 0, {{0, 4, 65535}}, NULL},
        {SNAP_WIRE_REQUEST, -1, 0, {{0, 4, 65536}}, "there is no such region"},
        {SNAP_WIRE_REQUEST, -1, 0, {{4, 4, 0}}, pages},
        {SNAP_WIRE_REQUEST, -1, 0, {{8, 8, UINT64_MAX - 512}}, NULL},
        {SNAP_WIRE_REQUEST, -1, 0, {{8, 8, UINT64_MAX - 511}}, pages},
        {SNAP_WIRE_REQUEST, -1, 0, {{16, 8, 1}}, reserved},
        {SNAP_WIRE_REQUEST, -1, 1, {{0}}, wrong_length},
        {SNAP_WIRE_REQUEST, -1, -1, {{0}}, wrong_length},
    };
    expect_cases(cases, G_N_ELEMENTS(cases));
}

static void body_cut_anywhere_is_not_read_beyond(void **state) {
    (void)state;
    for (SnapWireType type = SNAP_WIRE_NONE + 1; type < SNAP_WIRE_MAX; type++) {
        uint8_t body[512];
        int bytes = (int)fix_records[type].encode(body);
        for (int cut = 1; cut <= bytes; cut++) {
            const Case this = {type, -1, -cut, {{0}}, NULL};
            if (type == SNAP_WIRE_FAILED || type == SNAP_WIRE_STATE)
                decode_case(&this); /* shorter ones may be good */
            else
                assert_non_null(decode_case(&this));
        }
    }
}

/* ---- FAILED ---------------------------------------------------------------------------------------------- */

static char *say(const char *text, uint32_t *ret_bytes) {
    uint8_t body[SNAP_WIRE_MAX_TEXT];
    SnapWireHead head = {.type = SNAP_WIRE_FAILED, .body_bytes = snap_wire_encode_failed(text, body)};
    *ret_bytes = head.body_bytes;
    return snap_wire_decode_failed(&head, body);
}

static void failed_text_that_is_long_is_cut_between_characters(void **state) {
    (void)state;
    uint32_t bytes = 0;
    for (unsigned before = 1019; before <= 1026; before++) {
        g_autofree char *start = g_strnfill(before, 'a');
        g_autofree char *text = g_strconcat(start, "\xe2\x82\xac\xe2\x82\xac", NULL); /* euros */
        g_autofree char *heard = say(text, &bytes);
        assert_true(bytes <= SNAP_WIRE_MAX_TEXT && bytes > SNAP_WIRE_MAX_TEXT - 3);
        assert_true(g_utf8_validate(heard, -1, NULL));
        assert_int_equal(strlen(heard), bytes);
        assert_true(g_str_has_prefix(text, heard));
    }
}

static void failed_text_of_anybody_is_fit_to_be_shown(void **state) {
    (void)state;
    const struct {
        const char *sent;
        uint32_t bytes;
        const char *heard;
    } cases[] = {
        {"plain", 5, "plain"},
        {"", 0, "it did not say why"},
        {"\x1b[31mred\n\r\x7f", 11, " [31mred   "},
        {"a\xc2\x9b\x62", 4, "a b"}, /* a control character of ISO 8859-1 */
        {"a\0b", 3, "a\xef\xbf\xbd\x62"},
        {"a\xff", 2, "a\xef\xbf\xbd"},
        {"a\xe2\x82", 3, "a\xef\xbf\xbd\xef\xbf\xbd"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        const SnapWireHead head = {.type = SNAP_WIRE_FAILED, .body_bytes = cases[i].bytes};
        g_autofree char *heard = snap_wire_decode_failed(&head, (const uint8_t *)cases[i].sent);
        assert_string_equal(heard, cases[i].heard);
    }
    uint32_t bytes = 0;
    g_autofree char *heard = say("not \xff UTF-8", &bytes);
    assert_string_equal(heard, "not \xef\xbf\xbd UTF-8");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hello_field_by_field_is_checked),
        cmocka_unit_test(region_field_by_field_is_checked),
        cmocka_unit_test(names_of_the_greatest_length_are_taken),
        cmocka_unit_test(welcome_field_by_field_is_checked),
        cmocka_unit_test(chunk_field_by_field_is_checked),
        cmocka_unit_test(chunk_against_its_region_is_checked),
        cmocka_unit_test(missing_field_by_field_is_checked),
        cmocka_unit_test(state_field_by_field_is_checked),
        cmocka_unit_test(end_field_by_field_is_checked),
        cmocka_unit_test(short_ones_field_by_field_are_checked),
        cmocka_unit_test(body_cut_anywhere_is_not_read_beyond),
        cmocka_unit_test(failed_text_that_is_long_is_cut_between_characters),
        cmocka_unit_test(failed_text_of_anybody_is_fit_to_be_shown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
