/*
 * The fault thread.
 *
 * The happy path: poll says readable; no event is pending, so what waits is a fault; read it, find the page, claim
 * it, copy it into the pool, un-protect it, which wakes the writer, and see by the answer that the copy is good.
 *
 * Every message is answered by an un-protect or a wake, or left to the sweep that is just about to release the
 * page: a writer that queues after an un-protect may sleep although the page is free (the kernel looks at the
 * write bit, which copy-on-write after fork() leaves clear), and only an answer wakes it.
 *
 * What fails: the pool is full (the chunk goes to the front of the sweep and the writer waits, or the snapshot is
 * given up), the page cannot be read or is no longer protected (it was lost; the snapshot is given up), the guest
 * is gone. Given up means mode OFF: from then on every fault is just released.
 */
#include "faults.h"

#include <errno.h>
#include <poll.h>
#include <sys/prctl.h>

#include "events.h"
#include "go-first.h"
#include "holes.h"
#include "image-write.h"
#include "lazy.h"
#include "pagemap.h"
#include "uffd.h"

enum {
    BATCH_PAGES = 512, /* pages of a huge granule that are read at once */
};

/* Where a fault is. */
typedef struct {
    uint32_t area;
    uint64_t offset;  /* of its granule in the area */
    uint64_t address; /* of its granule in the guest */
    uint64_t length;  /* of the granule */
    bool fresh;       /* captured just now, not yet known to be good */
} Place;

/* ---- capturing ------------------------------------------------------------------------------------------- */

static void give_back(SnapSync *tracker, const uint32_t *indices, int n) {
    for (int i = n - 1; i >= 0; i--) {
        snap_pool_give(tracker->pool, indices[i]);
    }
}

/* Copy up to BATCH_PAGES pages into fresh pre-images and link them to their chunks. */
static int capture_batch(SnapSync *tracker, SnapArea *area, uint64_t offset, uint64_t address, int n_pages) {
    uint64_t page_bytes = area->region->page_bytes;
    uint32_t indices[BATCH_PAGES];
    struct iovec parts[BATCH_PAGES];
    for (int i = 0; i < n_pages; i++) {
        indices[i] = snap_pool_take(tracker->pool, offset / page_bytes + (uint64_t)i);
        parts[i] = (struct iovec){snap_pool_data(tracker->pool, indices[i]), page_bytes};
    }
    int result = n_pages == 1 ? snap_memory_read(&tracker->reader, area->region, offset, address,
                                                 parts[0].iov_base, page_bytes)
                              : snap_memory_readv(&tracker->reader, area->region, offset, address, parts, n_pages);
    for (int i = 0; i < n_pages && result == 0; i++) {
        bool kept = snap_holes_check(area, offset + (uint64_t)i * page_bytes, parts[i].iov_base, page_bytes);
        result = kept ? 0 : -EFAULT;
    }
    if (result < 0) {
        give_back(tracker, indices, n_pages);
        return result;
    }
    for (int i = 0; i < n_pages; i++) {
        uint64_t page = snap_pool_page(tracker->pool, indices[i]);
        SnapChunkState *chunk = &area->chunks[page / SNAP_CHUNK_PAGES];
        bool first = chunk->claimed == 0;
        *snap_pool_link(tracker->pool, indices[i]) = first ? SNAP_POOL_NONE : chunk->preimages;
        chunk->preimages = indices[i];
        chunk->claimed |= UINT64_C(1) << page % SNAP_CHUNK_PAGES;
    }
    tracker->pages_by_fault += (uint64_t)n_pages;
    return 0;
}

/* Whether the granule at @address is still protected: 1, 0 or -errno. */
static int is_protected(const SnapSync *tracker, uint64_t address) {
    return snap_pagemap_protected(tracker->pagemap, address, tracker->page_bytes);
}

/* Take back what was captured last of [offset, end): it is at the head of its chunks' lists. */
static void give_up_capture_locked(SnapSync *tracker, SnapArea *area, uint64_t offset, uint64_t end)
    SNAP_REQUIRES(tracker->lock) {
    uint64_t page_bytes = area->region->page_bytes;
    for (uint64_t page = end / page_bytes; page-- > offset / page_bytes;) {
        SnapChunkState *chunk = &area->chunks[page / SNAP_CHUNK_PAGES];
        uint32_t index = chunk->preimages;
        g_assert(snap_pool_page(tracker->pool, index) == page);
        chunk->preimages = *snap_pool_link(tracker->pool, index);
        chunk->claimed &= ~(UINT64_C(1) << page % SNAP_CHUNK_PAGES);
        snap_pool_give(tracker->pool, index);
        tracker->pages_by_fault--;
    }
}

