/*
 * hugetlb pages, shared or private: a huge page is write-protected exactly when PAGE_IS_WRITTEN is clear *and* it
 * is present or "swapped" (which is how a marker shows). PAGE_IS_WRITTEN alone does not say it, as it does for
 * other memory (written-bit.c): a huge page that was never touched and is not protected has it clear as well. What
 * is said is said of the whole huge page.
 */
#include "proof.h"

static bool is_protected(char *address) {
    uint64_t is = page_categories(address, PAGE_IS_WRITTEN | PAGE_IS_PRESENT | PAGE_IS_SWAPPED);
    return !(is & PAGE_IS_WRITTEN) && (is & (PAGE_IS_PRESENT | PAGE_IS_SWAPPED));
}

/* Pages: 0 touched, 1 never touched, both protected; 2 touched, 3 never touched, both let go again. */
static void check_kind(const char *kind, int flags) {
    size_t huge = 0;
    int memfd = -1;
    char *memory = map_hugetlb(4, flags, &huge, &memfd);
    printf("%s\n", kind);
    memory[0] = memory[2 * huge] = 't';
    int fd =
        uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_WP_UNPOPULATED);
    CHECK(uffd_register(fd, memory, 4 * huge) == 0);
    CHECK(uffd_protect(fd, memory, 4 * huge) == 0);
    CHECK(uffd_unprotect(fd, memory + 2 * huge, 2 * huge) == 0);
    for (size_t i = 0; i < 4; i++) {
        CHECK(is_protected(memory + i * huge) == (i < 2));
        CHECK(is_protected(memory + (i + 1) * huge - page_bytes()) == (i < 2));
    }
    CHECK(page_is_written(memory + 2 * huge) && !page_is_written(memory + 3 * huge));
    for (size_t i = 0; i < 4; i++) {
        CHECK(write_is_caught(fd, memory + i * huge + page_bytes(), huge) == (i < 2));
        CHECK(page_is_written(memory + i * huge));
    }
    close(fd);
    munmap(memory, 4 * huge);
    close(memfd);
}

int main(void) {
    check_kind("shared", MAP_SHARED);
    check_kind("private", MAP_PRIVATE);
    return 0;
}
