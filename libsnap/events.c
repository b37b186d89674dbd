/*
 * Events of the guest's address space.
 *
 * While one is pending, every un-protect gets EAGAIN and the thread that caused it sleeps; reading it lets that
 * thread go on. Faults are read before events, so to reach an event all unread faults are read and queued.
 *
 *   event    content when it can be read      SYNC                              LOG
 *   REMOVE   intact until the event is read   saved first                       touched: its protection is gone
 *   REMAP    at the new address               the extents follow                stale: registered again
 *   UNMAP    gone                             unsaved pages are lost: given up  stale: registered again
 *
 * Which range a REMOVE takes away is known before it is read: the threads that sleep in madvise show it.
 *
 * An event that slips through unread (it came between our question and our read) or that no thread explains
 * (process_madvise from outside) costs no exactness: its pages are found to be unprotected after they are copied.
 */
#include "events.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "faults.h"
#include "image-write.h"
#include "lazy.h"
#include "uffd.h"

enum {
    STEP_US = 20,         /* how long to wait for an event in the making */
    POOL_WAIT_US = 200,   /* and for the sweep to free a buffer */
    EXPLAIN_TRIES = 500,  /* looks at the guest's threads before an event is read unexplained: 10 ms */
    ENTRIES_BYTES = 8192, /* of /proc/PID/task read at once */
};

void snap_events_queue(SnapSync *tracker, const struct uffd_msg *msg) {
    if (tracker->n_queued < SNAP_QUEUED_MAX) {
        uint32_t at = (tracker->first_queued + tracker->n_queued++) % SNAP_QUEUED_MAX;
        tracker->queued[at] = *msg;
    }
}

/* ---- saving what is about to be discarded ---------------------------------------------------------------- */

/* Save one chunk's part of an extent. FALSE: not now, the sweep has it or the pool is full. */
static bool rescue_chunk_locked(SnapSync *tracker, const SnapExtent *part) SNAP_REQUIRES(tracker->lock) {
    SnapArea *area = snap_sync_area(tracker, part->area);
    uint64_t number = part->offset / area->chunk_bytes;
    SnapChunkState *chunk = &area->chunks[number];
    if (tracker->mode != SNAP_SYNC_SYNC || !snap_area_is_armed(area, number) ||
        chunk->phase == SNAP_CHUNK_CAPTURED || chunk->phase == SNAP_CHUNK_RELEASED ||
        chunk->phase == SNAP_CHUNK_KEPT) {
        return true;
    }
    if (chunk->phase == SNAP_CHUNK_SWEEPING) {
        return false;
    }
    int result =
        snap_faults_capture_locked(tracker, part->area, part->offset, part->offset + part->length, part->address);
    if (result == -ENOBUFS && tracker->at_cap == SNAP_AT_CAP_BLOCK) {
        snap_sync_heat_locked(tracker, part->area, number, true);
        return false;
    }
    if (result == -ENOBUFS || result == -ESRCH) {
        bool full = result == -ENOBUFS;
        snap_sync_fail_locked(
            tracker, (SnapSyncFailure){.code = full ? SNAP_ERROR_BUFFER_FULL : SNAP_ERROR_GUEST_GONE,
                                       .what = full ? "the guest discards memory faster than the image is written"
                                                    : "the guest ended",
                                       .area = part->area,
                                       .offset = part->offset});
    }
    /* -EFAULT: another thread has just moved or dropped it; that event will tell. */
    return true;
}

/* The part of [address, end) in the first extent there, cut to whole granules of one chunk. */
static bool next_part_locked(SnapSync *tracker, uint64_t address, uint64_t end, SnapExtent *ret_part)
    SNAP_REQUIRES(tracker->lock) {
    for (uint32_t i = 0; i < tracker->layout.n_extents && address < end; i++) {
        SnapExtent e = tracker->layout.extents[i];
        if (e.address + e.length <= address) {
            continue;
        }
        if (e.address >= end) {
            return false;
        }
        const SnapArea *area = snap_sync_area(tracker, e.area);
        uint64_t unit = MAX(area->chunk_bytes, area->region->granule_bytes);
        uint64_t from = MAX(address, e.address) - e.address + e.offset;
        from -= from % area->region->granule_bytes;
        uint64_t to = MIN(MIN(end - e.address, e.length) + e.offset, from - from % unit + unit);
        to = (to + area->region->granule_bytes - 1) / area->region->granule_bytes * area->region->granule_bytes;
        *ret_part = (SnapExtent){
            .address = e.address + (from - e.offset), .length = to - from, .offset = from, .area = e.area};
        return true;
    }
    return false;
}

static void rescue_range(SnapSync *tracker, uint64_t address, uint64_t end) {
    SnapExtent part;
    for (;;) {
        snap_lock(&tracker->lock);
        bool more = tracker->mode == SNAP_SYNC_SYNC && next_part_locked(tracker, address, end, &part);
        bool saved = more && rescue_chunk_locked(tracker, &part);
        snap_unlock(&tracker->lock);
        if (!more) {
            return;
        }
        if (saved) {
            address = part.address + part.length;
        } else {
            usleep(POOL_WAIT_US);
        }
    }
}