/* Captured already, or not to be captured: the image before this one has it. */
static bool is_claimed(const SnapArea *area, uint64_t offset) {
    uint64_t page = offset / area->region->page_bytes;
    const SnapChunkState *chunk = &area->chunks[page / SNAP_CHUNK_PAGES];
    return (chunk->claimed | ~chunk->dirty) >> page % SNAP_CHUNK_PAGES & 1;
}

/* Copy one granule that nobody has. -ENOBUFS: no room for it. */
static int capture_granule_locked(SnapSync *tracker, SnapArea *area, uint64_t offset, uint64_t address)
    SNAP_REQUIRES(tracker->lock) {
    uint64_t page_bytes = area->region->page_bytes, granule = area->region->granule_bytes;
    if (snap_pool_available(tracker->pool) < granule / page_bytes) {
        return -ENOBUFS;
    }
    for (uint64_t at = 0; at < granule; at += BATCH_PAGES * page_bytes) {
        int n = (int)MIN((granule - at) / page_bytes, BATCH_PAGES);
        int result = capture_batch(tracker, area, offset + at, address + at, n);
        if (result < 0) {
            give_up_capture_locked(tracker, area, offset, offset + at);
            return result;
        }
    }
    snap_sync_look_room_locked(tracker);
    return 0;
}

int snap_faults_capture_locked(SnapSync *tracker, uint32_t area_index, uint64_t offset, uint64_t end,
                               uint64_t address) {
    SnapArea *area = snap_sync_area(tracker, area_index);
    uint64_t granule = area->region->granule_bytes;
    for (; offset < end; offset += granule, address += granule) {
        if (is_claimed(area, offset)) {
            continue;
        }
        int result = capture_granule_locked(tracker, area, offset, address);
        int kept = result < 0 ? 1 : is_protected(tracker, address);
        if (kept != 1) {
            give_up_capture_locked(tracker, area, offset, offset + granule);
            result = kept < 0 ? kept : -EFAULT;
        }
        if (result < 0) {
            return result;
        }
    }
    return 0;
}

/* ---- one fault, by mode ---------------------------------------------------------------------------------- */

/* What is to be done for the writer; the serving function has done the rest. */
typedef enum {
    ANSWER_RELEASE, /* un-protect the granule */
    ANSWER_NONE,    /* the sweep will */
    ANSWER_AGAIN,   /* an event came between: serve it, then look again */
} Answer;

static Answer serve_off(SnapSync *tracker, const Place *place) {
    (void)tracker;
    (void)place;
    return ANSWER_RELEASE;
}

/*
 * Remembered before it is un-protected, but both under the lock: a round that collects between the two would
 * protect a page that is then un-protected and forgotten.
 */
static Answer serve_log(SnapSync *tracker, const Place *place) SNAP_REQUIRES(tracker->lock) {
    const SnapArea *area = snap_sync_area(tracker, place->area);
    uint64_t page = place->offset / area->region->page_bytes;
    uint64_t last = (place->offset + place->length) / area->region->page_bytes - 1;
    for (uint64_t chunk = page / SNAP_CHUNK_PAGES; chunk <= last / SNAP_CHUNK_PAGES; chunk++) {
        bool whole = place->length > area->region->page_bytes;
        snap_sync_touch_locked(tracker, place->area, chunk,
                               whole ? snap_area_chunk_mask(area, chunk) : UINT64_C(1) << page % SNAP_CHUNK_PAGES);
    }
    return ANSWER_RELEASE;
}

static Answer give_up_locked(SnapSync *tracker, const Place *place, int code, int errnum, const char *what)
    SNAP_REQUIRES(tracker->lock) {
    snap_sync_fail_locked(
        tracker, (SnapSyncFailure){
                     .code = code, .errnum = errnum, .what = what, .area = place->area, .offset = place->offset});
    return ANSWER_RELEASE;
}

/*
 * What the image before this one has is not captured, and nobody will look at it any more once it is written: so
 * it is looked at now, for holes (holes.h). Return: 0, -EFAULT when it was punched out, or another -errno.
 */
