/* The sync tracker's log on memory of this very process: areas that come and go. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../../libsnap/track-sync.h"
#include "../lib/own-process.h"

enum { AREAS = 3, PAGES = 256 };

typedef struct {
    SnapSync *sync;
    uint8_t *memory[AREAS]; /* a memfd each */
    int fd[AREAS];          /* the tracker's */
    uint64_t page;
} Rig;

static void add(Rig *rig, int i) {
    GError *error = NULL;
    SnapRegion *region =
        snap_region_new("memory", SNAP_MEMORY_SHMEM, (uintptr_t)rig->memory[i], PAGES * rig->page);
    region->fd = rig->fd[i];
    snap_sync_add(rig->sync, region, false, &error);
    fail_on(error);
}

static void rig_init(Rig *rig) {
    g_autoptr(GError) error = NULL;
    *rig = (Rig){.page = (uint64_t)sysconf(_SC_PAGESIZE)};
    rig->sync = snap_sync_new(getpid(), snap_uffd_open(), 0, SNAP_AT_CAP_BLOCK, &error);
    fail_on(error);
    snap_sync_start(rig->sync);
    for (int i = 0; i < AREAS; i++) {
        rig->fd[i] = memfd_create("test", MFD_CLOEXEC);
        assert_int_equal(ftruncate(rig->fd[i], (off_t)(PAGES * rig->page)), 0);
        rig->memory[i] = mmap(NULL, PAGES * rig->page, PROT_READ | PROT_WRITE, MAP_SHARED, rig->fd[i], 0);
        assert_true(rig->memory[i] != MAP_FAILED);
        memset(rig->memory[i], 1, PAGES * rig->page);
        add(rig, i);
    }
}

static void rig_clear(Rig *rig) {
    snap_sync_free(rig->sync);
    for (int i = 0; i < AREAS; i++) {
        munmap(rig->memory[i], PAGES * rig->page);
    }
}

static void write_page(const Rig *rig, int i, unsigned page) {
    rig->memory[i][page * rig->page]++;
}

/* A round protects @n pages again. */
static void check_round(Rig *rig, uint64_t n) {
    GError *error = NULL;
    uint64_t pages = 0;
    snap_sync_round(rig->sync, &pages, &error);
    fail_on(error);
    assert_int_equal(pages, n);
}

/* Area @number is the memory @i, and page @page of it was written. */
static void check_dirty(const Rig *rig, uint32_t number, int i, unsigned page) {
    SnapArea *area = snap_sync_area(rig->sync, number);
    assert_int_equal(area->region->host_address, (uintptr_t)rig->memory[i]);
    assert_int_equal(area->chunks[page / 64].dirty, UINT64_C(1) << page % 64);
    area->chunks[page / 64].dirty = 0;
}

static void wipe(const Rig *rig) {
    for (guint i = 0; i < rig->sync->areas->len; i++) {
        snap_area_wipe(snap_sync_area(rig->sync, i));
    }
}

static void dropped_areas_are_freed_by_the_next_round(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig);
    snap_sync_drop(rig.sync, 0);
    snap_sync_drop(rig.sync, 2);
    check_round(&rig, 0);
    assert_int_equal(rig.sync->areas->len, 1);
    assert_int_equal(rig.sync->layout.n_extents, 1);
    assert_int_equal(fcntl(rig.fd[0], F_GETFD), -1);
    assert_int_equal(fcntl(rig.fd[2], F_GETFD), -1);
    rig_clear(&rig);
}

/* What is behind a dropped area has another number from then on, and loses nothing by it. */
static void what_was_written_is_known_by_the_new_numbers(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig);
    wipe(&rig);
    write_page(&rig, 0, 5);
    write_page(&rig, 1, 70);
    write_page(&rig, 2, 130);
    snap_sync_drop(rig.sync, 0);
    write_page(&rig, 0, 6);
    write_page(&rig, 1, 200);
    check_round(&rig, 3);
    check_dirty(&rig, 0, 1, 70);
    check_dirty(&rig, 0, 1, 200);
    check_dirty(&rig, 1, 2, 130);
    write_page(&rig, 2, 9); /* found by its address */
    check_round(&rig, 1);
    check_dirty(&rig, 1, 2, 9);
    rig_clear(&rig);
}

static void what_has_gone_before_it_was_added_is_dropped(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig);
    munmap(rig.memory[1], PAGES * rig.page);
    rig.fd[1] = memfd_create("test", MFD_CLOEXEC);
    snap_sync_drop(rig.sync, 1);
    add(&rig, 1);
    assert_true(snap_sync_area(rig.sync, 3)->dropped);
    check_round(&rig, 0);
    assert_int_equal(rig.sync->areas->len, 2);
    assert_int_equal(rig.sync->layout.n_extents, 2);
    assert_int_equal(fcntl(rig.fd[1], F_GETFD), -1);
    rig_clear(&rig);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dropped_areas_are_freed_by_the_next_round),
        cmocka_unit_test(what_was_written_is_known_by_the_new_numbers),
        cmocka_unit_test(what_has_gone_before_it_was_added_is_dropped),
    };
    int skipped = skip_without_sync_log();
    return skipped ? skipped : cmocka_run_group_tests(tests, NULL, NULL);
}
