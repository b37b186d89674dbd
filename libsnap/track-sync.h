/*
 * Tracker: a guest's memory under sync write-protection, up to and across one point in time.
 *
 *   mode   what the fault thread does with a faulting page              who enters it
 *   OFF    un-protects it                                               new, release
 *   LOG    un-protects it and remembers it (pre-arm, and the log        snap_sync_start,
 *          between two points)                                          snap_sync_go_on_logging
 *   SYNC   claims it, copies it to the pool, un-protects it             snap_sync_point
 *
 *   chunk phase   moved by   to         when
 *   PROTECTED     sweep      SWEEPING   it claims the pages that no fault has claimed
 *   SWEEPING      sweep      PROTECTED  the copy proved invalid: the guest moved or dropped the pages meanwhile
 *   SWEEPING      sweep      CAPTURED   the copy is good and the pre-images are taken over
 *   CAPTURED      sweep      RELEASED   the kernel has un-protected it (EAGAIN while an event is pending)
 *                            KEPT       the same where the log is kept: what was written is un-protected
 *
 * What is captured at a point are the *dirty* pages: all, or where the log is kept from one point to the next,
 * those that were written in between. No write is missed: from its protection on, a page's first write is a fault,
 * which is noted under the lock before the page is un-protected; in LOG as touched, in SYNC as written since this
 * point.
 *
 * A page is captured once, by who claims it. Why a copy is good: every page is write-protected from the point in
 * time until somebody here un-protects it, and whatever else takes the content away (munmap, mremap, madvise, hole
 * punching) takes the protection away with it. So a page that is *still protected after it was copied* was copied
 * as it was at the point. Nothing is inferred from the order of messages.
 *
 * Threads: the job thread calls everything here and the sweep (sweep.h); the fault thread (faults.h) serves
 * messages. One lock between them, held for a page copy at most, never by anyone who does I/O. The fault thread
 * allocates nothing, logs nothing, and touches no memory but its own, the pool's and what is mapped for it: it may
 * run in the very process whose heap is protected.
 */
#pragma once

#include "area.h"
#include "layout.h"
#include "lock.h"
#include "memory.h"
#include "pool.h"
#include "stats.h"
#include "uapi.h"

typedef enum {
    SNAP_SYNC_OFF,
    SNAP_SYNC_LOG,
    SNAP_SYNC_SYNC,
    SNAP_SYNC_MAX,
} SnapSyncMode;

/* A page, in one word: 20 bits of area, 44 of page. */
typedef uint64_t SnapPageRef;
#define SNAP_PAGE_REF_BITS 44u
#define SNAP_TOUCHED_MAX 65536u /* remembered one by one; more, and all chunks are looked through */
#define SNAP_HOT_MAX 8192u
#define SNAP_QUEUED_MAX 8192u /* one waiting fault a thread of the guest */

/* Why it cannot go on; the first reason counts. Allocates nothing, so that the fault thread can set it. */
typedef struct {
    int code;   /* SnapErrorCode, -1 while all is well */
    int errnum; /* or 0 */
    const char *what;
    uint32_t area;
    uint64_t offset;
} SnapSyncFailure;

/* A unit of chunks that the sweep captures at once. */
typedef struct {
    uint32_t area;
    uint32_t n_chunks;
    uint64_t first;
} SnapUnit;

typedef struct {
    /* set before start */
    int pid;
    int uffd;
    int fdinfo;
    int pagemap;
    int stop_fd; /* eventfd: the fault thread ends */
    int room_fd; /* eventfd: there is a lack of room, or a failure; see snap_sync_lacks_room() */
    uint64_t page_bytes;
    SnapAtCap at_cap;
    bool keep; /* the log counts: pages stay protected when they are captured. Job thread, outside SYNC */
    SnapMemoryReader reader;
    GThread *thread;

    SnapLock lock;
    /* under lock; areas and their armed runs are changed by the job thread only, so it may read them without */
    GPtrArray *areas;
    SnapSyncMode mode;
    SnapPool *pool;
    SnapLayout layout;
    SnapPageRef *touched; /* LOG */
    uint32_t n_touched;
    bool touched_overflow;
    SnapUnit *hot; /* ring; n_hot from first_hot on */
    uint32_t first_hot;
    uint32_t n_hot;
    uint32_t n_waiting; /* chunks that the guest waits for */
    bool tell_room;     /* the next lack of room is told by room_fd */
    SnapSyncFailure failure;
    SnapLatency latency;
    uint64_t pages_by_fault;

    /* job thread only */
    GArray *backlog; /* of SnapUnit: captured, still to be released */
    GArray *spared;  /* of uint64_t: pages that are not protected; see spared.h */

    /* fault thread only */
    struct uffd_msg *queued; /* faults read on the way to an event; ring */
    uint32_t first_queued;
    uint32_t n_queued;
} SnapSync;

