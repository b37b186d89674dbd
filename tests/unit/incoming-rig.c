/* See incoming-rig.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "incoming-rig.h"

#include "../../libsnap/chunk.h"
#include "../../libsnap/transport.h"
#include "../lib/own-process.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <zstd.h>

/* ---- the guest ------------------------------------------------------------------------------------------- */

static gboolean list_regions(void *opaque, gboolean paused, GPtrArray *regions, GError **error) {
    const Rig *rig = opaque;
    (void)paused, (void)error;
    for (unsigned i = 0; i < rig->n_regions; i++) {
        const RigRegion *from = &rig->regions[i];
        SnapRegion *region = snap_region_new(from->name, from->memory, (uintptr_t)from->data, from->length_bytes);
        region->guest_address = from->guest_address;
        region->granule_bytes = from->granule_bytes;
        region->fd = from->fd >= 0 ? dup(from->fd) : -1;
        g_ptr_array_add(regions, region);
    }
    return TRUE;
}

static gboolean load_state(void *opaque, GPtrArray *states, GError **error) {
    Rig *rig = opaque;
    __atomic_add_fetch(&rig->loads, 1, __ATOMIC_SEQ_CST);
    for (guint i = 0; i < states->len; i++) {
        const SnapState *state = g_ptr_array_index(states, i);
        g_ptr_array_add(rig->states, snap_state_new(state->name, g_bytes_ref(state->data)));
    }
    if (rig->on_load)
        rig->on_load(rig->opaque);
    if (rig->no_load)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "no such device");
    return !rig->no_load;
}

static gboolean start(void *opaque, GError **error) {
    Rig *rig = opaque;
    __atomic_add_fetch(&rig->starts, 1, __ATOMIC_SEQ_CST);
    if (rig->no_start)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "no processor");
    return !rig->no_start;
}

static const SnapGuestOps ops = {.list_regions = list_regions};
static const SnapMoveOps move_ops = {.load_state = load_state, .start = start};

/* ---- the rig --------------------------------------------------------------------------------------------- */

static uint64_t huge_page_bytes(void) {
    gsize kib = 0;
    g_autofree char *text = NULL;
    assert_true(g_file_get_contents("/proc/meminfo", &text, NULL, NULL));
    const char *line = strstr(text, "Hugepagesize:");
    assert_true(line && sscanf(line, "Hugepagesize: %zu", &kib) == 1);
    return MAX(kib, 1) << 10;
}

static void map_region(Rig *rig, RigRegion *region, SnapMemory kind, uint64_t n_pages) {
    static const char *const names[RIG_REGIONS] = {"ram", "video", "more"};
    unsigned number = (unsigned)(region - rig->regions);
    bool huge = kind == SNAP_MEMORY_HUGETLB;
    *region = (RigRegion){.name = names[number],
                          .memory = kind,
                          .length_bytes = n_pages * rig->page,
                          .granule_bytes = huge ? huge_page_bytes() : rig->page,
                          .guest_address = UINT64_C(0x100000000) * number,
                          .fd = -1};
    if (huge)
        region->length_bytes =
            (region->length_bytes + region->granule_bytes - 1) / region->granule_bytes * region->granule_bytes;
    if (kind != SNAP_MEMORY_ANON) {
        region->fd = memfd_create("guest", MFD_CLOEXEC | (huge ? MFD_HUGETLB : 0));
        assert_true(region->fd >= 0);
        assert_int_equal(ftruncate(region->fd, (off_t)region->length_bytes), 0);
    }
    int flags = kind == SNAP_MEMORY_ANON ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
    region->data = mmap(NULL, region->length_bytes, PROT_READ | PROT_WRITE, flags, region->fd, 0);
    if (region->data == MAP_FAILED && huge) {
        print_message("skip: no free huge pages: sysctl vm.nr_hugepages=64\n");
        skip();
    }
    assert_true(region->data != MAP_FAILED);
}

