/* Pages that are not left protected, in memory of this very process. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../../libsnap/pagemap.h"
#include "../../libsnap/spared.h"
#include "../../libsnap/sweep.h"
#include "../lib/own-process.h"

enum { POOL_PAGES = 64, N_CHUNKS = 4, PAGES = N_CHUNKS * SNAP_CHUNK_PAGES, SPARED = 70, OTHER = 130 };

typedef struct {
    uint64_t page_bytes;
    uint8_t *memory; /* page i holds i */
    SnapSync *sync;
} Rig;

static void rig_init(Rig *rig, uint32_t pool_pages) {
    g_autoptr(GError) error = NULL;
    rig->page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
    rig->memory = mmap(NULL, PAGES * rig->page_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(rig->memory != MAP_FAILED);
    for (unsigned i = 0; i < PAGES; i++) {
        memset(rig->memory + i * rig->page_bytes, (int)i, rig->page_bytes);
    }
    rig->sync = snap_sync_new(getpid(), snap_uffd_open(), pool_pages, SNAP_AT_CAP_BLOCK, &error);
    fail_on(error);
    snap_sync_start(rig->sync);
}

static void rig_clear(Rig *rig) {
    snap_sync_free(rig->sync);
    munmap(rig->memory, PAGES * rig->page_bytes);
}

static void add_area(Rig *rig) {
    g_autoptr(GError) error = NULL;
    snap_sync_add(rig->sync,
                  snap_region_new("memory", SNAP_MEMORY_ANON, (uintptr_t)rig->memory, PAGES * rig->page_bytes),
                  false, &error);
    fail_on(error);
}

/* The page of some byte in it. */
static void spare(Rig *rig, unsigned page) {
    g_autoptr(GArray) addresses = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    uint64_t address = (uintptr_t)rig->memory + page * rig->page_bytes + 100;
    g_array_append_val(addresses, address);
    snap_spared_add(rig->sync, addresses);
}

static int is_protected(const Rig *rig, unsigned page) {
    return snap_pagemap_protected(rig->sync->pagemap, (uintptr_t)rig->memory + page * rig->page_bytes,
                                  rig->page_bytes);
}

static void round_of(Rig *rig) {
    g_autoptr(GError) error = NULL;
    uint64_t pages = 0;
    snap_sync_round(rig->sync, &pages, &error);
    fail_on(error);
}

static void take_point(Rig *rig) {
    g_autoptr(GError) error = NULL;
    snap_sync_point(rig->sync, &error);
    fail_on(error);
}

/* The first byte of @page as the snapshot has it. */
static uint8_t captured(Rig *rig, unsigned page) {
    g_autoptr(GError) error = NULL;
    g_autofree uint8_t *copy = g_malloc(SNAP_CHUNK_PAGES * rig->page_bytes);
    SnapChunk chunk = {.data = copy};
    SnapChunk *buffers[] = {&chunk};
    snap_sweep_capture(rig->sync, (SnapUnit){.first = page / SNAP_CHUNK_PAGES, .n_chunks = 1}, buffers, &error);
    fail_on(error);
    return copy[page % SNAP_CHUNK_PAGES * rig->page_bytes];
}

/* ---- tests ------------------------------------------------------------------------------------------------ */

static void page_that_is_spared_ahead_is_never_protected(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig, POOL_PAGES);
    spare(&rig, SPARED);
    add_area(&rig);
    assert_int_equal(is_protected(&rig, SPARED), 0);
    assert_int_equal(is_protected(&rig, SPARED - 1), 1);
    assert_int_equal(is_protected(&rig, SPARED + 1), 1);
    round_of(&rig);
    assert_int_equal(is_protected(&rig, SPARED), 0);
    rig_clear(&rig);
}

static void page_that_is_spared_later_is_released(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig, POOL_PAGES);
    add_area(&rig);
    assert_int_equal(is_protected(&rig, SPARED), 1);
    spare(&rig, SPARED);
    assert_int_equal(is_protected(&rig, SPARED), 0);
    assert_int_equal(is_protected(&rig, SPARED + 1), 1);
    rig_clear(&rig);
}

