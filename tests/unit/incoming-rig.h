/*
 * What the tests of the destination share: a guest of this process that has not run, and a source made by hand on
 * the other end, which speaks record by record. Needs cmocka.h before it.
 *
 *     rig_init → [fields] → rig_listen → hand_open → hand_greet → hand_chunk… → hand_end → … → rig_clear
 *
 * A page's bytes are a function of region, page and generation: rig_page() makes them, rig_is() looks for them.
 */
#pragma once

#include "../../libsnap/channel.h"
#include "../../libsnap/guest.h"

#include <stdbool.h>

enum { RIG_REGIONS = 3, RIG_TIMEOUT_MS = 10000, RIG_SILENCE_MS = 4000 };

typedef struct {
    const char *name;
    SnapMemory memory;
    uint8_t *data;
    uint64_t length_bytes;
    uint64_t granule_bytes;
    uint64_t guest_address;
    int fd; /* -1: none */
} RigRegion;

typedef struct {
    RigRegion regions[RIG_REGIONS];
    unsigned n_regions;
    uint64_t page;
    char dir[32];
    char uri[64];
    SnapWireHello hello; /* what hand_greet says */
    uint16_t flags;
    SnapGuest *guest;
    SnapIncoming *incoming;

    /* what the guest was asked: atomic */
    int loads;
    int starts;
    bool no_load; /* fail */
    bool no_start;
    void (*on_load)(void *opaque); /* (nullable) in load_state */
    void *opaque;
    GPtrArray *states; /* of SnapState, as they were loaded */
} Rig;

/* A connection of the source. */
typedef struct {
    SnapChannel channel;
    uint64_t n_chunks; /* since END */
    uint64_t n_pages;
    uint8_t *body; /* of what was received last */
    SnapWireHead head;
} Hand;

/* Regions: of each kind, @n_pages. hugetlb: a skip where there is none; as many as fit whole huge pages. */
void rig_init(Rig *rig, const SnapMemory *kinds, unsigned n_kinds, uint64_t n_pages);
void rig_listen(Rig *rig);
/* Ends it; asserts that the guest was started so often. */
void rig_clear(Rig *rig, int starts);

void rig_page(const Rig *rig, unsigned region, uint64_t page, unsigned generation, uint8_t *ret_data);
bool rig_is(const Rig *rig, unsigned region, uint64_t page, unsigned generation);
bool rig_is_zero(const Rig *rig, unsigned region, uint64_t page);
uint64_t rig_pages(const Rig *rig, unsigned region);
/* Wait until it is in that phase. */
void rig_wait_phase(Rig *rig, SnapMigrationPhase phase);
/* Wait for its end; NULL: completed. Otherwise the error says @part, and has @code. */
void rig_wait(Rig *rig, int code, const char *part);
/* The same, of UNCONNECTED. */
void rig_wait_lost(Rig *rig, SnapMigrationPhase since);

void hand_open(Hand *hand, const Rig *rig);
void hand_close(Hand *hand);
void hand_send(Hand *hand, SnapWireType type, uint16_t flags, const void *body, uint32_t body_bytes);
void hand_say_hello(Hand *hand, const Rig *rig, uint32_t channel);
void hand_say_regions(Hand *hand, const Rig *rig);
void hand_say_region(Hand *hand, const RigRegion *region, uint64_t page_bytes);
/* HELLO, REGIONs, WELCOME. */
void hand_greet(Hand *hand, Rig *rig);
/* A further channel. */
void hand_join(Hand *hand, Rig *rig, uint32_t channel);

typedef struct {
    unsigned region;
    uint64_t chunk;
    uint64_t present;
    uint64_t zero;
    unsigned generation;
    bool zstd;
} HandChunk;

/* A chunk with its right bytes. */
void hand_chunk(Hand *hand, const Rig *rig, HandChunk chunk);
/* All pages of a region. */
void hand_region(Hand *hand, const Rig *rig, unsigned region, unsigned generation);
void hand_state(Hand *hand, const char *name, const void *data, size_t length_bytes);
void hand_missing(Hand *hand, unsigned region, uint64_t first_chunk, const uint64_t *masks, uint32_t n_masks);
void hand_end(Hand *hand, uint64_t epoch, uint64_t n_states, uint16_t flags);
void hand_id(Hand *hand, const Rig *rig, SnapWireType type); /* GO, ALL_SENT */
/* The next record that is not ALIVE. */
void hand_expect(Hand *hand, SnapWireType type);
/* READY, with that epoch. */
void hand_expect_ready(Hand *hand, uint64_t epoch);
/* FAILED, whose text has @part in it. */
void hand_expect_failed(Hand *hand, const char *part);
/* The connection ends, without FAILED. */
void hand_expect_end(Hand *hand);
