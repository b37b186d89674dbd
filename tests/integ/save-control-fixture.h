/*
 * What the tests of a save that is controlled while it runs share: a guest that is this process, in which the test
 * itself writes, or threads that write the known sequence; and its save. Needs cmocka.h before it.
 *
 *     rig_init → rig_begin_paused → [rig_write_pages, rig_settled…] → resume → rig_end → rig_check_image_is_before
 */
#pragma once

#include "../guest/backing.h"
#include "../guest/seqcheck.h"
#include "../guest/writers.h"
#include "../lib/own-process.h"

#define MIB (UINT64_C(1) << 20)
#define ARENA_BYTES (32 * MIB)
#define BUFFER_BYTES (4 * MIB)
#define MS UINT64_C(1000000)
#define HELD_UP_NS (500 * MS) /* a guest that a pause holds up waits until the end of it, which is longer */

enum { BEFORE = 0x11 }; /* each byte of the arena, until somebody writes */

typedef struct {
    const char *name;
    SnapMemory memory;
} Kind;

#define N_KINDS 3
extern const Kind kinds[N_KINDS];

typedef struct {
    const Kind *kind;
    Backing backing;
    Writers writers; /* threads 0: the test itself writes */
    uint64_t at;     /* their number at the point in time */
    SnapGuest *guest;
    SnapSave *save; /* atomic, where the guest's own functions look at it */
    bool pause;     /* from its point in time on */
    char folder[64];
    char *image;
    uint64_t longest_ns; /* of the test's own writes */
} Rig;

/* A skip where such memory is not to be had. */
void rig_init(Rig *rig, const Kind *kind);
void rig_clear(Rig *rig);

void rig_begin_with(Rig *rig, SnapSaveOptions options);
void rig_begin(Rig *rig, uint64_t max_bandwidth_bytes);
/* Paused before it has taken anything; the guest runs. */
void rig_begin_paused_with(Rig *rig, SnapSaveOptions options);
void rig_begin_paused(Rig *rig);
SnapSaveStats rig_stats(Rig *rig);
SnapSaveStats rig_await_sweep(Rig *rig);
/* The pages done, when they stand still. */
uint64_t rig_settled(Rig *rig);
/* It has ended well. */
void rig_end(Rig *rig);

/* Return: (out) g_free() it. */
uint8_t *rig_read_image(const Rig *rig);
/* All of the image is what the arena was filled with before the save. */
void rig_check_image_is_before(const Rig *rig);
/* From @start to @end, by this thread. */
void rig_write_pages(Rig *rig, uint64_t start, uint64_t end);
