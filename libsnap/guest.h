/* A guest, inside the library: see SnapGuestOps in libsnap.h. */
#pragma once

#include "libsnap.h"
#include "track-sync.h"

/* What lasts from one save to the next, where the log is kept. The save job's while one runs. */
typedef struct {
    SnapSync *tracker;     /* (nullable) in LOG */
    char *image_id;        /* what it logs against */
    uint64_t buffer_bytes; /* as it was made */
} SnapGuestLog;

struct SnapGuest {
    char *driver;
    int pid;
    const SnapGuestOps *ops;
    void *opaque;
    const SnapMoveOps *move_ops; /* (nullable) */
    char *identity;              /* (nullable) */
    SnapGuestLog log;

    SnapLock tracker_lock; /* that there is one; before its own */
    SnapTracker *tracker;  /* (nullable) (borrow): it makes room for a snapshot. Changed under tracker_lock */
};

/* Its writes are logged by @tracker; NULL: not any more, and nobody tells that one of writes. */
void snap_guest_set_tracker(SnapGuest *guest, SnapTracker *tracker) SNAP_EXCLUDES(guest->tracker_lock);

/* Let go of the guest's memory. */
void snap_guest_drop_log(SnapGuest *guest);

/* Those of SnapGuestOps that may be left out. */
int snap_guest_open_uffd(const SnapGuest *guest, GError **error);
void snap_guest_list_spared(const SnapGuest *guest, gboolean paused, GArray *addresses);
void snap_guest_list_unseen(const SnapGuest *guest, GArray *ranges);
gboolean snap_guest_get_state(const SnapGuest *guest, GPtrArray *states, GError **error);
