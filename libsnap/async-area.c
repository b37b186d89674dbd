/* Armed units and gaps; see async-area.h. */
#include "async-area.h"

bool snap_async_is_hugetlb(const SnapArea *area) {
    return area->region->memory == SNAP_MEMORY_HUGETLB || area->region->memory == SNAP_MEMORY_HUGETLB_PRIVATE;
}

/* Bounds of what is @size, a power of two, in the address space. */
static uint64_t round_down(const SnapArea *area, uint64_t offset, uint64_t size) {
    uint64_t base = area->region->host_address, bound = (base + offset) / size * size;
    return bound > base ? bound - base : 0;
}

static uint64_t round_up(const SnapArea *area, uint64_t offset, uint64_t size) {
    uint64_t base = area->region->host_address, bound = (base + offset + size - 1) / size * size;
    return MIN(bound - base, area->region->length_bytes);
}

uint64_t snap_async_unit_start(const SnapArea *area, uint64_t start) {
    return round_down(area, start, area->chunk_bytes);
}

uint64_t snap_async_unit_end(const SnapArea *area, uint64_t end) {
    return round_up(area, end, area->chunk_bytes);
}

uint64_t snap_async_block_start(const SnapArea *area, uint64_t start) {
    return round_down(area, start, area->block_bytes);
}

uint64_t snap_async_block_end(const SnapArea *area, uint64_t end) {
    return round_up(area, end, area->block_bytes);
}

void snap_async_add_armed(SnapArea *area, uint64_t start, uint64_t end) {
    uint64_t first = snap_async_unit_start(area, start) / area->chunk_bytes,
             behind = snap_async_unit_end(area, end);
    snap_area_add_armed(area, (SnapRun){first, (behind + area->chunk_bytes - 1) / area->chunk_bytes});
}

SnapBytes snap_async_armed_units(const SnapArea *area, guint i) {
    SnapBytes bytes;
    snap_area_bytes(area, g_array_index(area->armed, SnapRun, i), &bytes.start, &bytes.end);
    if (bytes.start > 0) {
        bytes.start = snap_async_unit_end(area, bytes.start);
    }
    if (bytes.end < area->region->length_bytes) {
        bytes.end = snap_async_unit_start(area, bytes.end);
    }
    return bytes;
}

/* The first armed run with a unit that ends behind @offset; armed->len when there is none. */
static guint first_run(const SnapArea *area, uint64_t offset) {
    guint low = 0, high = area->armed->len;
    while (low < high) {
        guint mid = low + (high - low) / 2;
        SnapBytes run = snap_async_armed_units(area, mid);
        if (MAX(run.start, run.end) <= offset) {
            low = mid + 1;
        } else {
            high = mid;
        }
    }
    while (low < area->armed->len) {
        SnapBytes run = snap_async_armed_units(area, low);
        if (run.start < run.end) {
            break;
        }
        low++;
    }
    return low;
}

bool snap_async_is_armed(const SnapArea *area, uint64_t offset, uint64_t end, uint64_t *ret_end) {
    guint i = first_run(area, offset);
    if (i == area->armed->len) {
        *ret_end = end;
        return false;
    }
    SnapBytes run = snap_async_armed_units(area, i);
    *ret_end = MIN(end, offset < run.start ? run.start : run.end);
    return offset >= run.start;
}

bool snap_async_has_gaps(const SnapArea *area) {
    switch (area->region->memory) {
    case SNAP_MEMORY_ANON:
        return true;
    case SNAP_MEMORY_SHMEM:
    case SNAP_MEMORY_SHMEM_PRIVATE:
        return area->region->fd >= 0;
    default:
        return false;
    }
}

/* Not the zero page; and of a private mapping not the file's own page. */
SnapScanFilter snap_async_filled_filter(const SnapArea *area) {
    uint64_t none = PAGE_IS_PFNZERO;
    if (area->region->memory == SNAP_MEMORY_SHMEM_PRIVATE) {
        none |= PAGE_IS_FILE; /* not the guest's own */
    }
    return (SnapScanFilter){.any = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
                            .none = none,
                            .report = PAGE_IS_PRESENT | PAGE_IS_SWAPPED | none};
}

int snap_async_next_filled(const SnapArea *area, int pagemap, uint64_t from, uint64_t end, SnapBytes *ret_run,
                           uint64_t *ret_searched) {
    uint64_t base = area->region->host_address;
    if (area->region->memory != SNAP_MEMORY_ANON) {
        int found = snap_area_next_data(area, pagemap, from, end, &ret_run->start, &ret_run->end);
        *ret_searched = found == 1 ? ret_run->end : end;
        return found;
    }
    SnapScan scan = {
        .fd = pagemap, .filter = snap_async_filled_filter(area), .next = base + from, .end = base + end};
    scan.filter.report = 0; /* present or swapped, it is one run */
    struct page_region run;
    int n = from < end ? snap_pagemap_step(&scan, &run, 1) : 0;
    if (n >= 0) {
        *ret_searched = scan.next - base;
    }
    if (n == 1) {
        *ret_run = (SnapBytes){run.start - base, run.end - base};
    }
    return n;
}

int snap_async_next_data(const SnapArea *area, uint64_t from, uint64_t end, SnapBytes *ret_run) {
    /* As if it were mapped shared: the file alone tells. */
    SnapRegion region = *area->region;
    region.memory = SNAP_MEMORY_SHMEM;
    SnapArea shared = {.region = &region};
    return snap_area_next_data(&shared, -1, from, end, &ret_run->start, &ret_run->end);
}
