/*
 * Area: one region while it is tracked.
 *
 * It is divided into chunks, as in the image, and each chunk has a word of claimed pages. Chunks that hold
 * anything are *armed* (protected), in whole blocks of what one page table maps: inside such a block protecting an
 * empty page costs no memory, and a first touch of it is seen. Blocks that hold nothing stay as they are: no page
 * tables, no prefault. What the guest puts there later is found by another search just before the point in time.
 *
 * Plain data; the tracker's lock covers it where the fault thread uses it too.
 */
#pragma once

#include <stdbool.h>

#include "libsnap.h"

/* Where a chunk is in its way. A table in track-sync.h says who moves it. */
typedef enum {
    SNAP_CHUNK_PROTECTED, /* protected, but for the pages claimed by faults */
    SNAP_CHUNK_SWEEPING,  /* the sweep has claimed what was left and copies it */
    SNAP_CHUNK_CAPTURED,  /* all captured; to be un-protected */
    SNAP_CHUNK_RELEASED,  /* un-protected */
    SNAP_CHUNK_KEPT,      /* all captured; protected on, so that the next write of each page is seen */
} SnapChunkPhase;

typedef struct {
    uint64_t dirty;     /* written since the point before: what is captured. All, of a chunk armed since */
    uint64_t since;     /* SYNC: written, or discarded, since this point */
    uint64_t claimed;   /* LOG: pages touched since the last round; SYNC: pages captured */
    uint64_t lazy;      /* may go by themselves, with their protection: see lazy.h */
    uint32_t preimages; /* SYNC: pool index of the newest pre-image, linked; SNAP_POOL_NONE */
    uint16_t phase;     /* SnapChunkPhase */
    uint8_t hot;        /* waits in the queue of faulted chunks */
    uint8_t waiting;    /* SYNC: the guest waits until it is captured */
} SnapChunkState;

/* Chunks [first, end) */
typedef struct {
    uint64_t first;
    uint64_t end;
} SnapRun;

typedef struct {
    SnapRegion *region; /* owned */
    uint64_t n_chunks;  /* shrinks with the region when the guest unmapped its end before the point */
    uint64_t n_mapped;  /* as it was made: the size of the arrays below */
    uint64_t chunk_bytes;
    uint64_t block_bytes; /* what one page table maps, or the granule where that is larger */
    SnapChunkState *chunks;
    uint64_t *filled; /* shared memory only: pages of each chunk that were not zero when protected; see holes.h */
    uint64_t *lazy;   /* private memory only: a bit for each chunk whose lazy word may be set */
    GArray *armed;    /* of SnapRun; sorted, disjoint, not adjacent */
    bool logged;      /* dirty is what was written since the point before; else everything is */
    bool looked_back; /* it is known what was discarded before it was tracked */
    bool dropped;     /* not in the guest any more when the point came: not part of the snapshot */
    bool stale;       /* LOG: (partly) unmapped or moved, perhaps mapped anew: has to be registered again */
} SnapArea;

/* @region: (take). */
SnapArea *snap_area_new(SnapRegion *region);
void snap_area_free(SnapArea *area);

/*
 * The next run of bytes from @from on that hold data, page aligned, in the area. @pagemap: the guest's pagemap.
 * Return: 1 and the run; 0 when there is none before @end; -errno.
 */
int snap_area_next_data(const SnapArea *area, int pagemap, uint64_t from, uint64_t end, uint64_t *ret_start,
                        uint64_t *ret_end);

/* Chunks of the blocks that [start, end) lies in. */
SnapRun snap_area_blocks(const SnapArea *area, uint64_t start, uint64_t end);

/* Add @run, of which all pages are dirty, to the armed ones. */
void snap_area_arm(SnapArea *area, SnapRun run);

/* The same for a log that keeps no word of each chunk: what is very sparse costs no memory for them. */
void snap_area_add_armed(SnapArea *area, SnapRun run);

/* The first run at or behind @chunk that is not armed; FALSE when there is none. */
bool snap_area_next_gap(const SnapArea *area, uint64_t chunk, SnapRun *ret_gap);

/* The guest has only the first @length_bytes of it left. */
void snap_area_shrink(SnapArea *area, uint64_t length_bytes);

/* Call everything clean: the log begins here. */
void snap_area_wipe(SnapArea *area);

/* Call everything dirty: what was logged is not, or no longer, against anything known. */
void snap_area_forget(SnapArea *area);

/* Whether @chunk is armed. */
bool snap_area_is_armed(const SnapArea *area, uint64_t chunk);

/* Pages of @chunk that exist: all, but for the last chunk. */
uint64_t snap_area_chunk_mask(const SnapArea *area, uint64_t chunk);

/* Bytes [start, end) of a run, cut at the end of the area. */
void snap_area_bytes(const SnapArea *area, SnapRun run, uint64_t *ret_start, uint64_t *ret_end);
