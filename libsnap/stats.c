/* Latencies and rates; see stats.h. */
#include "stats.h"

#include <stdbool.h>
#include <time.h>

#define SUB_BITS 4u
#define SUB (1u << SUB_BITS)

#define RATE_STEP_NS UINT64_C(500000000)

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

void snap_latency_add(SnapLatency *latency, uint64_t ns) {
    latency->count++;
    latency->max_ns = MAX(latency->max_ns, ns);
    latency->buckets[bucket_of(ns)]++;
}

uint64_t snap_latency_quantile(const SnapLatency *latency, unsigned per_mille) {
    if (latency->count == 0) {
        return 0;
    }
    uint64_t rank = (latency->count * per_mille + 999) / 1000;
    uint64_t seen = 0;
    for (unsigned i = 0; i < SNAP_LATENCY_BUCKETS; i++) {
        seen += latency->buckets[i];
        if (seen >= rank && latency->buckets[i] > 0) {
            return MIN(top_of(i), latency->max_ns);
        }
    }
    return latency->max_ns;
}

void snap_latency_histogram(const SnapLatency *latency, SnapHistogram *ret_histogram) {
    unsigned to = 0;
    for (; to < SNAP_HISTOGRAM_BUCKETS; to++) {
        bool last = to == SNAP_HISTOGRAM_BUCKETS - 1;
        ret_histogram->buckets[to] =
            (SnapHistogramBucket){.upper_ns = last ? UINT64_MAX : SNAP_HISTOGRAM_FIRST_NS << to};
    }
    to = 0;
    for (unsigned i = 0; i < SNAP_LATENCY_BUCKETS; i++) {
        while (to < SNAP_HISTOGRAM_BUCKETS - 1 && top_of(i) >= ret_histogram->buckets[to].upper_ns) {
            to++;
        }
        ret_histogram->buckets[to].count += latency->buckets[i];
    }
}

uint64_t snap_rate_look(SnapRate *rate, uint64_t now_ns, uint64_t bytes) {
    if (rate->last.ns == 0) {
        rate->last.ns = rate->before.ns = now_ns;
        rate->last.bytes = rate->before.bytes = bytes;
    }
    if (now_ns - rate->last.ns >= RATE_STEP_NS) {
        rate->before = rate->last;
        rate->last.ns = now_ns;
        rate->last.bytes = bytes;
    }
    uint64_t ns = now_ns - rate->before.ns;
    return ns ? (uint64_t)((double)(bytes - rate->before.bytes) * 1e9 / (double)ns) : 0;
}

uint64_t snap_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}
