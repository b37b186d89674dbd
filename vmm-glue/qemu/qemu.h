/*
 * QEMU as a guest: an unmodified QEMU is snapshotted through its QMP socket, and put back.
 *
 *     qemu_guest_new      a running QEMU as a SnapGuest
 *     qemu_guest_command  QMP commands to it, and its events, beside the snapshots
 *     qemu_export_stream  an image as a migration stream that stock QEMU loads with -incoming
 *     qemu_restore        start a QEMU from an image
 */
#pragma once

#include "libsnap.h"

typedef struct json_object json_object; /* of json-c */

/* What is done about disks that the guest may write: their content must be of the same instant as the memory. */
typedef enum {
    QEMU_DISKS_REFUSE,   /* no snapshot of a guest that has any */
    QEMU_DISKS_IGNORE,   /* leave it to the user */
    QEMU_DISKS_EXTERNAL, /* freeze them in the pause, as QEMU's external snapshots do: not there yet */
    QEMU_DISKS_MAX
} QemuDisks;

typedef struct {
    QemuDisks disks;
} QemuGuestOptions;

/**
 * qemu_guest_new: attach to a running QEMU. The guest is not touched; what forbids a snapshot is found out when
 * one begins.
 * @qmp_path: (borrow) its QMP socket, which no other client may be using.
 * @options: (borrow) (nullable) NULL is all zeros.
 * Blocks: up to 4 s when the socket does not answer.
 * Errors: as the socket: NOT_FOUND, PERMISSION, TIMED_OUT, PROTOCOL; NOT_FOUND, the process behind it is not seen.
 * Return: (out) free with snap_guest_free(), which closes the connection.
 */
SnapGuest *qemu_guest_new(const char *qmp_path, const QemuGuestOptions *options, GError **error);

/* Classes of QEMU's errors that SNAP_ERROR has no code for; the message is QEMU's own text. */
typedef enum {
    QEMU_ERROR_COMMAND_NOT_FOUND,
    QEMU_ERROR_DEVICE_NOT_ACTIVE,
    QEMU_ERROR_KVM_MISSING_CAP,
    QEMU_ERROR_MAX
} QemuErrorCode;

#define QEMU_ERROR (qemu_error_quark())
GQuark qemu_error_quark(void);

/** qemu_error_class: the QMP class of an error of QEMU_ERROR or SNAP_ERROR. Return: a static string. Thread: any.
 */
const char *qemu_error_class(const GError *error);

/**
 * qemu_guest_command: run a QMP command over the guest's own connection. One that comes in the pause of a
 * snapshot, or while it is being prepared, waits until the guest runs again. A connection that was lost is made
 * anew.
 * @guest: of qemu_guest_new(). @command: (borrow).
 * @arguments: (take) (nullable) an object.
 * @timeout_ms: for the turn and the answer together; a connection that has to be made takes up to 4 s more.
 * Errors: refused by QEMU, in its own words: SNAP_ERROR FAILED (GenericError), NOT_FOUND (DeviceNotFound), or
 *   QEMU_ERROR; GUEST_GONE, the QEMU has ended, or the connection was lost before the answer came; TIMED_OUT: it
 * may have been carried out, or be; NOT_FOUND and others of qemu_guest_new(), there is no connection to be had;
 * USAGE, the guest is no QEMU. Return: (out) what it returned, json_object_put() it; NULL on error. Thread: any,
 * but not in a QemuEventFunc.
 */
json_object *qemu_guest_command(SnapGuest *guest, const char *command, json_object *arguments, int timeout_ms,
                                GError **error);

/**
 * QemuEventFunc: an event of the guest's QEMU.
 * @data: (borrow) (nullable) an object. @time_us: by QEMU's clock, µs since the epoch.
 * Called in whatever thread reads, when whoever has the connection is done with it: it has to be quick, waits for
 * nothing that waits for the guest, and calls nothing of this guest but qemu_guest_set_event_func().
 */
typedef void (*QemuEventFunc)(const char *event, json_object *data, int64_t time_us, void *opaque);

/**
 * qemu_guest_set_event_func: who is told of events; NULL: nobody. When it returns, the function before is not
 *   running any more; so hold no lock that it takes. What happens while there is no connection is not told.
 * Thread: any.
 */
void qemu_guest_set_event_func(SnapGuest *guest, QemuEventFunc func, void *opaque);

