/*
 * Pace: a limit of bytes a second that several threads share, and that may be changed at any time.
 *
 * Who is about to send asks first, and waits where too much was sent of late; what was asked for is spent. Waiting
 * ends at once when the limit changes, or everything is to stop. Lock: a leaf.
 */
#pragma once

#include "lock.h"
#include "throttle.h"

#include <stdbool.h>

typedef struct {
    SnapLock lock;
    SnapCond changed;
    /* under lock */
    SnapThrottle throttle;
    uint64_t bytes_per_second; /* 0: no limit */
    bool stopped;
} SnapPace;

void snap_pace_init(SnapPace *pace);
void snap_pace_clear(SnapPace *pace);

void snap_pace_set(SnapPace *pace, uint64_t bytes_per_second) SNAP_EXCLUDES(pace->lock);
/* Nobody waits any more; or is to wait again. */
void snap_pace_stop(SnapPace *pace, bool stopped) SNAP_EXCLUDES(pace->lock);

/* Wait at most @max_wait_ms until something may be sent. Return: whether it may; also when it was stopped. */
bool snap_pace_wait(SnapPace *pace, unsigned max_wait_ms) SNAP_EXCLUDES(pace->lock);

/* @bytes were sent. */
void snap_pace_spend(SnapPace *pace, uint64_t bytes) SNAP_EXCLUDES(pace->lock);
