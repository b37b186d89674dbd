/*
 * Post-copy, inside: what incoming-missing.c (what is missing), incoming-faults.c (who waits, and asks) and
 * incoming-place.c (pages come) share.
 *
 * A page is missing or it is there. It becomes there by being put in place under the lock, in one with the bit: so
 * it is put once, and one that the guest has discarded since is not put again. A granule of huge pages is
 * collected in a buffer, and is there when the whole of it was put.
 *
 * What the guest discards (the event comes before its effect, and lets it go on when it is read) is there as well:
 * the next touch finds nothing, and gets zeros.
 *
 * Lock: a leaf, held over one call of the kernel, or one copy into a buffer of huge pages.
 */
#pragma once

#include "incoming.h"

struct SnapMissing {
    /* set before start */
    SnapIncoming *incoming;
    int wake_fd;    /* eventfd: look at wanted and stop */
    uint8_t *zeros; /* (nullable) the largest granule of huge pages */
    size_t zeros_bytes;

    /* snap-incoming only */
    GThread *thread; /* (nullable) snap-missing, from the first connect to finish */

    /* set before start and by finish */
    int uffd; /* -1: nothing is registered any more */

    /* under lock; of regions: missing, asked, parts */
    SnapLock lock;
    SnapCond changed;
    SnapIncomingLane *wanted; /* (nullable) where to ask */
    SnapIncomingLane *lane;   /* (nullable) what the thread uses; it may read it without the lock */
    bool armed;               /* the masks are those of what is registered, for good */
    bool stop;
    bool lost;          /* nothing can be asked for */
    bool loading;       /* load_state may wait for a page */
    uint64_t n_missing; /* pages; of a huge granule all until it is there */
    uint64_t n_asked;

    /* snap-missing only */
    SnapIncomingLane *broken; /* the lane that failed */
    int64_t asked_us;         /* when something was asked for last */
};

static inline bool snap_missing_is_huge(const SnapIncomingRegion *region) {
    return region->region->granule_bytes > region->region->page_bytes;
}

static inline uint64_t snap_missing_pages(const SnapIncomingRegion *region) {
    return region->region->length_bytes / region->region->page_bytes;
}

static inline uint64_t snap_missing_granule_pages(const SnapIncomingRegion *region) {
    return region->region->granule_bytes / region->region->page_bytes;
}

/* Pages [first, end) of a region: the bits of @words that are set. */
uint64_t snap_missing_count(const uint64_t *words, uint64_t first_page, uint64_t end_page);
void snap_missing_clear(uint64_t *words, uint64_t first_page, uint64_t end_page);
void snap_missing_set(uint64_t *words, uint64_t first_page, uint64_t end_page);

/* ---- incoming-place.c ------------------------------------------------------------------------------------ */

/* Whether the granule of @page is there. */
bool snap_missing_is_there_locked(const SnapMissing *missing, const SnapIncomingRegion *region, uint64_t page)
    SNAP_REQUIRES(missing->lock);
/* Pages [first, end), whole granules, are there: put in place, or discarded. */
void snap_missing_note_locked(SnapMissing *missing, SnapIncomingRegion *region, uint64_t first_page,
                              uint64_t end_page) SNAP_REQUIRES(missing->lock);

/* ---- incoming-faults.c ----------------------------------------------------------------------------------- */

gpointer snap_missing_run(gpointer data);

/* The kernel does nothing before an event was read: do that, or let snap-missing do it. */
void snap_missing_let_events_go(SnapMissing *missing, const SnapIncomingLane *lane);
