/* What the proofs about async write-protection share: a registered range, and PAGEMAP_SCAN with all it takes. */
#pragma once

#include "proof.h"

#define ASYNC_CLEAR (PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC)
#define ASYNC_RUNS 64 /* of a look() */

/* One scan of this process; 0 runs and no vector: protect whatever matches. Returns runs, or -errno. */
static inline int async_scan(struct pm_scan_arg *scan, struct page_region *runs, size_t n_runs) {
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0);
    scan->size = sizeof(*scan);
    scan->vec = (uintptr_t)runs;
    scan->vec_len = n_runs;
    int n = ioctl(fd, PAGEMAP_SCAN, scan);
    int result = n < 0 ? -errno : n;
    close(fd);
    if (result == -ENOTTY)
        end(77, "no PAGEMAP_SCAN (Linux 6.7)");
    return result;
}

static inline struct pm_scan_arg async_range(const void *start, size_t length) {
    return (struct pm_scan_arg){.start = (uintptr_t)start, .end = (uintptr_t)start + length};
}

/* The categories of the page at @address, of all the kernel knows, with nothing asked and nothing changed. */
static inline uint64_t async_look(const void *address) {
    return page_categories(address, PAGE_IS_WRITTEN | PAGE_IS_PRESENT | PAGE_IS_SWAPPED | PAGE_IS_PFNZERO |
                                        PAGE_IS_FILE | PAGE_IS_HUGE);
}

/* Pages that count as written, asked for that alone; with ASYNC_CLEAR they are protected again. */
static inline size_t async_written(const void *start, size_t length, uint64_t flags) {
    struct pm_scan_arg scan = async_range(start, length);
    struct page_region runs[ASYNC_RUNS];
    size_t pages = 0;
    scan.flags = flags;
    scan.category_mask = scan.return_mask = PAGE_IS_WRITTEN;
    while (scan.start < scan.end) {
        int n = async_scan(&scan, runs, ASYNC_RUNS);
        CHECK(n >= 0);
        for (int i = 0; i < n; i++)
            pages += (runs[i].end - runs[i].start) / page_bytes();
        scan.start = scan.walk_end;
    }
    return pages;
}

/* Protect everything in the range, holes included, and report nothing. */
static inline int async_protect(const void *start, size_t length) {
    struct pm_scan_arg scan = async_range(start, length);
    scan.flags = ASYNC_CLEAR;
    return async_scan(&scan, NULL, 0);
}

/* A userfaultfd in async mode with the range registered, or a skip. */
static inline int async_open(const void *start, size_t length) {
    int fd = uffd_open(UFFD_FEATURE_WP_ASYNC);
    CHECK(uffd_register(fd, start, length) == 0);
    return fd;
}

static inline long page_tables_kb(void) {
    char line[128];
    long kb = -1;
    FILE *file = fopen("/proc/self/status", "re");
    CHECK(file);
    while (fgets(line, sizeof(line), file))
        sscanf(line, "VmPTE: %ld kB", &kb);
    fclose(file);
    return kb;
}

/* What one page table maps. */
static inline size_t block_bytes(void) {
    return page_bytes() / sizeof(uint64_t) * page_bytes();
}

/* Anonymous memory of base pages, aligned to what a page table maps; nothing is there. */
static inline char *map_blocks(size_t n) {
    size_t block = block_bytes();
    char *memory =
        mmap(NULL, (n + 1) * block, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(memory != MAP_FAILED);
    memory = (char *)(((uintptr_t)memory + block - 1) / block * block);
    madvise(memory, n * block, MADV_NOHUGEPAGE);
    return memory;
}
