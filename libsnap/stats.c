/* The histogram of times; see stats.h. */
#include "stats.h"

#include <glib.h>
#include <time.h>

#define SUB_BITS 4u
#define SUB (1u << SUB_BITS)

static unsigned bucket_of(uint64_t ns) {
    if (ns < SUB) {
        return (unsigned)ns;
    }
    unsigned log2 = 63u - (unsigned)__builtin_clzll(ns);
    unsigned shift = log2 - SUB_BITS;
    return (shift + 1) * SUB + (unsigned)((ns >> shift) & (SUB - 1));
}

static uint64_t top_of(unsigned bucket) {
    if (bucket < SUB) {
        return bucket;
    }
    unsigned shift = bucket / SUB - 1;
    return (((uint64_t)(bucket % SUB) + SUB + 1) << shift) - 1;
}

void snap_histogram_add(SnapHistogram *histogram, uint64_t ns) {
    histogram->count++;
    histogram->max_ns = MAX(histogram->max_ns, ns);
    histogram->buckets[bucket_of(ns)]++;
}

uint64_t snap_histogram_quantile(const SnapHistogram *histogram, unsigned per_mille) {
    if (histogram->count == 0) {
        return 0;
    }
    uint64_t rank = (histogram->count * per_mille + 999) / 1000;
    uint64_t seen = 0;
    for (unsigned i = 0; i < SNAP_HISTOGRAM_BUCKETS; i++) {
        seen += histogram->buckets[i];
        if (seen >= rank && histogram->buckets[i] > 0) {
            return MIN(top_of(i), histogram->max_ns);
        }
    }
    return histogram->max_ns;
}

uint64_t snap_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}
