/*
 * What it costs to log a mapping that is huge and nearly empty, as sanitizer shadow memory is: the library's
 * tracker against the bare system calls, in turns, each time on fresh anonymous memory with the same pages filled.
 *
 *     sparse-cost [--how async|sync] [--size 16T|64G] [--pages 1000] [--rounds 5]
 *
 * async: switching the tracker on, against UFFDIO_REGISTER and a PAGEMAP_SCAN that protects what is filled; then
 * every tenth page is written and collected, against another such scan. Both have to report those pages only.
 *
 * sync: switching the tracker on, against registering, a PAGEMAP_SCAN for what is filled and a UFFDIO_WRITEPROTECT
 * for each block it lies in ("blocks"), and against one UFFDIO_WRITEPROTECT over everything ("all"). That is
 * limited to 256G: it takes page tables for all of it.
 *
 * Prints one line: medians of the times in milliseconds, the shortest behind "min-"; and what page tables grew by,
 * in KiB, the library's own memory included. Exit status 1 with a line on stderr when the kernel does not let us,
 * or other pages are reported; 2 for wrong usage.
 */
#include "floor-library.h"
#include "sparse-memory.h"

#include "../../libsnap/libsnap.h"

#include <getopt.h>
#include <sys/ioctl.h>

#define PROGRAM "sparse-cost"
#define ROUNDS_MAX 100
#define RUNS 512
#define DIRTY_STEP 10
#define SYNC_BYTES_MAX (UINT64_C(256) << 30)

/* Of one way to do it. */
typedef struct {
    uint64_t arm_ns[ROUNDS_MAX];
    uint64_t scan_ns[ROUNDS_MAX];
    uint64_t tables_kib[ROUNDS_MAX];
} Times;

static void expect_pages(const Sparse *sparse, const char *who, uint64_t pages) {
    uint64_t want = (sparse->n_pages + DIRTY_STEP - 1) / DIRTY_STEP;

    if (pages != want) {
        fprintf(stderr, PROGRAM ": %s reported %lu pages, not %lu\n", who, (unsigned long)pages,
                (unsigned long)want);
        exit(1);
    }
}

/* ---- the bare calls -------------------------------------------------------------------------------------- */

/* Look for filled pages of [start, end), written ones only with PM_SCAN_WP_MATCHING. Return: how many runs. */
static int scan_step(int pagemap, uint64_t flags, uint64_t *start, uint64_t end, struct page_region *ret_runs) {
    struct pm_scan_arg scan = {.size = sizeof(scan),
                               .flags = flags,
                               .start = *start,
                               .end = end,
                               .vec = (uintptr_t)ret_runs,
                               .vec_len = RUNS,
                               .category_mask = flags & PM_SCAN_WP_MATCHING ? PAGE_IS_WRITTEN : 0,
                               .category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
                               .return_mask = PAGE_IS_PRESENT};
    int n = ioctl(pagemap, PAGEMAP_SCAN, &scan);

    if (n < 0)
        die(PROGRAM, "PAGEMAP_SCAN");
    *start = scan.walk_end;
    return n;
}

static uint64_t scan_bare(const SnapAsync *async, const Sparse *sparse) {
    static struct page_region runs[RUNS];
    uint64_t at = (uintptr_t)sparse->start, end = at + sparse->size_bytes, pages = 0;

    while (at < end) {
        int n = scan_step(async->pagemap, PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC, &at, end, runs);
        for (int i = 0; i < n; i++)
            pages += (runs[i].end - runs[i].start) / sparse->page_bytes;
    }
    return pages;
}

static void run_bare_async(Sparse *sparse, Times *times, uint64_t round) {
    SnapAsync async;
    uint64_t before_kib, at_ns, pages;

    map_sparse(PROGRAM, sparse);
    open_async(PROGRAM, &async);
    before_kib = tables_kib();
    at_ns = now_ns();
    must(PROGRAM, snap_async_register(&async, (uintptr_t)sparse->start, sparse->size_bytes), "register");
    scan_bare(&async, sparse);
    times->arm_ns[round] = now_ns() - at_ns;
    write_every(sparse, DIRTY_STEP);
    at_ns = now_ns();
    pages = scan_bare(&async, sparse);
    times->scan_ns[round] = now_ns() - at_ns;
    times->tables_kib[round] = tables_kib() - before_kib;
    expect_pages(sparse, "the bare scan", pages);
    snap_async_clear(&async);
    unmap_sparse(sparse);
}