/* Nobody sees its writes, so each round has to report it. */
static void spared_page_is_dirty_in_every_round(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig, POOL_PAGES);
    add_area(&rig);
    SnapArea *area = snap_sync_area(rig.sync, 0);
    snap_area_wipe(area);
    spare(&rig, SPARED);
    for (int i = 0; i < 3; i++) {
        round_of(&rig);
        assert_int_equal(area->chunks[SPARED / 64].dirty, UINT64_C(1) << SPARED % 64);
        area->chunks[SPARED / 64].dirty = 0;
    }
    rig_clear(&rig);
}

static void spared_page_is_captured_as_it_was_at_the_point(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig, POOL_PAGES);
    spare(&rig, SPARED);
    add_area(&rig);
    round_of(&rig);
    rig.memory[SPARED * rig.page_bytes] = 7;
    take_point(&rig);
    rig.memory[SPARED * rig.page_bytes] = 8;
    assert_int_equal(captured(&rig, SPARED), 7);
    rig_clear(&rig);
}

static void page_that_is_spared_at_the_point_is_captured_at_once(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig, POOL_PAGES);
    add_area(&rig);
    take_point(&rig);
    assert_int_equal(is_protected(&rig, OTHER), 1);
    spare(&rig, OTHER);
    assert_int_equal(is_protected(&rig, OTHER), 0);
    assert_int_equal(rig.sync->pages_by_fault, 1);
    rig.memory[OTHER * rig.page_bytes] = 7;
    assert_int_equal(captured(&rig, OTHER), OTHER);
    rig_clear(&rig);
}

/* Better a lock that may be refused than a snapshot that is wrong. */
static void pages_without_room_in_the_pool_are_protected(void **state) {
    (void)state;
    enum { ROOM = 8 };
    Rig rig;
    rig_init(&rig, ROOM);
    add_area(&rig);
    for (unsigned i = 0; i < ROOM; i++) {
        spare(&rig, SPARED + i);
    }
    take_point(&rig);
    for (unsigned i = 0; i < ROOM; i++) {
        assert_int_equal(is_protected(&rig, SPARED + i), i < ROOM / 2 ? 0 : 1);
    }
    rig_clear(&rig);
}

static void what_is_in_no_area_is_passed_over(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig, POOL_PAGES);
    add_area(&rig);
    spare(&rig, PAGES + 10);
    round_of(&rig);
    take_point(&rig);
    assert_int_equal(rig.sync->pages_by_fault, 0);
    rig_clear(&rig);
}

static void with_more_than_are_remembered_the_newest_count(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig, POOL_PAGES);
    add_area(&rig);
    g_autoptr(GArray) addresses = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    for (uint64_t i = 0; i < SNAP_SPARED_MAX; i++) {
        uint64_t elsewhere = (i + 1) * rig.page_bytes;
        g_array_append_val(addresses, elsewhere);
    }
    snap_spared_add(rig.sync, addresses);
    spare(&rig, SPARED);
    assert_int_equal(rig.sync->spared->len, 1);
    round_of(&rig);
    assert_int_equal(is_protected(&rig, SPARED), 0);
    rig_clear(&rig);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(page_that_is_spared_ahead_is_never_protected),
        cmocka_unit_test(page_that_is_spared_later_is_released),
        cmocka_unit_test(spared_page_is_dirty_in_every_round),
        cmocka_unit_test(spared_page_is_captured_as_it_was_at_the_point),
        cmocka_unit_test(page_that_is_spared_at_the_point_is_captured_at_once),
        cmocka_unit_test(pages_without_room_in_the_pool_are_protected),
        cmocka_unit_test(what_is_in_no_area_is_passed_over),
        cmocka_unit_test(with_more_than_are_remembered_the_newest_count),
    };
    int skipped = skip_without_sync_log();
    return skipped ? skipped : cmocka_run_group_tests(tests, NULL, NULL);
}