static int check_unchanged(const SnapSync *tracker, const Place *place) {
    const SnapArea *area = snap_sync_area(tracker, place->area);
    uint64_t first = place->offset / area->region->page_bytes;
    uint64_t end = (place->offset + place->length) / area->region->page_bytes;
    for (uint64_t page = first; page < end && area->filled;) {
        uint64_t chunk = page / SNAP_CHUNK_PAGES, next = MIN(end, (chunk + 1) * SNAP_CHUNK_PAGES);
        uint64_t mask = UINT64_MAX << page % SNAP_CHUNK_PAGES;
        mask &= next % SNAP_CHUNK_PAGES ? (UINT64_C(1) << next % SNAP_CHUNK_PAGES) - 1 : UINT64_MAX;
        mask &= area->filled[chunk] & ~area->chunks[chunk].dirty & ~area->chunks[chunk].since;
        uint64_t punched = 0;
        int result = mask ? snap_holes_find(area, &tracker->reader, chunk, mask, &punched) : 0;
        if (result < 0 || punched) {
            return result < 0 ? result : -EFAULT;
        }
        page = next;
    }
    return 0;
}

static Answer serve_sync(SnapSync *tracker, Place *place) SNAP_REQUIRES(tracker->lock) {
    SnapArea *area = snap_sync_area(tracker, place->area);
    uint64_t number = place->offset / area->chunk_bytes;
    SnapChunkState *chunk = &area->chunks[number];
    if (check_unchanged(tracker, place) == -EFAULT) {
        return give_up_locked(tracker, place, SNAP_ERROR_LOST, 0, "the guest discarded it (hole punching)");
    }
    snap_sync_note_locked(tracker, place->area, place->offset, place->offset + place->length);
    switch ((SnapChunkPhase)chunk->phase) {
    case SNAP_CHUNK_SWEEPING:
    case SNAP_CHUNK_CAPTURED:
        return ANSWER_NONE;
    case SNAP_CHUNK_RELEASED:
    case SNAP_CHUNK_KEPT:
        return ANSWER_RELEASE;
    case SNAP_CHUNK_PROTECTED:
        break;
    }
    if (is_claimed(area, place->offset)) {
        return ANSWER_RELEASE;
    }
    int result = capture_granule_locked(tracker, area, place->offset, place->address);
    switch (result) {
    case 0:
        place->fresh = true;
        snap_sync_heat_locked(tracker, place->area, number, false);
        return ANSWER_RELEASE;
    case -ENOBUFS:
        if (tracker->at_cap == SNAP_AT_CAP_BLOCK) {
            snap_sync_heat_locked(tracker, place->area, number, true);
            return ANSWER_NONE;
        }
        return give_up_locked(tracker, place, SNAP_ERROR_BUFFER_FULL, 0,
                              "the guest writes faster than the image is written");
    case -ESRCH:
        return give_up_locked(tracker, place, SNAP_ERROR_GUEST_GONE, 0, "the guest ended");
    case -EFAULT:
        if (snap_uffd_event_pending(tracker->uffd)) {
            return ANSWER_AGAIN;
        }
        return give_up_locked(tracker, place, SNAP_ERROR_LOST, 0, "the guest discarded it");
    default:
        return give_up_locked(tracker, place, SNAP_ERROR_IO, -result, "cannot read it");
    }
}

static Answer serve_locked(SnapSync *tracker, Place *place) SNAP_REQUIRES(tracker->lock) {
    snap_lazy_written_locked(tracker, place->area, place->offset, place->offset + place->length);
    switch (tracker->mode) {
    case SNAP_SYNC_LOG:
        return serve_log(tracker, place);
    case SNAP_SYNC_SYNC:
        return serve_sync(tracker, place);
    default:
        return serve_off(tracker, place);
    }
}

/* ---- messages -------------------------------------------------------------------------------------------- */

/* FALSE: no area is there; the place is just the page then. */
static bool locate_locked(SnapSync *tracker, uint64_t address, Place *ret_place) SNAP_REQUIRES(tracker->lock) {
    const SnapExtent *extent = snap_layout_find(&tracker->layout, address);
    uint64_t granule = extent ? snap_sync_area(tracker, extent->area)->region->granule_bytes : tracker->page_bytes;
    address -= address % granule;
    *ret_place = (Place){.address = address, .length = granule};
    if (extent) {
        ret_place->area = extent->area;
        ret_place->offset = extent->offset + (address - extent->address);
    }
    return extent != NULL;
}

/*
 * Un-protect, or at least wake. -EAGAIN: an event is pending; -ENOENT: nothing of ours is mapped there any more.
 *
 * That there was no EAGAIN also says that a fresh copy is good: moving, unmapping and discarding are pending from
 * before they begin until this thread reads their event. After an EAGAIN the page itself is looked at: if it is
 * still protected, it is in place.
 */
