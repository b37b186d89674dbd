/* Punched pages of shared memory; see holes.h. */
#include "holes.h"

#include <string.h>
#include <sys/uio.h>

#include "image-write.h"

enum {
    LOOK_BYTES = 1 << 10, /* read at once, on the stack */
    GLANCE_BYTES = 64,    /* of a page, mostly enough to see that it is not zero: a cache line */
};

static bool is_zero(const uint8_t *data, size_t length) {
    return data[0] == 0 && memcmp(data, data + 1, length - 1) == 0;
}

/* Return: 1 when the page is not zero, 0 when it is, or -errno. */
static int is_filled(const SnapArea *area, const SnapMemoryReader *reader, uint64_t offset) {
    const SnapRegion *region = area->region;
    uint8_t buffer[LOOK_BYTES];
    size_t length = GLANCE_BYTES;
    for (uint64_t at = 0; at < region->page_bytes;
         at += length, length = MIN(LOOK_BYTES, region->page_bytes - at)) {
        uint64_t address = region->host_address + offset + at;
        int result = snap_memory_read(reader, region, offset + at, address, buffer, length);
        if (result < 0 || !is_zero(buffer, length)) {
            return result < 0 ? result : 1;
        }
    }
    return 0;
}

/*
 * Look at the first bytes of every page of @mask at once, in the guest's own mapping: a system call a page would
 * take longer than everything else before the pause. Only of tmpfs memory that holds data: looking at a hole of
 * hugetlb would fill it. Return: which pages showed something; the others need a closer look.
 */
static uint64_t glance(const SnapArea *area, const SnapMemoryReader *reader, uint64_t chunk, uint64_t mask) {
    uint8_t bytes[SNAP_CHUNK_PAGES * GLANCE_BYTES];
    struct iovec remote[SNAP_CHUNK_PAGES];
    unsigned n = 0;
    if (area->region->memory != SNAP_MEMORY_SHMEM) {
        return 0;
    }
    for (uint64_t rest = mask; rest; rest &= rest - 1) {
        uint64_t page = chunk * SNAP_CHUNK_PAGES + (unsigned)__builtin_ctzll(rest);
        uint64_t address = area->region->host_address + page * area->region->page_bytes;
        remote[n++] = (struct iovec){(void *)(uintptr_t)address, GLANCE_BYTES};
    }
    struct iovec local = {bytes, n * GLANCE_BYTES};
    if (n == 0 || process_vm_readv(reader->pid, &local, 1, remote, n, 0) != (ssize_t)local.iov_len) {
        return 0;
    }
    uint64_t seen = 0;
    unsigned i = 0;
    for (uint64_t rest = mask; rest; rest &= rest - 1, i++) {
        if (!is_zero(bytes + i * GLANCE_BYTES, GLANCE_BYTES)) {
            seen |= rest & -rest;
        }
    }
    return seen;
}

int snap_holes_record_pages(SnapArea *area, const SnapMemoryReader *reader, uint64_t chunk, uint64_t mask) {
    if (!area->filled) {
        return 0;
    }
    mask &= snap_area_chunk_mask(area, chunk);
    uint64_t filled = glance(area, reader, chunk, mask);
    for (uint64_t rest = mask & ~filled; rest; rest &= rest - 1) {
        unsigned i = (unsigned)__builtin_ctzll(rest);
        uint64_t page = chunk * SNAP_CHUNK_PAGES + i;
        int result = is_filled(area, reader, page * area->region->page_bytes);
        if (result < 0) {
            return result;
        }
        filled |= (uint64_t)result << i;
        if (filled && area->region->granule_bytes >= area->chunk_bytes) {
            break; /* a hole takes at least the whole chunk: one witness will do */
        }
    }
    area->filled[chunk] = (area->filled[chunk] & ~mask) | filled;
    return 0;
}

/* Bits of @chunk that [start, end) of the area covers. */
static uint64_t chunk_part(const SnapArea *area, uint64_t chunk, uint64_t start, uint64_t end) {
    uint64_t page_bytes = area->region->page_bytes, base = chunk * area->chunk_bytes;
    uint64_t first = start > base ? (start - base) / page_bytes : 0;
    uint64_t last = MIN((end - base + page_bytes - 1) / page_bytes, SNAP_CHUNK_PAGES);
    uint64_t upto = last >= SNAP_CHUNK_PAGES ? UINT64_MAX : (UINT64_C(1) << last) - 1;
    return first >= SNAP_CHUNK_PAGES ? 0 : upto & UINT64_MAX << first;
}

int snap_holes_record_run(SnapArea *area, const SnapMemoryReader *reader, int pagemap, SnapRun run) {
    if (!area->filled) {
        return 0;
    }
    uint64_t at, end, start, stop;
    snap_area_bytes(area, run, &at, &end);
    memset(&area->filled[run.first], 0, (run.end - run.first) * sizeof area->filled[0]);
    int found;
    while ((found = snap_area_next_data(area, pagemap, at, end, &start, &stop)) == 1) {
        for (uint64_t chunk = start / area->chunk_bytes; chunk * area->chunk_bytes < stop; chunk++) {
            int result = snap_holes_record_pages(area, reader, chunk, chunk_part(area, chunk, start, stop));
            if (result < 0) {
                return result;
            }
        }
        at = stop;
    }
    return found;
}

int snap_holes_find(const SnapArea *area, const SnapMemoryReader *reader, uint64_t chunk, uint64_t mask,
                    uint64_t *ret_punched) {
    *ret_punched = 0;
    for (uint64_t rest = mask & ~glance(area, reader, chunk, mask); rest; rest &= rest - 1) {
        unsigned i = (unsigned)__builtin_ctzll(rest);
        int result = is_filled(area, reader, (chunk * SNAP_CHUNK_PAGES + i) * area->region->page_bytes);
        if (result < 0) {
            return result;
        }
        *ret_punched |= (uint64_t)!result << i;
    }
    return 0;
}

bool snap_holes_check(const SnapArea *area, uint64_t offset, const uint8_t *data, size_t length) {
    if (!area->filled) {
        return true;
    }
    uint64_t page_bytes = area->region->page_bytes, first = offset / page_bytes, n = length / page_bytes;
    uint64_t mask = n >= SNAP_CHUNK_PAGES ? UINT64_MAX : (UINT64_C(1) << n) - 1;
    uint64_t filled = area->filled[first / SNAP_CHUNK_PAGES] >> first % SNAP_CHUNK_PAGES & mask;
    for (; filled; filled &= filled - 1) {
        if (is_zero(data + (unsigned)__builtin_ctzll(filled) * page_bytes, page_bytes)) {
            return false;
        }
    }
    return true;
}
