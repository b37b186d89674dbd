/*
 * hugetlb under async write-protection by UFFDIO_WRITEPROTECT: armed holes have markers; a write shows, of the
 * whole huge page; what is dropped after a write leaves an empty entry, which does *not* count as written, unlike
 * other memory, but is neither present nor swapped as an armed one always is; what is dropped while protected
 * leaves a marker. PM_SCAN_WP_MATCHING is not tried: over a hole without a page table it hangs kernels for good
 * (mended in 2026).
 *
 * Relied on by the async log, which looks at every entry of hugetlb and protects by UFFDIO_WRITEPROTECT.
 */
#include "async.h"

static void check_kind(const char *kind, int flags) {
    const uint64_t here = PAGE_IS_PRESENT | PAGE_IS_SWAPPED | PAGE_IS_WRITTEN;
    size_t huge = 0;
    int memfd = -1;
    char *memory = map_hugetlb(4, flags, &huge, &memfd);
    printf("%s\n", kind);
    memory[0] = memory[huge] = 'o';
    int fd = async_open(memory, 4 * huge);
    CHECK((async_look(memory + 3 * huge) & here) == 0);
    CHECK(uffd_protect(fd, memory, 4 * huge) == 0);
    CHECK((async_look(memory) & here) == PAGE_IS_PRESENT);
    CHECK((async_look(memory + 3 * huge) & here) == PAGE_IS_SWAPPED);
    CHECK(async_written(memory, 4 * huge, 0) == 0);
    memory[huge + 1] = 'w';
    memory[2 * huge] = 'w'; /* was a hole */
    CHECK(*(volatile char *)(memory + 3 * huge) == 0);
    CHECK(async_written(memory, 4 * huge, 0) == 2 * huge / page_bytes());
    CHECK(uffd_protect(fd, memory + 2 * huge, huge) == 0);
    CHECK(async_written(memory, 4 * huge, 0) == huge / page_bytes());
    if (madvise(memory, 2 * huge, MADV_DONTNEED) < 0)
        end(77, "no MADV_DONTNEED of hugetlb (Linux 5.18)");
    CHECK((async_look(memory) & here) == PAGE_IS_SWAPPED);
    CHECK((async_look(memory + huge) & here) == 0);
    close(fd);
    munmap(memory, 4 * huge);
    close(memfd);
}

int main(void) {
    check_kind("shared", MAP_SHARED);
    check_kind("private", MAP_PRIVATE);
    return 0;
}
