/*
 * What it costs to protect memory that was written all over: UFFDIO_WRITEPROTECT over the range against
 * snap_async_arm(), which has to find what there is too.
 *
 *     arm-cost [--memory anon|thp|memfd|hugetlb] [--size 1G] [--rounds 5]
 *
 * Prints medians in milliseconds for a GiB. The rounds alternate. Exit status 1 with a line on stderr when the
 * kernel does not let us, 2 for wrong usage.
 */
#include "cost.h"

#define PROGRAM "arm-cost"

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
    uint64_t times_ns[2][COST_ROUNDS_MAX];
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

int main(int argc, char **argv) {
    return cost_main(PROGRAM, argc, argv, measure);
}
