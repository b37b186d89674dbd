/*
 * Bodies of the records by which the two sides come to know each other: HELLO, REGION, WELCOME, and FAILED. See
 * wire.h.
 */
#include "wire.h"

#include "bytes.h"

#include <stdbool.h>

enum { HELLO_BYTES = 60, REGION_BYTES = 42, WELCOME_BYTES = 32 }; /* without the text at the end */

static bool is_text(const uint8_t *text, size_t length_bytes) {
    return g_utf8_validate_len((const char *)text, length_bytes, NULL);
}

static bool is_page(uint64_t bytes) {
    return snap_page_bytes_ok(bytes) && bytes <= SNAP_WIRE_MAX_PAGE_BYTES;
}

/*
 * HELLO, 60 bytes and a text:
 *
 *     [16] id of the migration, random; the same on each of its connections, and when it is resumed
 *     [4]  version of the protocol that the source speaks, 1
 *     [4]  channels: main and data ones, 1 to 8
 *     [4]  number of this channel
 *     [4]  purpose: 1 move, 2 replicate
 *     [8]  number of REGION records that follow; 0 but on the main channel of one that is not resumed
 *     [8]  size of a base page of the source's machine
 *     [8]  milliseconds of silence after which a side gives the connection up
 *     [2]  length of the text, at most 255
 *     [2]  0
 *     [..] the kind of guest: the manifest's `driver`
 */
uint32_t snap_wire_encode_hello(const SnapWireHello *hello, uint8_t *ret_body) {
    g_assert(hello->driver_bytes <= SNAP_WIRE_MAX_DRIVER);
    uint8_t *at = (uint8_t *)memcpy(ret_body, hello->id.bytes, sizeof hello->id.bytes) + sizeof hello->id.bytes;
    at = put32(at, hello->version);
    at = put32(at, hello->n_channels);
    at = put32(at, hello->channel);
    at = put32(at, (uint32_t)hello->purpose);
    at = put64(at, hello->n_regions);
    at = put64(at, hello->page_bytes);
    at = put64(at, hello->silence_ms);
    at = put16(at, hello->driver_bytes);
    at = put16(at, 0);
    g_assert(at == ret_body + HELLO_BYTES);
    if (hello->driver_bytes > 0)
        memcpy(at, hello->driver, hello->driver_bytes);
    return HELLO_BYTES + hello->driver_bytes;
}

static const char *check_channels(const SnapWireHello *hello, uint16_t flags) {
    if (hello->n_channels < 1 || hello->n_channels > SNAP_WIRE_MAX_CHANNELS)
        return "the number of channels is out of range";
    if (hello->channel >= hello->n_channels && hello->channel != SNAP_WIRE_URGENT)
        return "there is no such channel";
    if ((flags & SNAP_WIRE_ONE_WAY) != 0 &&
        (hello->n_channels != 1 || hello->channel != 0 || flags != SNAP_WIRE_ONE_WAY))
        return "what is one-way has one channel, and is neither resumed nor followed by a post-copy";
    bool lists = hello->channel == 0 && (flags & SNAP_WIRE_RESUME) == 0;
    if (hello->n_regions > (lists ? SNAP_WIRE_MAX_REGIONS : 0))
        return "too many regions";
    return NULL;
}

static const char *check_hello(const SnapWireHello *hello, uint16_t flags) {
    if (hello->version < SNAP_WIRE_VERSION)
        return "there is no such version";
    if ((flags & SNAP_WIRE_ONE_WAY) != 0 && hello->version != SNAP_WIRE_VERSION)
        return "unknown version";
    if (hello->purpose != SNAP_WIRE_MOVE && hello->purpose != SNAP_WIRE_REPLICATE)
        return "unknown purpose";
    if (!is_page(hello->page_bytes))
        return "impossible size of a page";
    if (hello->silence_ms < 1 || hello->silence_ms > SNAP_WIRE_MAX_SILENCE_MS)
        return "the time of silence is out of range";
    return check_channels(hello, flags);
}

const char *snap_wire_decode_hello(const SnapWireHead *head, const uint8_t *body, SnapWireHello *ret_hello) {
    if (head->body_bytes < HELLO_BYTES || head->body_bytes != HELLO_BYTES + (uint32_t)get16(body + 56))
        return "wrong length";
    SnapWireHello read = {
        .version = get32(body + 16),
        .n_channels = get32(body + 20),
        .channel = get32(body + 24),
        .purpose = (SnapWirePurpose)get32(body + 28),
        .n_regions = get64(body + 32),
        .page_bytes = get64(body + 40),
        .silence_ms = get64(body + 48),
        .driver = (const char *)body + HELLO_BYTES,
        .driver_bytes = get16(body + 56),
    };
    memcpy(read.id.bytes, body, sizeof read.id.bytes);
    if (get16(body + 58) != 0)
        return "a reserved field is not 0";
    if (read.driver_bytes > SNAP_WIRE_MAX_DRIVER || !is_text(body + HELLO_BYTES, read.driver_bytes))
        return "the kind of guest is no text, or too long";
    const char *wrong = check_hello(&read, head->flags);
    if (!wrong)
        *ret_hello = read;
    return wrong;
}

