/*
 * The fault thread: serves the guest. See track-sync.h for modes and rules.
 */
#pragma once

#include "track-sync.h"

/* The thread's body; @data: the SnapSync. */
gpointer snap_faults_run(gpointer data);

/*
 * Serve the page of an area at @address as if the guest had just written to it. FALSE: not yet, an event of the
 * guest is pending; the page may be noted as written already. What is in no area, or holds nothing, is passed
 * over. Job thread.
 */
bool snap_faults_serve(SnapSync *tracker, uint64_t address) SNAP_EXCLUDES(tracker->lock);

/*
 * Claim the granules of [offset, end) of @area that nobody has, and copy them to the pool. @address: where @offset
 * is mapped; the range is one extent. Return: 0; -ENOBUFS, the pool is full; -EFAULT, the pages are not there any
 * more; -ESRCH. On an error the granules before it are claimed and saved.
 */
int snap_faults_capture_locked(SnapSync *tracker, uint32_t area, uint64_t offset, uint64_t end, uint64_t address)
    SNAP_REQUIRES(tracker->lock);