static int open_sync(const Sparse *sparse) {
    int uffd = must(PROGRAM, snap_uffd_open(), "userfaultfd (needs root)");

    must(PROGRAM, snap_uffd_api(uffd, UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_UNPOPULATED),
         "sync write-protection");
    must(PROGRAM, snap_uffd_register(uffd, (uintptr_t)sparse->start, sparse->size_bytes), "register");
    return uffd;
}

static void protect_blocks(int uffd, int pagemap, const Sparse *sparse) {
    static struct page_region runs[RUNS];
    uint64_t at = (uintptr_t)sparse->start, end = at + sparse->size_bytes, done = at;

    while (at < end) {
        int n = scan_step(pagemap, 0, &at, end, runs);
        for (int i = 0; i < n; i++) {
            uint64_t from = runs[i].start / sparse->block_bytes * sparse->block_bytes;
            uint64_t to = (runs[i].end + sparse->block_bytes - 1) / sparse->block_bytes * sparse->block_bytes;
            from = from < done ? done : from;
            done = to < end ? to : end;
            if (from < done)
                must(PROGRAM, snap_uffd_protect(uffd, from, done - from), "UFFDIO_WRITEPROTECT");
        }
    }
}

static void run_bare_sync(Sparse *sparse, Times *times, uint64_t round, bool all) {
    int uffd, pagemap = must(PROGRAM, snap_pagemap_open(getpid()), "pagemap");
    uint64_t before_kib, start_ns;

    map_sparse(PROGRAM, sparse);
    before_kib = tables_kib();
    start_ns = now_ns();
    uffd = open_sync(sparse);
    if (all)
        must(PROGRAM, snap_uffd_protect(uffd, (uintptr_t)sparse->start, sparse->size_bytes),
             "UFFDIO_WRITEPROTECT");
    else
        protect_blocks(uffd, pagemap, sparse);
    times->arm_ns[round] = now_ns() - start_ns;
    times->tables_kib[round] = tables_kib() - before_kib;
    close(uffd);
    close(pagemap);
    unmap_sparse(sparse);
}

/* ---- the library ----------------------------------------------------------------------------------------- */

static gboolean list_regions(void *opaque, gboolean paused, GPtrArray *regions, GError **error) {
    const Sparse *sparse = opaque;

    (void)paused;
    (void)error;
    g_ptr_array_add(regions,
                    snap_region_new("sparse", SNAP_MEMORY_ANON, (uintptr_t)sparse->start, sparse->size_bytes));
    return TRUE;
}

static int open_uffd(void *opaque, GError **error) {
    int uffd = snap_uffd_open();

    (void)opaque;
    if (uffd < 0)
        snap_set_errno(error, -uffd, "userfaultfd");
    return uffd;
}

static const SnapGuestOps ops = {.list_regions = list_regions, .open_uffd = open_uffd};

static void must_not_fail(const GError *error) {
    if (error) {
        fprintf(stderr, PROGRAM ": %s\n", error->message);
        exit(1);
    }
}

static void count(const SnapRegion *region, uint64_t offset_bytes, uint64_t length_bytes, void *opaque) {
    (void)offset_bytes;
    *(uint64_t *)opaque += length_bytes / region->page_bytes;
}

static void run_library(Sparse *sparse, Times *times, uint64_t round, SnapTrackMode mode) {
    g_autoptr(SnapGuest) guest = snap_guest_new("bench", 0, &ops, sparse);
    g_autoptr(SnapTracker) tracker = snap_tracker_new(guest, NULL);
    g_autoptr(GError) error = NULL;
    uint64_t before_kib, at_ns, pages = 0;

    map_sparse(PROGRAM, sparse);
    before_kib = tables_kib();
    at_ns = now_ns();
    snap_tracker_set_mode(tracker, mode, FALSE, &error);
    times->arm_ns[round] = now_ns() - at_ns;
    must_not_fail(error);
    if (mode == SNAP_TRACK_ASYNC) {
        write_every(sparse, DIRTY_STEP);
        at_ns = now_ns();
        snap_tracker_collect(tracker, count, &pages, NULL, &error);
        times->scan_ns[round] = now_ns() - at_ns;
        must_not_fail(error);
        expect_pages(sparse, "the library", pages);
    }
    times->tables_kib[round] = tables_kib() - before_kib;
    snap_tracker_set_mode(tracker, SNAP_TRACK_OFF, FALSE, NULL);
    unmap_sparse(sparse);
}

