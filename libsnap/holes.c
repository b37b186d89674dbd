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

static int check_file(const SnapArea *area, uint64_t offset, uint64_t held) {
    uint64_t page_bytes = area->region->page_bytes;
    uint64_t base = area->region->fd_offset + offset;
    while (held) {
        unsigned first = (unsigned)__builtin_ctzll(held);
        uint64_t rest = ~(held >> first);
        unsigned n = MIN(rest ? (unsigned)__builtin_ctzll(rest) : SNAP_CHUNK_PAGES, SNAP_CHUNK_PAGES - first);
        off_t hole = lseek(area->region->fd, (off_t)(base + first * page_bytes), SEEK_HOLE);
        if (hole < 0) {
            return errno == ENXIO ? -EFAULT : -errno;
        }
        if ((uint64_t)hole < base + (first + n) * page_bytes) {
            return -EFAULT;
        }
        held &= first + n >= SNAP_CHUNK_PAGES ? 0 : UINT64_MAX << (first + n);
    }
    return 0;
}

int snap_holes_check(const SnapArea *area, int pagemap, uint64_t offset, uint64_t address, const uint8_t *data,
                     size_t length) {
    uint64_t held = area->held ? held_mask(area, offset, length) : 0;
    if (held == 0) {
        return 0;
    }
    if (area->region->memory == SNAP_MEMORY_HUGETLB) {
        uint64_t huge = address / area->region->granule_bytes * area->region->granule_bytes;
        return is_zero(data, length) && !is_mapped(pagemap, huge, area->region->granule_bytes) ? -EFAULT : 0;
    }
    /* A page that is not zero is no hole; asking the file is only needed for one that is. */
    if (length == area->region->page_bytes && !is_zero(data, length)) {
        return 0;
    }
    return check_file(area, offset, held);
}
