/* What the async log reports, for every kind of memory: all that was written, nothing else, and once. */
#include "async-rig.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../../libsnap/uffd.h"

enum { AREA_BYTES = 8 << 20 };

/* Exactly the granules of these pages were reported, once each. */
static void expect(Rig *rig, const size_t *pages, size_t n) {
    size_t unit = rig_pages(rig), total = rig->length / rig->page;
    uint8_t *want = calloc(total, 1);
    for (size_t i = 0; i < n; i++) {
        memset(want + rig_first(rig, pages[i]), 1, unit);
    }
    for (size_t i = 0; i < total; i++) {
        if (rig->seen[i] != want[i]) {
            fail_msg("%s: page %zu was reported %u times, not %u", rig->kind->name, i, rig->seen[i], want[i]);
        }
    }
    free(want);
    rig_forget(rig);
}
#define EXPECT(rig, ...)                                                                                          \
    expect(rig, (const size_t[]){__VA_ARGS__}, sizeof((const size_t[]){__VA_ARGS__}) / sizeof(size_t))

static void expect_nothing(Rig *rig) {
    if (rig->pages) {
        fail_msg("%s: %lu pages reported", rig->kind->name, (unsigned long)rig->pages);
    }
}

static void collect(Rig *rig) {
    assert_int_equal(rig_collect(rig, SNAP_COLLECT_CLEAR), 0);
}

static void collect_nothing(Rig *rig) {
    collect(rig);
    expect_nothing(rig);
}

/* Two pages that are written, the only ones, are what is collected. */
static void check_two_writes(Rig *rig, size_t first, size_t second) {
    rig_write(rig, first);
    rig_write(rig, second);
    collect(rig);
    EXPECT(rig, first, second);
}

/* Half of it filled, and armed again. */
static void half_fill(Rig *rig) {
    rig_fill(rig, 0, rig->length / rig->page / 2);
    assert_int_equal(snap_async_arm(&rig->async, rig->area), 0);
}

/* ---- what is reported ------------------------------------------------------------------------------------ */

static void armed_memory_is_clean(Rig *rig) {
    half_fill(rig);
    collect_nothing(rig);
}

static void written_pages_are_reported_once(Rig *rig) {
    half_fill(rig);
    const size_t pages[] = {0, 1, 2, 77, 511, 512, 900};
    for (int round = 0; round < 3; round++) {
        for (size_t i = 0; i < sizeof pages / sizeof *pages; i++) {
            rig_write(rig, pages[i]);
            rig_write(rig, pages[i]);
        }
        collect(rig);
        expect(rig, pages, sizeof pages / sizeof *pages);
        collect_nothing(rig);
    }
}

static void written_holes_are_reported_once(Rig *rig) {
    half_fill(rig);
    rig_write(rig, 1100);
    rig_write(rig, 1101);
    rig_write(rig, 2047);
    collect(rig);
    EXPECT(rig, 1100, 1101, 2047);
    collect_nothing(rig);
    check_two_writes(rig, 1101, 1300);
}

/* Where reading a hole fills the file, the page of zeros counts as new, unless a marker was there. */
static void read_holes_are_clean(Rig *rig) {
    rig_write(rig, 0);
    assert_int_equal(snap_async_arm(&rig->async, rig->area), 0);
    rig_read(rig, 3);
    rig_read(rig, 0);
    if (rig->kind->memory != SNAP_MEMORY_SHMEM && rig->kind->memory != SNAP_MEMORY_SHMEM_PRIVATE) {
        rig_read(rig, 1500);
        rig_read(rig, 1490);
    }
    collect_nothing(rig);
    check_two_writes(rig, 3, 1500);
}

static void peek_changes_nothing(Rig *rig) {
    half_fill(rig);
    rig_write(rig, 5);
    rig_write(rig, 1600);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(rig_collect(rig, SNAP_COLLECT_PEEK), 0);
        EXPECT(rig, 5, 1600);
    }
    collect(rig);
    EXPECT(rig, 5, 1600);
    assert_int_equal(rig_collect(rig, SNAP_COLLECT_PEEK), 0);
    expect_nothing(rig);
}

