/*
 * The async log's life, its ranges, and arming; see track-async.h. Collecting is in async-collect.c.
 *
 * hugetlb is not protected by PAGEMAP_SCAN: over a hole that has no page table yet, PM_SCAN_WP_MATCHING makes
 * kernels wait for themselves for ever (walk_hugetlb_range() holds the lock that hugetlb_change_protection()
 * wants; mended in 2026), and it knows no huge pages but those of one size. UFFDIO_WRITEPROTECT does both, and
 * costs little where pages are few.
 */
#include "track-async.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "pagemap.h"
#include "uffd.h"

enum {
    PIECE_BLOCKS = 128, /* page tables looked at by one call */
    HUGE_BLOCKS = 64,   /* huge pages looked at by one call when finding what there is */
};

/* ---- life ------------------------------------------------------------------------------------------------ */

static void close_if_open(int fd) {
    if (fd >= 0) {
        close(fd);
    }
}

/* A descriptor of this process, for a trial; faults of user mode are all that it sees, so anyone may have one. */
static int open_for_trial(void) {
    int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
    return uffd >= 0 ? uffd : snap_uffd_open();
}

/*
 * Memory for which there is no page table has to count as written, or what is dropped along with its table (a huge
 * page by MADV_DONTNEED) would not show. Older kernels with PAGEMAP_SCAN leave it out. @memory: of @length, never
 * touched.
 */
static int try_holes(int uffd, int pagemap, uint64_t memory, uint64_t length) {
    SnapScan scan = {.fd = pagemap,
                     .filter = {.all = PAGE_IS_WRITTEN, .report = PAGE_IS_WRITTEN},
                     .flags = PM_SCAN_CHECK_WPASYNC,
                     .next = memory,
                     .end = memory + length};
    struct page_region run = {0};
    int result = snap_uffd_api(uffd, UFFD_FEATURE_WP_ASYNC);
    if (result == 0) {
        result = snap_uffd_register(uffd, memory, length);
    }
    if (result == 0) {
        result = snap_pagemap_scan(&scan, &run, 1);
    }
    if (result >= 0) {
        return result == 1 && run.start == memory && run.end == memory + length ? 0 : -EOPNOTSUPP;
    }
    return result == -EINVAL || result == -ENOTTY ? -EOPNOTSUPP : result;
}

/* Whether this kernel does what the log needs, on memory of our own. */
static int try_kernel(void) {
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), length = 2 * (page / sizeof(uint64_t)) * page;
    int uffd = open_for_trial(), pagemap = snap_pagemap_open(getpid());
    void *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    int result = uffd < 0               ? uffd
                 : pagemap < 0          ? pagemap
                 : memory == MAP_FAILED ? -ENOMEM
                                        : try_holes(uffd, pagemap, (uintptr_t)memory, length);
    if (memory != MAP_FAILED) {
        munmap(memory, length);
    }
    close_if_open(uffd);
    close_if_open(pagemap);
    return result;
}

int snap_async_init(SnapAsync *async, int pid, int uffd) {
    *async = (SnapAsync){.uffd = uffd, .pagemap = -1, .coverage = {.maps = -1}};
    snap_owed_init(&async->owed);
    async->drops = g_ptr_array_new_with_free_func((GDestroyNotify)snap_drops_free);
    snap_async_set_vector(async, SNAP_ASYNC_VECTOR);
    int result = try_kernel();
    if (result == 0) {
        result = snap_uffd_api(uffd, UFFD_FEATURE_WP_ASYNC);
    }
    if (result == 0) {
        result = async->pagemap = snap_pagemap_open(pid);
    }
    return result < 0 ? result : snap_coverage_init(&async->coverage, pid);
}

void snap_async_clear(SnapAsync *async) {
    close_if_open(async->uffd);
    close_if_open(async->pagemap);
    snap_coverage_clear(&async->coverage);
    snap_owed_clear(&async->owed);
    g_clear_pointer(&async->drops, g_ptr_array_unref);
    g_clear_pointer(&async->vector, g_free);
    async->uffd = async->pagemap = -1;
}

void snap_async_set_vector(SnapAsync *async, unsigned n) {
    g_free(async->vector);
    async->vector = g_new(struct page_region, n);
    async->n_vector = n;
}

