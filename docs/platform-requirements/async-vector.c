/*
 * Where a scan ends. A vector that is full, or max_pages, ends it early: walk_end says where, and nothing behind
 * it was protected. A vector longer than the kernel's own buffer (as many runs as a page table has entries) is
 * filled all the same, but walk_end then is where that buffer was full first.
 *
 * Relied on to continue; and the last not to be: longer vectors are cut before the kernel sees them, or pages that
 * are written meanwhile would come again, before others.
 */
#include "async.h"

int main(void) {
    const size_t page = page_bytes(), entries = page / sizeof(uint64_t), n = 6 * entries;
    char *memory = map_anon(n);
    madvise(memory, n * page, MADV_NOHUGEPAGE);
    memset(memory, 'o', n * page);
    int fd = async_open(memory, n * page);
    CHECK(async_protect(memory, n * page) == 0);
    for (size_t i = 0; i < n; i += 2)
        memory[i * page] = 'w';

    struct page_region *runs = calloc(n, sizeof(*runs));
    CHECK(runs);
    struct pm_scan_arg scan = async_range(memory, n * page);
    scan.flags = ASYNC_CLEAR;
    scan.category_mask = scan.return_mask = PAGE_IS_WRITTEN;
    CHECK(async_scan(&scan, runs, 3) == 3);
    CHECK(runs[2].end == (uintptr_t)memory + 5 * page);
    CHECK(scan.walk_end >= runs[2].end && scan.walk_end <= (uintptr_t)memory + 6 * page);
    CHECK(async_written(memory, n * page, 0) == n / 2 - 3);

    scan.max_pages = 2;
    CHECK(async_scan(&scan, runs, n) == 2);
    CHECK(scan.walk_end > runs[1].start && scan.walk_end <= (uintptr_t)memory + 10 * page);
    CHECK(async_written(memory, n * page, 0) == n / 2 - 5);

    scan.flags = 0;
    scan.max_pages = 0;
    int all = async_scan(&scan, runs, n);
    CHECK(all == (int)(n / 2 - 5));
    if (scan.walk_end == scan.end)
        puts("walk_end of a long vector is right in this kernel");
    else
        CHECK(scan.walk_end < runs[all - 1].start);
    CHECK(async_scan(&scan, runs, entries) == (int)entries); /* as long as the buffer: right in any */
    CHECK(scan.walk_end >= runs[entries - 1].end && scan.walk_end <= runs[entries - 1].end + page);
    close(fd);
    return 0;
}
