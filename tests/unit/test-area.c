/* Armed runs, gaps, and where data is, on real memory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../../libsnap/area.h"
#include "../../libsnap/pagemap.h"

static SnapArea *make(uint64_t address, uint64_t length, SnapMemory memory) {
    return snap_area_new(snap_region_new("test", memory, address, length));
}

static void arm_merges_what_touches(void **state) {
    (void)state;
    SnapArea *area = make(0, UINT64_C(1) << 30, SNAP_MEMORY_ANON);
    snap_area_arm(area, (SnapRun){8, 16});
    snap_area_arm(area, (SnapRun){32, 40});
    snap_area_arm(area, (SnapRun){16, 20});
    assert_int_equal(area->armed->len, 2);
    snap_area_arm(area, (SnapRun){18, 33});
    assert_int_equal(area->armed->len, 1);
    SnapRun run = g_array_index(area->armed, SnapRun, 0);
    assert_int_equal(run.first, 8);
    assert_int_equal(run.end, 40);
    snap_area_arm(area, (SnapRun){0, 2});
    assert_int_equal(g_array_index(area->armed, SnapRun, 0).end, 2);
    snap_area_free(area);
}

static void armed_chunks_are_dirty_unless_only_added(void **state) {
    (void)state;
    SnapArea *area = make(0, UINT64_C(1) << 30, SNAP_MEMORY_ANON);
    snap_area_add_armed(area, (SnapRun){8, 16});
    snap_area_arm(area, (SnapRun){16, 20});
    assert_int_equal(area->armed->len, 1);
    assert_true(snap_area_is_armed(area, 8));
    assert_int_equal(area->chunks[8].dirty, 0);
    assert_int_equal(area->chunks[16].dirty, UINT64_MAX);
    snap_area_free(area);
}

static void gaps_are_what_is_not_armed(void **state) {
    (void)state;
    SnapArea *area = make(0, UINT64_C(1) << 30, SNAP_MEMORY_ANON);
    SnapRun gap;
    assert_true(snap_area_next_gap(area, 0, &gap));
    assert_int_equal(gap.end, area->n_chunks);
    snap_area_arm(area, (SnapRun){0, 4});
    snap_area_arm(area, (SnapRun){8, area->n_chunks});
    assert_true(snap_area_next_gap(area, 0, &gap));
    assert_int_equal(gap.first, 4);
    assert_int_equal(gap.end, 8);
    assert_true(snap_area_next_gap(area, 6, &gap));
    assert_int_equal(gap.first, 6);
    assert_false(snap_area_next_gap(area, 8, &gap));
    assert_true(snap_area_is_armed(area, 3));
    assert_false(snap_area_is_armed(area, 4));
    assert_false(snap_area_is_armed(area, 7));
    assert_true(snap_area_is_armed(area, 8));
    snap_area_free(area);
}

static void the_last_chunk_has_the_pages_that_are_left(void **state) {
    (void)state;
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    SnapArea *area = make(0, 67 * page, SNAP_MEMORY_ANON);
    assert_int_equal(area->n_chunks, 2);
    assert_true(snap_area_chunk_mask(area, 0) == UINT64_MAX);
    assert_int_equal(snap_area_chunk_mask(area, 1), 7);
    snap_area_free(area);
}

static void blocks_are_aligned_in_the_address_space(void **state) {
    (void)state;
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), block = page / 8 * page;
    SnapArea *area = make(8 * block + block / 2, 4 * block, SNAP_MEMORY_ANON);
    SnapRun run = snap_area_blocks(area, block, block + page);
    uint64_t start, end;
    snap_area_bytes(area, run, &start, &end);
    assert_true(start <= block / 2 && end >= block + block / 2);
    assert_true(end - start <= block + 2 * area->chunk_bytes);
    run = snap_area_blocks(area, 4 * block - page, 4 * block);
    assert_int_equal(run.end, area->n_chunks);
    snap_area_free(area);
}

static uint64_t find_pages(SnapArea *area, int pagemap, uint64_t page, uint64_t *ret_first) {
    uint64_t pages = 0, at = 0, start, end;
    while (snap_area_next_data(area, pagemap, at, area->region->length_bytes, &start, &end) == 1) {
        if (pages == 0) {
            *ret_first = start / page;
        }
        pages += (end - start) / page;
        at = end;
    }
    return pages;
}

static void data_of_anonymous_memory_is_what_was_touched(void **state) {
    (void)state;
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), length = 1024 * page;
    uint8_t *p = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    madvise(p, length, MADV_NOHUGEPAGE);
    int pagemap = snap_pagemap_open(getpid());
    SnapArea *area = make((uintptr_t)p, length, SNAP_MEMORY_ANON);
    uint64_t first = 0;
    assert_int_equal(find_pages(area, pagemap, page, &first), 0);
    p[100 * page] = 1;
    p[101 * page] = 1;
    p[1000 * page] = 1;
    assert_int_equal(find_pages(area, pagemap, page, &first), 3);
    assert_int_equal(first, 100);
    snap_area_free(area);
    munmap(p, length);
    close(pagemap);
}

static void data_of_a_memfd_is_found_though_it_is_not_mapped(void **state) {
    (void)state;
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), length = 1024 * page;
    int fd = memfd_create("test", MFD_CLOEXEC);
    assert_int_equal(ftruncate(fd, (off_t)length), 0);
    assert_int_equal(pwrite(fd, "x", 1, (off_t)(200 * page)), 1);
    SnapArea *area = make(0, length - 50 * page, SNAP_MEMORY_SHMEM);
    area->region->fd = fd;
    area->region->fd_offset = 50 * page;
    uint64_t first = 0;
    assert_int_equal(find_pages(area, -1, page, &first), 1);
    assert_int_equal(first, 150);
    snap_area_free(area);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(arm_merges_what_touches),
        cmocka_unit_test(armed_chunks_are_dirty_unless_only_added),
        cmocka_unit_test(gaps_are_what_is_not_armed),
        cmocka_unit_test(the_last_chunk_has_the_pages_that_are_left),
        cmocka_unit_test(blocks_are_aligned_in_the_address_space),
        cmocka_unit_test(data_of_anonymous_memory_is_what_was_touched),
        cmocka_unit_test(data_of_a_memfd_is_found_though_it_is_not_mapped),
    };
    return cmocka_run_group_tests_name("area", tests, NULL, NULL);
}
