/*
 * Jobs: what takes long, and can be watched, paused, limited and cancelled meanwhile.
 *
 *                 pause                     finish
 *               ┌───────> PAUSED ┐   ┌──> WAITING ──> PENDING ──┐
 *     CREATED ─> RUNNING <───────┘ ──┤      (at one moment)     ├─> CONCLUDED ── dismiss ──> NULL
 *                          resume    └──────> ABORTING ─────────┘
 *                                    fail, cancel
 *
 * A job has a thread, in which its kind's run() works until it ends, and which is the only one that ends it.
 * Cancel is a word to that thread. It is authoritative: run() asks qapi_job_commit() before what it made stays,
 * and after a cancel that is refused.
 *
 * Some jobs are not listed, since in QEMU they are none: a migration, a dump.
 */
#pragma once

#include "helper.h"

typedef enum {
    QAPI_JOB_CREATED,
    QAPI_JOB_RUNNING,
    QAPI_JOB_PAUSED,
    QAPI_JOB_WAITING,
    QAPI_JOB_PENDING,
    QAPI_JOB_ABORTING,
    QAPI_JOB_CONCLUDED,
    QAPI_JOB_NULL,
    QAPI_JOB_MAX
} QapiJobStatus;

/* What a kind of job does. All get the opaque pointer of qapi_job_begin(). */
typedef struct {
    const char *type;      /* a JobType of the schema; NULL: the job is not listed */
    gboolean brings_guest; /* its target's guest need not be here: it is to come by this job */
    gboolean can_rest;     /* it looks at qapi_job_go_on() now and then, or has pause() */
    /*
     * In the job's thread. Return: (out) what it came to; NULL with *error set. It lets go of guests before it
     * returns: who may dismiss the job, and when, is not known.
     */
    json_object *(*run)(QapiJob *job, void *opaque, GError **error);
    /* (nullable) Any thread, at any time between begin and the end of run(); quick. */
    void (*cancel)(void *opaque);
    void (*pause)(gboolean pause, void *opaque);
    void (*set_speed)(uint64_t bytes_per_second, void *opaque);
    /* (nullable) Any thread, as long as there is the job. Return: (out) a SaveStatistics. */
    json_object *(*statistics)(void *opaque);
    void (*free)(void *opaque);
} QapiJobKind;

/**
 * qapi_job_new: a job that has not begun: nobody sees it, but its name is taken, and its target.
 * @id: (nullable) NULL for one that is not listed. @target: (borrow) (nullable) the guest it needs for itself.
 * @path: (borrow) (nullable) the image it works on.
 * Errors: FAILED, the id is none or taken, as QEMU says it; REFUSED, another job has the target, or a migration
 * has not brought it yet, or has taken it away; GUEST_GONE, it has ended; CANCELLED, the helper is ending. Return:
 * (out) qapi_job_begin() or qapi_job_drop() it.
 */
QapiJob *qapi_job_new(QapiHelper *helper, const QapiJobKind *kind, const char *id, QapiTarget *target,
                      const char *path, GError **error);
/** qapi_job_begin: let it run. @job: (take). @opaque: (take). */
void qapi_job_begin(QapiJob *job, void *opaque);
/** qapi_job_drop: it will not be. @job: (take). */
void qapi_job_drop(QapiJob *job);

/* ---- in run() -------------------------------------------------------------------------------------------- */

/**
 * qapi_job_go_on: tell how far it is; waits while the job is paused.
 * Return: FALSE when it was cancelled: end as soon as may be.
 */
gboolean qapi_job_go_on(QapiJob *job, uint64_t done_bytes, uint64_t total_bytes);

/** qapi_job_progress: the same as a SnapProgressFunc, whose opaque is the job. */
gboolean qapi_job_progress(uint64_t done_bytes, uint64_t total_bytes, void *job);

/**
 * qapi_job_commit: the work is done, and about to stay. From here on there is no cancelling.
 * Errors: CANCELLED: take it away again, and fail with this.
 */
gboolean qapi_job_commit(QapiJob *job, GError **error);

/* ---- verbs ----------------------------------------------------------------------------------------------- */

/** qapi_jobs_end: cancel all and wait until they have ended. */
void qapi_jobs_end(QapiHelper *helper);

/**
 * qapi_job_cancel_locked: of one that is not listed, and has not ended. The caller holds the lock.
 * Return: FALSE, it is too late: it will succeed.
 */
gboolean qapi_job_cancel_locked(QapiJob *job);

/**
 * qapi_job_release_locked: what is left of the job is to say that it has ended; its target may have another one.
 * In run(), by one that holds the lock.
 */
void qapi_job_release_locked(QapiJob *job);

/** qapi_target_jobs_locked: how many jobs have @target. */
guint qapi_target_jobs_locked(QapiHelper *helper, const QapiTarget *target);
