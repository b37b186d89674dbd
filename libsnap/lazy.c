/* Lazy pages: see lazy.h. */
#include "lazy.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "chunk.h"
#include "pagemap.h"

enum { CHUNKS_A_WORD = 64, RUNS = 64 };

/* ---- what is known --------------------------------------------------------------------------------------- */

static void set_locked(SnapArea *area, uint64_t chunk, uint64_t mask) {
    area->chunks[chunk].lazy |= mask & snap_area_chunk_mask(area, chunk);
    area->lazy[chunk / CHUNKS_A_WORD] |= UINT64_C(1) << chunk % CHUNKS_A_WORD;
}

/* Pages of @chunk that lie in bytes [offset, end) of its area. */
static uint64_t pages_in(const SnapArea *area, uint64_t chunk, uint64_t offset, uint64_t end) {
    uint64_t page_bytes = area->region->page_bytes, start = chunk * area->chunk_bytes;
    uint64_t first = offset > start ? (offset - start) / page_bytes : 0;
    uint64_t last = MIN((end - start + page_bytes - 1) / page_bytes, SNAP_CHUNK_PAGES);
    uint64_t mask = last - first >= SNAP_CHUNK_PAGES ? UINT64_MAX : (UINT64_C(1) << (last - first)) - 1;
    return mask << first;
}

void snap_lazy_note_locked(SnapSync *tracker, uint32_t number, uint64_t offset, uint64_t end) {
    SnapArea *area = snap_sync_area(tracker, number);
    end = MIN(end, area->region->length_bytes);
    for (uint64_t chunk = offset / area->chunk_bytes; area->lazy && chunk * area->chunk_bytes < end; chunk++) {
        set_locked(area, chunk, pages_in(area, chunk, offset, end));
    }
}

void snap_lazy_written_locked(SnapSync *tracker, uint32_t number, uint64_t offset, uint64_t end) {
    SnapArea *area = snap_sync_area(tracker, number);
    end = MIN(end, area->region->length_bytes);
    for (uint64_t chunk = offset / area->chunk_bytes; area->lazy && chunk * area->chunk_bytes < end; chunk++) {
        area->chunks[chunk].lazy &= ~pages_in(area, chunk, offset, end);
    }
}

void snap_lazy_note_all(SnapSync *tracker, uint32_t number) {
    snap_lock(&tracker->lock);
    SnapArea *area = snap_sync_area(tracker, number);
    snap_lazy_note_locked(tracker, number, 0, area->region->length_bytes);
    area->looked_back = true;
    snap_unlock(&tracker->lock);
}

/* ---- before it was tracked ------------------------------------------------------------------------------- */

static void note_range(SnapSync *tracker, uint64_t start, uint64_t end) {
    snap_lock(&tracker->lock);
    for (guint i = 0; i < tracker->areas->len; i++) {
        const SnapArea *area = snap_sync_area(tracker, i);
        uint64_t base = area->region->host_address, top = base + area->region->length_bytes;
        if (!area->looked_back && !area->dropped && start < top && end > base) {
            snap_lazy_note_locked(tracker, i, MAX(start, base) - base, MIN(end, top) - base);
        }
    }
    snap_unlock(&tracker->lock);
}

/* smaps tells of each mapping how much of it is lazy, not where: all of such a mapping is noted. */
static void read_smaps(SnapSync *tracker, FILE *smaps) {
    g_autofree char *line = NULL;
    size_t room = 0;
    uint64_t start = 0, end = 0, kib = 0;
    while (getline(&line, &room, smaps) > 0) {
        uint64_t low, high;
        if (sscanf(line, "%" SCNx64 "-%" SCNx64 " ", &low, &high) == 2) {
            start = low;
            end = high;
        } else if (sscanf(line, "LazyFree: %" SCNu64, &kib) == 1 && kib > 0) {
            note_range(tracker, start, end);
        }
    }
}

static bool is_due(const SnapSync *tracker) {
    for (guint i = 0; i < tracker->areas->len; i++) {
        const SnapArea *area = snap_sync_area(tracker, i);
        if (area->lazy && !area->looked_back && !area->dropped) {
            return true;
        }
    }
    return false;
}

int snap_lazy_look_back(SnapSync *tracker) {
    if (!is_due(tracker)) {
        return 0;
    }
    g_autofree char *path = g_strdup_printf("/proc/%d/smaps", tracker->pid);
    FILE *smaps = fopen(path, "re");
    if (!smaps) {
        return errno == ENOENT ? -ESRCH : -errno;
    }
    read_smaps(tracker, smaps);
    fclose(smaps);
    for (guint i = 0; i < tracker->areas->len; i++) {
        snap_sync_area(tracker, i)->looked_back = true;
    }
    return 0;
}

