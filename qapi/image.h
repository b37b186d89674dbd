/* Command family image: what is in an image directory, whether it is sound, out with it, away with it. */
#pragma once

#include "json.h"
#include "libsnap.h"

/**
 * qapi_image_info: what an image holds.
 * Errors: those of snap_image_open().
 * Return: (out) {dir, id, parent-id?, parent-dir?, parents, pages-held, driver, created, page-bytes, length-bytes,
 *   data-bytes, regions: [{name, memory, guest-address?, host-address, length-bytes, data-bytes, page-bytes,
 *   granule-bytes, raw-path?}], states: [name], statistics: {…}}; parents counts the images below it, pages-held
 *   the pages in this image itself, data-bytes pages that are not zero, wherever they are.
 */
json_object *qapi_image_info(const char *dir, GError **error);

/**
 * qapi_image_list: one object an image. Each of @dirs (NULL-terminated) is an image or a folder of images, whose
 *   images are listed oldest first. A damaged or incomplete image is listed as such, it does not fail the command.
 * Errors: NOT_FOUND, a folder that does not exist; PERMISSION.
 * Return: (out) {images: [{dir, complete, id?, parent-id?, parent-dir?, parents?, pages-held?, driver?, created?,
 *   regions?, length-bytes?, problem?}]}
 */
json_object *qapi_image_list(const char *const *dirs, GError **error);

/**
 * qapi_image_verify: check every byte. @progress: (nullable) as in snap_image_verify().
 * Errors: those of snap_image_open() and snap_image_verify().
 * Return: (out) {dir, id, regions, length-bytes}
 */
json_object *qapi_image_verify(const char *dir, SnapProgressFunc progress, void *opaque, GError **error);

/**
 * qapi_image_merge: write a full image at @out that is equal to the chain at @dir. @progress: as above.
 * Errors: those of snap_image_open() and snap_image_merge().
 * Return: (out) {dir, out, id, merged, regions, length-bytes}; merged counts images.
 */
json_object *qapi_image_merge(const char *dir, const char *out, SnapProgressFunc progress, void *opaque,
                              GError **error);

/**
 * qapi_image_delete: remove an image. Errors: those of snap_image_delete().
 * Return: (out) {dir}
 */
json_object *qapi_image_delete(const char *dir, GError **error);
