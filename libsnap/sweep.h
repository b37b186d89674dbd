/*
 * Sweep: capture what no fault has captured, unit by unit, into staging buffers. Job thread only.
 *
 * A unit is one chunk, or as many as the kernel un-protects at once without splitting a huge page.
 */
#pragma once

#include "image-write.h"
#include "track-sync.h"

/* The next faulted chunk still to be captured; FALSE when there is none. */
gboolean snap_sweep_next_hot(SnapSync *tracker, SnapUnit *ret_unit);

/*
 * The unit that @chunk of @area belongs to; n_chunks 0 when it is captured already. @max_chunks: staging buffers
 * to be had; a unit of a huge granule is never cut.
 */
SnapUnit snap_sweep_unit(SnapSync *tracker, uint32_t area, uint64_t chunk, uint32_t max_chunks);

/*
 * Capture the unit: fill buffers[0 … n_chunks), region excepted, and let the guest have its pages back. Errors:
 * LOST, naming region and address; GUEST_GONE; what the fault thread failed with.
 */
gboolean snap_sweep_capture(SnapSync *tracker, SnapUnit unit, SnapChunk **buffers, GError **error);

/*
 * Shared memory, where the log is kept: see that no page of @chunk that is not captured was punched out (holes.h).
 * Errors: LOST.
 */
gboolean snap_sweep_check_holes(SnapSync *tracker, uint32_t area, uint64_t chunk, GError **error);

/* Release what was captured while an event was pending. TRUE when nothing is left to release. */
gboolean snap_sweep_release(SnapSync *tracker);
