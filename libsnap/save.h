/*
 * Inside of the save job; libsnap.h has the outside. First the job itself, then the way of the data:
 *
 *     save.c           the job: thread, attempts, end
 *     save-control.c   what others ask of it: cancel, pause, bandwidth; and how the job waits
 *     save-stats.c     where it is
 *     save-base.c      the image before this one: what it has already
 *     save-point.c     from the list of regions to the moment the guest runs on
 *     save-sweep.c     from the moment the guest runs on to the manifest
 */
#pragma once

#include <stdbool.h>

#include "guest.h"
#include "image-write.h"
#include "lock.h"
#include "sweep.h"
#include "throttle.h"

enum {
    SNAP_SINK_WAIT_MS = 50, /* between looks at cancel and at the guest while the sink is slow */
};

/* A region that was copied in the pause: it cannot be protected, or is too short-lived. */
typedef struct {
    SnapRegion *region;
    uint8_t *data;
    guint number; /* in the image */
} CopiedRegion;

struct SnapSave {
    /* set before start */
    SnapGuest *guest;
    char *dir;
    GPatternSpec *glob;
    SnapSaveOptions options;
    uint64_t start_ns;
    int wake_fd; /* eventfd: something was asked, look again */
    GThread *thread;

    /* atomic: flags, ordered by nothing */
    gint cancelled;
    gint paused;

    /* under lock */
    SnapLock lock;
    SnapCond ended;
    SnapSaveStats stats; /* at the last count */
    SnapHistogram histogram;
    SnapRate rate;
    uint64_t max_bandwidth_bytes;
    uint64_t staging_bytes; /* in use at the last count */
    uint64_t peak_staging_bytes;
    GError *error;
    gboolean done;

    /* job thread; changed under lock, and read under it by others */
    SnapSync *tracker;

    /* job thread only */
    SnapImageWriter *writer;
    SnapImage *parent;     /* (nullable) */
    uint8_t *parent_pages; /* a chunk of it, for comparing */
    GPtrArray *fixed;      /* of SnapRegion */
    GArray *copied;        /* of CopiedRegion */
    GPtrArray *states;     /* of SnapState */
    GArray *numbers;       /* of guint: tracker area → region number in the image */
    int64_t created_us;
    SnapThrottle throttle;
    uint64_t count_faults_ns; /* when the fault thread's counts are fetched again */
    guint n_staging;
    uint64_t copied_bytes; /* in copied */
    bool has_unseen;       /* something was written past the page tables when it was last looked */
    uint64_t spare_ns;     /* how long the last look for locks took */
    uint64_t eager_bytes;  /* regions up to this are copied in the pause: a loss in an earlier attempt taught it */
    uint64_t empty_pages;  /* of blocks that held nothing at the point: never armed, read or written */
};

/* ---- save.c ---------------------------------------------------------------------------------------------- */

void snap_save_set_phase(SnapSave *save, SnapSavePhase phase);

/* The buffer that was asked for, or the default. */
uint64_t snap_save_buffer_cap(const SnapSave *save);

/* From now on @tracker (take) is the job's, and what others are told of. */
void snap_save_set_tracker(SnapSave *save, SnapSync *tracker);

/* The job has none any more. Return: (out) (nullable) the one it had. */
SnapSync *snap_save_steal_tracker(SnapSave *save);

/* ---- save-control.c -------------------------------------------------------------------------------------- */

/* FALSE when it was cancelled or the fault thread gave up: *error says which. */
gboolean snap_save_go_on(SnapSave *save, GError **error);

/* Before the sweep takes anything of its own accord: wait while it is paused and the guest has room. */
gboolean snap_save_rest(SnapSave *save, GError **error);

/* Wait until the bandwidth limit allows @bytes more. */
gboolean snap_save_pace(SnapSave *save, uint64_t bytes, GError **error);

/* ---- save-stats.c ---------------------------------------------------------------------------------------- */

/* Begin to count for another attempt. */
void snap_save_count_anew(SnapSave *save);

/* @done more pages are captured; take over what the writer has counted, and now and then, or now, the fault
 * thread. */
void snap_save_count(SnapSave *save, uint64_t done, bool faults_too);

/* @pages need not be captured: the parent has them. */
void snap_save_count_unchanged(SnapSave *save, uint64_t pages);

/* Staging buffers have been taken or given back. */
void snap_save_count_staging(SnapSave *save);

/* ---- save-base.c ----------------------------------------------------------------------------------------- */

/* Open the parent image, if one is asked for. Errors: REFUSED, it is newer than now; snap_image_open()'s. */
gboolean snap_save_open_parent(SnapSave *save, GError **error);

/*
 * Take over the tracker that the guest kept, if its log is against the parent: TRUE, and save->tracker is in LOG.
 * Otherwise what the guest kept is let go.
 */
gboolean snap_save_take_log(SnapSave *save);

/* After commit: leave the tracker to the guest, logging on. */
void snap_save_leave_log(SnapSave *save);

/* Take the pages that the parent has with the same content out of chunk->present. */
gboolean snap_save_drop_known(SnapSave *save, const SnapRegion *region, SnapChunk *chunk, GError **error);

/* Record as zero what the parent has in [start, end) of a region: nothing is there any more. */
gboolean snap_save_hide(SnapSave *save, const SnapRegion *region, guint number, uint64_t start, uint64_t end,
                        GError **error);

/* ---- save-point.c ---------------------------------------------------------------------------------------- */

/*
 * Take the point in time. After it, whether it succeeded or not, the guest runs. Errors: REFUSED, NOT_FOUND
 * (nothing matches), USAGE (buffer too small), EXISTS and what listing, attaching and pausing the guest failed
 * with.
 */
gboolean snap_save_take_point(SnapSave *save, GError **error);

/* ---- save-copy.c ----------------------------------------------------------------------------------------- */

/*
 * Whether a region that could be protected is better copied in the pause. @stands: it has come up since the first
 * listing, and what is young is likely to be gone soon. After a loss, everything about as long as what was lost.
 */
bool snap_save_is_short_lived(const SnapSave *save, const SnapRegion *region, bool stands);

/* @region (take) is one of those. */
void snap_save_take_copy(SnapSave *save, SnapRegion *region);

/* In the pause: copy them. */
gboolean snap_save_copy_regions(SnapSave *save, GError **error);

/* ---- save-spare.c ---------------------------------------------------------------------------------------- */

/* Ask the guest what is not to be protected, and spare it. @paused: it stands. Return: how long that took, in ns.
 */
uint64_t snap_save_spare(SnapSave *save, gboolean paused);

/* The same, often, before anything is protected. Up to 10 ms. */
void snap_save_spare_ahead(SnapSave *save);

/* Errors: USAGE, what is written past the page tables has no room in a pool of so many pages. */
gboolean snap_save_check_unseen(const SnapSave *save, uint32_t pool_pages, GError **error);

/* ---- save-sweep.c ---------------------------------------------------------------------------------------- */

/* Capture and write everything, then release the guest, then commit the image. */
gboolean snap_save_sweep(SnapSave *save, GError **error);
