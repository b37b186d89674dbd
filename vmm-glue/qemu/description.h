/*
 * What an image says about the QEMU it is of: the state blob "qemu.json".
 *
 * Device state and RAM alone do not make a migration stream: it also names the machine, and lists the RAM blocks
 * by the lengths they had in the pause. The rest is for people, and for a restore that maps RAM.
 *
 *     {"machine": "pc-i440fx-7.2", "version": "7.2.22", "accel": "tcg", "running": true, "blocks": [
 *       {"name": "pc.ram", "used-bytes": …, "max-bytes": …, "page-bytes": …, "host-address": …, "guest-address":
 * 0, "shared": false, "backend": "pc.ram"}, …]}
 *
 * "guest-address" and "backend" may be absent. Addresses are decimal numbers.
 */
#pragma once

#include "ramblock.h"

#define QEMU_STATE_DEVICES "device-state" /* as xen-save-devices-state wrote it */
#define QEMU_STATE_DESCRIPTION "qemu.json"

typedef struct {
    char *machine; /* what the stream's configuration section says: the versioned type, less "-machine" */
    char *version; /* of QEMU */
    char *accel;
    gboolean running;
    GPtrArray *blocks; /* of RamBlock: the migratable ones */
} QemuDescription;

void description_free(QemuDescription *description);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(QemuDescription, description_free)

/** description_encode: as JSON. Return: (out) g_bytes_unref() it. */
GBytes *description_encode(const QemuDescription *description);

/** description_decode: Errors: CORRUPT, what is missing. Return: (out) free with description_free(). */
QemuDescription *description_decode(GBytes *json, GError **error);

/** description_of_image: Errors: NOT_SUPPORTED, the image is not of a QEMU; CORRUPT; IO. */
QemuDescription *description_of_image(const SnapImage *image, GError **error);
