/* Command family image: what is in an image directory, whether it is sound, out with it, away with it. */
#pragma once

#include "json.h"
#include "libsnap.h"

/**
 * qapi_image_info: what an image holds.
 * Errors: those of snap_image_open().
 * Return: (out) {dir, id, parent-id?, driver, created, page-bytes, length-bytes, data-bytes, regions: [{name,
 *   memory, guest-address?, host-address, length-bytes, data-bytes, page-bytes, granule-bytes, raw-path?}],
 *   states: [name], statistics: {…}}; data-bytes counts pages that are not zero.
 */
json_object *qapi_image_info(const char *dir, GError **error);

/**
 * qapi_image_list: one object an image. Each of @dirs (NULL-terminated) is an image or a folder of images.
 *   A damaged or incomplete image is listed as such, it does not fail the command.
 * Errors: NOT_FOUND, a folder that does not exist; PERMISSION.
 * Return: (out) {images: [{dir, complete, id?, parent-id?, driver?, created?, regions?, length-bytes?, problem?}]}
 */
json_object *qapi_image_list(const char *const *dirs, GError **error);

/**
 * qapi_image_verify: check every byte. @progress: (nullable) as in snap_image_verify().
 * Errors: those of snap_image_open() and snap_image_verify().
 * Return: (out) {dir, id, regions, length-bytes}
 */
json_object *qapi_image_verify(const char *dir, SnapProgressFunc progress, void *opaque, GError **error);

/**
 * qapi_image_delete: remove an image. Errors: those of snap_image_delete().
 * Return: (out) {dir}
 */
json_object *qapi_image_delete(const char *dir, GError **error);
