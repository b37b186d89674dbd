/*
 * A hole punched by fallocate(2) into a protected page of a memfd, plain or hugetlb, drops the content and leaves
 * the protection: a marker stays where the page was, PAGE_IS_WRITTEN stays clear, the next write is caught as if
 * nothing had happened, and there is no event. ftruncate(2) down and up again does the same to a plain memfd; in a
 * hugetlb one it drops the markers too. The only trace is the hole in the file (seek-data.c says where that can be
 * seen).
 *
 * Relied on as a limit: "still protected" does not mean "still the content". What was populated at the point in
 * time has to be known, and a page that has become a hole since is a loss, never zeros.
 */
#include "proof.h"

/* As a file reader sees it, who needs neither the mapping nor its protection. */
static char first_byte(int memfd, size_t offset) {
    char byte = 0;
    CHECK(pread(memfd, &byte, 1, (off_t)offset) == 1);
    return byte;
}

/* Pages 0 and 1 have content, 2 and 3 are holes; 1 and 2 are punched. */
static void check_kind(const char *kind, int memfd, char *memory, size_t page, bool truncate_keeps_protection) {
    printf("%s\n", kind);
    const size_t length = 4 * page;
    memset(memory, 'o', 2 * page);
    int fd = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
                       UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP);
    CHECK(uffd_register(fd, memory, length) == 0);
    CHECK(uffd_protect(fd, memory, length) == 0);
    CHECK(first_byte(memfd, page) == 'o');

    CHECK(fallocate(memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)page, (off_t)(2 * page)) == 0);
    CHECK(!uffd_wait(fd, QUIET_MS));
    CHECK(first_byte(memfd, 0) == 'o' && first_byte(memfd, page) == 0);
    for (size_t i = 0; i < 4; i++)
        CHECK(!page_is_written(memory + i * page));

    CHECK(write_is_caught(fd, memory + 2 * page, page));
    CHECK(uffd_protect(fd, memory, length) == 0);

    CHECK(ftruncate(memfd, 0) == 0 && ftruncate(memfd, (off_t)length) == 0);
    CHECK(!uffd_wait(fd, QUIET_MS));
    for (size_t i = 0; i < 4; i++) {
        CHECK(first_byte(memfd, i * page) == 0);
        CHECK(!page_is_written(memory + i * page));
        CHECK(write_is_caught(fd, memory + i * page, page) == truncate_keeps_protection);
    }
    CHECK(memory[1] == 0 && memory[page + 1] == 0);
    close(fd);
    munmap(memory, length);
    close(memfd);
}

int main(void) {
    size_t page = page_bytes();
    int memfd = make_memfd(4 * page);
    check_kind("memfd", memfd, map(4 * page, MAP_SHARED, memfd), page, true);
    size_t huge = 0;
    char *memory = map_hugetlb(4, MAP_SHARED, &huge, &memfd);
    check_kind("hugetlb memfd", memfd, memory, huge, false);
    return 0;
}
