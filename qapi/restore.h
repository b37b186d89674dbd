/* Command family restore: a guest from an image. */
#pragma once

#include "json.h"
#include "libsnap.h"
#include "qemu/qemu.h"

typedef struct {
    const char *dir;
    char *const *argv; /* the QEMU command, NULL-terminated, as the guest was started, less -incoming and -S */
    QemuRestoreOptions qemu;
} QapiRestoreOptions;

/**
 * qapi_restore: start a QEMU from an image and wait until it has loaded it.
 * @ret_process: (out) the QEMU; qemu_process_wait() for its end.
 * Errors: those of snap_image_open() and of qemu_restore().
 * Return: (out) {dir, pid, running, ready-ms, stream-bytes, mapped-bytes}
 */
json_object *qapi_restore(const QapiRestoreOptions *options, QemuProcess **ret_process, GError **error);
