/*
 * PAGEMAP_SCAN on a range that is registered in sync mode (and without PM_SCAN_WP_MATCHING): PAGE_IS_WRITTEN is
 * exactly "not write-protected", for pages that are there and for pages that were never touched, in private
 * anonymous, shared memfd and private memfd memory. Asking changes nothing.
 *
 * What marks a protected page that was never touched shows as PAGE_IS_SWAPPED: once a range is armed, "present or
 * swapped" does not tell content from holes any more.
 *
 * Relied on to find what is still protected, after events and at the end of a sweep.
 */
#include "proof.h"

/* Pages: 0 touched, 1 never touched, both protected; 2 touched, 3 never touched, both let go again. */
static void check_kind(const char *kind, char *memory) {
    const size_t page = page_bytes();
    printf("%s\n", kind);
    memory[0] = memory[2 * page] = 't';
    int fd =
        uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_WP_UNPOPULATED);
    CHECK(uffd_register(fd, memory, 4 * page) == 0);
    for (size_t i = 0; i < 4; i++)
        CHECK(page_is_written(memory + i * page)); /* registered alone says nothing */
    CHECK(uffd_protect(fd, memory, 4 * page) == 0);
    for (size_t i = 0; i < 4; i++)
        CHECK(!page_is_written(memory + i * page));
    CHECK(page_categories(memory, PAGE_IS_PRESENT | PAGE_IS_SWAPPED) == PAGE_IS_PRESENT);
    CHECK(page_categories(memory + page, PAGE_IS_PRESENT | PAGE_IS_SWAPPED) == PAGE_IS_SWAPPED);
    CHECK(uffd_unprotect(fd, memory + 2 * page, 2 * page) == 0);
    for (int again = 0; again < 2; again++)
        for (size_t i = 0; i < 4; i++)
            CHECK(page_is_written(memory + i * page) == (i >= 2));

    /* A marker survives a read of the page; a write that was caught and let go shows. */
    CHECK(((volatile char *)memory)[page] == 0);
    CHECK(!page_is_written(memory + page));
    CHECK(write_is_caught(fd, memory + page, page));
    CHECK(page_is_written(memory + page));
    CHECK(write_is_caught(fd, memory, page));
    CHECK(page_is_written(memory));
    close(fd);
}

int main(void) {
    const size_t length = 4 * page_bytes();
    check_kind("anon", map_anon(4));
    check_kind("memfd, shared", map(length, MAP_SHARED, make_memfd(length)));
    check_kind("memfd, private", map(length, MAP_PRIVATE, make_memfd(length)));
    return 0;
}
