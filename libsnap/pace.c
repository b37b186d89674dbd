/* A shared limit of bytes a second; see pace.h. */
#include "pace.h"

#include "stats.h"

void snap_pace_init(SnapPace *pace) {
    *pace = (SnapPace){0};
    snap_lock_init(&pace->lock);
    snap_cond_init(&pace->changed);
}

void snap_pace_clear(SnapPace *pace) {
    snap_cond_clear(&pace->changed);
    snap_lock_clear(&pace->lock);
}

void snap_pace_set(SnapPace *pace, uint64_t bytes_per_second) {
    snap_lock(&pace->lock);
    pace->bytes_per_second = bytes_per_second;
    snap_cond_broadcast(&pace->changed);
    snap_unlock(&pace->lock);
}

void snap_pace_stop(SnapPace *pace, bool stopped) {
    snap_lock(&pace->lock);
    pace->stopped = stopped;
    snap_cond_broadcast(&pace->changed);
    snap_unlock(&pace->lock);
}

bool snap_pace_wait(SnapPace *pace, unsigned max_wait_ms) {
    gint64 until_us = g_get_monotonic_time() + (gint64)max_wait_ms * 1000;
    uint64_t wait_ns;
    bool in_time = true;
    snap_lock(&pace->lock);
    while ((wait_ns = snap_throttle_wait_ns(&pace->throttle, snap_now_ns(), pace->bytes_per_second)) > 0 &&
           !pace->stopped && in_time) {
        gint64 now_us = g_get_monotonic_time();
        in_time = now_us < until_us;
        if (in_time) {
            snap_cond_wait_until(&pace->changed, &pace->lock,
                                 MIN(until_us, now_us + (gint64)(wait_ns / 1000) + 1));
        }
    }
    bool may = wait_ns == 0 || pace->stopped;
    snap_unlock(&pace->lock);
    return may;
}

void snap_pace_spend(SnapPace *pace, uint64_t bytes) {
    snap_lock(&pace->lock);
    snap_throttle_spend(&pace->throttle, bytes);
    snap_unlock(&pace->lock);
}
