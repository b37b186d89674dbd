/*
 * Spared pages: what is not left protected, because the kernel writes there without being able to wait.
 *
 * A futex with priority inheritance, FUTEX_WAKE_OP, the robust locks of a thread that ends and the number that is
 * cleared at its end: there the kernel writes the guest's memory for it, and a page that is protected in SYNC mode
 * is no fault that is served, but EFAULT for the guest (fixup_user_fault() without permission to retry, and
 * handle_userfault(), which does not wait for a task that is exiting). A C library aborts then. A guest that waits
 * for such a lock at the point in time would be killed by every snapshot.
 *
 * So those pages are treated as if the guest wrote to them all the time: in LOG they are touched in each round and
 * never protected, in SYNC they are copied at once. Where they are the guest's driver tells
 * (SnapGuestOps.list_spared), for what the guest does just then. What begins later writes the lock itself first,
 * as all C libraries do, and that is an ordinary fault. What is left is a lock that a thread finds taken, on a
 * page that is protected for the first time while the guest runs, between its own write and the kernel's, some 100
 * ns; tests/integ/guest-locks.py counts how often, with a guest that does nothing but fight for one lock.
 *
 * Async mode needs none of it: there the kernel serves the fault itself.
 */
#pragma once

#include "track-sync.h"

#define SNAP_SPARED_MAX 1024u /* remembered; with more, those seen last count */

/*
 * Spare the pages of @addresses (uint64_t, in any order; what is in no area is passed over). In LOG from now on;
 * in SYNC, for what has not been written yet. Job thread.
 */
void snap_spared_add(SnapSync *tracker, const GArray *addresses) SNAP_EXCLUDES(tracker->lock);

/* Serve all that are spared, after a round or at the point. Job thread. */
void snap_spared_serve(SnapSync *tracker) SNAP_EXCLUDES(tracker->lock);

/* Forget what there is no room for in the pool: it is protected then. Before the point. Job thread. */
void snap_spared_fit(SnapSync *tracker) SNAP_EXCLUDES(tracker->lock);

/* The first granule of an area at or behind @address that is spared; UINT64_MAX: none. Job thread. */
uint64_t snap_spared_next(const SnapSync *tracker, const SnapArea *area, uint64_t address);
