/*
 * What it costs to switch memory between async and sync write-protection: unregister from one userfaultfd,
 * register with the other, protect everything there. Nobody writes meanwhile.
 *
 *     switch-cost [--memory anon|thp|memfd|hugetlb] [--size 1G] [--rounds 5]
 *
 * Prints medians in milliseconds for a GiB: each direction, and of what it is made. Exit status 1 with a line on
 * stderr when the kernel does not let us, 2 for wrong usage.
 */
#include "floor-library.h"

#include <getopt.h>

#define PROGRAM "switch-cost"
#define ROUNDS_MAX 100

/* Of one direction: unregister, register, arm, and all three. */
typedef struct {
    uint64_t ns[4][ROUNDS_MAX];
} Times;

typedef struct {
    const Memory *memory;
    SnapAsync async;
    int sync;
} Rig;

static void note(Times *times, uint64_t round, const uint64_t at_ns[4]) {
    for (int i = 0; i < 3; i++)
        times->ns[i][round] = at_ns[i + 1] - at_ns[i];
    times->ns[3][round] = at_ns[3] - at_ns[0];
}

static void to_sync(Rig *rig, Times *times, uint64_t round) {
    uint64_t start = (uintptr_t)rig->memory->start, length = rig->memory->size_bytes, at_ns[4];

    at_ns[0] = now_ns();
    must(PROGRAM, snap_async_unregister(&rig->async, start, length), "unregister");
    at_ns[1] = now_ns();
    must(PROGRAM, snap_uffd_register(rig->sync, start, length), "register");
    at_ns[2] = now_ns();
    must(PROGRAM, snap_uffd_protect(rig->sync, start, length), "protect");
    at_ns[3] = now_ns();
    note(times, round, at_ns);
}

static void to_async(Rig *rig, Times *times, uint64_t round) {
    uint64_t start = (uintptr_t)rig->memory->start, length = rig->memory->size_bytes, at_ns[4];
    SnapArea *area = make_area(rig->memory);

    at_ns[0] = now_ns();
    must(PROGRAM, snap_uffd_unregister(rig->sync, start, length), "unregister");
    at_ns[1] = now_ns();
    must(PROGRAM, snap_async_register(&rig->async, start, length), "register");
    at_ns[2] = now_ns();
    must(PROGRAM, snap_async_arm(&rig->async, area), "snap_async_arm");
    at_ns[3] = now_ns();
    note(times, round, at_ns);
    snap_area_free(area);
}

static void print(const char *direction, const Memory *memory, Times *times, uint64_t rounds) {
    static const char *const parts[] = {"unregister", "register", "arm", "all"};
    double gib = (double)memory->size_bytes / (double)(1 << 30);

    printf("memory=%s direction=%s", memory->kind, direction);
    for (int i = 0; i < 4; i++)
        printf(" %s-ms-per-gib=%.3f", parts[i], median_us(times->ns[i], rounds) / 1000 / gib);
    puts("");
}

static void measure(const Memory *memory, uint64_t rounds) {
    static Times times[2];
    Rig rig = {.memory = memory, .sync = must(PROGRAM, snap_uffd_open(), "userfaultfd (needs root)")};

    open_async(PROGRAM, &rig.async);
    must(PROGRAM,
         snap_uffd_api(rig.sync, UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
                                     UFFD_FEATURE_WP_UNPOPULATED),
         "sync write-protection");
    must(PROGRAM, snap_uffd_register(rig.sync, (uintptr_t)memory->start, memory->size_bytes), "register");
    must(PROGRAM, snap_uffd_protect(rig.sync, (uintptr_t)memory->start, memory->size_bytes), "protect");
    for (uint64_t i = 0; i < rounds; i++) {
        to_async(&rig, &times[0], i);
        to_sync(&rig, &times[1], i);
    }
    print("sync-to-async", memory, &times[0], rounds);
    print("async-to-sync", memory, &times[1], rounds);
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
