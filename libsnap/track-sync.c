/*
 * The sync tracker: its life, and what the fault thread and others tell it. What is protected when is in
 * track-arm.c. See track-sync.h.
 */
#include "track-sync.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "faults.h"
#include "image-write.h"
#include "pagemap.h"
#include "uffd.h"

/* What sync tracking asks of the kernel, all of it: Linux 6.4. Each is a required row of probe.c. */
static const struct {
    uint64_t bit;
    const char *name;
} features[] = {
    {UFFD_FEATURE_PAGEFAULT_FLAG_WP, "write-protection (Linux 5.7)"},
    {UFFD_FEATURE_WP_HUGETLBFS_SHMEM, "write-protection of shared memory and hugetlb (Linux 5.19)"},
    {UFFD_FEATURE_WP_UNPOPULATED, "write-protection of untouched pages (Linux 6.4)"},
    {UFFD_FEATURE_EVENT_REMOVE, "the madvise event (Linux 4.11)"},
    {UFFD_FEATURE_EVENT_REMAP, "the mremap event (Linux 4.11)"},
    {UFFD_FEATURE_EVENT_UNMAP, "the munmap event (Linux 4.11)"},
};

/* ---- life ------------------------------------------------------------------------------------------------ */

static gboolean handshake(int uffd, GError **error) {
    uint64_t has = 0, want = 0;
    int result = snap_uffd_probe(&has);
    if (result < 0) {
        snap_set_errno(error, -result, "userfaultfd");
        return FALSE;
    }
    for (guint i = 0; i < G_N_ELEMENTS(features); i++) {
        want |= features[i].bit;
        if (!(has & features[i].bit)) {
            g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED,
                        "this kernel's userfaultfd lacks %s; see: vmsnap probe", features[i].name);
            return FALSE;
        }
    }
    result = snap_uffd_api(uffd, want);
    if (result < 0) {
        snap_set_errno(error, -result, "userfaultfd handshake");
        return FALSE;
    }
    return TRUE;
}

static void *map_zeros(size_t length) {
    void *p = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    g_assert(p != MAP_FAILED);
    return p;
}

static SnapSync *tracker_alloc(int pid, int uffd, uint32_t pool_pages, SnapAtCap at_cap) {
    SnapSync *tracker = g_new0(SnapSync, 1);
    tracker->pid = pid;
    tracker->uffd = uffd;
    tracker->at_cap = at_cap;
    tracker->page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
    tracker->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    tracker->room_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    tracker->fdinfo = snap_uffd_open_fdinfo(uffd);
    tracker->pagemap = -1;
    snap_lock_init(&tracker->lock);
    tracker->areas = g_ptr_array_new_with_free_func((GDestroyNotify)snap_area_free);
    tracker->pool = snap_pool_new(tracker->page_bytes, pool_pages);
    tracker->touched = map_zeros(SNAP_TOUCHED_MAX * sizeof *tracker->touched);
    tracker->hot = map_zeros(SNAP_HOT_MAX * sizeof *tracker->hot);
    tracker->queued = map_zeros(SNAP_QUEUED_MAX * sizeof *tracker->queued);
    tracker->failure.code = -1;
    tracker->backlog = g_array_new(FALSE, FALSE, sizeof(SnapUnit));
    tracker->spared = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    return tracker;
}

SnapSync *snap_sync_new(int pid, int uffd, uint32_t pool_pages, SnapAtCap at_cap, GError **error) {
    SnapSync *tracker = tracker_alloc(pid, uffd, pool_pages, at_cap);
    int result = tracker->pagemap = snap_pagemap_open(pid);
    if (result >= 0) {
        result = snap_memory_reader_init(&tracker->reader, pid);
    }
    if (result < 0) {
        snap_set_errno(error, -result, "cannot open the memory of process %d", pid);
    }
    if (result < 0 || !handshake(uffd, error)) {
        snap_sync_free(tracker);
        return NULL;
    }
    return tracker;
}

void snap_sync_start(SnapSync *tracker) {
    tracker->mode = SNAP_SYNC_LOG;
    tracker->thread = g_thread_new("snap-faults", snap_faults_run, tracker);
}

static void close_if_open(int fd) {
    if (fd >= 0) {
        close(fd);
    }
}

void snap_sync_free(SnapSync *tracker) {
    if (!tracker) {
        return;
    }
    snap_sync_release(tracker);
    if (tracker->thread) {
        eventfd_write(tracker->stop_fd, 1);
        g_thread_join(tracker->thread);
    }
    close_if_open(tracker->uffd);
    close_if_open(tracker->fdinfo);
    close_if_open(tracker->pagemap);
    close_if_open(tracker->stop_fd);
    close_if_open(tracker->room_fd);
    snap_memory_reader_clear(&tracker->reader);
    g_ptr_array_unref(tracker->areas);
    snap_pool_free(tracker->pool);
    snap_layout_clear(&tracker->layout);
    munmap(tracker->touched, SNAP_TOUCHED_MAX * sizeof *tracker->touched);
    munmap(tracker->hot, SNAP_HOT_MAX * sizeof *tracker->hot);
    munmap(tracker->queued, SNAP_QUEUED_MAX * sizeof *tracker->queued);
    g_array_unref(tracker->backlog);
    g_array_unref(tracker->spared);
    snap_lock_clear(&tracker->lock);
    g_free(tracker);
}

/* ---- small things the fault thread shares ---------------------------------------------------------------- */

static void tell_room_locked(SnapSync *tracker) SNAP_REQUIRES(tracker->lock) {
    if (tracker->tell_room) {
        tracker->tell_room = false;
        eventfd_write(tracker->room_fd, 1);
    }
}

