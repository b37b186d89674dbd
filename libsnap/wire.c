/*
 * The table of record types, and the head that is in front of every record: see wire.h. Bodies are in
 * wire-hello.c and wire-body.c.
 *
 * Nothing here blocks; what is wrong with a head that came is told in words. Sealing a record that the table does
 * not allow is a bug, and asserts: so whatever is sent is within its limits.
 */
#include "wire.h"

#include "bytes.h"
#include "hash.h"

#include <stdbool.h>

static const uint8_t magic[4] = {'s', 'n', 'p', 'r'};
enum { HASHED_HEAD_BYTES = 24 }; /* of the head, what is before the checksum */

enum { BY_SOURCE = 1 << SNAP_WIRE_FROM_SOURCE, BY_DESTINATION = 1 << SNAP_WIRE_FROM_DESTINATION };
enum { S = BY_SOURCE, D = BY_DESTINATION, B = BY_SOURCE | BY_DESTINATION };

static const struct {
    const char *name;
    int senders;
    uint32_t body_bytes; /* at most */
    uint16_t flags;      /* that are defined */
} types[] = {
#define X(name, number, sender, body, flags) [number] = {#name, sender, body, flags},
    SNAP_WIRE_TABLE(X)
#undef X
};
G_STATIC_ASSERT(G_N_ELEMENTS(types) == SNAP_WIRE_MAX);
#define X(name, number, sender, body, flags) G_STATIC_ASSERT((body) <= SNAP_WIRE_MAX_BODY_BYTES);
SNAP_WIRE_TABLE(X)
#undef X

static bool is_type(unsigned type) {
    return type > SNAP_WIRE_NONE && type < SNAP_WIRE_MAX;
}

const char *snap_wire_name(SnapWireType type) {
    return is_type(type) ? types[type].name : NULL;
}

/* Most bodies are short: the 24 bytes and they are put together, which needs no state of the hash on the heap. */
static uint64_t hash_of(const uint8_t *head, const void *body, uint32_t body_bytes) {
    uint8_t whole[256];
    if (body_bytes <= sizeof whole - HASHED_HEAD_BYTES) {
        memcpy(whole, head, HASHED_HEAD_BYTES);
        if (body_bytes > 0)
            memcpy(whole + HASHED_HEAD_BYTES, body, body_bytes);
        return XXH3_64bits(whole, HASHED_HEAD_BYTES + body_bytes);
    }
    g_autoptr(SnapHash) hash = snap_hash_new();
    XXH3_64bits_update(hash, head, HASHED_HEAD_BYTES);
    XXH3_64bits_update(hash, body, body_bytes);
    return XXH3_64bits_digest(hash);
}

/*
 * The head of a record, 32 bytes, little endian:
 *
 *     [4]  magic "snpr"
 *     [2]  type
 *     [2]  flags of the type; bits that are not defined are 0
 *     [4]  length of the body
 *     [4]  length of the bulk, 0 but in CHUNK
 *     [8]  how many records were sent before this one in this direction of this connection
 *     [8]  XXH3-64 of the 24 bytes before this field, and the body
 */
void snap_wire_seal(const SnapWireHead *head, const void *body, uint8_t ret_head[static SNAP_WIRE_HEAD_BYTES]) {
    g_assert(is_type(head->type) && head->body_bytes <= types[head->type].body_bytes);
    g_assert((head->flags & ~types[head->type].flags) == 0);
    g_assert(head->bulk_bytes <= (head->type == SNAP_WIRE_CHUNK ? SNAP_WIRE_MAX_BULK_BYTES : 0));
    uint8_t *at = (uint8_t *)memcpy(ret_head, magic, sizeof magic) + sizeof magic;
    at = put16(at, (uint16_t)head->type);
    at = put16(at, head->flags);
    at = put32(at, head->body_bytes);
    at = put32(at, head->bulk_bytes);
    at = put64(at, head->number);
    g_assert(at == ret_head + HASHED_HEAD_BYTES);
    put64(at, hash_of(ret_head, body, head->body_bytes));
}

static const char *check_head(const SnapWireHead *head, SnapWireSender sender, uint64_t number) {
    if (!is_type(head->type))
        return "unknown type";
    if ((types[head->type].senders & (1 << sender)) == 0)
        return "this side does not send such";
    if ((head->flags & ~types[head->type].flags) != 0)
        return "unknown flags";
    if (head->body_bytes > types[head->type].body_bytes)
        return "the body is longer than it may be";
    if (head->bulk_bytes > (head->type == SNAP_WIRE_CHUNK ? SNAP_WIRE_MAX_BULK_BYTES : 0))
        return "the bulk is longer than it may be";
    if (head->number != number)
        return "its number is out of order";
    return NULL;
}

const char *snap_wire_open(const uint8_t head[static SNAP_WIRE_HEAD_BYTES], SnapWireSender sender, uint64_t number,
                           SnapWireHead *ret_head) {
    if (memcmp(head, magic, sizeof magic) != 0)
        return "it does not begin as a record does";
    SnapWireHead read = {
        .type = get16(head + 4),
        .flags = get16(head + 6),
        .body_bytes = get32(head + 8),
        .bulk_bytes = get32(head + 12),
        .number = get64(head + 16),
    };
    const char *wrong = check_head(&read, sender, number);
    if (!wrong)
        *ret_head = read;
    return wrong;
}

const char *snap_wire_check(const uint8_t head[static SNAP_WIRE_HEAD_BYTES], const void *body,
                            uint32_t body_bytes) {
    bool same = get64(head + HASHED_HEAD_BYTES) == hash_of(head, body, body_bytes);
    return same ? NULL : "its checksum is wrong";
}