static void a_part_is_only_that_part(Rig *rig) {
    half_fill(rig);
    const size_t pages[] = {10, 600, 1030, 1600, 1700};
    for (size_t i = 0; i < 5; i++) {
        rig_write(rig, pages[i]);
    }
    uint64_t next = 0, from = 512 * rig->page, end = rig_first(rig, 1650) * rig->page;
    assert_int_equal(rig_collect_some(rig, from, end, SNAP_COLLECT_CLEAR, 0, &next), 0);
    assert_true(next == end);
    if (rig_pages(rig) == 1) {
        EXPECT(rig, 600, 1030, 1600);
        collect(rig);
        EXPECT(rig, 10, 1700);
    } else {
        EXPECT(rig, 600, 1030);
        collect(rig);
        EXPECT(rig, 10, 1600);
    }
}

/* Forgotten, and armed as if for the first time. */
static void arm_anew(Rig *rig) {
    snap_async_forget(&rig->async, (uintptr_t)rig->memory, rig->length);
    snap_area_free(rig->area);
    rig_make_area(rig);
    if (rig->kind->watched) {
        snap_async_watch_drops(&rig->async, rig->area);
    }
    assert_int_equal(snap_async_arm(&rig->async, rig->area), 0);
}

/* Long runs, every other page, lonely pages, runs about as long as a unit, huge pages: what is found is armed. */
static void memory_of_any_shape_is_armed(Rig *rig) {
    const unsigned vectors[] = {1, 2, 3, 64, 1024};
    size_t block = rig->page / sizeof(uint64_t);
    if (rig->kind->huge) { /* base pages between huge ones */
        uint8_t *place = rig->memory + block * rig->page;
        assert_int_equal(madvise(place, 2 * block * rig->page, MADV_DONTNEED), 0);
        assert_int_equal(madvise(place, 2 * block * rig->page, MADV_NOHUGEPAGE), 0);
    }
    rig_fill(rig, 100, 500);
    for (size_t page = 1900; page < 1940; page += 2) {
        rig_write(rig, page);
    }
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++) {
        size_t lonely = block + 192 * i + 3, run = lonely + 70, run_end = run + 62 + i;
        snap_async_set_vector(&rig->async, vectors[i]);
        rig_write(rig, lonely);
        rig_fill(rig, run, run_end);
        arm_anew(rig);
        collect_nothing(rig);
        check_two_writes(rig, lonely, run_end - 1);
    }
}

/* Collected without having been armed: all that it holds, then only what is written. */
static void an_area_that_never_was_armed_is_dirty(Rig *rig) {
    size_t half = rig->length / rig->page / 2;
    rig_fill(rig, 0, half);
    snap_async_forget(&rig->async, (uintptr_t)rig->memory, rig->length);
    snap_area_free(rig->area);
    rig_make_area(rig);
    assert_int_equal(rig_collect(rig, SNAP_COLLECT_PEEK), 0);
    for (int i = 0; i < 2; i++) {
        for (size_t page = 0; page < half; page++) {
            assert_int_equal(rig->seen[page], 1);
        }
        rig_forget(rig);
        assert_int_equal(rig_collect(rig, SNAP_COLLECT_CLEAR), 0);
    }
    expect_nothing(rig);
    check_two_writes(rig, 3, half - 1);
}

/* Written into the file, and not mapped here yet: it is not told once it is armed, but new it is. */
static void new_pages_of_a_shared_file_are_reported(Rig *rig) {
    if (rig->kind->memory != SNAP_MEMORY_SHMEM) {
        return;
    }
    rig_write(rig, 3);
    assert_int_equal(pwrite(rig->fd, "x", 1, (off_t)(1500 * rig->page)), 1);
    collect(rig);
    EXPECT(rig, 3, 1500);
    rig_read(rig, 1500);
    collect_nothing(rig);
}

/* Its unit becomes armed as a whole; what of it was not asked for comes when it is. */
static void the_rest_of_a_new_unit_is_reported_later(Rig *rig) {
    if (rig_pages(rig) > 1) {
        return;
    }
    uint64_t next = 0;
    const size_t pages[] = {1030, 1045, 1085};
    for (size_t i = 0; i < 3; i++) {
        rig_write(rig, pages[i]);
    }
    assert_int_equal(rig_collect_some(rig, 1040 * rig->page, 1080 * rig->page, SNAP_COLLECT_CLEAR, 0, &next), 0);
    EXPECT(rig, 1045);
    rig_write(rig, 1085);
    collect(rig);
    EXPECT(rig, 1030, 1085);
    collect_nothing(rig);
}

