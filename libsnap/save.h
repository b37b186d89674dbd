/*
 * Inside of the save job; libsnap.h has the outside. Three files, in the order data goes through them:
 *
 *     save.c         the job: thread, attempts, progress
 *     save-base.c    the image before this one: what it has already
 *     save-point.c   from the list of regions to the moment the guest runs on
 *     save-sweep.c   from the moment the guest runs on to the manifest
 */
#pragma once

#include <stdbool.h>

#include "guest.h"
#include "image-write.h"
#include "lock.h"
#include "sweep.h"

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
    GThread *thread;

    /* atomic: a flag, ordered by nothing */
    gint cancelled;

    /* under lock */
    SnapLock lock;
    SnapCond ended;
    SnapSaveStats stats;
    GError *error;
    gboolean done;

    /* job thread only */
    SnapSync *tracker;
    SnapImageWriter *writer;
    SnapImage *parent;     /* (nullable) */
    uint8_t *parent_pages; /* a chunk of it, for comparing */
    GPtrArray *fixed;      /* of SnapRegion */
    GArray *copied;        /* of CopiedRegion */
    GPtrArray *states;     /* of SnapState */
    GArray *numbers;       /* of guint: tracker area → region number in the image */
    int64_t created_us;
    uint64_t paced_ns;        /* when the bandwidth limit lets the next chunk go */
    uint64_t count_faults_ns; /* when the fault thread's counts are fetched again */
    guint n_staging;
    guint fewest_free;
    uint64_t copied_bytes; /* in copied */
    uint64_t eager_bytes;  /* regions up to this are copied in the pause: a loss in an earlier attempt taught it */
    uint64_t empty_pages;  /* of blocks that held nothing at the point: never armed, read or written */
};

/* ---- save.c ---------------------------------------------------------------------------------------------- */

void snap_save_set_phase(SnapSave *save, SnapSavePhase phase);

/* @done more pages are captured; take over what the writer has counted, and now and then, or now, the fault
 * thread. */
void snap_save_count(SnapSave *save, uint64_t done, bool faults_too);

/* @pages need not be captured: the parent has them. */
void snap_save_count_unchanged(SnapSave *save, uint64_t pages);

/* FALSE when it was cancelled or the fault thread gave up: *error says which. */
gboolean snap_save_go_on(SnapSave *save, GError **error);

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

/* ---- save-sweep.c ---------------------------------------------------------------------------------------- */

/* Capture and write everything, then release the guest, then commit the image. */
gboolean snap_save_sweep(SnapSave *save, GError **error);
