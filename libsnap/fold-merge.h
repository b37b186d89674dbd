/*
 * Merging one region of an image into the same region of its child: the indexes, and the pages.
 *
 * The parent's data file becomes the child's: pages that the child holds are written over the parent's. Two
 * indexes are made for it beforehand. What the *parent* is from then on has none of the child's pages, so that
 * its checksums hold before, while and after they are overwritten; what the *child* becomes has them all.
 */
#pragma once

#include "image-open.h"

/*
 * Write the two indexes. @parent_fd: (nullable: -1) for what the parent becomes. @child_fd: for the merged image.
 * Every chunk of either image that is needed for it is read and checked. Errors: CORRUPT, IO.
 */
gboolean snap_fold_merge_indexes(SnapOpenRegion *parent, SnapOpenRegion *child, int parent_fd, int child_fd,
                                 GError **error);

/*
 * Write the pages of @child, checked once more, into the data file @fd, called @path, and make it as long as the
 * child's region; pages of zeros become holes. Can be done again from the start. Not yet on disk afterwards.
 */
gboolean snap_fold_write_pages(SnapOpenRegion *child, int fd, const char *path, GError **error);