/* ---- ranges ---------------------------------------------------------------------------------------------- */

int snap_async_register(const SnapAsync *async, uint64_t address, uint64_t length) {
    return snap_uffd_register(async->uffd, address, length);
}

void snap_async_forget(SnapAsync *async, uint64_t address, uint64_t length) {
    snap_owed_settle(&async->owed, address, address + length);
    for (guint i = async->drops->len; i-- > 0;) {
        const SnapDrops *drops = g_ptr_array_index(async->drops, i);
        if (drops->there.start < address + length && address < drops->there.end) {
            g_ptr_array_remove_index_fast(async->drops, i);
        }
    }
}

int snap_async_unregister(SnapAsync *async, uint64_t address, uint64_t length) {
    snap_async_forget(async, address, length);
    return snap_uffd_unregister(async->uffd, address, length);
}

int snap_async_check(SnapAsync *async, uint64_t start, uint64_t end) {
    int result = snap_coverage_check(&async->coverage, start, end);
    if (result < 0) {
        return result == -ENOENT ? -EPERM : result;
    }
    /*
     * Mappings that must not be registered are asked for: each one that is not fails the scan, each one that is is
     * passed over whole, so nothing is walked. It comes after the other question: what was mapped by then stands
     * here.
     */
    SnapScan scan = {.fd = async->pagemap,
                     .filter = {.none = PAGE_IS_WPALLOWED, .report = PAGE_IS_WPALLOWED},
                     .flags = PM_SCAN_CHECK_WPASYNC,
                     .next = start,
                     .end = end};
    struct page_region run;
    result = start < end ? snap_pagemap_scan(&scan, &run, 1) : 0;
    return result < 0 ? result : 0;
}

SnapDrops *snap_async_drops(const SnapAsync *async, const SnapArea *area) {
    uint64_t start = area->region->host_address, end = start + area->region->length_bytes;
    for (guint i = 0; i < async->drops->len; i++) {
        SnapDrops *drops = g_ptr_array_index(async->drops, i);
        if (drops->there.start == start && drops->there.end == end) {
            return drops;
        }
    }
    return NULL;
}

void snap_async_watch_drops(SnapAsync *async, const SnapArea *area) {
    if (area->region->memory != SNAP_MEMORY_ANON && !snap_async_drops(async, area)) {
        g_ptr_array_add(async->drops, snap_drops_new(area));
    }
}

/* ---- arming ---------------------------------------------------------------------------------------------- */

uint64_t snap_async_piece_end(const SnapArea *area, uint64_t start, uint64_t end) {
    return MIN(end, snap_async_block_end(area, start + PIECE_BLOCKS * area->block_bytes));
}

int snap_async_protect(const SnapAsync *async, const SnapArea *area, uint64_t start, uint64_t end) {
    uint64_t base = area->region->host_address;
    while (start < end) {
        uint64_t stop = snap_async_piece_end(area, start, end);
        SnapScan scan = {
            .fd = async->pagemap, .flags = SNAP_ASYNC_PROTECT, .next = base + start, .end = base + stop};
        int result = snap_async_is_hugetlb(area) ? snap_uffd_protect(async->uffd, base + start, stop - start)
                                                 : snap_pagemap_scan(&scan, NULL, 0);
        if (result < 0) {
            return result == -ENOENT ? -EPERM : result;
        }
        start = stop;
    }
    return 0;
}

/* What is in page tables; the zero page is nothing. No more is looked at than tells how to go on: of base pages
 * that follow each other a little more than a unit. */
static SnapScan scan_for_mapped(const SnapAsync *async, const SnapArea *area) {
    uint64_t base = area->region->host_address;
    return (SnapScan){
        .fd = async->pagemap,
        .filter = {.any = PAGE_IS_PRESENT | PAGE_IS_SWAPPED, .none = PAGE_IS_PFNZERO, .report = PAGE_IS_HUGE},
        .next = base,
        .end = base + area->region->length_bytes,
        .max_pages = area->chunk_bytes / area->region->page_bytes + 1};
}