/* A write into a hole of memory that is to have huge pages fills, and changes, a huge page. */
static void a_huge_page_that_is_filled_is_new_as_a_whole(void **state) {
    (void)state;
    Rig rig;
    assert_null(rig_map(&rig, &rig_kinds[0], AREA_BYTES));
    size_t block = rig.page / sizeof(uint64_t);
    if (madvise(rig.memory, rig.length, MADV_HUGEPAGE) < 0) {
        print_message("not tried: no transparent huge pages in this kernel\n");
        skip();
    }
    rig_start(&rig);
    rig_read(&rig, 0);
    rig_read(&rig, 3 * block);
    collect(&rig);
    expect_nothing(&rig);
    rig_write(&rig, block + 7);
    collect(&rig);
    if (rig.pages == 1) {
        print_message("not tried: no huge page was to be had\n");
    } else {
        assert_int_equal(rig.pages, block);
        assert_int_equal(rig.seen[block], 1);
    }
    rig_forget(&rig);
    rig_write(&rig, block + 9);
    collect(&rig);
    EXPECT(&rig, block + 9);
    rig_clear(&rig);
    rig_unmap(&rig);
}

/* ---- bounds ---------------------------------------------------------------------------------------------- */

/* Some of everything: single pages, runs, holes filled, whole blocks. */
static void scribble(const Rig *rig, uint64_t seed) {
    uint64_t random = seed;
    for (int i = 0; i < 40; i++) {
        size_t first = rig_random(&random) % (rig->length / rig->page - 64);
        rig_fill(rig, first, first + 1 + rig_random(&random) % (i % 4 ? 3 : 60));
    }
}

static uint8_t *take_seen(Rig *rig) {
    uint8_t *seen = calloc(rig->length / rig->page, 1);
    memcpy(seen, rig->seen, rig->length / rig->page);
    rig_forget(rig);
    return seen;
}

/* By peeking, at the same state; then cleared with one of the sizes. */
static void any_vector_gives_the_same_answer(Rig *rig) {
    const unsigned sizes[] = {1, 2, 3, 64, 1024};
    half_fill(rig);
    for (unsigned round = 0; round < 5; round++) {
        scribble(rig, round + 1);
        snap_async_set_vector(&rig->async, SNAP_ASYNC_VECTOR);
        assert_int_equal(rig_collect(rig, SNAP_COLLECT_PEEK), 0);
        g_autofree uint8_t *want = NULL;
        uint8_t *seen = take_seen(rig);
        want = g_memdup2(seen, rig->length / rig->page);
        free(seen);
        for (unsigned i = 0; i <= 5; i++) {
            snap_async_set_vector(&rig->async, sizes[(round + i) % 5]);
            assert_int_equal(rig_collect(rig, i < 5 ? SNAP_COLLECT_PEEK : SNAP_COLLECT_CLEAR), 0);
            assert_memory_equal(rig->seen, want, rig->length / rig->page);
            rig_forget(rig);
        }
        collect_nothing(rig);
    }
}

/* From the start to the end in steps of at most @bound pages, of which each reports no more than @most. */
static void collect_bounded(Rig *rig, SnapCollect how, uint64_t bound, uint64_t most) {
    uint64_t at = 0;
    while (at < rig->length) {
        uint64_t before = rig->pages;
        assert_int_equal(rig_collect_some(rig, at, rig->length, how, bound, &at), 0);
        assert_true(rig->pages - before <= most);
    }
}