/* What a sleeping thread of the guest is in, from /proc/PID/task/TID/syscall: number, then arguments in hex. */
typedef struct {
    long number;
    uint64_t arg[2];
} Call;

static bool read_call(const char *path, Call *ret_call) {
    char text[256];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return false;
    }
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n <= 0) {
        return false;
    }
    text[n] = '\0';
    char *end;
    ret_call->number = strtol(text, &end, 10);
    for (int i = 0; i < 2; i++) {
        ret_call->arg[i] = strtoull(end, &end, 16);
    }
    return end != text;
}

/* Directory entries without malloc: the layout that getdents64(2) documents. */
struct dirent64_raw {
    uint64_t inode;
    int64_t next;
    unsigned short length;
    unsigned char type;
    char name[];
};

/* Save what any thread sleeps in madvise for. TRUE when a thread explains the event. */
static bool rescue_discards(SnapSync *tracker) {
    char path[96];
    char entries[ENTRIES_BYTES] __attribute__((aligned(8)));
    bool explained = false;
    snprintf(path, sizeof path, "/proc/%d/task", tracker->pid);
    int dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir < 0) {
        return true;
    }
    long n;
    while ((n = syscall(SYS_getdents64, dir, entries, sizeof entries)) > 0) {
        for (long at = 0; at < n;) {
            const struct dirent64_raw *entry = (const void *)(entries + at);
            at += entry->length;
            snprintf(path, sizeof path, "/proc/%d/task/%.20s/syscall", tracker->pid, entry->name);
            Call call;
            if (entry->name[0] == '.' || !read_call(path, &call)) {
                continue;
            }
            if (call.number == SYS_madvise) {
                rescue_range(tracker, call.arg[0], call.arg[0] + call.arg[1]);
                explained = true;
            } else if (call.number == SYS_munmap || call.number == SYS_mremap || call.number == SYS_mmap ||
                       call.number == SYS_brk || call.number == SYS_shmdt) {
                explained = true;
            }
        }
    }
    close(dir);
    return explained;
}

/* ---- events ---------------------------------------------------------------------------------------------- */

static void forget_protection_locked(SnapSync *tracker, uint64_t address, uint64_t end)
    SNAP_REQUIRES(tracker->lock) {
    SnapExtent part;
    while (next_part_locked(tracker, address, end, &part)) {
        SnapArea *area = snap_sync_area(tracker, part.area);
        uint64_t first = part.offset / area->chunk_bytes;
        uint64_t last = (part.offset + part.length - 1) / area->chunk_bytes;
        for (uint64_t chunk = first; chunk <= last; chunk++) {
            if (snap_area_is_armed(area, chunk)) {
                snap_sync_touch_locked(tracker, part.area, chunk, snap_area_chunk_mask(area, chunk));
            }
        }
        snap_lazy_note_locked(tracker, part.area, part.offset, part.offset + part.length);
        address = part.address + part.length;
    }
}

static void mark_stale_locked(SnapSync *tracker, uint64_t address, uint64_t end) SNAP_REQUIRES(tracker->lock) {
    for (uint32_t i = 0; i < tracker->layout.n_extents; i++) {
        const SnapExtent *e = &tracker->layout.extents[i];
        if (e->address < end && e->address + e->length > address) {
            snap_sync_area(tracker, e->area)->stale = true;
        }
    }
}

/* Pages of a discarded part that nobody has. */
static bool unsaved_locked(const SnapSync *tracker, const SnapExtent *cut, uint64_t *ret_offset)
    SNAP_REQUIRES(tracker->lock) {
    const SnapArea *area = snap_sync_area(tracker, cut->area);
    for (uint64_t page = cut->offset / area->region->page_bytes;
         page < (cut->offset + cut->length) / area->region->page_bytes; page++) {
        uint64_t number = page / SNAP_CHUNK_PAGES;
        const SnapChunkState *chunk = &area->chunks[number];
        bool open = chunk->phase == SNAP_CHUNK_PROTECTED || chunk->phase == SNAP_CHUNK_SWEEPING;
        uint64_t unsaved = chunk->dirty & ~chunk->claimed;
        if (open && (unsaved >> page % SNAP_CHUNK_PAGES & 1) && snap_area_is_armed(area, number)) {
            *ret_offset = page * area->region->page_bytes;
            return true;
        }
    }
    return false;
}

