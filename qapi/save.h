/* Command family save: one snapshot of one guest. */
#pragma once

#include "json.h"
#include "libsnap.h"

typedef enum {
    QAPI_GUEST_PROCESS,
    QAPI_GUEST_QEMU,
} QapiGuestKind;

/* Which guest; each kind has its own options. */
typedef struct {
    QapiGuestKind kind;
    union {
        struct {
            int pid;
        } process;
        struct {
            const char *qmp_path;
            gboolean ignore_disks; /* writable disks are none of ours: what the guest writes there is not kept */
        } qemu;
    };
} QapiGuestOptions;

typedef struct {
    QapiGuestOptions target;
    SnapSaveOptions save;
} QapiSaveOptions;

/** qapi_open_guest: attach to @target. Errors: GUEST_GONE and others of its driver. Return: (out) the guest. */
SnapGuest *qapi_open_guest(const QapiGuestOptions *target, GError **error);

/* Called about ten times a second while it runs; return FALSE to cancel. */
typedef gboolean (*QapiSaveProgressFunc)(const SnapSaveStats *stats, void *opaque);

/**
 * qapi_save_guest: snapshot a guest; returns when the image is on disk, or is removed again.
 * @options: (borrow). @progress: (nullable) called in this thread.
 * Errors: those of snap_save_start() and snap_save_wait().
 * Return: (out) {image, parent (with one only), attempts, pause-us, prepare-ms, total-ms, pages: {total, zero,
 * unchanged, by-sweep, by-fault}, bytes-written, faults, fault-latency-us: {p50, p99, p999, max},
 * peak-buffer-bytes}
 */
json_object *qapi_save_guest(SnapGuest *guest, const SnapSaveOptions *options, QapiSaveProgressFunc progress,
                             void *opaque, GError **error);

/** qapi_saved_to_json: what qapi_save_guest() returns. */
json_object *qapi_saved_to_json(const SnapSaveOptions *options, const SnapSaveStats *stats);

/** qapi_save_statistics: a SaveStatistics of the schema. Thread: any, while @save is there. */
json_object *qapi_save_statistics(SnapSave *save);

/** qapi_save_wait: until it has ended. @progress: (nullable) as above. Errors: those of snap_save_wait(). */
gboolean qapi_save_wait(SnapSave *save, QapiSaveProgressFunc progress, void *opaque, GError **error);
