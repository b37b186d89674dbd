/* The write watch and the tracker behind it, on memory of this very process; both logs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../lib/own-process.h"

enum { PAGES = 256 };

/* Where nothing is mapped, and nothing will be by itself. */
#define LATE ((uint8_t *)UINT64_C(0x1000000000))

typedef struct {
    SnapTrackMode mode;
    SnapGuest *guest;
    SnapTracker *tracker;
    uint8_t *memory;
    uint8_t *late; /* (nullable) listed as well, whether there is anything or not */
    uint64_t page;
} Rig;

static gboolean list_regions(void *opaque, gboolean paused, GPtrArray *regions, GError **error) {
    const Rig *rig = opaque;
    (void)paused;
    (void)error;
    g_ptr_array_add(regions,
                    snap_region_new("memory", SNAP_MEMORY_ANON, (uintptr_t)rig->memory, PAGES * rig->page));
    if (rig->late) {
        g_ptr_array_add(regions, snap_region_new("late", SNAP_MEMORY_ANON, (uintptr_t)rig->late, rig->page));
    }
    return TRUE;
}

static const SnapGuestOps ops = {.list_regions = list_regions};

/* @glob: NULL for all regions, "" for watches only. */
static void rig_init(Rig *rig, void **state, const char *glob) {
    g_autoptr(GError) error = NULL;
    *rig = (Rig){.mode = *(const SnapTrackMode *)*state, .page = (uint64_t)sysconf(_SC_PAGESIZE)};
    rig->memory = mmap(NULL, PAGES * rig->page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(rig->memory != MAP_FAILED);
    madvise(rig->memory, PAGES * rig->page, MADV_NOHUGEPAGE);
    memset(rig->memory, 1, PAGES * rig->page);
    rig->guest = snap_guest_new("test", 0, &ops, rig);
    rig->tracker = snap_tracker_new(rig->guest, glob);
    if (!snap_tracker_set_mode(rig->tracker, rig->mode, FALSE, &error)) {
        print_message("%s\n", error->message);
        skip();
    }
}

static void rig_clear(Rig *rig) {
    snap_tracker_free(rig->tracker);
    snap_guest_free(rig->guest);
    munmap(rig->memory, PAGES * rig->page);
}

static void write_page(const Rig *rig, unsigned i) {
    rig->memory[i * rig->page + 7]++;
}

static SnapWatch *watch_pages(const Rig *rig, unsigned first, unsigned n) {
    g_autoptr(GError) error = NULL;
    SnapWatch *watch =
        snap_watch_new(rig->tracker, (uintptr_t)rig->memory + first * rig->page, n * rig->page, &error);
    fail_on(error);
    return watch;
}

/* What the watch reports from its start on, as page numbers. */
static gsize get(const Rig *rig, SnapWatch *watch, SnapWatchGet how, unsigned first, unsigned *ret_pages) {
    g_autoptr(GError) error = NULL;
    uint64_t addresses[PAGES], next = 0, granule = 0;
    gsize n = 0;
    snap_watch_get(watch, how, (uintptr_t)rig->memory + first * rig->page, addresses, PAGES, &n, &next, &granule,
                   &error);
    fail_on(error);
    assert_int_equal(granule, rig->page);
    for (gsize i = 0; i < n; i++) {
        ret_pages[i] = (unsigned)((addresses[i] - (uintptr_t)rig->memory) / rig->page);
    }
    return n;
}

static void watch_reports_what_was_written_since_the_reset(void **state) {
    Rig rig;
    unsigned pages[PAGES];
    rig_init(&rig, state, "");
    g_autoptr(SnapWatch) watch = watch_pages(&rig, 0, PAGES);
    assert_int_equal(get(&rig, watch, SNAP_WATCH_RESET, 0, pages), 0);
    write_page(&rig, 3);
    write_page(&rig, 200);
    assert_int_equal(get(&rig, watch, SNAP_WATCH_PEEK, 0, pages), 2);
    assert_int_equal(get(&rig, watch, SNAP_WATCH_RESET, 0, pages), 2);
    assert_int_equal(pages[0], 3);
    assert_int_equal(pages[1], 200);
    assert_int_equal(get(&rig, watch, SNAP_WATCH_RESET, 0, pages), 0);
    write_page(&rig, 3);
    assert_true(snap_watch_reset(watch, NULL));
    assert_int_equal(get(&rig, watch, SNAP_WATCH_RESET, 0, pages), 0);
    g_clear_pointer(&watch, snap_watch_free);
    rig_clear(&rig);
}

static void bounded_output_goes_on_where_it_stopped(void **state) {
    Rig rig;
    rig_init(&rig, state, "");
    g_autoptr(SnapWatch) watch = watch_pages(&rig, 0, PAGES);
    for (unsigned i = 0; i < PAGES; i += 2) {
        write_page(&rig, i);
    }
    uint64_t at = (uintptr_t)rig.memory, end = at + PAGES * rig.page, addresses[7];
    unsigned expected = 0;
    while (at < end) {
        g_autoptr(GError) error = NULL;
        gsize n = 0;
        snap_watch_get(watch, SNAP_WATCH_RESET, at, addresses, G_N_ELEMENTS(addresses), &n, &at, NULL, &error);
        fail_on(error);
        for (gsize i = 0; i < n; i++, expected += 2) {
            assert_int_equal(addresses[i], (uintptr_t)rig.memory + expected * rig.page);
        }
    }
    assert_int_equal(expected, PAGES);
    g_clear_pointer(&watch, snap_watch_free);
    rig_clear(&rig);
}

static void count(const SnapRegion *region, uint64_t offset, uint64_t length, void *opaque) {
    (void)offset;
    *(uint64_t *)opaque += length / region->page_bytes;
}

static void consumers_take_nothing_from_each_other(void **state) {
    Rig rig;
    unsigned pages[PAGES];
    uint64_t collected = 0;
    rig_init(&rig, state, NULL);
    g_autoptr(SnapWatch) left = watch_pages(&rig, 0, 128);
    g_autoptr(SnapWatch) right = watch_pages(&rig, 64, 128);
    write_page(&rig, 10);
    write_page(&rig, 100);
    write_page(&rig, 150);
    write_page(&rig, 250);
    assert_int_equal(get(&rig, left, SNAP_WATCH_RESET, 0, pages), 2);
    assert_int_equal(get(&rig, left, SNAP_WATCH_RESET, 0, pages), 0);
    assert_int_equal(get(&rig, right, SNAP_WATCH_RESET, 64, pages), 2);
    assert_int_equal(pages[0], 100);
    assert_int_equal(pages[1], 150);
    assert_true(snap_tracker_collect(rig.tracker, count, &collected, NULL, NULL));
    assert_int_equal(collected, 4);
    collected = 0;
    write_page(&rig, 100);
    assert_true(snap_tracker_collect(rig.tracker, count, &collected, NULL, NULL));
    assert_int_equal(collected, 1);
    assert_int_equal(get(&rig, left, SNAP_WATCH_RESET, 0, pages), 1);
    assert_int_equal(get(&rig, right, SNAP_WATCH_RESET, 64, pages), 1);
    g_clear_pointer(&left, snap_watch_free);
    g_clear_pointer(&right, snap_watch_free);
    rig_clear(&rig);
}

static void a_watch_begins_clean(void **state) {
    Rig rig;
    unsigned pages[PAGES];
    uint64_t collected = 0;
    rig_init(&rig, state, NULL);
    write_page(&rig, 5);
    g_autoptr(SnapWatch) watch = watch_pages(&rig, 0, PAGES);
    assert_int_equal(get(&rig, watch, SNAP_WATCH_RESET, 0, pages), 0);
    assert_true(snap_tracker_collect(rig.tracker, count, &collected, NULL, NULL));
    assert_int_equal(collected, 1);
    g_clear_pointer(&watch, snap_watch_free);
    rig_clear(&rig);
}

static void marked_pages_are_told_to_all(void **state) {
    Rig rig;
    unsigned pages[PAGES] = {0};
    uint64_t bitmap[PAGES / 64] = {0};
    rig_init(&rig, state, NULL);
    g_autoptr(SnapWatch) watch = watch_pages(&rig, 0, PAGES);
    snap_tracker_mark_dirty(rig.tracker, (uintptr_t)rig.memory + 9 * rig.page + 100, 1);
    assert_int_equal(get(&rig, watch, SNAP_WATCH_RESET, 0, pages), 1);
    assert_int_equal(pages[0], 9);
    assert_true(snap_tracker_collect_bitmap(rig.tracker, "memory", bitmap, PAGES / 64, NULL));
    assert_int_equal(bitmap[0], 1 << 9);
    assert_false(snap_tracker_collect_bitmap(rig.tracker, "memory", bitmap, 1, NULL));
    assert_false(snap_tracker_collect_bitmap(rig.tracker, "nothing", bitmap, PAGES / 64, NULL));
    g_clear_pointer(&watch, snap_watch_free);
    rig_clear(&rig);
}

static void what_is_no_longer_mapped_is_an_error_and_not_clean(void **state) {
    Rig rig;
    uint64_t address, next;
    gsize n;
    rig_init(&rig, state, "");
    g_autoptr(SnapWatch) watch = watch_pages(&rig, 0, PAGES);
    munmap(rig.memory + 10 * rig.page, rig.page);
    g_autoptr(GError) error = NULL;
    assert_false(
        snap_watch_get(watch, SNAP_WATCH_PEEK, (uintptr_t)rig.memory, &address, 1, &n, &next, NULL, &error));
    assert_int_equal(error->code, SNAP_ERROR_REFUSED);
    g_clear_pointer(&watch, snap_watch_free);
    rig_clear(&rig);
}

static void a_watch_of_nothing_is_refused(void **state) {
    Rig rig;
    g_autoptr(GError) error = NULL;
    rig_init(&rig, state, "");
    munmap(rig.memory + 10 * rig.page, rig.page);
    assert_null(snap_watch_new(rig.tracker, (uintptr_t)rig.memory, PAGES * rig.page, &error));
    assert_int_equal(error->code, SNAP_ERROR_NOT_FOUND);
    g_clear_error(&error);
    assert_null(snap_watch_new(rig.tracker, (uintptr_t)rig.memory + 1, rig.page, &error));
    assert_int_equal(error->code, SNAP_ERROR_USAGE);
    g_clear_error(&error);
    assert_true(snap_tracker_set_mode(rig.tracker, SNAP_TRACK_OFF, FALSE, NULL));
    assert_null(snap_watch_new(rig.tracker, (uintptr_t)rig.memory, rig.page, &error));
    assert_int_equal(error->code, SNAP_ERROR_USAGE);
    g_clear_error(&error);
    uint64_t pages = 0;
    assert_false(snap_tracker_collect(rig.tracker, count, &pages, NULL, &error));
    assert_int_equal(error->code, SNAP_ERROR_USAGE);
    rig_clear(&rig);
}

static void what_another_userfaultfd_has_is_refused(void **state) {
    Rig rig;
    g_autoptr(GError) error = NULL;
    rig_init(&rig, state, "");
    int other = snap_uffd_open();
    assert_int_equal(snap_uffd_api(other, 0), 0);
    if (snap_uffd_register(other, (uintptr_t)rig.memory, PAGES * rig.page) < 0) {
        skip();
    }
    assert_null(snap_watch_new(rig.tracker, (uintptr_t)rig.memory, PAGES * rig.page, &error));
    assert_int_equal(error->code, SNAP_ERROR_REFUSED);
    close(other);
    rig_clear(&rig);
}

/* A region that goes between being listed and being taken up is none, and no error; it may come back. */
static void what_went_before_it_was_taken_up_is_passed_over(void **state) {
    Rig rig;
    g_autoptr(GError) error = NULL;
    uint64_t pages = 0;
    rig_init(&rig, state, NULL);
    rig.late = LATE;
    for (int i = 0; i < 3; i++) {
        snap_tracker_collect(rig.tracker, count, &pages, NULL, &error);
        fail_on(error);
        assert_int_equal(pages, 0);
    }
    assert_true(mmap(rig.late, rig.page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
                rig.late);
    rig.late[0] = 1;
    snap_tracker_collect(rig.tracker, count, &pages, NULL, &error);
    fail_on(error);
    assert_int_equal(pages, 1);
    munmap(rig.late, rig.page);
    rig_clear(&rig);
}

typedef struct {
    const Rig *rig;
    bool stop; /* atomic */
} Writer;

static void *write_on(void *opaque) {
    Writer *writer = opaque;
    for (unsigned i = 0; !__atomic_load_n(&writer->stop, __ATOMIC_RELAXED); i++) {
        write_page(writer->rig, i % PAGES);
    }
    return NULL;
}

/* Writers neither hang nor fault when what logs them goes away. */
static void a_tracker_may_be_freed_while_writers_run(void **state) {
    for (int i = 0; i < 20; i++) {
        Rig rig;
        rig_init(&rig, state, NULL);
        Writer writer = {.rig = &rig};
        pthread_t thread;
        assert_int_equal(pthread_create(&thread, NULL, write_on, &writer), 0);
        uint64_t pages = 0;
        while (pages == 0) {
            assert_true(snap_tracker_collect(rig.tracker, count, &pages, NULL, NULL));
        }
        g_clear_pointer(&rig.tracker, snap_tracker_free);
        usleep(2000);
        __atomic_store_n(&writer.stop, true, __ATOMIC_RELAXED);
        pthread_join(thread, NULL);
        rig_clear(&rig);
    }
}

int main(void) {
    static SnapTrackMode modes[] = {SNAP_TRACK_ASYNC, SNAP_TRACK_SYNC};
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(watch_reports_what_was_written_since_the_reset),
        cmocka_unit_test(bounded_output_goes_on_where_it_stopped),
        cmocka_unit_test(consumers_take_nothing_from_each_other),
        cmocka_unit_test(a_watch_begins_clean),
        cmocka_unit_test(marked_pages_are_told_to_all),
        cmocka_unit_test(what_is_no_longer_mapped_is_an_error_and_not_clean),
        cmocka_unit_test(a_watch_of_nothing_is_refused),
        cmocka_unit_test(what_another_userfaultfd_has_is_refused),
        cmocka_unit_test(what_went_before_it_was_taken_up_is_passed_over),
        cmocka_unit_test(a_tracker_may_be_freed_while_writers_run),
    };
    int failed = 0;
    for (guint m = 0; m < G_N_ELEMENTS(modes); m++) {
        struct CMUnitTest in_mode[G_N_ELEMENTS(tests)];
        for (guint i = 0; i < G_N_ELEMENTS(tests); i++) {
            in_mode[i] = tests[i];
            in_mode[i].initial_state = &modes[m];
        }
        failed += cmocka_run_group_tests_name(snap_track_mode_name(modes[m]), in_mode, NULL, NULL);
    }
    return failed;
}
