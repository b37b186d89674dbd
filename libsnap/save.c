/*
 * The save job: one snapshot of one guest into one image directory.
 *
 * The happy path, in the thread "snap-save":
 *
 *     list regions, refuse what cannot be saved          guest runs
 *     protect them (pre-arm), until little is touched     guest runs, its first writes cost a fault
 *     pause; list again; the point; copy what cannot be protected; resume
 *     fetch the device state                              guest runs
 *     sweep: faulted chunks first, then the rest, small and short-lived regions before big ones
 *     release the guest, or go on logging for the next snapshot; fsync; manifest
 *
 * What fails: before the pause, nothing has happened but some faults; during it, the guest is resumed; after it,
 * the guest is released before the error is told. Guest memory that was discarded before it was saved (LOST)
 * starts the snapshot again, at a new point in time, ATTEMPTS_MAX times. The image directory is removed on every
 * failure.
 */
#include "save.h"

#include "track.h"

#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <unistd.h>

enum {
    ATTEMPTS_MAX = 3,
    EAGER_TIMES = 4, /* as long as what was lost: the same mapping may come in other lengths */
};

#define DEFAULT_BUFFER_BYTES (UINT64_C(64) << 20)
#define EAGER_LEAST_BYTES (UINT64_C(1) << 20)

void snap_save_set_phase(SnapSave *save, SnapSavePhase phase) {
    snap_lock(&save->lock);
    save->stats.phase = phase;
    snap_unlock(&save->lock);
}

uint64_t snap_save_buffer_cap(const SnapSave *save) {
    return save->options.buffer_bytes ? save->options.buffer_bytes : DEFAULT_BUFFER_BYTES;
}

void snap_save_set_tracker(SnapSave *save, SnapSync *tracker) {
    snap_lock(&save->lock);
    save->tracker = tracker;
    snap_unlock(&save->lock);
}

SnapSync *snap_save_steal_tracker(SnapSave *save) {
    snap_lock(&save->lock);
    SnapSync *tracker = g_steal_pointer(&save->tracker);
    snap_unlock(&save->lock);
    return tracker;
}

/* ---- the thread -------------------------------------------------------------------------------------------- */

static gboolean run_once(SnapSave *save, GError **error) {
    if (!snap_save_take_point(save, error) || !snap_save_sweep(save, error)) {
        return FALSE;
    }
    if (save->options.keep_log) {
        snap_save_leave_log(save);
    }
    return TRUE;
}

static void copied_clear(gpointer data) {
    CopiedRegion *copy = data;
    snap_region_free(copy->region);
    g_free(copy->data);
}

static void begin_attempt(SnapSave *save) {
    if (save->guest->tracker) {
        snap_tracker_suspend(save->guest->tracker);
    }
    save->fixed = g_ptr_array_new_with_free_func((GDestroyNotify)snap_region_free);
    save->copied = g_array_new(FALSE, FALSE, sizeof(CopiedRegion));
    save->states = g_ptr_array_new_with_free_func((GDestroyNotify)snap_state_free);
    save->numbers = g_array_new(FALSE, FALSE, sizeof(guint));
    save->empty_pages = save->copied_bytes = 0;
    snap_save_count_anew(save);
}

/* The guest first: it is released before anything is removed from disk. */
static void end_attempt(SnapSave *save) {
    if (save->tracker) {
        uint64_t lost = snap_sync_lost_bytes(save->tracker);
        save->eager_bytes = MAX(save->eager_bytes, lost ? MAX(EAGER_TIMES * lost, EAGER_LEAST_BYTES) : 0);
    }
    snap_sync_free(snap_save_steal_tracker(save));
    if (save->guest->tracker) {
        snap_tracker_resume(save->guest->tracker);
    }
    g_clear_pointer(&save->writer, snap_image_writer_free);
    g_clear_pointer(&save->parent, snap_image_free);
    g_clear_pointer(&save->parent_pages, g_free);
    for (guint i = 0; i < save->copied->len; i++) {
        copied_clear(&g_array_index(save->copied, CopiedRegion, i));
    }
    g_array_unref(save->copied);
    g_ptr_array_unref(save->fixed);
    g_ptr_array_unref(save->states);
    g_array_unref(save->numbers);
}

static gpointer run(gpointer data) {
    SnapSave *save = data;
    prctl(PR_SET_NAME, "snap-save");
    GError *error = NULL;
    gboolean complete = FALSE;
    for (guint attempt = 1; !complete && attempt <= ATTEMPTS_MAX; attempt++) {
        g_clear_error(&error);
        begin_attempt(save);
        complete = run_once(save, &error);
        end_attempt(save);
        if (!complete && !g_error_matches(error, SNAP_ERROR, SNAP_ERROR_LOST)) {
            break;
        }
    }
    snap_lock(&save->lock);
    save->stats.phase = complete ? SNAP_SAVE_DONE : SNAP_SAVE_FAILED;
    save->stats.total_ns = snap_now_ns() - save->start_ns;
    save->error = error;
    save->done = TRUE;
    snap_cond_broadcast(&save->ended);
    snap_unlock(&save->lock);
    return NULL;
}

/* ---- public ---------------------------------------------------------------------------------------------- */

SnapSave *snap_save_start(SnapGuest *guest, const SnapSaveOptions *options, GError **error) {
    if (!options->dir || !*options->dir) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_USAGE, "no image directory given");
        return NULL;
    }
    SnapSave *save = g_new0(SnapSave, 1);
    save->guest = guest;
    save->dir = g_strdup(options->dir);
    save->options = *options;
    save->options.dir = save->dir;
    save->options.parent_dir = g_strdup(options->parent_dir);
    save->options.region_glob = g_strdup(options->region_glob);
    save->glob = options->region_glob ? g_pattern_spec_new(options->region_glob) : NULL;
    save->start_ns = snap_now_ns();
    save->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    save->max_bandwidth_bytes = options->max_bandwidth_bytes;
    save->stats.buffer_cap_bytes = snap_save_buffer_cap(save);
    /* A tracker wants the guest's memory back after each snapshot. The next one compares. */
    save->options.keep_log = options->keep_log && !guest->tracker;
    snap_lock_init(&save->lock);
    snap_cond_init(&save->ended);
    save->thread = g_thread_new("snap-save", run, save);
    return save;
}

gboolean snap_save_wait(SnapSave *save, int timeout_ms, GError **error) {
    gint64 until = g_get_monotonic_time() + (gint64)timeout_ms * 1000;
    snap_lock(&save->lock);
    bool in_time = true;
    while (!save->done && in_time) {
        if (timeout_ms < 0) {
            snap_cond_wait(&save->ended, &save->lock);
        } else {
            in_time = snap_cond_wait_until(&save->ended, &save->lock, until);
        }
    }
    gboolean done = save->done;
    if (done && save->error && error) {
        *error = g_error_copy(save->error);
    }
    gboolean complete = done && !save->error;
    snap_unlock(&save->lock);
    if (!done) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_TIMED_OUT, "still saving");
    }
    return complete;
}

void snap_save_free(SnapSave *save) {
    if (!save) {
        return;
    }
    snap_save_cancel(save);
    g_thread_join(save->thread);
    close(save->wake_fd);
    g_clear_error(&save->error);
    g_clear_pointer(&save->glob, g_pattern_spec_free);
    g_free((char *)save->options.region_glob);
    g_free((char *)save->options.parent_dir);
    snap_cond_clear(&save->ended);
    snap_lock_clear(&save->lock);
    g_free(save->dir);
    g_free(save);
}
