/*
 * What it costs to switch memory between async and sync write-protection: unregister from one userfaultfd,
 * register with the other, protect everything there. Nobody writes meanwhile.
 *
 *     switch-cost [--memory anon|thp|memfd|hugetlb] [--size 1G] [--rounds 5]
 *
 * Prints medians in milliseconds for a GiB: each direction, and of what it is made. Exit status 1 with a line on
 * stderr when the kernel does not let us, 2 for wrong usage.
 */
#include "cost.h"

#define PROGRAM "switch-cost"

/* Of one direction: unregister, register, arm, and all three. */
typedef struct {
    uint64_t ns[4][COST_ROUNDS_MAX];
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

int main(int argc, char **argv) {
    return cost_main(PROGRAM, argc, argv, measure);
}