/*
 * REGION, 42 bytes and a name:
 *
 *     [8]  guest address, or 2^64 - 1
 *     [8]  length in bytes, a multiple of the page size
 *     [8]  page size, at most 65536
 *     [8]  granule: what a guest may discard or fault at once
 *     [8]  address in the source's process
 *     [2]  length of the name, 1 to 1024
 *     [..] name
 */
uint32_t snap_wire_encode_region(const SnapWireRegion *region, uint8_t *ret_body) {
    g_assert(region->name_bytes <= SNAP_WIRE_MAX_NAME);
    uint8_t *at = put64(ret_body, region->guest_address);
    at = put64(at, region->length_bytes);
    at = put64(at, region->page_bytes);
    at = put64(at, region->granule_bytes);
    at = put64(at, region->host_address);
    at = put16(at, region->name_bytes);
    g_assert(at == ret_body + REGION_BYTES);
    memcpy(at, region->name, region->name_bytes);
    return REGION_BYTES + region->name_bytes;
}

static const char *check_region(const SnapWireRegion *region) {
    if (!is_page(region->page_bytes))
        return "impossible size of a page";
    if (region->length_bytes == 0 || region->length_bytes > INT64_MAX ||
        region->length_bytes % region->page_bytes != 0)
        return "impossible length of a region";
    if (region->granule_bytes < region->page_bytes || region->granule_bytes % region->page_bytes != 0)
        return "the granule is no multiple of a page";
    if (region->host_address > UINT64_MAX - region->length_bytes)
        return "the region is beyond the end of the address space";
    if (region->guest_address != SNAP_NO_ADDRESS && region->guest_address > UINT64_MAX - region->length_bytes)
        return "the region is beyond the end of the guest's addresses";
    return NULL;
}

const char *snap_wire_decode_region(const SnapWireHead *head, const uint8_t *body, SnapWireRegion *ret_region) {
    if (head->body_bytes < REGION_BYTES || head->body_bytes != REGION_BYTES + (uint32_t)get16(body + 40))
        return "wrong length";
    SnapWireRegion read = {
        .guest_address = get64(body),
        .length_bytes = get64(body + 8),
        .page_bytes = get64(body + 16),
        .granule_bytes = get64(body + 24),
        .host_address = get64(body + 32),
        .name = (const char *)body + REGION_BYTES,
        .name_bytes = get16(body + 40),
    };
    if (read.name_bytes < 1 || read.name_bytes > SNAP_WIRE_MAX_NAME ||
        !is_text(body + REGION_BYTES, read.name_bytes))
        return "the name is no text, or too long";
    const char *wrong = check_region(&read);
    if (!wrong)
        *ret_region = read;
    return wrong;
}

/*
 * WELCOME, 32 bytes:
 *
 *     [16] id of the migration
 *     [4]  version that will be spoken: 1
 *     [4]  where the destination is: 0 it begins, 1 it waits for GO, 2 it has started the guest
 *     [8]  number of MISSING records that follow: only where a post-copy is resumed
 */
uint32_t snap_wire_encode_welcome(const SnapWireWelcome *welcome, uint8_t *ret_body) {
    uint8_t *at =
        (uint8_t *)memcpy(ret_body, welcome->id.bytes, sizeof welcome->id.bytes) + sizeof welcome->id.bytes;
    at = put32(at, welcome->version);
    at = put32(at, (uint32_t)welcome->at);
    at = put64(at, welcome->n_missing);
    g_assert(at == ret_body + WELCOME_BYTES);
    return WELCOME_BYTES;
}

const char *snap_wire_decode_welcome(const SnapWireHead *head, const uint8_t *body, SnapWireWelcome *ret_welcome) {
    if (head->body_bytes != WELCOME_BYTES)
        return "wrong length";
    SnapWireWelcome read = {
        .version = get32(body + 16), .at = (SnapWireAt)get32(body + 20), .n_missing = get64(body + 24)};
    memcpy(read.id.bytes, body, sizeof read.id.bytes);
    if (read.version != SNAP_WIRE_VERSION)
        return "unknown version";
    if (read.at >= SNAP_WIRE_AT_MAX)
        return "unknown state of the destination";
    if (read.n_missing != 0 && read.at != SNAP_WIRE_AT_STARTED)
        return "nothing can be missing before the guest is started";
    *ret_welcome = read;
    return NULL;
}

/*
 * FAILED, a text:
 *
 *     [..] text
 */
uint32_t snap_wire_encode_failed(const char *text, uint8_t *ret_body) {
    g_autofree char *valid = g_utf8_make_valid(text, -1);
    const char *end = valid + strlen(valid);
    if (end > valid + SNAP_WIRE_MAX_TEXT)
        end = g_utf8_find_prev_char(valid, valid + SNAP_WIRE_MAX_TEXT + 1);
    memcpy(ret_body, valid, (size_t)(end - valid));
    return (uint32_t)(end - valid);
}

/* It goes to a log or a terminal. */
char *snap_wire_decode_failed(const SnapWireHead *head, const uint8_t *body) {
    GString *text = g_string_new(NULL);
    g_autofree char *valid = g_utf8_make_valid((const char *)body, head->body_bytes);
    for (const char *at = valid; *at; at = g_utf8_next_char(at)) {
        gunichar character = g_utf8_get_char(at);
        g_string_append_unichar(text, g_unichar_iscntrl(character) ? ' ' : character);
    }
    if (text->len == 0)
        g_string_append(text, "it did not say why");
    return g_string_free(text, FALSE);
}
