/*
 * What the guest does to its mappings while they are tracked: munmap, mremap, madvise. Fault thread only.
 */
#pragma once

#include "track-sync.h"

/*
 * An event is pending, or in the making: take one step towards its end. Saves first what a madvise is about to
 * discard. Waits some µs when there is nothing to do yet.
 */
void snap_events_serve(SnapSync *tracker) SNAP_EXCLUDES(tracker->lock);

/* Read the next message; an event is acted upon. Return: 1, 0 when there is none, or -errno. */
int snap_events_read(SnapSync *tracker, struct uffd_msg *ret_msg) SNAP_EXCLUDES(tracker->lock);

/* Keep a fault that was read until the events are done with. */
void snap_events_queue(SnapSync *tracker, const struct uffd_msg *msg);