/* ---- rounds ---------------------------------------------------------------------------------------------- */

static void print_times(const char *name, uint64_t *times_ns, uint64_t rounds) {
    double us = median_us(times_ns, rounds);

    printf(" %s-ms=%.3f min-%s-ms=%.3f", name, us / 1000, name, (double)times_ns[0] / 1e6);
}

static void print_tables(const char *name, uint64_t *kib, uint64_t rounds) {
    sort_times(kib, rounds);
    printf(" %s-kib=%lu", name, (unsigned long)kib[rounds / 2]);
}

static void measure_async(Sparse *sparse, uint64_t rounds) {
    static Times bare, ours;

    for (uint64_t i = 0; i < rounds; i++) {
        run_bare_async(sparse, &bare, i);
        run_library(sparse, &ours, i, SNAP_TRACK_ASYNC);
    }
    printf("how=async");
    print_times("arm", ours.arm_ns, rounds);
    print_times("bare-arm", bare.arm_ns, rounds);
    print_times("scan", ours.scan_ns, rounds);
    print_times("bare-scan", bare.scan_ns, rounds);
    print_tables("tables", ours.tables_kib, rounds);
    print_tables("bare-tables", bare.tables_kib, rounds);
    puts("");
}

static void measure_sync(Sparse *sparse, uint64_t rounds) {
    static Times blocks, all, ours;

    for (uint64_t i = 0; i < rounds; i++) {
        run_bare_sync(sparse, &blocks, i, false);
        run_library(sparse, &ours, i, SNAP_TRACK_SYNC);
    }
    /* Not in turns: the kernel goes on freeing so many page tables for a while, at the cost of whoever is next. */
    for (uint64_t i = 0; i < rounds; i++)
        run_bare_sync(sparse, &all, i, true);
    printf("how=sync");
    print_times("arm", ours.arm_ns, rounds);
    print_times("blocks", blocks.arm_ns, rounds);
    print_times("all", all.arm_ns, rounds);
    print_tables("tables", ours.tables_kib, rounds);
    print_tables("blocks-tables", blocks.tables_kib, rounds);
    print_tables("all-tables", all.tables_kib, rounds);
    puts("");
}

static _Noreturn void usage(void) {
    fprintf(stderr, "usage: " PROGRAM " [--how async|sync] [--size SIZE] [--pages N] [--rounds N]\n");
    exit(2);
}

typedef struct {
    const char *how;
    uint64_t size_bytes;
    uint64_t pages;
    uint64_t rounds;
} Options;

static void parse_options(int argc, char **argv, Options *options) {
    static const struct option table[] = {{"how", required_argument, NULL, 'h'},
                                          {"size", required_argument, NULL, 's'},
                                          {"pages", required_argument, NULL, 'p'},
                                          {"rounds", required_argument, NULL, 'r'},
                                          {0}};
    int option;

    while ((option = getopt_long(argc, argv, "", table, NULL)) != -1) {
        if (option == 'h')
            options->how = optarg;
        else if (option == 's')
            options->size_bytes = parse_size(optarg);
        else if (option == 'p')
            options->pages = parse_size(optarg);
        else if (option == 'r')
            options->rounds = parse_size(optarg);
        else
            usage();
    }
    if (optind != argc || !options->pages || options->pages > SPARSE_PAGES_MAX || !options->rounds ||
        options->rounds > ROUNDS_MAX)
        usage();
}

int main(int argc, char **argv) {
    static Sparse sparse;
    Options options = {.how = "async", .pages = 1000, .rounds = 5};
    bool sync;

    parse_options(argc, argv, &options);
    sync = strcmp(options.how, "sync") == 0;
    if (!sync && strcmp(options.how, "async") != 0)
        usage();
    if (!options.size_bytes)
        options.size_bytes = UINT64_C(1) << (sync ? 36 : 44);
    sparse.page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
    sparse.block_bytes = sparse.page_bytes / sizeof(uint64_t) * sparse.page_bytes;
    sparse.size_bytes = options.size_bytes / sparse.block_bytes * sparse.block_bytes;
    sparse.n_pages = options.pages;
    if (sparse.size_bytes / sparse.page_bytes < sparse.n_pages || (sync && sparse.size_bytes > SYNC_BYTES_MAX))
        usage();
    choose_pages(&sparse);
    (sync ? measure_sync : measure_async)(&sparse, options.rounds);
    return 0;
}
