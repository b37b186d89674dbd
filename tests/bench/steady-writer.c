/*
 * A program with work to do: some computing, one write to the next page, and so on, about 50 000 pages a second
 * when nobody watches. How many it manages, a line a second, tells what watching costs it.
 *
 *     steady-writer [MIB]      prints "ready pid=…", then "pages-per-second=…" for each second
 *
 * The computing is calibrated once, at the start, to a fixed number of steps; it does not adapt to what comes
 * later.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { PAGES_PER_SECOND = 50000, CALIBRATION_STEPS = 50000000 };
#define NS_PER_SECOND UINT64_C(1000000000)

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_SECOND + (uint64_t)now.tv_nsec;
}

static uint64_t compute(uint64_t seed, uint64_t steps) {
    for (uint64_t i = 0; i < steps; i++) {
        seed = seed * UINT64_C(6364136223846793005) + 1;
    }
    return seed;
}

/* Steps that take as long as one page has; the fastest of some tries, since others disturb. */
static uint64_t calibrate(uint64_t *seed) {
    uint64_t best = UINT64_MAX;
    for (int i = 0; i < 5; i++) {
        uint64_t start = now_ns();
        *seed = compute(*seed, CALIBRATION_STEPS);
        uint64_t took = now_ns() - start;
        best = took < best ? took : best;
    }
    return CALIBRATION_STEPS * (NS_PER_SECOND / PAGES_PER_SECOND) / best;
}

int main(int argc, char **argv) {
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t length = (argc > 1 ? strtoull(argv[1], NULL, 10) : 1024) << 20;
    uint8_t *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        perror("steady-writer");
        return 1;
    }
    madvise(memory, length, MADV_NOHUGEPAGE);
    memset(memory, 1, length);
    uint64_t seed = 1, steps = calibrate(&seed), written = 0, at = 0, start = now_ns();
    printf("ready pid=%d steps=%lu\n", (int)getpid(), steps);
    fflush(stdout);
    for (;;) {
        for (int i = 0; i < 100; i++, written++) {
            seed = compute(seed, steps);
            memcpy(memory + at, &seed, sizeof seed);
            at = (at + page) % length;
        }
        uint64_t now = now_ns();
        if (now - start >= NS_PER_SECOND) {
            printf("pages-per-second=%.0f\n", (double)written * 1e9 / (double)(now - start));
            fflush(stdout);
            written = 0;
            start = now;
        }
    }
}