void rig_init(Rig *rig, const SnapMemory *kinds, unsigned n_kinds, uint64_t n_pages) {
    static const SnapWireId id = {{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}};
    *rig = (Rig){.page = (uint64_t)sysconf(_SC_PAGESIZE), .n_regions = n_kinds};
    for (unsigned i = 0; i < n_kinds; i++)
        map_region(rig, &rig->regions[i], kinds[i], n_pages);
    strcpy(rig->dir, "/tmp/snap-incoming-XXXXXX");
    assert_non_null(g_mkdtemp(rig->dir));
    g_snprintf(rig->uri, sizeof rig->uri, "unix:%s/socket", rig->dir);
    rig->states = g_ptr_array_new_with_free_func((GDestroyNotify)snap_state_free);
    rig->hello = (SnapWireHello){.id = id,
                                 .version = SNAP_WIRE_VERSION,
                                 .n_channels = 1,
                                 .purpose = SNAP_WIRE_MOVE,
                                 .n_regions = n_kinds,
                                 .page_bytes = rig->page,
                                 .silence_ms = RIG_SILENCE_MS,
                                 .driver = "test",
                                 .driver_bytes = 4};
    rig->guest = snap_guest_new("test", 0, &ops, rig);
    snap_guest_set_move_ops(rig->guest, &move_ops);
}

void rig_listen(Rig *rig) {
    g_autoptr(GError) error = NULL;
    const SnapIncomingOptions options = {.uri = rig->uri};
    rig->incoming = snap_incoming_start(rig->guest, &options, NULL, NULL, &error);
    fail_on(error);
}

void rig_clear(Rig *rig, int starts) {
    snap_incoming_free(rig->incoming);
    snap_guest_free(rig->guest);
    for (unsigned i = 0; i < rig->n_regions; i++) {
        munmap(rig->regions[i].data, rig->regions[i].length_bytes);
        if (rig->regions[i].fd >= 0)
            close(rig->regions[i].fd);
    }
    g_ptr_array_unref(rig->states);
    g_autofree char *socket = g_build_filename(rig->dir, "socket", NULL);
    unlink(socket);
    rmdir(rig->dir);
    assert_int_equal(rig->starts, starts);
}

void rig_page(const Rig *rig, unsigned region, uint64_t page, unsigned generation, uint8_t *ret_data) {
    uint64_t word = (UINT64_C(1) << 63) + ((uint64_t)region << 56) + ((uint64_t)generation << 40) + page;
    for (uint64_t i = 0; i < rig->page / sizeof word; i++) {
        uint64_t mixed = word * UINT64_C(0x9e3779b97f4a7c15) + i / 64; /* packs well */
        memcpy(ret_data + i * sizeof word, &mixed, sizeof word);
    }
}

bool rig_is(const Rig *rig, unsigned region, uint64_t page, unsigned generation) {
    g_autofree uint8_t *expected = g_malloc(rig->page);
    rig_page(rig, region, page, generation, expected);
    return memcmp(expected, rig->regions[region].data + page * rig->page, rig->page) == 0;
}

bool rig_is_zero(const Rig *rig, unsigned region, uint64_t page) {
    return snap_bytes_are_zero(rig->regions[region].data + page * rig->page, rig->page);
}

uint64_t rig_pages(const Rig *rig, unsigned region) {
    return rig->regions[region].length_bytes / rig->page;
}

static SnapMigrationStats stats_of(Rig *rig) {
    SnapMigrationStats stats;
    snap_incoming_get_stats(rig->incoming, &stats);
    return stats;
}

void rig_wait_phase(Rig *rig, SnapMigrationPhase phase) {
    int64_t until_us = g_get_monotonic_time() + RIG_TIMEOUT_MS * G_TIME_SPAN_MILLISECOND;
    while (stats_of(rig).phase != phase && g_get_monotonic_time() < until_us)
        g_usleep(1000);
    assert_string_equal(snap_migration_phase_name(stats_of(rig).phase), snap_migration_phase_name(phase));
}

void rig_wait(Rig *rig, int code, const char *part) {
    g_autoptr(GError) error = NULL;
    gboolean completed = snap_incoming_wait(rig->incoming, RIG_TIMEOUT_MS, &error);
    assert_int_equal(completed, error == NULL);
    if (!part) {
        fail_on(error);
        assert_int_equal(stats_of(rig).phase, SNAP_MIGRATION_COMPLETED);
        return;
    }
    if (!error || !strstr(error->message, part)) {
        fail_msg("\"%s\" is not in \"%s\"", part, error ? error->message : "no error");
        return;
    }
    if (error->code != code)
        fail_msg("%d: %s", error->code, error->message);
    assert_int_equal(stats_of(rig).phase,
                     code == SNAP_ERROR_CANCELLED ? SNAP_MIGRATION_CANCELLED : SNAP_MIGRATION_FAILED);
}