/* ---- looking --------------------------------------------------------------------------------------------- */

/* Set in @ret_pages, a word a chunk, what pages of chunks [first, first + n) match. */
static int find_pages(const SnapSync *tracker, const SnapArea *area, SnapScanFilter filter, uint64_t first,
                      uint64_t n, uint64_t *ret_pages) {
    uint64_t base = area->region->host_address, page_bytes = area->region->page_bytes, start, end;
    snap_area_bytes(area, (SnapRun){first, first + n}, &start, &end);
    struct page_region runs[RUNS];
    SnapScan scan = {.fd = tracker->pagemap, .filter = filter, .next = base + start, .end = base + end};
    int found = RUNS;
    while (found == RUNS && (found = snap_pagemap_step(&scan, runs, RUNS)) > 0) {
        for (int i = 0; i < found; i++) {
            uint64_t page = (runs[i].start - base - start) / page_bytes;
            for (; page < (runs[i].end - base - start) / page_bytes; page++) {
                ret_pages[page / SNAP_CHUNK_PAGES] |= UINT64_C(1) << page % SNAP_CHUNK_PAGES;
            }
        }
    }
    return MIN(found, 0);
}

/* Chunks [first, first + n) of one word of the area's. */
static int touch_chunks(SnapSync *tracker, guint number, uint64_t first, uint64_t n) {
    static const SnapScanFilter filter = {
        .none = PAGE_IS_WRITTEN, .any = PAGE_IS_PRESENT | PAGE_IS_SWAPPED, .report = PAGE_IS_WRITTEN};
    SnapArea *area = snap_sync_area(tracker, number);
    uint64_t protected[CHUNKS_A_WORD] = {0};
    int result = find_pages(tracker, area, filter, first, n, protected);
    snap_lock(&tracker->lock);
    for (uint64_t i = 0; i < n && result == 0; i++) {
        uint64_t lost = area->chunks[first + i].lazy & ~protected[i];
        if (area->chunks[first + i].lazy == 0) {
            area->lazy[first / CHUNKS_A_WORD] &= ~(UINT64_C(1) << (first + i) % CHUNKS_A_WORD);
        } else if (lost && snap_area_is_armed(area, first + i)) {
            snap_sync_touch_locked(tracker, number, first + i, lost);
        }
    }
    snap_unlock(&tracker->lock);
    return result;
}

static int touch_area(SnapSync *tracker, guint number) {
    const SnapArea *area = snap_sync_area(tracker, number);
    for (uint64_t at = 0; at < area->n_chunks; at += CHUNKS_A_WORD) {
        snap_lock(&tracker->lock);
        uint64_t word = area->lazy[at / CHUNKS_A_WORD];
        snap_unlock(&tracker->lock);
        if (area->n_chunks - at < CHUNKS_A_WORD) { /* the guest may have unmapped its end */
            word &= (UINT64_C(1) << (area->n_chunks - at)) - 1;
        }
        unsigned first = 0, n = 0;
        while (snap_chunk_take_run(&word, &first, &n)) {
            int result = touch_chunks(tracker, number, at + first, n);
            if (result < 0) {
                return result;
            }
        }
    }
    return 0;
}

int snap_lazy_touch(SnapSync *tracker) {
    int result = 0;
    for (guint i = 0; i < tracker->areas->len && result == 0; i++) {
        const SnapArea *area = snap_sync_area(tracker, i);
        if (area->lazy && !area->dropped && !area->stale) {
            result = touch_area(tracker, i);
        }
    }
    return result;
}

int snap_lazy_settle(SnapSync *tracker, SnapArea *area, uint64_t chunk, uint64_t mask) {
    static const SnapScanFilter filter = {.any = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
                                          .report = PAGE_IS_PRESENT | PAGE_IS_SWAPPED};
    uint64_t there = 0;
    if (!area->lazy || !(area->chunks[chunk].lazy & mask)) {
        return 0;
    }
    int result = find_pages(tracker, area, filter, chunk, 1, &there);
    if (result == 0) {
        snap_lock(&tracker->lock);
        area->chunks[chunk].lazy &= ~(mask & ~there);
        snap_unlock(&tracker->lock);
    }
    return result;
}
