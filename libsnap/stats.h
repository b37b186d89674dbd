/*
 * A histogram of times, for percentiles that are right to 6 % at any size.
 *
 * Buckets: 16 for each power of two, as HdrHistogram lays them out (one significant hex digit). Fixed memory, no
 * allocation. Not thread safe.
 */
#pragma once

#include <stdint.h>

#define SNAP_HISTOGRAM_BUCKETS (61u * 16u)

typedef struct {
    uint64_t count;
    uint64_t max_ns;
    uint64_t buckets[SNAP_HISTOGRAM_BUCKETS];
} SnapHistogram;

void snap_histogram_add(SnapHistogram *histogram, uint64_t ns);

/* The time that @per_mille of 1000 values do not exceed: the top of its bucket, never above the maximum; 0 if
 * empty. */
uint64_t snap_histogram_quantile(const SnapHistogram *histogram, unsigned per_mille);

/* CLOCK_MONOTONIC in ns. */
uint64_t snap_now_ns(void);
