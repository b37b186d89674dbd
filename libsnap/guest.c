/* A guest: what a VMM's glue hands to the jobs. */
#include "guest.h"

#include "uffd.h"

#include <unistd.h>

SnapGuest *snap_guest_new(const char *driver, int pid, const SnapGuestOps *ops, void *opaque) {
    SnapGuest *guest = g_new0(SnapGuest, 1);
    guest->driver = g_strdup(driver);
    guest->pid = pid ? pid : getpid();
    guest->ops = ops;
    guest->opaque = opaque;
    snap_lock_init(&guest->tracker_lock);
    return guest;
}

void snap_guest_set_identity(SnapGuest *guest, const char *identity) {
    g_free(guest->identity);
    guest->identity = g_strdup(identity);
}

void snap_guest_set_move_ops(SnapGuest *guest, const SnapMoveOps *ops) {
    guest->move_ops = ops;
}

const SnapMoveOps *snap_guest_move_ops(const SnapGuest *guest) {
    return guest->move_ops;
}

void snap_guest_drop_log(SnapGuest *guest) {
    g_clear_pointer(&guest->log.tracker, snap_sync_free);
    g_clear_pointer(&guest->log.image_id, g_free);
}

void snap_guest_free(SnapGuest *guest) {
    if (!guest) {
        return;
    }
    snap_guest_drop_log(guest);
    if (guest->ops->free) {
        guest->ops->free(guest->opaque);
    }
    g_free(guest->driver);
    g_free(guest->identity);
    snap_lock_clear(&guest->tracker_lock);
    g_free(guest);
}

void snap_guest_set_tracker(SnapGuest *guest, SnapTracker *tracker) {
    snap_lock(&guest->tracker_lock);
    g_assert(!guest->tracker || !tracker);
    guest->tracker = tracker;
    snap_unlock(&guest->tracker_lock);
}

void snap_guest_mark_dirty(SnapGuest *guest, uint64_t address, uint64_t length_bytes) {
    snap_lock(&guest->tracker_lock);
    if (guest->tracker) {
        snap_tracker_mark_dirty(guest->tracker, address, length_bytes);
    }
    snap_unlock(&guest->tracker_lock);
}

int snap_guest_pid(const SnapGuest *guest) {
    return guest->pid;
}

void *snap_guest_opaque(const SnapGuest *guest, const SnapGuestOps *ops) {
    return guest->ops == ops ? guest->opaque : NULL;
}

int snap_guest_open_uffd(const SnapGuest *guest, GError **error) {
    if (guest->ops->open_uffd) {
        return guest->ops->open_uffd(guest->opaque, error);
    }
    g_assert(guest->pid == getpid());
    int uffd = snap_uffd_open();
    if (uffd < 0) {
        snap_set_errno(error, -uffd, "a userfaultfd; run as root, or set vm.unprivileged_userfaultfd to 1");
        return -1;
    }
    return uffd;
}

void snap_guest_list_spared(const SnapGuest *guest, gboolean paused, GArray *addresses) {
    if (guest->ops->list_spared) {
        guest->ops->list_spared(guest->opaque, paused, addresses);
    }
}

void snap_guest_list_unseen(const SnapGuest *guest, GArray *ranges) {
    if (guest->ops->list_unseen) {
        guest->ops->list_unseen(guest->opaque, ranges);
    }
}

gboolean snap_guest_get_state(const SnapGuest *guest, GPtrArray *states, GError **error) {
    return !guest->ops->get_state || guest->ops->get_state(guest->opaque, states, error);
}
