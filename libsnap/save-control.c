/*
 * What others ask of a running save, and how the job waits.
 *
 * A wish is a flag or a number, set in any thread, and a write to an eventfd, which ends whatever wait of this
 * file the job is in; it then looks at all of them. The job waits here for two reasons: the bandwidth limit, and a
 * pause. In both, chunks that are captured but could not be released yet go on being released.
 *
 * A pause must not hold up the guest. The fault thread serves it as ever, into the pool; what the pool cannot
 * take, and what is being discarded, has to wait for the sweep. So the job rests only as long as nobody waits for
 * it and the pool is more than half empty, and the fault thread tells it when that is over
 * (snap_sync_lacks_room()). Then it takes chunks, those that the guest has written first, until there is room
 * again.
 *
 * What fails meanwhile: cancelled; the fault thread gave up; the guest ended, which nothing tells, as its memory
 * is not looked at: it is asked for now and then.
 */
#include "save.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "pagemap.h"

#define LOOK_NS UINT64_C(250000000) /* between looks at a guest that nothing else is heard of */
#define RELEASE_STEP_NS UINT64_C(100000)

/* ---- the job's side -------------------------------------------------------------------------------------- */

gboolean snap_save_go_on(SnapSave *save, GError **error) {
    if (g_atomic_int_get(&save->cancelled)) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_CANCELLED, "cancelled; the guest runs on, %s was removed",
                    save->dir);
        return FALSE;
    }
    return !save->tracker || !snap_sync_failed(save->tracker, error);
}

/* Whether the memory that is being saved is still somebody's. */
static gboolean is_there(const SnapSave *save, GError **error) {
    const SnapSync *tracker = save->tracker;
    if (snap_pagemap_protected(tracker->pagemap, 0, tracker->page_bytes) != -ESRCH) {
        return TRUE;
    }
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_GUEST_GONE, "process %d: the guest ended", save->guest->pid);
    return FALSE;
}

/*
 * Sleep for @wait_ns, less when something was asked or the guest needs room; not for long while there is something
 * to release. FALSE when the save is to end.
 */
static gboolean doze(SnapSave *save, uint64_t wait_ns, GError **error) {
    struct pollfd fds[] = {
        {.fd = save->wake_fd, .events = POLLIN},
        {.fd = save->tracker->room_fd, .events = POLLIN},
    };
    wait_ns = MIN(wait_ns, snap_sweep_release(save->tracker) ? LOOK_NS : RELEASE_STEP_NS);
    struct timespec timeout = {.tv_nsec = (long)wait_ns};
    if (ppoll(fds, G_N_ELEMENTS(fds), &timeout, NULL) > 0) {
        eventfd_t ignored;
        for (guint i = 0; i < G_N_ELEMENTS(fds); i++) {
            (void)eventfd_read(fds[i].fd, &ignored); /* neither blocks */
        }
    }
    return snap_save_go_on(save, error) && is_there(save, error);
}

gboolean snap_save_rest(SnapSave *save, GError **error) {
    while (g_atomic_int_get(&save->paused) && !snap_sync_lacks_room(save->tracker)) {
        snap_save_count_staging(save);
        snap_save_count(save, 0, false);
        if (!doze(save, LOOK_NS, error)) {
            return FALSE;
        }
    }
    return TRUE;
}

static uint64_t max_bandwidth(SnapSave *save) {
    snap_lock(&save->lock);
    uint64_t bytes = save->max_bandwidth_bytes;
    snap_unlock(&save->lock);
    return bytes;
}

gboolean snap_save_pace(SnapSave *save, uint64_t bytes, GError **error) {
    uint64_t wait_ns;
    while ((wait_ns = snap_throttle_wait_ns(&save->throttle, snap_now_ns(), max_bandwidth(save))) > 0) {
        if (!doze(save, wait_ns, error)) {
            return FALSE;
        }
    }
    snap_throttle_spend(&save->throttle, bytes);
    return TRUE;
}

/* ---- public ---------------------------------------------------------------------------------------------- */

static void wake(SnapSave *save) {
    (void)eventfd_write(save->wake_fd, 1);
}

void snap_save_cancel(SnapSave *save) {
    g_atomic_int_set(&save->cancelled, 1);
    wake(save);
}

void snap_save_set_max_bandwidth(SnapSave *save, uint64_t bytes_per_second) {
    snap_lock(&save->lock);
    save->max_bandwidth_bytes = bytes_per_second;
    snap_unlock(&save->lock);
    wake(save);
}

void snap_save_pause(SnapSave *save) {
    g_atomic_int_set(&save->paused, 1);
}

void snap_save_resume(SnapSave *save) {
    g_atomic_int_set(&save->paused, 0);
    wake(save);
}

gboolean snap_save_is_paused(SnapSave *save) {
    snap_lock(&save->lock);
    gboolean done = save->done;
    snap_unlock(&save->lock);
    return !done && g_atomic_int_get(&save->paused);
}