static int release_locked(SnapSync *tracker, Place *place) SNAP_REQUIRES(tracker->lock) {
    int result = snap_uffd_unprotect(tracker->uffd, place->address, place->length);
    bool gone = result == -ENOENT || result == -EINVAL;
    if (place->fresh && (gone || (result == -EAGAIN && is_protected(tracker, place->address) != 1))) {
        give_up_capture_locked(tracker, snap_sync_area(tracker, place->area), place->offset,
                               place->offset + place->length);
        if (gone) {
            give_up_locked(tracker, place, SNAP_ERROR_LOST, 0, "the guest unmapped it");
        }
    }
    if (gone) {
        snap_uffd_wake(tracker->uffd, place->address, place->length);
    }
    return result;
}

/* TRUE when it is done with. */
static bool answer_locked(SnapSync *tracker, Place *place, Answer answer) SNAP_REQUIRES(tracker->lock) {
    return answer == ANSWER_NONE || (answer == ANSWER_RELEASE && release_locked(tracker, place) != -EAGAIN);
}

/* Serve a fault at @address. TRUE when it is done with, FALSE when an event has to be served first. */
static bool serve_fault(SnapSync *tracker, uint64_t address, uint64_t since_ns) {
    Place place;
    snap_lock(&tracker->lock);
    Answer answer = ANSWER_RELEASE;
    if (locate_locked(tracker, address, &place)) {
        answer = serve_locked(tracker, &place);
    }
    bool done = answer_locked(tracker, &place, answer);
    if (done && answer == ANSWER_RELEASE && tracker->mode == SNAP_SYNC_SYNC) {
        snap_latency_add(&tracker->latency, snap_now_ns() - since_ns);
    }
    snap_unlock(&tracker->lock);
    return done;
}

bool snap_faults_serve(SnapSync *tracker, uint64_t address) {
    snap_lock(&tracker->lock);
    Place place;
    bool done = true;
    if (locate_locked(tracker, address, &place)) {
        const SnapArea *area = snap_sync_area(tracker, place.area);
        if (snap_area_is_armed(area, place.offset / area->chunk_bytes)) {
            done = answer_locked(tracker, &place, serve_locked(tracker, &place));
        }
    }
    snap_unlock(&tracker->lock);
    return done;
}

static void serve_queued(SnapSync *tracker) {
    while (tracker->n_queued > 0 && !snap_uffd_event_pending(tracker->uffd)) {
        const struct uffd_msg *msg = &tracker->queued[tracker->first_queued];
        if (!serve_fault(tracker, msg->arg.pagefault.address, snap_now_ns())) {
            return;
        }
        tracker->first_queued = (tracker->first_queued + 1) % SNAP_QUEUED_MAX;
        tracker->n_queued--;
    }
}

/* TRUE when something was there. */
static bool serve_next(SnapSync *tracker) {
    if (snap_uffd_event_pending(tracker->uffd)) {
        snap_events_serve(tracker);
        return true;
    }
    if (tracker->n_queued > 0) {
        serve_queued(tracker);
        return true;
    }
    struct uffd_msg msg;
    if (snap_events_read(tracker, &msg) != 1) {
        return false;
    }
    /* An event here came after the question above. What it took away unsaved is not protected, and found so. */
    if (msg.event == UFFD_EVENT_PAGEFAULT && !serve_fault(tracker, msg.arg.pagefault.address, snap_now_ns())) {
        snap_events_queue(tracker, &msg);
    }
    return true;
}

/*
 * From the point in time on the guest waits for this thread and for nobody else: on a busy machine it goes first,
 * where that is permitted. Not before: pre-arm is a race of the job thread against the guest's writes, and this
 * thread helps the guest.
 */
static void go_first(SnapSync *tracker, bool *raised) {
    snap_lock(&tracker->lock);
    bool sync = tracker->mode == SNAP_SYNC_SYNC;
    snap_unlock(&tracker->lock);
    if (*raised != sync) {
        snap_go_first(sync);
        *raised = sync;
    }
}

gpointer snap_faults_run(gpointer data) {
    SnapSync *tracker = data;
    prctl(PR_SET_NAME, "snap-faults");
    bool raised = false;
    struct pollfd fds[] = {
        {.fd = tracker->uffd, .events = POLLIN},
        {.fd = tracker->stop_fd, .events = POLLIN},
    };
    for (;;) {
        int timeout_ms = tracker->n_queued > 0 ? 0 : -1;
        if (poll(fds, G_N_ELEMENTS(fds), timeout_ms) < 0 && errno != EINTR) {
            break;
        }
        if (fds[1].revents) {
            break;
        }
        if (fds[0].revents & POLLERR) {
            break;
        }
        go_first(tracker, &raised);
        if (fds[0].revents || tracker->n_queued > 0) {
            serve_next(tracker);
        }
    }
    return NULL;
}