/*
 * @uffd: (take) a fresh descriptor of the guest's address space. @pool_pages: the cap on pre-images.
 * Errors: NOT_SUPPORTED, this kernel lacks a feature, by name; PERMISSION; GUEST_GONE.
 */
SnapSync *snap_sync_new(int pid, int uffd, uint32_t pool_pages, SnapAtCap at_cap, GError **error);

/* Release what is still protected, end the thread, free. NULL is allowed. */
void snap_sync_free(SnapSync *tracker);

/* Start the fault thread: OFF → LOG. */
void snap_sync_start(SnapSync *tracker);

/*
 * Register @region (take) and protect what it holds. @stands: the guest does not run, so what was listed is there;
 * else a region that has gone is dropped without an error. Errors: REFUSED, another userfaultfd has it;
 * NOT_SUPPORTED, this kind of mapping cannot be protected; GUEST_GONE.
 */
gboolean snap_sync_add(SnapSync *tracker, SnapRegion *region, bool stands, GError **error);

/*
 * In LOG, one round: protect what was touched or filled since the last. @ret_pages: how much that was. Areas that
 * have been dropped are freed, and those behind them get other numbers.
 */
gboolean snap_sync_round(SnapSync *tracker, uint64_t *ret_pages, GError **error);

/*
 * The guest stands still and the areas are what it has: take the point in time, LOG → SYNC. Errors: TIMED_OUT,
 * something still writes.
 */
gboolean snap_sync_point(SnapSync *tracker, GError **error);

/*
 * The point's image is complete: SYNC → LOG, with what was written since the point as touched. All is captured,
 * the log was kept.
 */
void snap_sync_go_on_logging(SnapSync *tracker);

/* Not in SYNC: take area @i out; what it covered may be added anew. It is freed by the next round. */
void snap_sync_drop(SnapSync *tracker, guint i);

/* In LOG: free the areas that were dropped; those behind them get other numbers. */
void snap_sync_forget_dropped(SnapSync *tracker);

/* The guest has only the first @length_bytes of area @i left; what is behind may be another area's. */
void snap_sync_shrink(SnapSync *tracker, guint i, uint64_t length_bytes);

/* → OFF: un-protect everything and forget the registrations, in pieces that do not hold up the guest. */
void snap_sync_release(SnapSync *tracker);

/* Whether fault thread or sweep have given up; sets *error then, naming region and address. */
gboolean snap_sync_failed(SnapSync *tracker, GError **error);

/* Length of the region that was LOST, or 0 when none was. */
uint64_t snap_sync_lost_bytes(SnapSync *tracker);

/* Set the failure, if it is the first; the guest is released from then on. */
void snap_sync_fail_locked(SnapSync *tracker, SnapSyncFailure failure) SNAP_REQUIRES(tracker->lock);

/* SYNC: note that pages [offset, end) of an area were written or discarded since the point. */
void snap_sync_note_locked(SnapSync *tracker, uint32_t area, uint64_t offset, uint64_t end)
    SNAP_REQUIRES(tracker->lock);

/* Remember that pages of a chunk were touched. */
void snap_sync_touch_locked(SnapSync *tracker, uint32_t area, uint64_t chunk, uint64_t mask)
    SNAP_REQUIRES(tracker->lock);

/*
 * Put a chunk into the queue that the sweep serves first. @waiting: a writer sleeps until it is swept, so it goes
 * to the front; entries of a chunk that is captured by the time they are reached count for nothing.
 */
void snap_sync_heat_locked(SnapSync *tracker, uint32_t area, uint64_t chunk, bool waiting)
    SNAP_REQUIRES(tracker->lock);

/*
 * Whether a sweep that rests has to go on: the guest waits for it, or soon would, as half the pool is taken. If
 * not, room_fd becomes readable when it has to, once; by a failure as well.
 */
bool snap_sync_lacks_room(SnapSync *tracker);

/* A pre-image was added: tell whoever asked, if there is a lack of room now. */
void snap_sync_look_room_locked(SnapSync *tracker) SNAP_REQUIRES(tracker->lock);

static inline SnapArea *snap_sync_area(const SnapSync *tracker, uint32_t i) {
    return g_ptr_array_index(tracker->areas, i);
}
