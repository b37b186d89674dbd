/*
 * The chain of an image: the image itself, its parent, the parent's parent, down to the one that has none.
 *
 *     opened alone (image-open.c) → completed here: each parent found, checked, opened and linked
 *
 * A page that an image does not hold is that of the same offset in its parent's region of the same name. Where
 * the parent has no such region, or a shorter one, the page is zeros: what lies further down is never looked at.
 */
#pragma once

#include "image-open.h"

/*
 * Open and link all parents of @image, which has been opened alone. @error as of snap_image_open(); what was
 * linked by then stays linked.
 */
gboolean snap_chain_complete(SnapImage *image, GError **error);

/* An image as its manifest describes it. */
typedef struct {
    char *dir;
    SnapManifest *manifest;
} SnapListed;

/*
 * The images in a folder, of SnapListed: the directories that have a readable manifest; in no order.
 * @but: (nullable) this one is left out.
 */
GPtrArray *snap_chain_list_folder(const char *folder, const char *but);

/* CORRUPT or INCOMPLETE when @parent, which has the right id, cannot be the parent of @child. */
gboolean snap_chain_check_pair(const SnapImage *child, const SnapImage *parent, GError **error);

/* Remove an image directory, whether or not it is a parent. See snap_image_delete(). image-delete.c. */
gboolean snap_image_remove(const char *dir, GError **error);
