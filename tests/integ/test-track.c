/*
 * The tracker and the sweep against memory that is written all the time, without image or disk: what the sweep
 * captured equals the arena at exactly one write. Every memory kind, 1-4 writers, many times.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../../libsnap/sweep.h"
#include "../guest/backing.h"
#include "../guest/seqcheck.h"
#include "../guest/writers.h"
#include "../lib/own-process.h"

enum {
    ARENA_BYTES = 24 << 20,
    BUFFERS = 32,
    ROUNDS_AHEAD = 4,
};

typedef struct {
    const char *name;
    SnapMemory memory;
} Kind;

static const Kind kinds[] = {
    {"anon", SNAP_MEMORY_ANON},
    {"thp", SNAP_MEMORY_ANON},
    {"memfd", SNAP_MEMORY_SHMEM},
    {"memfd-private", SNAP_MEMORY_SHMEM_PRIVATE},
    {"tmpfs", SNAP_MEMORY_SHMEM},
    {"hugetlb", SNAP_MEMORY_HUGETLB},
    {"hugetlb-private", SNAP_MEMORY_HUGETLB_PRIVATE},
};

typedef struct {
    Backing backing;
    Writers writers;
    SnapRegion region;
    SnapSync *tracker;
    uint8_t *copy;
    SnapChunk chunks[BUFFERS];
    uint64_t by_fault; /* pre-images of all snapshots: without any, nothing was tested */
} Rig;

static SnapRegion *describe(const Rig *rig, SnapMemory memory) {
    const Backing *b = &rig->backing;
    SnapRegion *region = snap_region_new(b->kind, memory, (uintptr_t)b->arena, b->length_bytes);
    if (memory != SNAP_MEMORY_ANON) {
        region->granule_bytes = b->granule_bytes;
    }
    region->fd = b->fd >= 0 && memory != SNAP_MEMORY_HUGETLB_PRIVATE ? fcntl(b->fd, F_DUPFD_CLOEXEC, 0) : -1;
    return region;
}

static bool rig_init(Rig *rig, const char *kind, unsigned threads, double touched) {
    memset(rig, 0, sizeof *rig);
    if (backing_map(kind, ARENA_BYTES, "/dev/shm", &rig->backing) < 0) {
        return false;
    }
    uint32_t pages = (uint32_t)(rig->backing.length_bytes / rig->backing.page_bytes - 1);
    SeqLayout layout = {.pages = pages,
                        .page_bytes = (uint32_t)rig->backing.page_bytes,
                        .touched = (uint32_t)(pages * touched),
                        .stride = seq_scatter_stride(pages)};
    layout.hot = layout.touched;
    rig->writers = (Writers){.layout = layout, .arena = rig->backing.arena, .threads = threads, .batch = 64};
    seq_header_init(rig->backing.arena, &layout, threads, 64);
    seq_start(&layout, &rig->writers.cursor);
    writers_prefill(&rig->writers);
    rig->copy = malloc(rig->backing.length_bytes);
    for (guint i = 0; i < BUFFERS; i++) {
        rig->chunks[i].data = malloc(SNAP_CHUNK_PAGES * rig->backing.page_bytes);
    }
    return true;
}

static void rig_clear(Rig *rig) {
    munmap(rig->backing.arena, rig->backing.length_bytes);
    if (rig->backing.fd >= 0) {
        close(rig->backing.fd);
    }
    for (guint i = 0; i < BUFFERS; i++) {
        free(rig->chunks[i].data);
    }
    free(rig->copy);
}

static void let_write(Rig *rig) {
    rig->writers.stop = false;
    assert_int_equal(writers_start(&rig->writers), 0);
}

/* Capture the unit of a chunk and lay it into the copy. */
static void sweep_chunk(Rig *rig, uint64_t chunk) {
    g_autoptr(GError) error = NULL;
    SnapChunk *buffers[BUFFERS];
    SnapUnit unit = snap_sweep_unit(rig->tracker, 0, chunk, BUFFERS);
    for (uint32_t i = 0; i < unit.n_chunks; i++) {
        buffers[i] = &rig->chunks[i];
    }
    if (unit.n_chunks == 0) {
        return;
    }
    snap_sweep_capture(rig->tracker, unit, buffers, &error);
    fail_on(error);
    const SnapArea *area = snap_sync_area(rig->tracker, 0);
    for (uint32_t i = 0; i < unit.n_chunks; i++) {
        uint64_t start, end;
        snap_area_bytes(area, (SnapRun){unit.first + i, unit.first + i + 1}, &start, &end);
        memcpy(rig->copy + start, buffers[i]->data, end - start);
    }
}

static void sweep_all(Rig *rig) {
    const SnapArea *area = snap_sync_area(rig->tracker, 0);
    memset(rig->copy, 0, rig->backing.length_bytes);
    for (guint r = 0; r < area->armed->len; r++) {
        SnapRun run = g_array_index(area->armed, SnapRun, r);
        for (uint64_t chunk = run.first; chunk < run.end; chunk++) {
            SnapUnit hot;
            while (snap_sweep_next_hot(rig->tracker, &hot)) {
                sweep_chunk(rig, hot.first);
            }
            sweep_chunk(rig, chunk);
        }
    }
    while (!snap_sweep_release(rig->tracker)) {
    }
}

