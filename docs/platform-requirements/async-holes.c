/*
 * Holes under PAGEMAP_SCAN. Armed (PM_SCAN_WP_MATCHING over everything) a hole has a marker: a read of it stays
 * clean, a write shows, and what MADV_DONTNEED takes out shows by itself, also when it takes the page table along.
 * Asked for PAGE_IS_WRITTEN alone every hole that is not armed counts as written, and where there is no page table
 * one is built to protect it; with "present or swapped" among the conditions holes are left alone, and cost
 * nothing.
 *
 * Relied on by the async log: armed blocks are scanned in the first way, gaps in the second.
 */
#include "async.h"

/* As a gap is looked at: present or swapped, but not the zero page. @flags: protect what is found or not. */
static int find_filled(const char *start, size_t length, uint64_t flags, struct page_region *run) {
    struct pm_scan_arg scan = async_range(start, length);
    scan.flags = flags;
    scan.category_mask = scan.category_inverted = PAGE_IS_PFNZERO;
    scan.category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED;
    scan.return_mask = PAGE_IS_PRESENT;
    return async_scan(&scan, run, 1);
}

static void armed_holes(void) {
    const size_t page = page_bytes(), block = block_bytes();
    char *memory = map_blocks(2);
    int fd = async_open(memory, 2 * block);
    memory[page] = 'o';
    CHECK(async_protect(memory, block) == 0);
    CHECK(async_written(memory, block, 0) == 0);
    CHECK(*(volatile char *)(memory + 5 * page) == 0);
    CHECK(async_written(memory, block, 0) == 0); /* read only */
    memory[5 * page] = 'w';
    memory[6 * page] = 'w';
    CHECK(async_written(memory, block, ASYNC_CLEAR) == 2);
    CHECK(madvise(memory + page, page, MADV_DONTNEED) == 0);
    CHECK(async_written(memory, block, ASYNC_CLEAR) == 1);
    CHECK(madvise(memory, block, MADV_DONTNEED) == 0);
    CHECK(async_written(memory, block, ASYNC_CLEAR) == block / page);
    CHECK(async_written(memory, block, ASYNC_CLEAR) == 0);
    close(fd);
}

static void gaps(void) {
    const size_t page = page_bytes(), block = block_bytes(), n = 512;
    char *memory = map_blocks(n);
    int fd = async_open(memory, n * block);
    struct page_region run;
    memory[7 * block + 3 * page] = 'o';
    long before = page_tables_kb();
    CHECK(find_filled(memory, n * block, ASYNC_CLEAR, &run) == 1);
    CHECK(run.start == (uintptr_t)memory + 7 * block + 3 * page && run.end == run.start + page);
    CHECK(page_tables_kb() <= before + 16);
    CHECK(async_written(memory, n * block, 0) == n * block / page - 1);
    CHECK(page_tables_kb() <= before + 16);
    CHECK(*(volatile char *)(memory + 9 * block) == 0);
    CHECK(find_filled(memory + 8 * block, (n - 8) * block, 0, &run) == 0); /* a page that was only read */
    CHECK(async_written(memory, n * block, ASYNC_CLEAR) == n * block / page - 1);
    CHECK(page_tables_kb() >= before + (long)(n / 2 * page / 1024)); /* the price of asking for "written" alone */
    close(fd);
}

int main(void) {
    armed_holes();
    gaps();
    return 0;
}
