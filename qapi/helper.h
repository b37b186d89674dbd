/*
 * The helper: what all clients of a QMP server share, and what command handlers work on.
 *
 *     client → session → dispatch → handler → targets, jobs, logs     (all of one QapiHelper)
 *                  ▲                               │
 *                  └───────── events ──────────────┘
 *
 * It knows nothing about sockets: the command line has one of its own, without any server.
 *
 * Threads: functions may be called from any thread. Fields are under `lock`, which is never held while anything
 * waits: for a disk, a guest, or a job. Lock order: helper, then server, then session (events are sent with
 * `lock` held, so that they come in the order in which things happened).
 */
#pragma once

#include "schema.h"

#include "libsnap.h"

typedef struct QapiHelper QapiHelper;
typedef struct QapiTarget QapiTarget;
typedef struct QapiJob QapiJob;
typedef struct QapiDescriptors QapiDescriptors;
typedef struct QapiImages QapiImages;

/* Who wants to know. Called with the helper's lock held: do not call back. */
typedef struct {
    /* @event: (borrow) {timestamp, event, data?}, as it goes to clients. */
    void (*event)(json_object *event, void *opaque);
    /* (nullable) Somebody has given the command quit, which is refused otherwise. Called without the lock. */
    void (*quit)(void *opaque);
} QapiListener;

struct QapiHelper {
    /* set before start */
    char *snapshot_dir; /* where relative paths are taken from; absolute */
    gboolean alone;     /* a command line without a server */
    const QapiListener *listener;
    void *listener_opaque;
    QapiImages *images; /* (nullable) see incoming.c */

    GMutex lock;

    /* under lock */
    GPtrArray *targets;  /* of QapiTarget, in the order they were added */
    GPtrArray *jobs;     /* of QapiJob, the oldest first */
    GCond job_ended;     /* a job's thread has nothing more to do */
    GPtrArray *fdsets;   /* see descriptors.c */
    gboolean closing;    /* no new targets, no new jobs */
    GMainContext *watch; /* (nullable) a thread of its own sees what guests do, once there is one */
    GMainLoop *watch_loop;
    GThread *watch_thread;
};

/**
 * qapi_helper_new: a helper without targets.
 * @snapshot_dir: (borrow) (nullable) where relative paths are taken from. NULL: for a command line without a
 * server, whose paths stay as they are, in what is returned too; and as it has one command at a time, which sees
 * for itself when its guest ends, guests are not watched.
 * Return: (out) free with qapi_helper_free().
 */
QapiHelper *qapi_helper_new(const char *snapshot_dir);

/** qapi_helper_listen: who is told about events; set before anybody else knows the helper. @listener: (borrow). */
void qapi_helper_listen(QapiHelper *helper, const QapiListener *listener, void *opaque);

/**
 * qapi_helper_close: no new targets and jobs from now on; cancel the jobs there are, and wait for their ends.
 *   Blocks for as long as a disk does.
 */
void qapi_helper_close(QapiHelper *helper);

/** qapi_helper_free: close it, end all logs, let go of all guests, which run on. NULL is allowed. */
void qapi_helper_free(QapiHelper *helper);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(QapiHelper, qapi_helper_free)

/** qapi_helper_watch: let the thread "qapi-watch" serve @source (borrow), which has its callback already. */
void qapi_helper_watch(QapiHelper *helper, GSource *source);

/** qapi_is_id: whether @text can be the name of a job or a target, by QEMU's rule: a letter, then letters, digits,
 * - . _ */
gboolean qapi_is_id(const char *text);

/** qapi_path: a path of a command's arguments; made absolute where there is a server. Return: (out). */
char *qapi_path(const QapiHelper *helper, const char *path);

/**
 * qapi_emit: tell the listener what has happened.
 * @event: its name in the schema. @data: (take) (nullable) what the schema does not allow is not sent.
 */
void qapi_emit(QapiHelper *helper, const char *event, json_object *data);
/** qapi_emit_locked: the same, by a caller that holds the lock. */
void qapi_emit_locked(QapiHelper *helper, const char *event, json_object *data);
/** qapi_emit_at: the same, of what happened at @time_us, in µs since the epoch. */
void qapi_emit_at(QapiHelper *helper, const char *event, json_object *data, int64_t time_us);