void rig_wait_lost(Rig *rig, SnapMigrationPhase since) {
    g_autoptr(GError) error = NULL;
    assert_false(snap_incoming_wait(rig->incoming, RIG_TIMEOUT_MS, &error));
    assert_string_equal(snap_migration_phase_name(stats_of(rig).phase), "unconnected");
    assert_string_equal(snap_migration_phase_name(stats_of(rig).since), snap_migration_phase_name(since));
}

/* ---- the source ------------------------------------------------------------------------------------------ */

void hand_open(Hand *hand, const Rig *rig) {
    g_autoptr(GError) error = NULL;
    g_autofree char *uri = snap_incoming_uri(rig->incoming);
    g_autoptr(SnapTransport) transport = snap_transport_new_source(uri, &error);
    int in = -1, out = -1;
    fail_on(error);
    snap_transport_connect(transport, RIG_TIMEOUT_MS, &in, &out, &error);
    fail_on(error);
    *hand = (Hand){.body = g_malloc(SNAP_WIRE_MAX_BODY_BYTES)};
    snap_channel_init(&hand->channel, SNAP_WIRE_FROM_SOURCE, in, out, RIG_TIMEOUT_MS, &error);
    fail_on(error);
}

void hand_close(Hand *hand) {
    snap_channel_clear(&hand->channel);
    g_clear_pointer(&hand->body, g_free);
}

void hand_send(Hand *hand, SnapWireType type, uint16_t flags, const void *body, uint32_t body_bytes) {
    g_autoptr(GError) error = NULL;
    snap_channel_send(&hand->channel, type, flags, body, body_bytes, NULL, 0, &error);
    fail_on(error);
}

void hand_say_hello(Hand *hand, const Rig *rig, uint32_t channel) {
    uint8_t body[512];
    SnapWireHello hello = rig->hello;
    hello.channel = channel;
    if (channel != 0 || (rig->flags & SNAP_WIRE_RESUME) != 0)
        hello.n_regions = 0;
    hand_send(hand, SNAP_WIRE_HELLO, rig->flags, body, snap_wire_encode_hello(&hello, body));
}

void hand_say_region(Hand *hand, const RigRegion *region, uint64_t page_bytes) {
    uint8_t body[1152];
    const SnapWireRegion record = {.guest_address = region->guest_address,
                                   .length_bytes = region->length_bytes,
                                   .page_bytes = page_bytes,
                                   .granule_bytes = region->granule_bytes,
                                   .host_address = 0x10000,
                                   .name = region->name,
                                   .name_bytes = (uint16_t)strlen(region->name)};
    hand_send(hand, SNAP_WIRE_REGION, 0, body, snap_wire_encode_region(&record, body));
}

void hand_say_regions(Hand *hand, const Rig *rig) {
    for (unsigned i = 0; i < rig->n_regions; i++)
        hand_say_region(hand, &rig->regions[i], rig->page);
}

void hand_greet(Hand *hand, Rig *rig) {
    hand_say_hello(hand, rig, 0);
    hand_say_regions(hand, rig);
    hand_expect(hand, SNAP_WIRE_WELCOME);
}

void hand_join(Hand *hand, Rig *rig, uint32_t channel) {
    hand_open(hand, rig);
    hand_say_hello(hand, rig, channel);
    hand_expect(hand, SNAP_WIRE_WELCOME);
}

static uint64_t low_bits(uint64_t n) {
    return n >= 64 ? UINT64_MAX : (UINT64_C(1) << n) - 1;
}

