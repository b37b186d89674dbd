/* What the floor programs share: the clock, sizes on the command line, percentiles, giving up. */
#pragma once

#include <errno.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define NS_PER_SECOND UINT64_C(1000000000)

static inline uint64_t now_ns(void) {
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_SECOND + (uint64_t)now.tv_nsec;
}

/* "PROGRAM: what: why" on stderr, and the end. */
static inline _Noreturn void die(const char *program, const char *what) {
    fprintf(stderr, "%s: %s: %s\n", program, what, strerror(errno));
    exit(1);
}

/* 0: not a size. */
static inline uint64_t parse_size(const char *text) {
    static const char suffixes[] = "KMGT";
    char *end;
    uint64_t value = strtoull(text, &end, 0);
    const char *suffix = *end ? strchr(suffixes, *end) : NULL;

    if (end == text || (*end && (!suffix || end[1])))
        return 0;
    return suffix ? value << (10 * (suffix - suffixes + 1)) : value;
}

static inline int compare_times(const void *a, const void *b) {
    uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;

    return (left > right) - (left < right);
}

/* Sorts @times_ns. */
static inline void sort_times(uint64_t *times_ns, size_t n) {
    qsort(times_ns, n, sizeof(*times_ns), compare_times);
}

/* Of sorted times: what @per_cent of them do not exceed, in microseconds. */
static inline double percentile_us(const uint64_t *times_ns, size_t n, unsigned per_cent) {
    size_t at = n ? (n - 1) * per_cent / 100 : 0;

    return n ? (double)times_ns[at] / 1000 : 0;
}
