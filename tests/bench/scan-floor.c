/*
 * The floor of collecting dirty pages: a bare PAGEMAP_SCAN loop that reports what was written and protects it
 * again.
 *
 *     scan-floor [--memory anon|thp|memfd|hugetlb] [--size 2G] [--dirty PER-CENT,...] [--rounds 10] [--library]
 *
 * Each round writes a word into so many per cent of the pages, evenly spread, and then collects. With --library
 * every second round is collected by snap_async_collect() instead. Prints one line for each share: the medians,
 * and how many pages a round reported (the same both ways, or it is an error). Exit status 1 with a line on stderr
 * when the kernel does not let us, 2 for wrong usage.
 */
#include "floor-library.h"

#include <getopt.h>
#include <sys/ioctl.h>

#define PROGRAM "scan-floor"
#define ROUNDS_MAX 1000
#define RUNS 512

typedef struct {
    const char *kind;
    uint64_t size_bytes;
    char *shares;
    size_t rounds;
    bool library;
} Options;

static uint64_t scan_bare(const SnapAsync *async, const Memory *memory) {
    static struct page_region runs[RUNS];
    uint64_t pages = 0;
    struct pm_scan_arg scan = {.size = sizeof(scan),
                               .flags = PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
                               .start = (uintptr_t)memory->start,
                               .end = (uintptr_t)memory->start + memory->size_bytes,
                               .vec = (uintptr_t)runs,
                               .vec_len = RUNS,
                               .category_mask = PAGE_IS_WRITTEN,
                               .return_mask = PAGE_IS_WRITTEN};

    while (scan.start < scan.end) {
        int n = ioctl(async->pagemap, PAGEMAP_SCAN, &scan);
        if (n < 0)
            die(PROGRAM, "PAGEMAP_SCAN");
        for (int i = 0; i < n; i++)
            pages += (runs[i].end - runs[i].start) / memory->page_bytes;
        scan.start = scan.walk_end;
    }
    return pages;
}

typedef struct {
    uint64_t page_bytes;
    uint64_t pages;
} Count;

static void count(void *opaque, uint64_t start, uint64_t end) {
    Count *counted = opaque;

    counted->pages += (end - start) / counted->page_bytes;
}

static uint64_t scan_library(SnapAsync *async, SnapArea *area, const Memory *memory) {
    Count counted = {.page_bytes = memory->page_bytes};
    uint64_t next;

    must(PROGRAM,
         snap_async_collect(async, area, 0, memory->size_bytes, SNAP_COLLECT_CLEAR, 0, count, &counted, &next),
         "snap_async_collect");
    return counted.pages;
}

static void run_share(const Options *options, SnapAsync *async, SnapArea *area, const Memory *memory,
                      double share) {
    static uint64_t times_ns[2][ROUNDS_MAX];
    uint64_t pages[2] = {0}, step = share > 0 ? (uint64_t)(100 / share) : 0;
    size_t ways = options->library ? 2 : 1;
    double bare_us, library_us;

    for (size_t i = 0; i < options->rounds * ways; i++) {
        size_t way = i % ways;
        uint64_t start_ns;
        if (step)
            write_pages(memory, step);
        start_ns = now_ns();
        pages[way] = way ? scan_library(async, area, memory) : scan_bare(async, memory);
        times_ns[way][i / ways] = now_ns() - start_ns;
    }
    bare_us = median_us(times_ns[0], options->rounds);
    printf("memory=%s dirty-percent=%g pages=%lu bare-us=%.1f", memory->kind, share, (unsigned long)pages[0],
           bare_us);
    if (options->library) {
        library_us = median_us(times_ns[1], options->rounds);
        printf(" library-us=%.1f ratio=%.3f", library_us, library_us / bare_us);
    }
    puts("");
    fflush(stdout);
    if (options->library && pages[0] != pages[1]) {
        fprintf(stderr, PROGRAM ": the library reported %lu pages\n", (unsigned long)pages[1]);
        exit(1);
    }
}

static _Noreturn void usage(void) {
    fprintf(stderr, "usage: " PROGRAM " [--memory anon|thp|memfd|hugetlb] [--size SIZE] [--dirty PER-CENT,...]\n"
                    "                  [--rounds N] [--library]\n");
    exit(2);
}

static void parse_options(int argc, char **argv, Options *options) {
    static const struct option table[] = {
        {"memory", required_argument, NULL, 'm'}, {"size", required_argument, NULL, 's'},
        {"dirty", required_argument, NULL, 'd'},  {"rounds", required_argument, NULL, 'r'},
        {"library", no_argument, NULL, 'l'},      {0}};
    int option;

    while ((option = getopt_long(argc, argv, "", table, NULL)) != -1) {
        if (option == 'm')
            options->kind = optarg;
        else if (option == 's')
            options->size_bytes = parse_size(optarg);
        else if (option == 'd')
            options->shares = optarg;
        else if (option == 'r')
            options->rounds = parse_size(optarg);
        else if (option == 'l')
            options->library = true;
        else
            usage();
    }
    if (optind != argc || !options->size_bytes || !options->rounds || options->rounds > ROUNDS_MAX)
        usage();
}

int main(int argc, char **argv) {
    char shares[] = "0,1,10,100";
    Options options = {.kind = "anon", .size_bytes = UINT64_C(2) << 30, .shares = shares, .rounds = 10};
    SnapAsync async;
    Memory memory;
    SnapArea *area;

    parse_options(argc, argv, &options);
    memory = map_memory(PROGRAM, options.kind, options.size_bytes);
    open_async(PROGRAM, &async);
    must(PROGRAM, snap_async_register(&async, (uintptr_t)memory.start, memory.size_bytes), "register");
    area = make_area(&memory);
    must(PROGRAM, snap_async_arm(&async, area), "arm");
    for (char *share = strtok(options.shares, ","); share; share = strtok(NULL, ","))
        run_share(&options, &async, area, &memory, strtod(share, NULL));
    return 0;
}