static void snapshot(Rig *rig, SnapMemory memory, uint32_t pool_pages) {
    g_autoptr(GError) error = NULL;
    rig->tracker = snap_sync_new(getpid(), snap_uffd_open(), pool_pages, SNAP_AT_CAP_BLOCK, &error);
    fail_on(error);
    snap_sync_start(rig->tracker);
    snap_sync_add(rig->tracker, describe(rig, memory), false, &error);
    fail_on(error);
    for (int i = 0; i < ROUNDS_AHEAD; i++) {
        uint64_t pages;
        snap_sync_round(rig->tracker, &pages, &error);
        fail_on(error);
    }
    writers_stop(&rig->writers);
    snap_sync_point(rig->tracker, &error);
    fail_on(error);
    uint64_t at = ((SeqHeader *)rig->backing.arena)->counter;
    let_write(rig);
    sweep_all(rig);
    rig->by_fault += rig->tracker->pages_by_fault;
    snap_sync_free(rig->tracker);
    SeqReport report;
    if (!seq_check(rig->copy, rig->backing.length_bytes, &rig->writers.layout, &report)) {
        seq_print_report(stderr, &report);
        fail_msg("the copy is not the arena at one write");
    }
    assert_int_equal(report.n, at);
}

static void check_kind(const Kind *kind, unsigned threads, int times, uint32_t pool_pages, double touched) {
    Rig rig;
    if (!rig_init(&rig, kind->name, threads, touched)) {
        print_message("%s: cannot be mapped here\n", kind->name);
        skip();
    }
    let_write(&rig);
    for (int i = 0; i < times; i++) {
        snapshot(&rig, kind->memory, pool_pages);
    }
    writers_stop(&rig.writers);
    assert_int_equal(((SeqHeader *)rig.backing.arena)->errors, 0);
    print_message("%s, %u writers, %d times: %lu pages by fault\n", kind->name, threads, times, rig.by_fault);
    assert_true(rig.by_fault > 0);
    rig_clear(&rig);
}

static int times(void) {
    const char *text = getenv("SNAP_TEST_TIMES");
    return text ? atoi(text) : 10;
}

static void copy_under_load_equals_one_write(void **state) {
    const Kind *kind = *state;
    for (unsigned threads = 1; threads <= 4; threads++) {
        check_kind(kind, threads, times(), 4096 * 4, 1.0);
    }
}

/* The pool takes one granule at a time: most writers wait for the sweep. */
static void copy_with_a_full_pool_equals_one_write(void **state) {
    const Kind *kind = *state;
    uint32_t pool = strstr(kind->name, "hugetlb") ? 512 : 2;
    check_kind(kind, 2, times(), pool, 1.0);
}

/* Pages are first touched before, at and after the point. */
static void copy_of_a_half_empty_arena_equals_one_write(void **state) {
    const Kind *kind = *state;
    check_kind(kind, 2, times(), 4096 * 4, 0.02);
}

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102 /* Linux 6.13 */
#endif

/* A guard page can be neither read nor protected; the pages around it are saved all the same. */
static void guard_pages_read_as_zeros(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), length = SNAP_CHUNK_PAGES * page;
    uint8_t *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(memory, 7, length);
    if (madvise(memory + 3 * page, page, MADV_GUARD_INSTALL) < 0) {
        munmap(memory, length);
        skip();
    }
    SnapSync *tracker = snap_sync_new(getpid(), snap_uffd_open(), 16, SNAP_AT_CAP_BLOCK, &error);
    fail_on(error);
    snap_sync_start(tracker);
    snap_sync_add(tracker, snap_region_new("guarded", SNAP_MEMORY_ANON, (uintptr_t)memory, length), true, &error);
    snap_sync_point(tracker, &error);
    fail_on(error);
    g_autofree uint8_t *copy = g_malloc(length);
    SnapChunk chunk = {.data = copy};
    SnapChunk *buffers[] = {&chunk};
    snap_sweep_capture(tracker, (SnapUnit){.area = 0, .first = 0, .n_chunks = 1}, buffers, &error);
    fail_on(error);
    for (uint64_t i = 0; i < length; i++) {
        assert_int_equal(copy[i], i / page == 3 ? 0 : 7);
    }
    snap_sync_free(tracker);
    munmap(memory, length);
}

static int reserve_huge_pages(void **state) {
    (void)state;
    FILE *file = fopen("/proc/sys/vm/nr_hugepages", "r+");
    int have = 0;
    if (file && fscanf(file, "%d", &have) == 1 && have < 32) {
        rewind(file);
        fprintf(file, "%d\n", 32);
    }
    if (file) {
        fclose(file);
    }
    return 0;
}

int main(void) {
    if (snap_uffd_open() < 0) {
        puts("skip: userfaultfd is not permitted here");
        return 77;
    }
    static struct CMUnitTest tests[G_N_ELEMENTS(kinds) * 3 + 1];
    static char names[G_N_ELEMENTS(tests)][96];
    size_t n = 0;
    for (size_t i = 0; i < G_N_ELEMENTS(kinds); i++) {
        const struct {
            const char *name;
            CMUnitTestFunction function;
        } cases[] = {
            {"copy_under_load_equals_one_write", copy_under_load_equals_one_write},
            {"copy_with_a_full_pool_equals_one_write", copy_with_a_full_pool_equals_one_write},
            {"copy_of_a_half_empty_arena_equals_one_write", copy_of_a_half_empty_arena_equals_one_write},
        };
        for (size_t c = 0; c < G_N_ELEMENTS(cases); c++) {
            snprintf(names[n], sizeof names[n], "%s/%s", kinds[i].name, cases[c].name);
            tests[n] = (struct CMUnitTest){names[n], cases[c].function, NULL, NULL, (void *)&kinds[i]};
            n++;
        }
    }
    tests[n++] = (struct CMUnitTest){"guard_pages_read_as_zeros", guard_pages_read_as_zeros, NULL, NULL, NULL};
    return cmocka_run_group_tests_name("track", tests, reserve_huge_pages, NULL);
}
