/*
 * PAGE_IS_WRITTEN of a page in swap is exactly "not write-protected" too (see written-bit.c), and a write that
 * brings the page back in is caught.
 */
#include "proof.h"

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif

int main(void) {
    const size_t page = page_bytes();
    char *memory = map_anon(2);
    memset(memory, 't', 2 * page);
    int fd = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_UNPOPULATED);
    CHECK(uffd_register(fd, memory, 2 * page) == 0);
    CHECK(uffd_protect(fd, memory, page) == 0);
    CHECK(madvise(memory, 2 * page, MADV_PAGEOUT) == 0);
    if (!page_categories(memory, PAGE_IS_SWAPPED) || !page_categories(memory + page, PAGE_IS_SWAPPED))
        end(77, "no page could be swapped out: there is no swap (see /proc/swaps)");
    CHECK(!page_is_written(memory));
    CHECK(page_is_written(memory + page));
    CHECK(write_is_caught(fd, memory, page));
    CHECK(!write_is_caught(fd, memory + page, page));
    return 0;
}
