/*
 * Inside merging an image into its child: what image-fold.c (the order of things) and fold-dir.c (the two
 * directories that are made for it) share.
 */
#pragma once

#include "image-open.h"

/* Beside the images, while one is merged into another; whatever is left of them is removed by the next one. */
#define SNAP_FOLD_PARENT ".fold-parent" /* what the parent becomes; after the exchange, what it was */
#define SNAP_FOLD_CHILD ".fold-child"   /* the same of the child */
#define SNAP_FOLD_DONE ".fold-done"     /* what the parent had become, when it is of no use any more */

/* Both opened alone. */
typedef struct {
    char *folder;
    SnapImage
        *parent; /* has no parent; ->manifest->folding_into: it has become what is made in SNAP_FOLD_PARENT */
    SnapImage *child;
} SnapFold;

/* The child's region number @i in the parent, or NULL. */
SnapOpenRegion *snap_fold_parent_region(const SnapFold *fold, guint i);

/* TRUE when the data file of the child's region number @i, which the parent has too, is written to. */
gboolean snap_fold_changes(const SnapFold *fold, guint i);

/*
 * Make SNAP_FOLD_CHILD, and SNAP_FOLD_PARENT where the parent is still what it was, both complete and on disk. No
 * page is copied: their data files are hard links. What is there on error is to be removed.
 */
gboolean snap_fold_make_dirs(const SnapFold *fold, GError **error);

/* fsyncs that go on side by side, a batch at a time. */
typedef struct SnapSyncs SnapSyncs;
SnapSyncs *snap_syncs_new(void);
/* @fd: (take) whatever happens. @path: (borrow) for messages; absolute. */
gboolean snap_syncs_add(SnapSyncs *syncs, int fd, const char *path, GError **error);
/* Wait for all; the first that failed. */
gboolean snap_syncs_finish(SnapSyncs *syncs, GError **error);
void snap_syncs_free(SnapSyncs *syncs); /* NULL is allowed */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SnapSyncs, snap_syncs_free)