void hand_chunk(Hand *hand, const Rig *rig, HandChunk chunk) {
    g_autoptr(GError) error = NULL;
    g_autofree uint8_t *pages = g_malloc(64 * rig->page);
    size_t bound = ZSTD_compressBound(64 * rig->page), length = 0;
    g_autofree uint8_t *packed = g_malloc(bound);
    uint8_t body[64];
    for (uint64_t left = chunk.present & ~chunk.zero; left != 0; left &= left - 1, length += rig->page)
        rig_page(rig, chunk.region, chunk.chunk * 64 + (uint64_t)__builtin_ctzll(left), chunk.generation,
                 pages + length);
    size_t sent = chunk.zstd ? ZSTD_compress(packed, bound, pages, length, 1) : length;
    SnapWireChunk record = {.region = chunk.region,
                            .chunk = chunk.chunk,
                            .record = {.present = chunk.present,
                                       .zero = chunk.zero,
                                       .length_bytes = (uint32_t)sent,
                                       .codec = chunk.zstd ? SNAP_WIRE_CODEC_ZSTD : SNAP_WIRE_CODEC_RAW,
                                       .xxh3 = snap_chunk_hash(pages, rig->page, low_bits(length / rig->page))}};
    const struct iovec bulk = {chunk.zstd ? packed : pages, sent};
    snap_channel_send(&hand->channel, SNAP_WIRE_CHUNK, 0, body, snap_wire_encode_chunk(&record, body), &bulk,
                      sent > 0, &error);
    fail_on(error);
    hand->n_chunks++;
    hand->n_pages += (uint64_t)__builtin_popcountll(chunk.present);
}

void hand_region(Hand *hand, const Rig *rig, unsigned region, unsigned generation) {
    uint64_t n_pages = rig_pages(rig, region);
    for (uint64_t page = 0; page < n_pages; page += 64)
        hand_chunk(hand, rig,
                   (HandChunk){.region = region,
                               .chunk = page / 64,
                               .present = low_bits(n_pages - page),
                               .generation = generation});
}

void hand_state(Hand *hand, const char *name, const void *data, size_t length_bytes) {
    g_autofree uint8_t *body = g_malloc(SNAP_WIRE_MAX_BODY_BYTES);
    size_t at = 0;
    do {
        size_t part = MIN(length_bytes - at, SNAP_WIRE_STATE_PART_BYTES);
        const SnapWireState state = {.total_bytes = length_bytes,
                                     .offset_bytes = at,
                                     .name = name,
                                     .name_bytes = (uint16_t)strlen(name),
                                     .data = (const uint8_t *)data + at,
                                     .data_bytes = (uint32_t)part};
        hand_send(hand, SNAP_WIRE_STATE, 0, body, snap_wire_encode_state(&state, body));
        at += part;
    } while (at < length_bytes);
}

void hand_missing(Hand *hand, unsigned region, uint64_t first_chunk, const uint64_t *masks, uint32_t n_masks) {
    g_autofree uint8_t *body = g_malloc(SNAP_WIRE_MAX_BODY_BYTES);
    const SnapWireMissing record = {.region = region, .n_masks = n_masks, .first_chunk = first_chunk};
    hand_send(hand, SNAP_WIRE_MISSING, 0, body, snap_wire_encode_missing(&record, masks, body));
}

void hand_end(Hand *hand, uint64_t epoch, uint64_t n_states, uint16_t flags) {
    uint8_t body[32];
    const SnapWireEnd end = {
        .epoch = epoch, .n_chunks = hand->n_chunks, .n_pages = hand->n_pages, .n_states = n_states};
    hand->n_chunks = hand->n_pages = 0;
    hand_send(hand, SNAP_WIRE_END, flags, body, snap_wire_encode_end(&end, body));
}

void hand_id(Hand *hand, const Rig *rig, SnapWireType type) {
    uint8_t body[16];
    hand_send(hand, type, 0, body, snap_wire_encode_id(&rig->hello.id, body));
}

void hand_expect(Hand *hand, SnapWireType type) {
    g_autoptr(GError) error = NULL;
    snap_channel_expect(&hand->channel, type, RIG_TIMEOUT_MS, &hand->head, hand->body, &error);
    fail_on(error);
}

void hand_expect_ready(Hand *hand, uint64_t epoch) {
    uint64_t said = 0;
    hand_expect(hand, SNAP_WIRE_READY);
    assert_null(snap_wire_decode_number(&hand->head, hand->body, &said));
    assert_int_equal(said, epoch);
}

void hand_expect_failed(Hand *hand, const char *part) {
    hand_expect(hand, SNAP_WIRE_FAILED);
    g_autofree char *text = snap_wire_decode_failed(&hand->head, hand->body);
    if (!strstr(text, part))
        fail_msg("\"%s\" is not in \"%s\"", part, text);
}

void hand_expect_end(Hand *hand) {
    g_autoptr(GError) error = NULL;
    assert_false(
        snap_channel_expect(&hand->channel, SNAP_WIRE_NONE, RIG_TIMEOUT_MS, &hand->head, hand->body, &error));
    assert_int_equal(error->code, SNAP_ERROR_IO);
}
