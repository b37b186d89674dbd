/* PAGEMAP_SCAN and the pagemap entries; see pagemap.h. */
#include "pagemap.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* Bits of an entry: Documentation/admin-guide/mm/pagemap.rst. */
#define ENTRY_UFFD_WP (UINT64_C(1) << 57)
#define ENTRY_FILE (UINT64_C(1) << 61)
#define ENTRY_SWAPPED (UINT64_C(1) << 62)
#define ENTRY_PRESENT (UINT64_C(1) << 63)

int snap_pagemap_open(int pid) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/pagemap", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

enum {
    /*
     * The kernel's own buffer has room for what one page table maps, 512 and more. Given more, it goes on when
     * that is full, but walk_end stays where it was full first: whoever continues there sees pages again that are
     * written meanwhile, out of order.
     */
    RUNS_MAX = 512,
};

/* ---- kernels before 6.7 ---------------------------------------------------------------------------------- */

enum { ENTRIES_AT_ONCE = 512 };

/* Of an entry, as PAGEMAP_SCAN would call it; what entries do not tell (huge, zero, guard) is never found. */
static uint64_t categories_of(uint64_t entry) {
    uint64_t categories = entry & ENTRY_UFFD_WP ? 0 : PAGE_IS_WRITTEN;
    categories |= entry & ENTRY_PRESENT ? PAGE_IS_PRESENT : 0;
    categories |= entry & ENTRY_SWAPPED ? PAGE_IS_SWAPPED : 0;
    return categories | (entry & ENTRY_FILE ? PAGE_IS_FILE : 0);
}

static bool is_wanted(const SnapScanFilter *filter, uint64_t categories) {
    return (categories & filter->all) == filter->all && (categories & filter->none) == 0 &&
           (filter->any == 0 || (categories & filter->any) != 0);
}

/* Add a page to the runs; FALSE when it needs one more than there are. */
static bool add_page(struct page_region *runs, unsigned *n, unsigned n_runs, uint64_t address, uint64_t page_bytes,
                     uint64_t categories) {
    struct page_region *last = *n > 0 ? &runs[*n - 1] : NULL;
    if (last && last->end == address && last->categories == categories) {
        last->end += page_bytes;
        return true;
    }
    if (*n == n_runs) {
        return false;
    }
    runs[(*n)++] = (struct page_region){.start = address, .end = address + page_bytes, .categories = categories};
    return true;
}

/* The same by reading entry after entry: slower, and slow over holes of terabytes. */
static int read_entries(SnapScan *scan, struct page_region *ret_runs, unsigned n_runs) {
    uint64_t entries[ENTRIES_AT_ONCE], page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
    unsigned found = 0;
    while (scan->next < scan->end) {
        uint64_t left = (scan->end - scan->next + page_bytes - 1) / page_bytes;
        size_t want = (left < ENTRIES_AT_ONCE ? left : ENTRIES_AT_ONCE) * sizeof entries[0];
        ssize_t got = pread(scan->fd, entries, want, (off_t)(scan->next / page_bytes * sizeof entries[0]));
        if (got <= 0) {
            return got < 0 ? -errno : -ESRCH;
        }
        for (size_t i = 0; i < (size_t)got / sizeof entries[0]; i++, scan->next += page_bytes) {
            uint64_t categories = categories_of(entries[i]);
            if (is_wanted(&scan->filter, categories) &&
                !add_page(ret_runs, &found, n_runs, scan->next, page_bytes, categories & scan->filter.report)) {
                return (int)found;
            }
        }
    }
    scan->next = scan->end;
    return (int)found;
}

/* ---- the scan -------------------------------------------------------------------------------------------- */

/* No more runs than can come, since the kernel allocates room for so many in each call. */
static uint64_t runs_of(const SnapScan *scan, unsigned n_runs) {
    uint64_t page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t pages = (scan->end - scan->next + page_bytes - 1) / page_bytes, n = n_runs;
    n = n < RUNS_MAX ? n : RUNS_MAX;
    n = scan->max_pages && scan->max_pages < n ? scan->max_pages : n;
    return pages < n ? pages : n;
}

int snap_pagemap_scan(SnapScan *scan, struct page_region *ret_runs, unsigned n_runs) {
    struct pm_scan_arg arg = {
        .size = sizeof arg,
        .flags = scan->flags,
        .start = scan->next,
        .end = scan->end,
        .vec = (uintptr_t)ret_runs,
        .vec_len = runs_of(scan, n_runs),
        .max_pages = scan->max_pages,
        .category_mask = scan->filter.all | scan->filter.none,
        .category_inverted = scan->filter.none,
        .category_anyof_mask = scan->filter.any,
        .return_mask = scan->filter.report,
    };
    int n = ioctl(scan->fd, PAGEMAP_SCAN, &arg);
    if (n < 0 && errno == ENOTTY && scan->flags == 0 && scan->max_pages == 0) {
        return read_entries(scan, ret_runs, n_runs);
    }
    if (n < 0) {
        return -errno;
    }
    if (n == 0 && arg.walk_end <= scan->next) {
        return -EIO; /* the kernel stays where it is when asked to protect a part of a huge page of hugetlb */
    }
    scan->next = arg.walk_end;
    return n;
}

int snap_pagemap_step(SnapScan *scan, struct page_region *ret_runs, unsigned n_runs) {
    unsigned found = 0;
    /* A full vector ends a scan early; so does nothing else we ask for, but walk_end is what counts. */
    while (found < n_runs && scan->next < scan->end) {
        int n = snap_pagemap_scan(scan, ret_runs + found, n_runs - found);
        if (n < 0) {
            return n;
        }
        found += (unsigned)n;
    }
    return (int)found;
}

int snap_pagemap_find(int fd, uint64_t category, uint64_t start, uint64_t end, struct page_region *ret_run) {
    SnapScan scan = {.fd = fd, .filter = {.any = category, .report = PAGE_IS_PRESENT}, .next = start, .end = end};
    return snap_pagemap_step(&scan, ret_run, 1);
}

int snap_pagemap_protected(int fd, uint64_t address, uint64_t page_bytes) {
    uint64_t entry;
    ssize_t n = pread(fd, &entry, sizeof entry, (off_t)(address / page_bytes * sizeof entry));
    if (n != (ssize_t)sizeof entry) {
        return n < 0 ? -errno : -ESRCH;
    }
    return (entry & ENTRY_UFFD_WP) != 0;
}
