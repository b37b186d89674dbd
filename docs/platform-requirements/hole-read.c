/*
 * pread(2) of the holes of a memfd, plain or hugetlb, gives zeros and allocates nothing, neither in the file nor
 * in the page tables of who has it mapped. Reading a shared hole through a mapping does allocate it.
 *
 * Relied on to read a guest's shared memory without making it larger.
 */
#include "proof.h"

#include <sys/stat.h>

static blkcnt_t blocks(int fd) {
    struct stat found;
    CHECK(fstat(fd, &found) == 0);
    return found.st_blocks;
}

static void check_file(const char *kind, int fd, char *memory, size_t length) {
    printf("%s\n", kind);
    char path[64];
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    int other = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(other >= 0);

    char *buffer = malloc(length);
    CHECK(buffer);
    memset(buffer, 'x', length);
    CHECK(pread(other, buffer, length, 0) == (ssize_t)length);
    for (size_t i = 0; i < length; i++)
        CHECK(buffer[i] == 0);
    CHECK(blocks(fd) == 0);
    CHECK(!page_categories(memory, PAGE_IS_PRESENT));

    CHECK(*(volatile char *)memory == 0);
    CHECK(blocks(fd) > 0);
    free(buffer);
    close(other);
    munmap(memory, length);
    close(fd);
}

int main(void) {
    size_t length = 16 * page_bytes();
    int memfd = make_memfd(length);
    check_file("memfd", memfd, map(length, MAP_SHARED, memfd), length);
    size_t huge = 0;
    char *memory = map_hugetlb(2, MAP_SHARED, &huge, &memfd);
    check_file("hugetlb memfd", memfd, memory, 2 * huge);
    return 0;
}
