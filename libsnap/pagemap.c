/* PAGEMAP_SCAN and the pagemap entries; see pagemap.h. */
#include "pagemap.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* Bit 57 of an entry: Documentation/admin-guide/mm/pagemap.rst. */
#define ENTRY_UFFD_WP (UINT64_C(1) << 57)

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

int snap_pagemap_scan(SnapScan *scan, struct page_region *ret_runs, unsigned n_runs) {
    struct pm_scan_arg arg = {
        .size = sizeof arg,
        .flags = scan->flags,
        .start = scan->next,
        .end = scan->end,
        .vec = (uintptr_t)ret_runs,
        .vec_len = n_runs < RUNS_MAX ? n_runs : RUNS_MAX,
        .max_pages = scan->max_pages,
        .category_mask = scan->filter.all | scan->filter.none,
        .category_inverted = scan->filter.none,
        .category_anyof_mask = scan->filter.any,
        .return_mask = scan->filter.report,
    };
    int n = ioctl(scan->fd, PAGEMAP_SCAN, &arg);
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