static bool lacks_room_locked(const SnapSync *tracker) SNAP_REQUIRES(tracker->lock) {
    uint32_t taken = snap_pool_taken(tracker->pool);
    return tracker->n_waiting > 0 || (taken > 0 && taken >= snap_pool_available(tracker->pool));
}

bool snap_sync_lacks_room(SnapSync *tracker) {
    snap_lock(&tracker->lock);
    bool lacks = lacks_room_locked(tracker);
    tracker->tell_room = !lacks && tracker->failure.code < 0;
    snap_unlock(&tracker->lock);
    return lacks;
}

void snap_sync_look_room_locked(SnapSync *tracker) {
    if (tracker->tell_room && lacks_room_locked(tracker)) {
        tell_room_locked(tracker);
    }
}

void snap_sync_fail_locked(SnapSync *tracker, SnapSyncFailure failure) {
    if (tracker->failure.code < 0) {
        tracker->failure = failure;
    }
    tracker->mode = SNAP_SYNC_OFF;
    tell_room_locked(tracker);
}

gboolean snap_sync_failed(SnapSync *tracker, GError **error) {
    snap_lock(&tracker->lock);
    SnapSyncFailure failure = tracker->failure;
    snap_unlock(&tracker->lock);
    if (failure.code < 0) {
        return FALSE;
    }
    const SnapRegion *region = snap_sync_area(tracker, failure.area)->region;
    g_set_error(error, SNAP_ERROR, failure.code, "region %s, page at 0x%" G_GINT64_MODIFIER "x: %s%s%s",
                region->name, region->host_address + failure.offset, failure.what, failure.errnum ? ": " : "",
                failure.errnum ? g_strerror(failure.errnum) : "");
    return TRUE;
}

uint64_t snap_sync_lost_bytes(SnapSync *tracker) {
    snap_lock(&tracker->lock);
    SnapSyncFailure failure = tracker->failure;
    snap_unlock(&tracker->lock);
    return failure.code == SNAP_ERROR_LOST ? snap_sync_area(tracker, failure.area)->region->length_bytes : 0;
}

void snap_sync_touch_locked(SnapSync *tracker, uint32_t area, uint64_t chunk, uint64_t mask) {
    SnapChunkState *state = &snap_sync_area(tracker, area)->chunks[chunk];
    /* One entry a chunk: its word says which pages. */
    if (state->claimed == 0) {
        if (tracker->n_touched < SNAP_TOUCHED_MAX) {
            tracker->touched[tracker->n_touched++] = (SnapPageRef)area << SNAP_PAGE_REF_BITS | chunk;
        } else {
            tracker->touched_overflow = true;
        }
    }
    state->claimed |= mask;
}

void snap_sync_note_locked(SnapSync *tracker, uint32_t area_index, uint64_t offset, uint64_t end) {
    const SnapArea *area = snap_sync_area(tracker, area_index);
    while (offset < end) {
        uint64_t page = offset / area->region->page_bytes, chunk = page / SNAP_CHUNK_PAGES;
        uint64_t next = MIN(end, (chunk + 1) * area->chunk_bytes);
        uint64_t n = (next - offset) / area->region->page_bytes;
        uint64_t mask = n >= SNAP_CHUNK_PAGES ? UINT64_MAX : (UINT64_C(1) << n) - 1;
        area->chunks[chunk].since |= mask << page % SNAP_CHUNK_PAGES & snap_area_chunk_mask(area, chunk);
        offset = next;
    }
}

void snap_sync_heat_locked(SnapSync *tracker, uint32_t area, uint64_t chunk, bool waiting) {
    SnapChunkState *state = &snap_sync_area(tracker, area)->chunks[chunk];
    SnapUnit unit = {.area = area, .first = chunk, .n_chunks = 1};
    if (waiting && !state->waiting) {
        state->waiting = 1;
        tracker->n_waiting++;
        tell_room_locked(tracker);
    }
    if (tracker->n_hot == SNAP_HOT_MAX || (state->hot && !waiting)) {
        return;
    }
    uint32_t at = (tracker->first_hot + tracker->n_hot) % SNAP_HOT_MAX;
    if (waiting) {
        at = tracker->first_hot = (tracker->first_hot + SNAP_HOT_MAX - 1) % SNAP_HOT_MAX;
    }
    state->hot = 1;
    tracker->hot[at] = unit;
    tracker->n_hot++;
}

/* ---- from one point to the next -------------------------------------------------------------------------- */

/* What was written since the point is touched, and everything else is what the image has. */
static void turn_chunks(SnapArea *area) {
    for (guint r = 0; r < area->armed->len; r++) {
        SnapRun run = g_array_index(area->armed, SnapRun, r);
        for (uint64_t i = run.first; i < MIN(run.end, area->n_chunks); i++) {
            area->chunks[i] = (SnapChunkState){.claimed = area->chunks[i].since, .lazy = area->chunks[i].lazy};
        }
    }
    area->logged = true;
}

void snap_sync_go_on_logging(SnapSync *tracker) {
    g_assert(tracker->keep && tracker->backlog->len == 0);
    snap_lock(&tracker->lock);
    if (tracker->mode == SNAP_SYNC_SYNC) {
        for (guint i = 0; i < tracker->areas->len; i++) {
            turn_chunks(snap_sync_area(tracker, i));
        }
        tracker->n_hot = tracker->n_touched = tracker->n_waiting = 0;
        tracker->touched_overflow = true; /* look through all */
        tracker->latency = (SnapLatency){0};
        tracker->pages_by_fault = 0;
        snap_pool_restart(tracker->pool);
        tracker->mode = SNAP_SYNC_LOG;
    }
    snap_unlock(&tracker->lock);
}
