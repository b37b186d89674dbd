/*
 * What is measured: how long faults took, and how fast bytes go by.
 *
 * Latencies are counted in buckets, for percentiles that are right to 6 % at any size: 16 buckets for each power
 * of two, as HdrHistogram lays them out (one significant hex digit). Fixed memory, no allocation. Not thread safe.
 */
#pragma once

#include <stdint.h>

#include "libsnap.h"

#define SNAP_LATENCY_BUCKETS (61u * 16u)

typedef struct {
    uint64_t count;
    uint64_t max_ns;
    uint64_t buckets[SNAP_LATENCY_BUCKETS];
} SnapLatency;

void snap_latency_add(SnapLatency *latency, uint64_t ns);

/* The time that @per_mille of 1000 values do not exceed: the top of its bucket, never above the maximum; 0 if
 * empty. */
uint64_t snap_latency_quantile(const SnapLatency *latency, unsigned per_mille);

/* The same values in the few buckets that are handed out; exact, as their edges are edges here too. */
void snap_latency_histogram(const SnapLatency *latency, SnapHistogram *ret_histogram);

/*
 * A rate over the last half to whole second: since the last but one of the moments, at least half a second apart,
 * at which it was looked at. {0} begins it.
 */
typedef struct {
    struct {
        uint64_t ns;
        uint64_t bytes;
    } last, before;
} SnapRate;

/* @bytes: so far. Return: bytes a second. */
uint64_t snap_rate_look(SnapRate *rate, uint64_t now_ns, uint64_t bytes);

/* CLOCK_MONOTONIC in ns. */
uint64_t snap_now_ns(void);