/* A madvise that was not rescued in time. Shared memory keeps its content, or shows a hole. */
static void apply_discard_locked(SnapSync *tracker, uint64_t address, uint64_t end) SNAP_REQUIRES(tracker->lock) {
    SnapExtent part;
    uint64_t offset;
    while (tracker->mode == SNAP_SYNC_SYNC && next_part_locked(tracker, address, end, &part)) {
        snap_sync_note_locked(tracker, part.area, part.offset, part.offset + part.length);
        snap_lazy_note_locked(tracker, part.area, part.offset, part.offset + part.length);
        if (!snap_sync_area(tracker, part.area)->filled && unsaved_locked(tracker, &part, &offset)) {
            snap_sync_fail_locked(tracker, (SnapSyncFailure){.code = SNAP_ERROR_LOST,
                                                             .what = "the guest discarded it (madvise)",
                                                             .area = part.area,
                                                             .offset = offset});
        }
        address = part.address + part.length;
    }
}

static void apply_unmap_locked(SnapSync *tracker, uint64_t start, uint64_t end) SNAP_REQUIRES(tracker->lock) {
    SnapExtent cut;
    int result;
    while ((result = snap_layout_cut(&tracker->layout, start, end, &cut)) == 1) {
        uint64_t offset;
        if (unsaved_locked(tracker, &cut, &offset)) {
            snap_sync_fail_locked(tracker, (SnapSyncFailure){.code = SNAP_ERROR_LOST,
                                                             .what = "the guest unmapped it",
                                                             .area = cut.area,
                                                             .offset = offset});
        }
    }
    if (result < 0) {
        snap_sync_fail_locked(
            tracker,
            (SnapSyncFailure){.code = SNAP_ERROR_LOST, .what = "the guest unmaps too much", .errnum = -result});
    }
}

static void apply_move_locked(SnapSync *tracker, uint64_t from, uint64_t to, uint64_t length)
    SNAP_REQUIRES(tracker->lock) {
    int result = snap_layout_move(&tracker->layout, from, to, length);
    if (result < 0) {
        snap_sync_fail_locked(
            tracker,
            (SnapSyncFailure){.code = SNAP_ERROR_LOST, .what = "the guest moves too much", .errnum = -result});
    }
}

static void apply_locked(SnapSync *tracker, const struct uffd_msg *msg) SNAP_REQUIRES(tracker->lock) {
    bool sync = tracker->mode == SNAP_SYNC_SYNC;
    bool log = tracker->mode == SNAP_SYNC_LOG;
    switch (msg->event) {
    case UFFD_EVENT_REMOVE:
        if (log) {
            forget_protection_locked(tracker, msg->arg.remove.start, msg->arg.remove.end);
        } else if (sync) {
            apply_discard_locked(tracker, msg->arg.remove.start, msg->arg.remove.end);
        }
        break;
    case UFFD_EVENT_REMAP:
        mark_stale_locked(tracker, msg->arg.remap.from, msg->arg.remap.from + msg->arg.remap.len);
        mark_stale_locked(tracker, msg->arg.remap.to, msg->arg.remap.to + msg->arg.remap.len);
        if (sync) {
            apply_move_locked(tracker, msg->arg.remap.from, msg->arg.remap.to, msg->arg.remap.len);
        }
        break;
    case UFFD_EVENT_UNMAP:
        mark_stale_locked(tracker, msg->arg.remove.start, msg->arg.remove.end);
        if (sync) {
            apply_unmap_locked(tracker, msg->arg.remove.start, msg->arg.remove.end);
        }
        break;
    default:
        break;
    }
}

/*
 * Read and applied in one, under the lock: to read an event is to let its cause go on, and where the log is kept
 * it matters on which side of the point that was. A guest that stands still has no unread event, as what waits for
 * one cannot be stopped; so what is before the point has been applied before it.
 */
int snap_events_read(SnapSync *tracker, struct uffd_msg *ret_msg) {
    snap_lock(&tracker->lock);
    int result = snap_uffd_read(tracker->uffd, ret_msg);
    if (result == 1 && ret_msg->event != UFFD_EVENT_PAGEFAULT) {
        apply_locked(tracker, ret_msg);
    }
    snap_unlock(&tracker->lock);
    return result;
}

static bool readable(int fd) {
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, 0) > 0 && (p.revents & POLLIN);
}

void snap_events_serve(SnapSync *tracker) {
    struct uffd_msg msg;
    /* While an event is pending nobody here can wake a waiter, so unread faults stay unread until we read them. */
    for (int unread = snap_uffd_unread_faults(tracker->fdinfo); unread > 0; unread--) {
        if (snap_events_read(tracker, &msg) != 1) {
            break;
        }
        if (msg.event != UFFD_EVENT_PAGEFAULT) {
            return;
        }
        snap_events_queue(tracker, &msg);
    }
    if (!readable(tracker->uffd)) {
        usleep(STEP_US);
        return;
    }
    /* A thread that has queued its event but still runs does not show its call yet. */
    for (int tries = 0; tries < EXPLAIN_TRIES && tracker->mode == SNAP_SYNC_SYNC && !rescue_discards(tracker);
         tries++) {
        usleep(STEP_US);
    }
    if (snap_events_read(tracker, &msg) == 1 && msg.event == UFFD_EVENT_PAGEFAULT) {
        snap_events_queue(tracker, &msg);
    }
}
