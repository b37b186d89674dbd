/*
 * Deadlines: points of g_get_monotonic_time(), INT64_MAX where there is none; and timeouts as poll() has them, -1
 * without limit.
 */
#pragma once

#include <glib.h>
#include <limits.h>
#include <stdint.h>

static inline int64_t snap_deadline_in(int timeout_ms) {
    return timeout_ms < 0 ? INT64_MAX : g_get_monotonic_time() + (int64_t)timeout_ms * 1000;
}

/* A part of a millisecond counts as one. */
static inline int snap_deadline_left_ms(int64_t deadline_us) {
    if (deadline_us == INT64_MAX)
        return -1;
    int64_t left = (deadline_us - g_get_monotonic_time() + 999) / 1000;
    return (int)CLAMP(left, 0, INT_MAX);
}
