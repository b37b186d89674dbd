/*
 * Lazy pages: private memory that the guest has discarded, and that may still be there.
 *
 * After MADV_FREE the kernel takes such pages away when it likes: without an event, and with them goes their
 * protection. What the guest then writes there is no fault. So between two points each lazy page is looked at
 * again: one that is not protected any more counts as touched, and is protected anew. A page is lazy from the
 * event that discards it until it is written through a fault, or is seen to have gone; which kind of madvise it
 * was an event does not say.
 *
 * Lazy words are under the tracker's lock; the job thread alone looks.
 */
#pragma once

#include "track-sync.h"

/* Pages [offset, end) of an area were discarded. */
void snap_lazy_note_locked(SnapSync *tracker, uint32_t area, uint64_t offset, uint64_t end)
    SNAP_REQUIRES(tracker->lock);

/* Pages [offset, end) of an area are about to be written, which a fault has told. */
void snap_lazy_written_locked(SnapSync *tracker, uint32_t area, uint64_t offset, uint64_t end)
    SNAP_REQUIRES(tracker->lock);

/* All of an area may be lazy: it is not known what was done to it before. */
void snap_lazy_note_all(SnapSync *tracker, uint32_t area);

/* In LOG: find out what was discarded in areas before they were tracked. Return: 0 or -errno. */
int snap_lazy_look_back(SnapSync *tracker);

/* In LOG: lazy pages that have lost their protection are touched. Return: 0 or -errno. */
int snap_lazy_touch(SnapSync *tracker);

/* Before pages of @mask are protected: those that have gone are not lazy any more. Return: 0 or -errno. */
int snap_lazy_settle(SnapSync *tracker, SnapArea *area, uint64_t chunk, uint64_t mask);
