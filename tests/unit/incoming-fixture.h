/*
 * The destination of a migration, and a source that is made by hand (hand.h) at the other end. The guest is memory
 * of this process that has not run. Needs cmocka.h before it.
 *
 *     rig_map → [fields] → rig_listen → rig_greet → rig_send… → rig_finish
 *
 * Each test by TEST() has a rig of its own, *state.
 *
 * What is in memory is looked at against what was sent. A page's bytes are a function of region, page and
 * generation, and generation 0 is zeros; the rig notes which generation of each page was said last, and
 * rig_check(), which rig_finish() calls, looks for it everywhere. Replication goes by epochs: from
 * rig_put_in_force() on it looks for what was sent until then.
 *
 * The teardown fails a test after which the guest was started more or less often than once, where the source has
 * heard STARTED or the destination was to complete, or not at all, where not.
 */
#pragma once

#include "hand.h"

#include "../../libsnap/guest.h"

#include <stdbool.h>

enum { RIG_REGIONS = 3, RIG_SILENCE_MS = 4000 };
enum { RIG_PAGES = 200 }; /* three chunks and a part */

typedef struct {
    const char *name;
    SnapMemory memory;
    uint8_t *data;
    uint64_t length_bytes;
    uint64_t n_pages;
    uint64_t granule_pages;
    uint64_t guest_address;
    int fd;             /* -1: none */
    unsigned *sent;     /* of each page, its generation as the source has said it */
    unsigned *in_force; /* (nullable) the same, at the end of the last epoch */
} RigRegion;

typedef struct {
    /* may be changed before rig_listen(), and between connections */
    char uri[64];
    char images[64];     /* (empty) where epochs go, instead of a guest */
    SnapWireHello hello; /* what the source says */
    uint16_t flags;      /* of HELLO */

    char dir[32];
    uint64_t page; /* bytes */
    RigRegion regions[RIG_REGIONS];
    unsigned n_regions;
    SnapGuest *guest;
    SnapIncoming *incoming;
    unsigned n_touching; /* threads that may wait in memory, which has to stay then */

    /* the source's connections */
    union {
        Hand main; /* channels[0] */
        Hand channels[SNAP_WIRE_MAX_CHANNELS];
    };
    Hand urgent;
    Hand stranger; /* none of its own */

    /* what the guest was asked: atomic */
    int loads;
    int starts;
    int starts_due; /* so often it was to be started */
    bool no_load;   /* fail */
    bool no_start;
    void (*on_load)(void *rig); /* (nullable) in load_state */
    GPtrArray *states;          /* of SnapState, as they were loaded */
} Rig;

/* ---- the rig --------------------------------------------------------------------------------------------- */

int rig_new(void **state);
int rig_free(void **state);
/* Another, for the next row of a table. */
void rig_again(void **state);
#define TEST(name) cmocka_unit_test_setup_teardown(name, rig_new, rig_free)

/* Memory of these kinds for the guest, of @n_pages each. hugetlb: a skip where there is none; as many pages as fit
 * whole huge pages. */
void rig_map(Rig *rig, unsigned n_regions, const SnapMemory *kinds, uint64_t n_pages);
void rig_listen(Rig *rig);
/* The usual ones: RIG_PAGES of private memory, and of shared memory; it listens for so many channels; and the
 * main one is there. */
Rig *rig_mapped(void **state);
Rig *rig_listening(void **state, uint32_t n_channels);
Rig *rig_greeted(void **state, uint32_t n_channels);
/* The last two with no guest: it listens, or all channels are there. Epochs of a replication become images. */
Rig *rig_for_images(void **state, uint32_t n_channels);
Rig *rig_into_images(void **state, uint32_t n_channels);
/* All connections of the source. */
void rig_close(Rig *rig);

/* ---- the destination, seen by its owner ------------------------------------------------------------------ */

SnapMigrationStats rig_stats(const Rig *rig);
void rig_expect_phase(Rig *rig, SnapMigrationPhase phase);
void rig_expect_completed(Rig *rig);
/* It has ended otherwise, with @code, and says @part. */
void rig_expect_ended(Rig *rig, int code, const char *part);
/* And so was the source told. */
void rig_expect_failed(Rig *rig, int code, const char *part);
/* It is UNCONNECTED. */
void rig_expect_lost(Rig *rig, SnapMigrationPhase since);
/* Let a standby run, although its source may be connected. */
void rig_promote(Rig *rig);
void rig_recover(Rig *rig);

/* ---- memory ---------------------------------------------------------------------------------------------- */

void rig_page(const Rig *rig, unsigned region, uint64_t page, unsigned generation, uint8_t *ret_data);
bool rig_is(const Rig *rig, unsigned region, uint64_t page, unsigned generation);
/* All of memory is what was sent. */
void rig_check(const Rig *rig);
/* These pages are to be something else: after the last of them was sent. */
void rig_note(Rig *rig, unsigned region, uint64_t page, uint64_t n, unsigned generation);
void rig_put_in_force(Rig *rig);
void rig_check_state(const Rig *rig, guint number, const char *name, const void *data, size_t length_bytes);

/* Where epochs became images: that one, verified; free it with snap_image_free(). */
SnapImage *rig_open_image(const Rig *rig, unsigned number);
/* Page @page of region number @at in it is of that generation, as region @region of the rig. */
void rig_check_image(const Rig *rig, const SnapImage *image, unsigned at, unsigned region, uint64_t page,
                     unsigned generation);

/* ---- incoming-source.c: the source's connections --------------------------------------------------------- */

void rig_connect(const Rig *rig, Hand *hand);
void rig_say_hello(const Rig *rig, Hand *hand, uint32_t channel);
void rig_say_region(Hand *hand, const RigRegion *region, uint64_t page_bytes);
void rig_say_regions(const Rig *rig, Hand *hand);
/* The main channel: connect, HELLO, REGIONs, WELCOME. */
void rig_greet(Rig *rig);
/* A data channel, or the urgent one. */
void rig_join(Rig *rig, uint32_t channel);
void rig_join_all(Rig *rig); /* all data channels */
/* The main channel, once more. Return: how many MISSING follow. */
uint64_t rig_resume(Rig *rig, SnapWireAt at);
/* Instead of them: the main channel goes into a file, which is read by rig_listen(). */
void rig_greet_file(Rig *rig);

/* ---- incoming-source.c: what it sends -------------------------------------------------------------------- */

typedef struct {
    unsigned region;
    uint64_t chunk;
    uint64_t present;
    uint64_t zero;
    unsigned generation;
    bool zstd;
} RigChunk;

/* On the channel that is due. */
void rig_send(Rig *rig, RigChunk chunk);
void rig_send_by(Rig *rig, Hand *hand, RigChunk chunk);
/* All pages of a region. */
void rig_send_region(Rig *rig, unsigned region, unsigned generation);
void rig_send_state(Rig *rig, const char *name, const void *data, size_t length_bytes);
/* END, on all channels. */
void rig_end(Rig *rig, uint64_t epoch, uint64_t n_states, uint16_t flags);
/* A state that says which epoch it is of, and END. */
void rig_end_epoch(Rig *rig, uint64_t epoch);
/* The same; READY follows. */
void rig_finish_epoch(Rig *rig, uint64_t epoch);
/* GO, STARTED. */
void rig_go(Rig *rig);
/* The same; then it is complete, and all of its memory is there. */
void rig_hand_over(Rig *rig);
/* The same, after END and READY. */
void rig_finish(Rig *rig, uint64_t n_states);
