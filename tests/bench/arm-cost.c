/*
 * What it costs to protect memory that was written all over: UFFDIO_WRITEPROTECT over the range against
 * snap_async_arm(), which has to find what there is too.
 *
 *     arm-cost [--memory anon|thp|memfd|hugetlb] [--size 1G] [--rounds 5]
 *
 * Prints medians in milliseconds for a GiB. The rounds alternate. Exit status 1 with a line on stderr when the
 * kernel does not let us, 2 for wrong usage.
 */
#include "floor-library.h"

#include <getopt.h>

#define PROGRAM "arm-cost"
#define ROUNDS_MAX 100

static uint64_t time_writeprotect(const SnapAsync *async, const Memory *memory) {
    uint64_t start_ns = now_ns();

    must(PROGRAM, snap_uffd_protect(async->uffd, (uintptr_t)memory->start, memory->size_bytes),
         "UFFDIO_WRITEPROTECT");
    return now_ns() - start_ns;
}

static uint64_t time_library(SnapAsync *async, const Memory *memory) {
    SnapArea *area = make_area(memory);
    uint64_t start_ns = now_ns(), took_ns;

    must(PROGRAM, snap_async_arm(async, area), "snap_async_arm");
    took_ns = now_ns() - start_ns;
    snap_async_forget(async, (uintptr_t)memory->start, memory->size_bytes);
    snap_area_free(area);
    return took_ns;
}

/* As if all of it had been written, without splitting huge pages. */
static void let_go(const SnapAsync *async, const Memory *memory) {
    must(PROGRAM, snap_uffd_unprotect(async->uffd, (uintptr_t)memory->start, memory->size_bytes), "un-protect");
}

static void measure(const Memory *memory, uint64_t rounds) {
    uint64_t times_ns[2][ROUNDS_MAX];
    double gib = (double)memory->size_bytes / (double)(1 << 30), us[2];
    SnapAsync async;

    open_async(PROGRAM, &async);
    must(PROGRAM, snap_async_register(&async, (uintptr_t)memory->start, memory->size_bytes), "register");
    for (uint64_t i = 0; i < rounds; i++) {
        let_go(&async, memory);
        times_ns[0][i] = time_writeprotect(&async, memory);
        let_go(&async, memory);
        times_ns[1][i] = time_library(&async, memory);
    }
    for (int way = 0; way < 2; way++)
        us[way] = median_us(times_ns[way], rounds);
    printf("memory=%s uffdio-ms-per-gib=%.3f library-ms-per-gib=%.3f ratio=%.3f\n", memory->kind,
           us[0] / 1000 / gib, us[1] / 1000 / gib, us[1] / us[0]);
    snap_async_clear(&async);
}

static _Noreturn void usage(void) {
    fprintf(stderr, "usage: " PROGRAM " [--memory anon|thp|memfd|hugetlb] [--size SIZE] [--rounds N]\n");
    exit(2);
}

int main(int argc, char **argv) {
    static const struct option table[] = {{"memory", required_argument, NULL, 'm'},
                                          {"size", required_argument, NULL, 's'},
                                          {"rounds", required_argument, NULL, 'r'},
                                          {0}};
    uint64_t size_bytes = UINT64_C(1) << 30, rounds = 5;
    const char *kind = "anon";
    Memory memory;
    int option;

    while ((option = getopt_long(argc, argv, "", table, NULL)) != -1) {
        if (option == 'm')
            kind = optarg;
        else if (option == 's')
            size_bytes = parse_size(optarg);
        else if (option == 'r')
            rounds = parse_size(optarg);
        else
            usage();
    }
    if (optind != argc || !size_bytes || !rounds || rounds > ROUNDS_MAX)
        usage();
    memory = map_memory(PROGRAM, kind, size_bytes);
    measure(&memory, rounds);
    return 0;
}
