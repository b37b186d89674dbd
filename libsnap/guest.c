/* A guest: what a VMM's glue hands to the jobs. */
#include "guest.h"

#include <unistd.h>

SnapGuest *snap_guest_new(const char *driver, int pid, const SnapGuestOps *ops, void *opaque) {
    SnapGuest *guest = g_new0(SnapGuest, 1);
    guest->driver = g_strdup(driver);
    guest->pid = pid ? pid : getpid();
    guest->ops = ops;
    guest->opaque = opaque;
    return guest;
}

void snap_guest_free(SnapGuest *guest) {
    if (!guest) {
        return;
    }
    if (guest->ops->free) {
        guest->ops->free(guest->opaque);
    }
    g_free(guest->driver);
    g_free(guest);
}

int snap_guest_pid(const SnapGuest *guest) {
    return guest->pid;
}