/**
 * qemu_guest_fd: readable when qemu_guest_read_events() has something to do; for a main loop. (borrow), and the
 * same for the life of the guest, whatever becomes of the connection. Return: -1, the guest is no QEMU. Thread:
 * any.
 */
int qemu_guest_fd(SnapGuest *guest);

/**
 * qemu_guest_read_events: read the events that are there, without waiting. While a command or a snapshot uses the
 *   connection, it reads them.
 * Errors: GUEST_GONE, PROTOCOL: the connection is lost, told once; the next command, or snapshot, makes it anew.
 * Thread: any.
 */
gboolean qemu_guest_read_events(SnapGuest *guest, GError **error);

/**
 * qemu_export_stream: write the image of a QEMU guest as a standard migration stream, complete and without
 *   capabilities: `qemu-system-x86_64 … -incoming "exec:cat FILE"` loads it.
 * @out_fd: (borrow) file, pipe or socket. A reader that goes away is an IO error; SIGPIPE must be ignored for
 * that.
 *   A descriptor that does not block is waited for, and @progress called meanwhile.
 * @ret_sent_bytes: (nullable) what was written is added to it, as it is written.
 * @progress: (nullable) called in this thread.
 * Errors: NOT_SUPPORTED, the image is not of a QEMU; INCOMPLETE, a RAM block is not in it; CORRUPT; IO; CANCELLED.
 */
gboolean qemu_export_stream(const SnapImage *image, int out_fd, uint64_t *ret_sent_bytes,
                            SnapProgressFunc progress, void *opaque, GError **error);

/* Whether RAM is mapped from the image's raw files instead of being copied. */
typedef enum {
    QEMU_MAP_AUTO,   /* where the command itself keeps its RAM in a file or a memfd */
    QEMU_MAP_ALWAYS, /* where it can be done at all; an error where it cannot */
    QEMU_MAP_NEVER,
    QEMU_MAP_MAX
} QemuMap;

typedef struct {
    QemuMap map;
    int timeout_ms; /* for the guest to run; 0: no limit while data flows */
} QemuRestoreOptions;

/* What a restore has done, for the report. */
typedef struct {
    uint64_t ready_ns;  /* from the start of QEMU until the guest ran, or, if it was paused, was loaded */
    uint64_t launch_ns; /* of these: until QEMU itself was up, which takes it 50 ms and more without any image */
    uint64_t stream_bytes; /* sent to it */
    uint64_t mapped_bytes; /* of RAM that was mapped instead */
    gboolean running;      /* FALSE: the guest was paused when the image was taken, and is again */
} QemuRestoreStats;

/* A QEMU that was started from an image. */
typedef struct QemuProcess QemuProcess;

/**
 * qemu_restore: start a QEMU, let it load the image, return when the guest runs.
 *
 * QEMU gets the caller's standard input and output; what it writes to standard error is passed on. A guest that
 * was paused is loaded and left paused. On error QEMU is gone and nothing is left behind. The image is not
 * changed, and must stay where it is while a QEMU runs that maps it.
 *
 * @argv: (borrow) the command, NULL terminated: as the guest was started, less -incoming and -S.
 * @options: (borrow) (nullable) NULL is all zeros.
 * @ret_stats: (out) (nullable).
 * Blocks: until the guest runs. SIGINT, SIGTERM and SIGHUP, where the caller has them blocked, are passed to QEMU.
 * Errors: USAGE, the command contradicts a restore; NOT_FOUND, no such program; FAILED, QEMU ended: its own last
 *   line; otherwise as qemu_export_stream().
 * Return: (out) qemu_process_free(); NULL on error.
 */
QemuProcess *qemu_restore(const SnapImage *image, char *const *argv, const QemuRestoreOptions *options,
                          QemuRestoreStats *ret_stats, GError **error);

/** qemu_process_pid: its process id, also after it ended. */
int qemu_process_pid(const QemuProcess *process);

/**
 * qemu_process_wait: wait until it ends, passing its standard error on. SIGINT, SIGTERM and SIGHUP, where the
 * caller has them blocked, are passed to it. Return: its exit status as a shell has it: 128 + N when it died of
 * signal N.
 */
int qemu_process_wait(QemuProcess *process);

/** qemu_process_kill: end it at once, and wait for that. */
void qemu_process_kill(QemuProcess *process);

/** qemu_process_free: let go of it; it runs on if it does. NULL is allowed. */
void qemu_process_free(QemuProcess *process);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(QemuProcess, qemu_process_free)
