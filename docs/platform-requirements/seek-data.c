/*
 * SEEK_DATA and SEEK_HOLE on a memfd name exactly the pages that were populated, each by itself; one that was
 * written with zeros is data. (With shared transparent huge pages a populated page can be huge.)
 *
 * Relied on to know at the point in time which pages of a shared region are there.
 */
#include "proof.h"

int main(void) {
    const size_t n = 64, page = page_bytes(), length = n * page;
    int fd = make_memfd(length);
    char *memory = map(length, MAP_SHARED, fd);
    const size_t populated[] = {0, 1, 5, 7, 8, 9, 40, 63};
    bool expected[64] = {false};
    for (size_t i = 0; i < sizeof(populated) / sizeof(populated[0]); i++) {
        *(volatile char *)(memory + populated[i] * page) = i % 2 ? 0 : 'd';
        expected[populated[i]] = true;
    }
    CHECK(pwrite(fd, "d", 1, (off_t)(50 * page)) == 1);
    expected[50] = true;

    bool found[64] = {false};
    off_t start = 0, end_of_run = 0;
    while ((start = lseek(fd, end_of_run, SEEK_DATA)) >= 0) {
        end_of_run = lseek(fd, start, SEEK_HOLE);
        CHECK(end_of_run > start && start % (off_t)page == 0 && end_of_run % (off_t)page == 0);
        for (off_t at = start; at < end_of_run; at += (off_t)page)
            found[(size_t)at / page] = true;
    }
    CHECK(errno == ENXIO);
    if (found[2])
        end(77, "shared memory comes in huge pages here (transparent_hugepage/shmem_enabled)");
    CHECK(memcmp(found, expected, sizeof(found)) == 0);
    return 0;
}
