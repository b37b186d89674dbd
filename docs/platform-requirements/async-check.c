/*
 * What is silent and what is an error. PM_SCAN_WP_MATCHING over a mapping that is not registered in async mode
 * does nothing and says nothing; with PM_SCAN_CHECK_WPASYNC it is EPERM. What is not mapped is passed over in
 * silence even so. A scan that asks for mappings that must not be registered fails for each one that is not, and
 * walks no page tables: a cheap way to ask. PROCMAP_QUERY names the mapping of an address, or ENOENT.
 *
 * Relied on by the async log: nothing is called clean that is not mapped and registered.
 */
#include "async.h"

/* Of all mappings in the range, is any not registered? 0 or -EPERM. */
static int any_unregistered(const char *start, size_t length) {
    struct pm_scan_arg scan = async_range(start, length);
    struct page_region run;
    scan.flags = PM_SCAN_CHECK_WPASYNC;
    scan.category_mask = scan.category_inverted = scan.return_mask = PAGE_IS_WPALLOWED;
    return async_scan(&scan, &run, 1);
}

static int scan_written(const char *start, size_t length, uint64_t flags) {
    struct pm_scan_arg scan = async_range(start, length);
    struct page_region runs[ASYNC_RUNS];
    scan.flags = flags;
    scan.category_mask = scan.return_mask = PAGE_IS_WRITTEN;
    return async_scan(&scan, runs, ASYNC_RUNS);
}

int main(void) {
    const size_t page = page_bytes();
    char *memory = map_anon(8);
    memset(memory, 'o', 8 * page);
    CHECK(scan_written(memory, 8 * page, PM_SCAN_WP_MATCHING) == 0);
    CHECK(scan_written(memory, 8 * page, ASYNC_CLEAR) == -EPERM);
    CHECK(any_unregistered(memory, 8 * page) == -EPERM);

    int fd = async_open(memory, 8 * page);
    CHECK(any_unregistered(memory, 8 * page) == 0);
    CHECK(scan_written(memory, 8 * page, ASYNC_CLEAR) == 1);
    CHECK(munmap(memory + 2 * page, page) == 0);
    CHECK(scan_written(memory, 8 * page, ASYNC_CLEAR) == 0); /* not a word */
    CHECK(any_unregistered(memory, 8 * page) == 0);

    int maps = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    CHECK(maps >= 0);
    struct procmap_query query = {.size = sizeof(query), .query_addr = (uintptr_t)memory + 2 * page};
    if (ioctl(maps, PROCMAP_QUERY, &query) == 0 || errno != ENOTTY) {
        CHECK(errno == ENOENT);
        query.query_addr = (uintptr_t)memory + page;
        CHECK(ioctl(maps, PROCMAP_QUERY, &query) == 0);
        CHECK(query.vma_start <= (uintptr_t)memory && query.vma_end == (uintptr_t)memory + 2 * page);
    } else {
        puts("no PROCMAP_QUERY (Linux 6.11)");
    }

    CHECK(mmap(memory + 2 * page, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
          memory + 2 * page);
    CHECK(any_unregistered(memory, 8 * page) == -EPERM);
    CHECK(scan_written(memory, 8 * page, ASYNC_CLEAR) == -EPERM);
    close(fd);
    CHECK(any_unregistered(memory, page) == -EPERM);
    return 0;
}
