/*
 * hugetlb is protected and un-protected by whole huge pages: a part of one, or one that does not start at its
 * boundary, is EINVAL and changes nothing.
 *
 * Relied on as a limit: a huge page is claimed whole (the region's granule).
 */
#include "proof.h"

int main(void) {
    size_t huge = 0;
    int memfd = -1;
    char *memory = map_hugetlb(2, MAP_SHARED, &huge, &memfd);
    memset(memory, 't', 2 * huge);
    int fd = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM);
    CHECK(uffd_register(fd, memory, 2 * huge) == 0);

    CHECK(uffd_protect(fd, memory, page_bytes()) == -EINVAL);
    CHECK(uffd_protect(fd, memory + page_bytes(), huge) == -EINVAL);
    CHECK(page_is_written(memory));
    CHECK(uffd_protect(fd, memory, 2 * huge) == 0);
    CHECK(uffd_unprotect(fd, memory, page_bytes()) == -EINVAL);
    CHECK(uffd_unprotect(fd, memory + page_bytes(), huge) == -EINVAL);
    CHECK(!page_is_written(memory) && !page_is_written(memory + huge));
    CHECK(uffd_unprotect(fd, memory, huge) == 0);
    CHECK(page_is_written(memory) && !page_is_written(memory + huge));
    return 0;
}
