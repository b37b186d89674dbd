/*
 * hugetlbfs does not tell its holes: SEEK_DATA and SEEK_HOLE take the whole file for data.
 *
 * Relied on as a limit: which huge pages were populated is asked of the page tables, and of the content.
 */
#include "proof.h"

int main(void) {
    size_t huge = 0;
    int fd = -1;
    char *memory = map_hugetlb(3, MAP_SHARED, &huge, &fd);
    memory[huge] = 'd';
    if (lseek(fd, 0, SEEK_DATA) == (off_t)huge)
        end(1, "this kernel does tell the holes of hugetlbfs: libsnap/holes.c can be simpler");
    CHECK(lseek(fd, 0, SEEK_DATA) == 0);
    CHECK(lseek(fd, 0, SEEK_HOLE) == (off_t)(3 * huge));
    return 0;
}
