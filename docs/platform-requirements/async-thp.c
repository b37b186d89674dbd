/*
 * Transparent huge pages under async write-protection: protecting does not split, a write shows to the base page
 * and splits, max_pages that end inside of one split it too and report and protect exactly that many. A hole that
 * is read has the huge zero page, and PAGE_IS_PFNZERO says so.
 *
 * Relied on by the async log: reports are exact to the base page, and limits hold.
 */
#include "async.h"

int main(void) {
    size_t huge = 0;
    char *memory = make_thp(&huge);
    const size_t page = page_bytes();
    int fd = async_open(memory, huge);
    CHECK(async_protect(memory, huge) == 0);
    CHECK(async_look(memory) & PAGE_IS_HUGE);
    CHECK(async_written(memory, huge, 0) == 0);
    memory[7 * page] = 'w';
    CHECK(!(async_look(memory) & PAGE_IS_HUGE));
    CHECK(async_look(memory + 7 * page) & PAGE_IS_WRITTEN);
    CHECK(async_written(memory, huge, ASYNC_CLEAR) == 1);
    close(fd);

    memory = make_thp(&huge);
    fd = async_open(memory, huge);
    struct pm_scan_arg scan = async_range(memory, huge);
    struct page_region runs[ASYNC_RUNS];
    scan.flags = ASYNC_CLEAR;
    scan.category_mask = scan.return_mask = PAGE_IS_WRITTEN;
    scan.max_pages = 10;
    CHECK(async_scan(&scan, runs, ASYNC_RUNS) == 1);
    CHECK(runs[0].end - runs[0].start == 10 * page && scan.walk_end == runs[0].end);
    CHECK(async_written(memory, huge, 0) == huge / page - 10);
    close(fd);

    char *hole = map(2 * huge, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    hole = (char *)(((uintptr_t)hole + huge - 1) / huge * huge);
    madvise(hole, huge, MADV_HUGEPAGE);
    CHECK(*(volatile char *)hole == 0);
    CHECK(async_look(hole) & PAGE_IS_PFNZERO);
    return 0;
}
