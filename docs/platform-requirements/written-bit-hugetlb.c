/*
 * PAGE_IS_WRITTEN of hugetlb pages is exactly "not write-protected" (see written-bit.c), touched or not, shared or
 * private; it is said of the whole huge page.
 */
#include "proof.h"

static void check_kind(const char *kind, int flags) {
    size_t huge = 0;
    int memfd = make_hugetlb_memfd(3, &huge);
    char *memory = map(3 * huge, flags, memfd);
    printf("%s\n", kind);
    memory[0] = memory[2 * huge] = 't'; /* the one between stays a hole */
    int fd =
        uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_WP_UNPOPULATED);
    CHECK(uffd_register(fd, memory, 3 * huge) == 0);
    CHECK(uffd_protect(fd, memory, 3 * huge) == 0);
    CHECK(uffd_unprotect(fd, memory + 2 * huge, huge) == 0);
    for (size_t i = 0; i < 3; i++) {
        CHECK(page_is_written(memory + i * huge) == (i == 2));
        CHECK(page_is_written(memory + (i + 1) * huge - page_bytes()) == (i == 2));
    }
    CHECK(write_is_caught(fd, memory + page_bytes(), huge));
    CHECK(page_is_written(memory));
    CHECK(write_is_caught(fd, memory + huge + page_bytes(), huge));
    CHECK(page_is_written(memory + huge));
    CHECK(!write_is_caught(fd, memory + 2 * huge, huge));
    close(fd);
    munmap(memory, 3 * huge);
    close(memfd);
}

int main(void) {
    check_kind("shared", MAP_SHARED);
    check_kind("private", MAP_PRIVATE);
    return 0;
}
