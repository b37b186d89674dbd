/*
 * The first write of a page that was never touched is caught, in private anonymous and in shared memory, without
 * reading anything in before: UFFD_FEATURE_WP_UNPOPULATED leaves a marker where the page will be. Without the
 * feature, WRITEPROTECT of a private hole succeeds and does nothing; shared memory has markers anyway.
 *
 * Relied on by the tracker: no prefault, and a hole that the guest fills after the point in time is still a hole
 * in the image.
 */
#include "proof.h"

static bool is_caught(uint64_t features, char *memory) {
    int fd = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP | features);
    CHECK(uffd_register(fd, memory, page_bytes()) == 0);
    CHECK(uffd_protect(fd, memory, page_bytes()) == 0);
    bool caught = write_is_caught(fd, memory, page_bytes());
    close(fd);
    return caught;
}

static char *shared_hole(void) {
    return map(page_bytes(), MAP_SHARED, make_memfd(page_bytes()));
}

int main(void) {
    const uint64_t shmem = UFFD_FEATURE_WP_HUGETLBFS_SHMEM, unpopulated = UFFD_FEATURE_WP_UNPOPULATED;
    CHECK(is_caught(unpopulated, map_anon(1)));
    CHECK(is_caught(shmem | unpopulated, shared_hole()));
    CHECK(!is_caught(0, map_anon(1)));
    CHECK(is_caught(shmem, shared_hole()));
    return 0;
}
