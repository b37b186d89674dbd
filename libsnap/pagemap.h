/*
 * /proc/PID/pagemap, the one place that issues PAGEMAP_SCAN.
 *
 * Functions return 0 or -errno, allocate nothing, and may be used in the fault thread. The descriptor belongs to
 * the address space that the process had when it was opened.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "uapi.h"

/* Open it for @pid. Return: the descriptor or -errno. */
int snap_pagemap_open(int pid);

/* What a scan looks for: every category of @all, none of @none, and one of @any when that is not 0. */
typedef struct {
    uint64_t all;
    uint64_t none;
    uint64_t any;
    uint64_t report; /* categories to report; runs are split where they differ */
} SnapScanFilter;

/* A scan that can be continued where it stopped. */
typedef struct {
    int fd;
    SnapScanFilter filter;
    uint64_t next; /* where the next step looks */
    uint64_t end;
    uint64_t flags;     /* PM_SCAN_*, 0: look only */
    uint64_t max_pages; /* of one snap_pagemap_scan(); 0: any number */
} SnapScan;

/*
 * One PAGEMAP_SCAN. Return: how many runs, or -errno; scan->next is how far it came, less than scan->end when
 * @ret_runs is full, max_pages are reached, or for no reason. With PM_SCAN_WP_MATCHING what matched is protected
 * in the same step; @ret_runs may be NULL then. -EPERM: PM_SCAN_CHECK_WPASYNC, and a mapping of the range is not
 * registered in async mode.
 */
int snap_pagemap_scan(SnapScan *scan, struct page_region *ret_runs, unsigned n_runs);

/*
 * Up to @n_runs runs of matching pages, in order of address. Return: how many; fewer than @n_runs (0 included)
 * only at the end, when scan->next == scan->end; or -errno.
 */
int snap_pagemap_step(SnapScan *scan, struct page_region *ret_runs, unsigned n_runs);

/* The first run of pages in [start, end) with @category. Return: 1, 0 when there is none, or -errno. */
int snap_pagemap_find(int fd, uint64_t category, uint64_t start, uint64_t end, struct page_region *ret_run);

/*
 * Whether the page at @address is write-protected by userfaultfd, present, swapped or marked. Return: 1, 0 or
 * -errno. @page_bytes: base page size of this machine, which the file counts in.
 */
int snap_pagemap_protected(int fd, uint64_t address, uint64_t page_bytes);
