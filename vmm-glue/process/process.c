/*
 * A process as a SnapGuest: puts regions, guard, freeze and state together.
 *
 *     list_regions   regions.c          open_uffd   guard.c, inject.c
 *     pause, resume  freeze.c           get_state   state.c, notes.c
 *     list_spared    locks.c              list_unseen    rings.c
 *     stop, cont     job-control.c
 *
 * Failure modes: the process ends: GUEST_GONE from whatever comes next. It executes another program: its mappings
 * end as the old program's do, GUEST_GONE as well.
 */
#include "process.h"

#include "freeze.h"
#include "guard.h"
#include "job-control.h"
#include "locks.h"
#include "regions.h"
#include "rings.h"
#include "state.h"
#include "target.h"

#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>

#define STOP_TIMEOUT_NS (5 * G_GUINT64_CONSTANT(1000000000))

typedef struct {
    int pid;
    int pidfd;   /* the same as long as we have it, which a number is not */
    GMutex lock; /* held while it is traced, or stopped and continued: the one shows in what the other looks at */
    Regions *regions;
    Guard *guard;
    Freeze *freeze;
    gboolean watched; /* a userfaultfd of ours was opened */
    gboolean traced;  /* and we hold the lock */
    gboolean stood;   /* when that began */
    LocksSeen seen;
} ProcessGuest;

static void begin_tracing(ProcessGuest *guest) {
    g_mutex_lock(&guest->lock);
    guest->traced = TRUE;
    guest->stood = FALSE;
    (void)job_control_is_stopped(guest->pidfd, guest->pid, &guest->stood, NULL);
}

static void end_tracing(ProcessGuest *guest) {
    if (guest->stood) {
        job_control_settle(guest->pidfd, guest->pid);
    }
    guest->traced = FALSE;
    g_mutex_unlock(&guest->lock);
}

static gboolean list_regions(void *opaque, gboolean paused, GPtrArray *list, GError **error) {
    ProcessGuest *guest = (ProcessGuest *)opaque;
    return regions_list(guest->regions, paused, guest->watched, list, error);
}

static int open_uffd(void *opaque, GError **error) {
    ProcessGuest *guest = (ProcessGuest *)opaque;
    begin_tracing(guest);
    int fd = guard_open_uffd(guest->guard, guest->pid, error);
    end_tracing(guest);
    guest->watched |= fd >= 0;
    return fd;
}

/* A stop needs nothing but the stop. */
static gboolean pause_guest(void *opaque, SnapPauseStep step, GError **error) {
    ProcessGuest *guest = (ProcessGuest *)opaque;
    if (step == SNAP_PAUSE_READY) {
        return TRUE;
    }
    begin_tracing(guest);
    return freeze_stop(guest->freeze, STOP_TIMEOUT_NS, error);
}

static gboolean resume_guest(void *opaque, uint64_t *ret_pause_ns, GError **error) {
    ProcessGuest *guest = (ProcessGuest *)opaque;
    gboolean ok = freeze_go(guest->freeze, ret_pause_ns, error);
    if (guest->traced) {
        end_tracing(guest);
    }
    return ok;
}

static gboolean get_state(void *opaque, GPtrArray *states, GError **error) {
    ProcessGuest *guest = (ProcessGuest *)opaque;
    guint n_threads = 0;
    const FreezeThread *threads = freeze_threads(guest->freeze, &n_threads);
    const GString *maps = regions_maps_text(guest->regions);
    if (!maps) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "process %d: its mappings have not been listed",
                    guest->pid);
        return FALSE;
    }
    return state_build(guest->pid, threads, n_threads, maps, states, error);
}

static void list_spared(void *opaque, gboolean paused, GArray *addresses) {
    ProcessGuest *guest = (ProcessGuest *)opaque;
    if (!paused) {
        locks_of_running(guest->pid, &guest->seen, addresses);
        return;
    }
    guint n_threads = 0;
    const FreezeThread *threads = freeze_threads(guest->freeze, &n_threads);
    locks_of_stopped(threads, n_threads, &guest->seen, addresses);
}

static void list_unseen(void *opaque, GArray *ranges) {
    ProcessGuest *guest = (ProcessGuest *)opaque;
    (void)rings_find_buffers(guest->pid, ranges);
    if (rings_bytes(ranges) > RINGS_BUFFERS_MAX_BYTES) {
        g_array_set_size(ranges, 0); /* regions with any of them are refused, or left out */
    }
}

static void free_guest(void *opaque) {
    ProcessGuest *guest = (ProcessGuest *)opaque;
    freeze_free(guest->freeze);
    guard_free(guest->guard);
    g_mutex_clear(&guest->lock);
    regions_free(guest->regions);
    if (guest->pidfd >= 0) {
        close(guest->pidfd);
    }
    g_free(guest);
}

static const SnapGuestOps operations = {
    .list_regions = list_regions,
    .open_uffd = open_uffd,
    .pause = pause_guest,
    .resume = resume_guest,
    .get_state = get_state,
    .list_spared = list_spared,
    .list_unseen = list_unseen,
    .free = free_guest,
};

static gboolean open_guest(ProcessGuest *guest, GError **error) {
    /* The descriptor first: it is the process that is checked then, whoever gets its number later. */
    guest->pidfd = (int)syscall(SYS_pidfd_open, guest->pid, 0);
    int errnum = errno;
    if (!target_check(guest->pid, error)) {
        return FALSE;
    }
    if (guest->pidfd < 0) {
        snap_set_errno(error, errnum, "process %d", guest->pid);
        return FALSE;
    }
    guest->guard = guard_new(error);
    guest->regions = guest->guard ? regions_new(guest->pid, error) : NULL;
    return guest->regions != NULL;
}

SnapGuest *process_guest_new(int pid, GError **error) {
    ProcessGuest *guest = g_new0(ProcessGuest, 1);
    guest->pid = pid;
    guest->freeze = freeze_new(pid);
    g_mutex_init(&guest->lock);
    if (!open_guest(guest, error)) {
        free_guest(guest);
        return NULL;
    }
    SnapGuest *made = snap_guest_new("process", pid, &operations, guest);
    g_autofree char *identity = target_identity(pid);
    if (identity) {
        snap_guest_set_identity(made, identity);
    }
    return made;
}

/* ---- verbs ----------------------------------------------------------------------------------------------- */

/* With the lock. */
static ProcessGuest *lock_process(const SnapGuest *guest, GError **error) {
    ProcessGuest *process = snap_guest_opaque(guest, &operations);
    if (!process) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_USAGE, "the guest is not a process of its own");
        return NULL;
    }
    g_mutex_lock(&process->lock);
    return process;
}

gboolean process_guest_stop(SnapGuest *guest, GError **error) {
    ProcessGuest *process = lock_process(guest, error);
    gboolean ok = process && job_control_stop(process->pidfd, process->pid, error);
    if (process) {
        g_mutex_unlock(&process->lock);
    }
    return ok;
}

gboolean process_guest_cont(SnapGuest *guest, GError **error) {
    ProcessGuest *process = lock_process(guest, error);
    gboolean ok = process && job_control_cont(process->pidfd, process->pid, error);
    if (process) {
        g_mutex_unlock(&process->lock);
    }
    return ok;
}

gboolean process_guest_is_stopped(SnapGuest *guest, gboolean *ret_stopped, GError **error) {
    ProcessGuest *process = lock_process(guest, error);
    gboolean ok = process && job_control_is_stopped(process->pidfd, process->pid, ret_stopped, error);
    if (process) {
        g_mutex_unlock(&process->lock);
    }
    return ok;
}
