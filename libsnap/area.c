/* One tracked region; see area.h. */
#include "area.h"

#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include "image-write.h"
#include "pagemap.h"
#include "pool.h"

/* A page table is one page of 8-byte entries, on every architecture that userfaultfd-wp runs on. */
static uint64_t table_bytes(const SnapRegion *region) {
    return region->page_bytes / sizeof(uint64_t) * region->page_bytes;
}

/* Resident only where it is used: a sparse region of terabytes has as many chunks as a dense one. */
static void *map_zeros(uint64_t n, size_t size) {
    void *p =
        mmap(NULL, MAX(n, 1) * size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    g_assert(p != MAP_FAILED);
    return p;
}

static uint64_t lazy_words(const SnapArea *area) {
    return (area->n_mapped + 63) / 64;
}

SnapArea *snap_area_new(SnapRegion *region) {
    SnapArea *area = g_new0(SnapArea, 1);
    area->region = region;
    area->chunk_bytes = SNAP_CHUNK_PAGES * region->page_bytes;
    area->n_chunks = area->n_mapped = (region->length_bytes + area->chunk_bytes - 1) / area->chunk_bytes;
    area->block_bytes = MAX(table_bytes(region), region->granule_bytes);
    area->chunks = map_zeros(area->n_chunks, sizeof *area->chunks);
    if (region->memory == SNAP_MEMORY_SHMEM || region->memory == SNAP_MEMORY_HUGETLB) {
        area->filled = map_zeros(area->n_chunks, sizeof *area->filled);
    }
    if (region->memory == SNAP_MEMORY_ANON) {
        area->lazy = map_zeros(lazy_words(area), sizeof *area->lazy);
    }
    area->armed = g_array_new(FALSE, FALSE, sizeof(SnapRun));
    return area;
}

void snap_area_free(SnapArea *area) {
    if (!area) {
        return;
    }
    munmap(area->chunks, MAX(area->n_mapped, 1) * sizeof *area->chunks);
    if (area->filled) {
        munmap(area->filled, MAX(area->n_mapped, 1) * sizeof *area->filled);
    }
    if (area->lazy) {
        munmap(area->lazy, MAX(lazy_words(area), 1) * sizeof *area->lazy);
    }
    g_array_unref(area->armed);
    snap_region_free(area->region);
    g_free(area);
}

/* ---- where data is --------------------------------------------------------------------------------------- */

static int next_present(const SnapArea *area, int pagemap, uint64_t from, uint64_t end, uint64_t *ret_start,
                        uint64_t *ret_end) {
    uint64_t base = area->region->host_address;
    struct page_region run;
    int n = snap_pagemap_find(pagemap, PAGE_IS_PRESENT | PAGE_IS_SWAPPED, base + from, base + end, &run);
    if (n == 1) {
        *ret_start = run.start - base;
        *ret_end = run.end - base;
    }
    return n;
}

static int next_in_file(const SnapArea *area, uint64_t from, uint64_t end, uint64_t *ret_start,
                        uint64_t *ret_end) {
    const SnapRegion *region = area->region;
    off_t data = lseek(region->fd, (off_t)(region->fd_offset + from), SEEK_DATA);
    if (data < 0) {
        return errno == ENXIO ? 0 : -errno;
    }
    if ((uint64_t)data >= region->fd_offset + end) {
        return 0;
    }
    off_t hole = lseek(region->fd, data, SEEK_HOLE);
    if (hole < 0) {
        return -errno;
    }
    *ret_start = (uint64_t)data - region->fd_offset;
    *ret_end = MIN((uint64_t)hole - region->fd_offset, end);
    return 1;
}

/* A private mapping of a file: its own copies, or what the file holds, whichever comes first. */
static int next_in_either(const SnapArea *area, int pagemap, uint64_t from, uint64_t end, uint64_t *ret_start,
                          uint64_t *ret_end) {
    uint64_t start = 0, stop = 0;
    int copies = next_present(area, pagemap, from, end, ret_start, ret_end);
    int file = copies < 0 ? copies : next_in_file(area, from, end, &start, &stop);
    if (file == 1 && (copies == 0 || start < *ret_start)) {
        *ret_start = start;
        *ret_end = stop;
    }
    return file < 0 ? file : MAX(copies, file);
}

int snap_area_next_data(const SnapArea *area, int pagemap, uint64_t from, uint64_t end, uint64_t *ret_start,
                        uint64_t *ret_end) {
    if (from >= end) {
        return 0;
    }
    switch (area->region->memory) {
    case SNAP_MEMORY_ANON:
    case SNAP_MEMORY_HUGETLB_PRIVATE:
        return next_present(area, pagemap, from, end, ret_start, ret_end);
    case SNAP_MEMORY_SHMEM:
        return next_in_file(area, from, end, ret_start, ret_end);
    case SNAP_MEMORY_SHMEM_PRIVATE:
        if (area->region->fd >= 0) {
            return next_in_either(area, pagemap, from, end, ret_start, ret_end);
        }
        break;
    default: /* hugetlbfs cannot say where its holes are; a huge page needs no page table of its own anyway */
        break;
    }
    *ret_start = from;
    *ret_end = end;
    return 1;
}

/* ---- runs ------------------------------------------------------------------------------------------------ */

SnapRun snap_area_blocks(const SnapArea *area, uint64_t start, uint64_t end) {
    uint64_t base = area->region->host_address;
    uint64_t low = (base + start) / area->block_bytes * area->block_bytes;
    uint64_t high = (base + end + area->block_bytes - 1) / area->block_bytes * area->block_bytes;
    uint64_t from = low > base ? low - base : 0;
    uint64_t to = MIN(high - base, area->region->length_bytes);
    return (SnapRun){from / area->chunk_bytes, (to + area->chunk_bytes - 1) / area->chunk_bytes};
}

/* Index of the first armed run that ends at or behind @chunk. */
static guint first_run(const SnapArea *area, uint64_t chunk) {
    guint low = 0, high = area->armed->len;
    while (low < high) {
        guint mid = low + (high - low) / 2;
        if (g_array_index(area->armed, SnapRun, mid).end < chunk) {
            low = mid + 1;
        } else {
            high = mid;
        }
    }
    return low;
}

static void make_dirty(SnapArea *area, SnapRun run) {
    for (uint64_t chunk = run.first; chunk < MIN(run.end, area->n_chunks); chunk++) {
        area->chunks[chunk].dirty = snap_area_chunk_mask(area, chunk);
    }
}

void snap_area_arm(SnapArea *area, SnapRun run) {
    make_dirty(area, run);
    snap_area_add_armed(area, run);
}

void snap_area_add_armed(SnapArea *area, SnapRun run) {
    guint at = first_run(area, run.first);
    guint behind = at;
    while (behind < area->armed->len) {
        SnapRun other = g_array_index(area->armed, SnapRun, behind);
        if (other.first > run.end) {
            break;
        }
        run.first = MIN(run.first, other.first);
        run.end = MAX(run.end, other.end);
        behind++;
    }
    g_array_remove_range(area->armed, at, behind - at);
    g_array_insert_val(area->armed, at, run);
}

void snap_area_shrink(SnapArea *area, uint64_t length_bytes) {
    area->region->length_bytes = length_bytes;
    area->n_chunks = MIN(area->n_chunks, (length_bytes + area->chunk_bytes - 1) / area->chunk_bytes);
}

void snap_area_wipe(SnapArea *area) {
    for (guint i = 0; i < area->armed->len; i++) {
        SnapRun run = g_array_index(area->armed, SnapRun, i);
        for (uint64_t chunk = run.first; chunk < MIN(run.end, area->n_chunks); chunk++) {
            area->chunks[chunk].dirty = 0;
        }
    }
}

void snap_area_forget(SnapArea *area) {
    area->logged = false;
    for (guint i = 0; i < area->armed->len; i++) {
        make_dirty(area, g_array_index(area->armed, SnapRun, i));
    }
}

bool snap_area_next_gap(const SnapArea *area, uint64_t chunk, SnapRun *ret_gap) {
    for (guint i = first_run(area, chunk); i < area->armed->len; i++) {
        SnapRun run = g_array_index(area->armed, SnapRun, i);
        if (chunk < run.first) {
            *ret_gap = (SnapRun){chunk, MIN(run.first, area->n_chunks)};
            return chunk < area->n_chunks;
        }
        chunk = MAX(chunk, run.end);
    }
    *ret_gap = (SnapRun){chunk, area->n_chunks};
    return chunk < area->n_chunks;
}

bool snap_area_is_armed(const SnapArea *area, uint64_t chunk) {
    guint at = first_run(area, chunk + 1);
    return at < area->armed->len && g_array_index(area->armed, SnapRun, at).first <= chunk;
}

uint64_t snap_area_chunk_mask(const SnapArea *area, uint64_t chunk) {
    uint64_t pages = (area->region->length_bytes - chunk * area->chunk_bytes) / area->region->page_bytes;
    return pages >= SNAP_CHUNK_PAGES ? UINT64_MAX : (UINT64_C(1) << pages) - 1;
}

void snap_area_bytes(const SnapArea *area, SnapRun run, uint64_t *ret_start, uint64_t *ret_end) {
    *ret_start = run.first * area->chunk_bytes;
    *ret_end = MIN(run.end * area->chunk_bytes, area->region->length_bytes);
}
