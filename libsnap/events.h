/*
 * What the guest does to its mappings while they are tracked: munmap, mremap, madvise. Fault thread only.
 */
#pragma once

#include "track.h"

/*
 * An event is pending, or in the making: take one step towards its end. Saves first what a madvise is about to
 * discard. Waits some µs when there is nothing to do yet.
 */
void snap_events_serve(SnapTracker *tracker) SNAP_EXCLUDES(tracker->lock);

/* Act on an event that was read. */
void snap_events_apply(SnapTracker *tracker, const struct uffd_msg *msg) SNAP_EXCLUDES(tracker->lock);

/* Keep a fault that was read until the events are done with. */
void snap_events_queue(SnapTracker *tracker, const struct uffd_msg *msg);
