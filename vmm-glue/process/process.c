/*
 * A process as a SnapGuest: puts regions, guard, freeze and state together.
 *
 *     list_regions   regions.c          open_uffd   guard.c, inject.c
 *     pause, resume  freeze.c           get_state   state.c, notes.c
 *
 * Failure modes: the process ends: GUEST_GONE from whatever comes next. It executes another program: its mappings
 * end as the old program's do, GUEST_GONE as well.
 */
#include "process.h"

#include "freeze.h"
#include "guard.h"
#include "regions.h"
#include "state.h"
#include "target.h"

#define STOP_TIMEOUT_NS (5 * G_GUINT64_CONSTANT(1000000000))

typedef struct {
    int pid;
    Regions *regions;
    Guard *guard;
    Freeze *freeze;
    gboolean watched; /* a userfaultfd of ours was opened */
} ProcessGuest;

static gboolean list_regions(void *opaque, gboolean paused, GPtrArray *list, GError **error) {
    ProcessGuest *guest = (ProcessGuest *)opaque;
    return regions_list(guest->regions, paused, guest->watched, list, error);
}

static int open_uffd(void *opaque, GError **error) {
    ProcessGuest *guest = (ProcessGuest *)opaque;
    int fd = guard_open_uffd(guest->guard, guest->pid, error);
    guest->watched |= fd >= 0;
    return fd;
}

/* A stop needs nothing but the stop. */
static gboolean pause_guest(void *opaque, SnapPauseStep step, GError **error) {
    ProcessGuest *guest = (ProcessGuest *)opaque;
    return step == SNAP_PAUSE_READY || freeze_stop(guest->freeze, STOP_TIMEOUT_NS, error);
}

static gboolean resume_guest(void *opaque, uint64_t *ret_pause_ns, GError **error) {
    ProcessGuest *guest = (ProcessGuest *)opaque;
    return freeze_go(guest->freeze, ret_pause_ns, error);
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

static void free_guest(void *opaque) {
    ProcessGuest *guest = (ProcessGuest *)opaque;
    freeze_free(guest->freeze);
    guard_free(guest->guard);
    regions_free(guest->regions);
    g_free(guest);
}

static const SnapGuestOps operations = {
    .list_regions = list_regions,
    .open_uffd = open_uffd,
    .pause = pause_guest,
    .resume = resume_guest,
    .get_state = get_state,
    .free = free_guest,
};

SnapGuest *process_guest_new(int pid, GError **error) {
    if (!target_check(pid, error)) {
        return NULL;
    }
    g_autofree char *identity = target_identity(pid);
    g_autoptr(Guard) guard = guard_new(error);
    g_autoptr(Regions) regions = guard ? regions_new(pid, error) : NULL;
    if (!regions) {
        return NULL;
    }
    ProcessGuest *guest = g_new0(ProcessGuest, 1);
    guest->pid = pid;
    guest->guard = g_steal_pointer(&guard);
    guest->regions = g_steal_pointer(&regions);
    guest->freeze = freeze_new(pid);
    SnapGuest *made = snap_guest_new("process", pid, &operations, guest);
    if (identity) {
        snap_guest_set_identity(made, identity);
    }
    return made;
}
