/* Punched pages of shared memory; see holes.h. */
#include "holes.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "image-write.h"
#include "pagemap.h"

static uint64_t *held_word(const SnapArea *area, uint64_t page) {
    return &area->held[page / SNAP_CHUNK_PAGES];
}

static void record_pages(SnapArea *area, uint64_t start, uint64_t end) {
    for (uint64_t at = start; at < end; at += area->region->page_bytes) {
        uint64_t page = at / area->region->page_bytes;
        *held_word(area, page) |= UINT64_C(1) << page % SNAP_CHUNK_PAGES;
    }
}

static bool is_mapped(int pagemap, uint64_t address, uint64_t length) {
    struct page_region run;
    SnapScan scan = {
        .fd = pagemap,
        .filter = {.all = PAGE_IS_PRESENT, .report = PAGE_IS_PRESENT},
        .next = address,
        .end = address + length,
    };
    return snap_pagemap_step(&scan, &run, 1) == 1;
}

static int record_mapped(SnapArea *area, int pagemap, uint64_t start, uint64_t end) {
    uint64_t granule = area->region->granule_bytes;
    for (uint64_t at = start / granule * granule; at < end; at += granule) {
        if (is_mapped(pagemap, area->region->host_address + at, granule)) {
            record_pages(area, at, MIN(at + granule, area->region->length_bytes));
        }
    }
    return 0;
}

int snap_holes_record(SnapArea *area, int pagemap, SnapRun run) {
    if (!area->held) {
        return 0;
    }
    uint64_t at, end, start, stop;
    snap_area_bytes(area, run, &at, &end);
    if (area->region->memory == SNAP_MEMORY_HUGETLB) {
        return record_mapped(area, pagemap, at, end);
    }
    int found;
    while ((found = snap_area_next_data(area, pagemap, at, end, &start, &stop)) == 1) {
        record_pages(area, start, stop);
        at = stop;
    }
    return found;
}

void snap_holes_touched(SnapArea *area, uint64_t chunk, uint64_t mask) {
    if (area->held) {
        area->held[chunk] |= mask;
    }
}

/* Pages of the range that held data, as a mask from its first page on. */
static uint64_t held_mask(const SnapArea *area, uint64_t offset, size_t length) {
    uint64_t first = offset / area->region->page_bytes, n = length / area->region->page_bytes;
    uint64_t mask = n >= SNAP_CHUNK_PAGES ? UINT64_MAX : (UINT64_C(1) << n) - 1;
    return *held_word(area, first) >> first % SNAP_CHUNK_PAGES & mask;
}

static bool is_zero(const uint8_t *data, size_t length) {
    return data[0] == 0 && memcmp(data, data + 1, length - 1) == 0;
}

/*
 * SEEK_DATA on data answers at once, on a hole it skips what is not there; SEEK_HOLE would walk all data up to the
 * next hole.
 */
static int check_file(const SnapArea *area, uint64_t offset) {
    off_t at = (off_t)(area->region->fd_offset + offset);
    off_t data = lseek(area->region->fd, at, SEEK_DATA);
    if (data < 0) {
        return errno == ENXIO ? -EFAULT : -errno;
    }
    return data == at ? 0 : -EFAULT;
}

static int check_huge(const SnapArea *area, int pagemap, uint64_t address) {
    uint64_t granule = area->region->granule_bytes;
    return is_mapped(pagemap, address / granule * granule, granule) ? 0 : -EFAULT;
}

int snap_holes_check(const SnapArea *area, int pagemap, uint64_t offset, uint64_t address, const uint8_t *data,
                     size_t length) {
    uint64_t page_bytes = area->region->page_bytes;
    uint64_t held = area->held ? held_mask(area, offset, length) : 0;
    for (; held; held &= held - 1) {
        /* Only a page that reads as zeros can be a hole. */
        uint64_t at = (unsigned)__builtin_ctzll(held) * page_bytes;
        if (!is_zero(data + at, page_bytes)) {
            continue;
        }
        int result = area->region->memory == SNAP_MEMORY_HUGETLB ? check_huge(area, pagemap, address + at)
                                                                 : check_file(area, offset + at);
        if (result < 0) {
            return result;
        }
    }
    return 0;
}
