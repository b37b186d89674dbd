/*
 * A block in which something was found is armed, and told apart, in one scan: asked for PAGE_IS_WRITTEN, and to
 * report "present", "swapped" and "zero page" too, the kernel says of each entry what it was in the step that
 * protects it, and leaves markers in the empty ones. They are neither present nor swapped nor zero in what is
 * reported.
 *
 * Relied on by the async log where a gap is filled: of such a block only the filled pages are new.
 */
#include "async.h"

int main(void) {
    const size_t page = page_bytes(), block = block_bytes();
    const uint64_t kinds = PAGE_IS_PRESENT | PAGE_IS_SWAPPED | PAGE_IS_PFNZERO;
    char *memory = map_blocks(1);
    int fd = async_open(memory, block);
    memory[2 * page] = memory[3 * page] = 'o';
    CHECK(*(volatile char *)(memory + 5 * page) == 0);

    struct pm_scan_arg scan = async_range(memory, block);
    struct page_region runs[ASYNC_RUNS];
    scan.flags = ASYNC_CLEAR;
    scan.category_mask = PAGE_IS_WRITTEN;
    scan.return_mask = kinds;
    int n = async_scan(&scan, runs, ASYNC_RUNS);
    CHECK(n >= 0);
    if (n == 2)
        end(77, "this kernel leaves empty entries out: they are reported once more, as written");
    /* hole, two filled, hole, zero page, hole */
    CHECK(n == 5);
    const struct {
        size_t first, end;
        uint64_t is;
    } want[] = {{0, 2, 0},
                {2, 4, PAGE_IS_PRESENT},
                {4, 5, 0},
                {5, 6, PAGE_IS_PRESENT | PAGE_IS_PFNZERO},
                {6, block / page, 0}};
    for (int i = 0; i < n; i++) {
        CHECK(runs[i].start == (uintptr_t)memory + want[i].first * page);
        CHECK(runs[i].end == (uintptr_t)memory + want[i].end * page);
        CHECK(runs[i].categories == want[i].is);
    }
    CHECK(async_written(memory, block, 0) == 0);
    memory[0] = memory[2 * page] = memory[5 * page] = 'w';
    CHECK(async_written(memory, block, 0) == 3);
    close(fd);
    return 0;
}