/* Huge pages from @run on: as many as come one after the other. Return: 0 or -errno. */
static int look_at_huge(SnapScan scan, const SnapArea *area, struct page_region *run) {
    scan.next = run->start;
    scan.end = MIN(scan.end, run->start + HUGE_BLOCKS * area->block_bytes);
    scan.max_pages = 0;
    int n = snap_pagemap_step(&scan, run, 1);
    return n < 0 ? n : 0;
}

/* Add a run to what is armed: the unit of a few pages, the whole block of many. Return: the end of that. */
static uint64_t add_mapped(SnapArea *area, const struct page_region *run) {
    uint64_t base = area->region->host_address, start = run->start - base, end = run->end - base;
    bool many = end - start > area->chunk_bytes;
    end = many ? snap_async_block_end(area, end) : snap_async_unit_end(area, end);
    snap_async_add_armed(area, start, end);
    return base + end;
}

/* Add what is mapped to what is armed. Lonely pages come many at a time, or each would cost a call. */
static int find_mapped_units(const SnapAsync *async, SnapArea *area) {
    SnapScan scan = scan_for_mapped(async, area);
    while (scan.next < scan.end) {
        int n = snap_pagemap_scan(&scan, async->vector, async->n_vector);
        if (n < 0) {
            return n;
        }
        for (int i = 0; i < n; i++) {
            struct page_region *run = &async->vector[i];
            int result = run->categories & PAGE_IS_HUGE ? look_at_huge(scan, area, run) : 0;
            if (result < 0) {
                return result;
            }
            scan.next = MAX(scan.next, add_mapped(area, run));
        }
    }
    return 0;
}

/* And what only the file has. */
static int find_file_units(SnapArea *area) {
    uint64_t at = 0, length = area->region->length_bytes, stop;
    while (at < length) {
        SnapBytes run;
        bool armed = snap_async_is_armed(area, at, length, &stop);
        int found = armed ? 0 : snap_async_next_data(area, at, stop, &run);
        if (found < 0) {
            return found;
        }
        if (found == 1) {
            snap_async_add_armed(area, run.start, run.end);
            stop = snap_async_unit_end(area, run.end);
        }
        at = stop;
    }
    return 0;
}

/* Add what holds something to what is armed. */
static int find_units(const SnapAsync *async, SnapArea *area) {
    if (!snap_async_has_gaps(area)) {
        snap_area_add_armed(area, (SnapRun){0, area->n_chunks});
        return 0;
    }
    int result = find_mapped_units(async, area);
    return result == 0 && area->region->memory != SNAP_MEMORY_ANON ? find_file_units(area) : result;
}

/* Look at what is there in an armed range of addresses. */
static int remember(const SnapAsync *async, SnapDrops *drops, uint64_t start, uint64_t end) {
    SnapScan scan = {.fd = async->pagemap,
                     .filter = {.report = snap_drops_categories(drops) | PAGE_IS_WRITTEN},
                     .flags = PM_SCAN_CHECK_WPASYNC,
                     .next = start,
                     .end = end};
    while (scan.next < scan.end) {
        int n = snap_pagemap_scan(&scan, async->vector, async->n_vector);
        if (n < 0) {
            return n;
        }
        for (int i = 0; i < n; i++) {
            const struct page_region *run = &async->vector[i];
            snap_drops_set(drops, run->start, run->end, snap_drops_there(drops, run->categories));
        }
    }
    return 0;
}

int snap_async_arm_units(SnapAsync *async, SnapArea *area) {
    uint64_t base = area->region->host_address;
    SnapDrops *drops = snap_async_drops(async, area);
    int result = find_units(async, area);
    for (guint i = 0; result == 0 && i < area->armed->len; i++) {
        SnapBytes run = snap_async_armed_units(area, i);
        result = snap_async_protect(async, area, run.start, run.end);
        if (result == 0 && drops) {
            result = remember(async, drops, base + run.start, base + run.end);
        }
    }
    return result;
}

int snap_async_arm(SnapAsync *async, SnapArea *area) {
    uint64_t base = area->region->host_address, end = base + area->region->length_bytes;
    snap_owed_settle(&async->owed, base, end);
    if (snap_async_is_hugetlb(area)) {
        snap_async_watch_drops(async, area);
    }
    int result = snap_async_arm_units(async, area);
    return result < 0 ? result : snap_async_check(async, base, end);
}