static void max_pages_bounds_and_goes_on(Rig *rig) {
    const uint64_t bounds[] = {1, 7, 100, 513, 2000};
    half_fill(rig);
    for (unsigned round = 0; round < 5; round++) {
        uint64_t bound = bounds[round];
        uint64_t most = MAX(bound / rig_pages(rig), 1) * rig_pages(rig);
        scribble(rig, round + 10);
        assert_int_equal(rig_collect(rig, SNAP_COLLECT_PEEK), 0);
        uint8_t *want = take_seen(rig);
        collect_bounded(rig, SNAP_COLLECT_PEEK, bound, most);
        assert_memory_equal(rig->seen, want, rig->length / rig->page);
        rig_forget(rig);
        collect_bounded(rig, SNAP_COLLECT_CLEAR, bound, most);
        assert_memory_equal(rig->seen, want, rig->length / rig->page);
        free(want);
        rig_forget(rig);
        collect_nothing(rig);
    }
}

/* A bounded collect that is not continued, but begun anew: what it did not report is still there. */
static void what_max_pages_left_out_stays_dirty(Rig *rig) {
    half_fill(rig);
    scribble(rig, 20);
    assert_int_equal(rig_collect(rig, SNAP_COLLECT_PEEK), 0);
    uint8_t *want = take_seen(rig);
    uint64_t before = 1;
    while (rig->pages != before) {
        uint64_t next = 0;
        before = rig->pages;
        assert_int_equal(rig_collect_some(rig, 0, rig->length, SNAP_COLLECT_CLEAR, 5, &next), 0);
    }
    assert_memory_equal(rig->seen, want, rig->length / rig->page);
    free(want);
    rig_forget(rig);
}

/* Written again after it was reported late: once more, and only then. */
static void a_page_that_is_owed_is_not_reported_twice(Rig *rig) {
    uint64_t next = 0;
    if (rig_pages(rig) > 1) {
        return; /* never owes */
    }
    rig_fill(rig, 600, 640);
    assert_int_equal(rig_collect_some(rig, 0, rig->length, SNAP_COLLECT_CLEAR, 10, &next), 0);
    rig_write(rig, 630);
    assert_int_equal(rig_collect_some(rig, next, rig->length, SNAP_COLLECT_CLEAR, 0, &next), 0);
    for (size_t i = 600; i < 640; i++) {
        assert_int_equal(rig->seen[i], 1);
    }
    rig_forget(rig);
    collect_nothing(rig);
}

/* ---- the table ------------------------------------------------------------------------------------------- */

#define EACH(name)                                                                                                \
    static void each_##name(void **state) {                                                                       \
        (void)state;                                                                                              \
        rig_each_kind(AREA_BYTES, name);                                                                          \
    }
EACH(armed_memory_is_clean)
EACH(written_pages_are_reported_once)
EACH(written_holes_are_reported_once)
EACH(read_holes_are_clean)
EACH(peek_changes_nothing)
EACH(a_part_is_only_that_part)
EACH(memory_of_any_shape_is_armed)
EACH(an_area_that_never_was_armed_is_dirty)
EACH(new_pages_of_a_shared_file_are_reported)
EACH(the_rest_of_a_new_unit_is_reported_later)
EACH(any_vector_gives_the_same_answer)
EACH(max_pages_bounds_and_goes_on)
EACH(what_max_pages_left_out_stays_dirty)
EACH(a_page_that_is_owed_is_not_reported_twice)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_armed_memory_is_clean),
        cmocka_unit_test(each_written_pages_are_reported_once),
        cmocka_unit_test(each_written_holes_are_reported_once),
        cmocka_unit_test(each_read_holes_are_clean),
        cmocka_unit_test(each_peek_changes_nothing),
        cmocka_unit_test(each_a_part_is_only_that_part),
        cmocka_unit_test(each_memory_of_any_shape_is_armed),
        cmocka_unit_test(each_an_area_that_never_was_armed_is_dirty),
        cmocka_unit_test(each_new_pages_of_a_shared_file_are_reported),
        cmocka_unit_test(each_the_rest_of_a_new_unit_is_reported_later),
        cmocka_unit_test(a_huge_page_that_is_filled_is_new_as_a_whole),
        cmocka_unit_test(each_any_vector_gives_the_same_answer),
        cmocka_unit_test(each_max_pages_bounds_and_goes_on),
        cmocka_unit_test(each_what_max_pages_left_out_stays_dirty),
        cmocka_unit_test(each_a_page_that_is_owed_is_not_reported_twice),
    };
    return rig_skip() ?: cmocka_run_group_tests_name("track-async", tests, NULL, NULL);
}
