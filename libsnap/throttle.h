/*
 * Throttle: a limit of bytes a second that may be changed at any time. Not thread safe.
 *
 * What was spent is owed, and paid off as time goes by, at the rate that holds then; so a new limit counts for
 * what is owed from before as well. Time in which nothing is owed is not saved up. {0} begins it.
 */
#pragma once

#include <stdint.h>

typedef struct {
    double owed_bytes;
    uint64_t paid_ns; /* until when */
} SnapThrottle;

/* @bytes were spent. */
void snap_throttle_spend(SnapThrottle *throttle, uint64_t bytes);

/* How long until nothing is owed; 0: now. @bytes_per_second: the limit; 0: there is none. */
uint64_t snap_throttle_wait_ns(SnapThrottle *throttle, uint64_t now_ns, uint64_t bytes_per_second);
