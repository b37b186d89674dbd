/* Jobs: see jobs.h. */
#include "jobs.h"

#include "call.h"
#include "qmp-error.h"
#include "schema-handlers.h"
#include "targets.h"

#include <signal.h>

typedef enum { VERB_CANCEL, VERB_PAUSE, VERB_RESUME, VERB_SET_SPEED, VERB_DISMISS, VERB_MAX } Verb;

static const char *const verb_names[] = {
    [VERB_CANCEL] = "cancel",       [VERB_PAUSE] = "pause",     [VERB_RESUME] = "resume",
    [VERB_SET_SPEED] = "set-speed", [VERB_DISMISS] = "dismiss",
};
G_STATIC_ASSERT(G_N_ELEMENTS(verb_names) == VERB_MAX);

static const char *const status_names[] = {
    [QAPI_JOB_CREATED] = "created",     [QAPI_JOB_RUNNING] = "running", [QAPI_JOB_PAUSED] = "paused",
    [QAPI_JOB_WAITING] = "waiting",     [QAPI_JOB_PENDING] = "pending", [QAPI_JOB_ABORTING] = "aborting",
    [QAPI_JOB_CONCLUDED] = "concluded", [QAPI_JOB_NULL] = "null",
};
G_STATIC_ASSERT(G_N_ELEMENTS(status_names) == QAPI_JOB_MAX);

/* Which verb is taken where. */
static const gboolean accepts[VERB_MAX][QAPI_JOB_MAX] = {
    [VERB_CANCEL] = {[QAPI_JOB_RUNNING] = TRUE, [QAPI_JOB_PAUSED] = TRUE},
    [VERB_PAUSE] = {[QAPI_JOB_RUNNING] = TRUE, [QAPI_JOB_PAUSED] = TRUE},
    [VERB_RESUME] = {TRUE, TRUE, TRUE, TRUE, TRUE, TRUE, TRUE, TRUE},
    [VERB_SET_SPEED] = {[QAPI_JOB_RUNNING] = TRUE, [QAPI_JOB_PAUSED] = TRUE},
    [VERB_DISMISS] = {[QAPI_JOB_CONCLUDED] = TRUE},
};

struct QapiJob {
    /* set before start */
    QapiHelper *helper;
    const QapiJobKind *kind;
    char *id;        /* (nullable) */
    char *path;      /* (nullable) */
    char *target_id; /* (nullable) */
    void *opaque;
    GThread *thread;

    /* under helper->lock */
    QapiTarget *target; /* (nullable) until it has ended */
    gboolean released;  /* does not need it any more */
    gboolean begun;
    QapiJobStatus status;
    GCond wake; /* resumed, or cancelled */
    gboolean cancelled;
    uint64_t done_bytes;
    uint64_t total_bytes;
    gint64 start_us;
    gint64 end_us; /* 0: it runs */
    json_object *result;
    GError *error;
};

static void lock(QapiJob *job) {
    g_mutex_lock(&job->helper->lock);
}

static void unlock(QapiJob *job) {
    g_mutex_unlock(&job->helper->lock);
}

/* ---- life ------------------------------------------------------------------------------------------------ */

/* Of one whose thread has ended, or never was; without the lock, as freeing a save may wait. */
static void job_free(QapiJob *job) {
    if (job->thread)
        g_thread_join(job->thread);
    if (job->begun)
        job->kind->free(job->opaque);
    if (job->target)
        qapi_target_unref(job->target);
    json_object_put(job->result);
    g_clear_error(&job->error);
    g_cond_clear(&job->wake);
    g_free(job->id);
    g_free(job->target_id);
    g_free(job->path);
    g_free(job);
}

static void set_status_locked(QapiJob *job, QapiJobStatus status) {
    job->status = status;
    if (!job->id)
        return;
    json_object *data = json_object_new_object();
    qapi_json_add_string(data, "id", job->id);
    qapi_json_add_string(data, "status", status_names[status]);
    qapi_emit_locked(job->helper, "JOB_STATUS_CHANGE", data);
}

static QapiJob *find_locked(QapiHelper *helper, const char *id) {
    for (guint i = 0; i < helper->jobs->len; i++) {
        QapiJob *job = helper->jobs->pdata[i];
        if (g_strcmp0(job->id, id) == 0)
            return job;
    }
    return NULL;
}

guint qapi_target_jobs_locked(QapiHelper *helper, const QapiTarget *target) {
    guint n = 0;
    for (guint i = 0; i < helper->jobs->len; i++) {
        const QapiJob *job = helper->jobs->pdata[i];
        n += job->target == target && !job->released;
    }
    return n;
}

static gboolean check_locked(QapiHelper *helper, const QapiJobKind *kind, const char *id, const QapiTarget *target,
                             GError **error) {
    if (helper->closing)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_CANCELLED, "the helper is ending");
    else if (id && !qapi_is_id(id))
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "Invalid job ID '%s'", id);
    else if (id && find_locked(helper, id))
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "Job ID '%s' already in use", id);
    else if (target && qapi_target_jobs_locked(helper, target) > 0)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_REFUSED,
                    "target %s is busy with another job; see query-job-statistics", qapi_target_id(target));
    else
        return !target || kind->brings_guest || qapi_place_check(qapi_target_place_locked(target), error);
    return FALSE;
}

/* Jobs that are not listed and have ended: nobody dismisses them. */
static void reap(QapiHelper *helper) {
    g_autoptr(GPtrArray) ended = g_ptr_array_new();
    g_mutex_lock(&helper->lock);
    for (guint i = helper->jobs->len; i-- > 0;) {
        QapiJob *job = helper->jobs->pdata[i];
        if (!job->id && job->status == QAPI_JOB_CONCLUDED)
            g_ptr_array_add(ended, g_ptr_array_steal_index(helper->jobs, i));
    }
    g_mutex_unlock(&helper->lock);
    for (guint i = 0; i < ended->len; i++)
        job_free(ended->pdata[i]);
}

QapiJob *qapi_job_new(QapiHelper *helper, const QapiJobKind *kind, const char *id, QapiTarget *target,
                      const char *path, GError **error) {
    reap(helper);
    if (target && !qapi_target_check(target, error))
        return NULL;
    g_mutex_lock(&helper->lock);
    if (!check_locked(helper, kind, id, target, error)) {
        g_mutex_unlock(&helper->lock);
        return NULL;
    }
    QapiJob *job = g_new0(QapiJob, 1);
    job->target = target ? qapi_target_ref_locked(target) : NULL;
    job->helper = helper;
    job->kind = kind;
    job->id = g_strdup(id);
    job->path = g_strdup(path);
    job->target_id = target ? g_strdup(qapi_target_id(target)) : NULL;
    job->start_us = g_get_monotonic_time();
    g_cond_init(&job->wake);
    g_ptr_array_add(helper->jobs, job);
    g_mutex_unlock(&helper->lock);
    return job;
}

static void forget_locked(QapiJob *job) {
    g_ptr_array_remove(job->helper->jobs, job);
    g_cond_broadcast(&job->helper->job_ended);
}

void qapi_job_drop(QapiJob *job) {
    lock(job);
    forget_locked(job);
    unlock(job);
    job_free(job);
}

static void conclude_locked(QapiJob *job) {
    if (job->error) {
        set_status_locked(job, QAPI_JOB_ABORTING);
    } else {
        job->done_bytes = job->total_bytes;
        set_status_locked(job, QAPI_JOB_PENDING);
    }
    job->end_us = g_get_monotonic_time();
    set_status_locked(job, QAPI_JOB_CONCLUDED);
    g_cond_broadcast(&job->helper->job_ended);
}

/*
 * A reader that goes away and a file that may not grow are errors like others. A program that has this server in
 * it need not ignore the signals; what is started here begins without any of them blocked.
 */
static void block_signals(void) {
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGPIPE);
    sigaddset(&signals, SIGXFSZ);
    pthread_sigmask(SIG_BLOCK, &signals, NULL);
}

static gpointer run(gpointer data) {
    QapiJob *job = data;
    GError *error = NULL;
    block_signals();
    json_object *result = job->kind->run(job, job->opaque, &error);
    g_assert(!result == !!error);
    lock(job);
    QapiTarget *target = g_steal_pointer(&job->target);
    job->result = result;
    job->error = error;
    conclude_locked(job);
    unlock(job);
    qapi_target_unref(target);
    return NULL;
}

static void cancel_locked(QapiJob *job) {
    job->cancelled = TRUE;
    g_cond_broadcast(&job->wake);
    if (job->kind->cancel)
        job->kind->cancel(job->opaque);
}

void qapi_job_begin(QapiJob *job, void *opaque) {
    lock(job);
    job->opaque = opaque;
    job->begun = TRUE;
    set_status_locked(job, QAPI_JOB_CREATED);
    set_status_locked(job, QAPI_JOB_RUNNING);
    job->thread = g_thread_new("qapi-job", run, job);
    if (job->helper->closing) /* whoever ends all jobs has been here already */
        cancel_locked(job);
    unlock(job);
}

/* ---- in run() -------------------------------------------------------------------------------------------- */

gboolean qapi_job_go_on(QapiJob *job, uint64_t done_bytes, uint64_t total_bytes) {
    lock(job);
    job->done_bytes = done_bytes;
    job->total_bytes = total_bytes;
    while (job->status == QAPI_JOB_PAUSED && !job->cancelled && !job->kind->pause)
        g_cond_wait(&job->wake, &job->helper->lock);
    gboolean go_on = !job->cancelled;
    unlock(job);
    return go_on;
}

gboolean qapi_job_progress(uint64_t done_bytes, uint64_t total_bytes, void *job) {
    return qapi_job_go_on(job, done_bytes, total_bytes);
}

void qapi_job_release_locked(QapiJob *job) {
    job->released = TRUE;
}

gboolean qapi_job_commit(QapiJob *job, GError **error) {
    lock(job);
    gboolean ok = !job->cancelled;
    if (ok)
        set_status_locked(job, QAPI_JOB_WAITING);
    unlock(job);
    if (!ok)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_CANCELLED, "cancelled");
    return ok;
}

/* ---- verbs ----------------------------------------------------------------------------------------------- */

static QapiJob *find_for_verb_locked(QapiHelper *helper, const char *id, Verb verb, GError **error) {
    QapiJob *job = find_locked(helper, id);
    if (!job || !job->begun) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "Job not found");
        return NULL;
    }
    if (!accepts[verb][job->status]) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "Job '%s' in state '%s' cannot accept command verb '%s'",
                    id, status_names[job->status], verb_names[verb]);
        return NULL;
    }
    return job;
}

gboolean qapi_job_cancel_locked(QapiJob *job) {
    if (!job->begun)
        job->cancelled = TRUE; /* which run() will see */
    else if (accepts[VERB_CANCEL][job->status])
        cancel_locked(job);
    else
        return FALSE;
    return TRUE;
}

static void pause_locked(QapiJob *job, gboolean pause) {
    if (job->kind->pause)
        job->kind->pause(pause, job->opaque);
    set_status_locked(job, pause ? QAPI_JOB_PAUSED : QAPI_JOB_RUNNING);
    g_cond_broadcast(&job->wake);
}

json_object *qmp_job_cancel(QapiCall *call, GError **error) {
    g_mutex_lock(&call->helper->lock);
    QapiJob *job = find_for_verb_locked(call->helper, qapi_string(call, "id"), VERB_CANCEL, error);
    if (job)
        cancel_locked(job);
    g_mutex_unlock(&call->helper->lock);
    return NULL;
}

json_object *qmp_job_pause(QapiCall *call, GError **error) {
    g_mutex_lock(&call->helper->lock);
    QapiJob *job = find_for_verb_locked(call->helper, qapi_string(call, "id"), VERB_PAUSE, error);
    if (job && job->status == QAPI_JOB_PAUSED)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "Job is already paused");
    else if (job && !job->kind->can_rest)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "Job '%s' of type %s cannot be paused", job->id,
                    job->kind->type);
    else if (job)
        pause_locked(job, TRUE);
    g_mutex_unlock(&call->helper->lock);
    return NULL;
}

json_object *qmp_job_resume(QapiCall *call, GError **error) {
    g_mutex_lock(&call->helper->lock);
    QapiJob *job = find_for_verb_locked(call->helper, qapi_string(call, "id"), VERB_RESUME, error);
    if (job && job->status != QAPI_JOB_PAUSED) /* in whatever state it is */
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "Can't resume a job that was not paused");
    else if (job)
        pause_locked(job, FALSE);
    g_mutex_unlock(&call->helper->lock);
    return NULL;
}

json_object *qmp_job_set_speed(QapiCall *call, GError **error) {
    g_mutex_lock(&call->helper->lock);
    QapiJob *job = find_for_verb_locked(call->helper, qapi_string(call, "id"), VERB_SET_SPEED, error);
    if (job && !job->kind->set_speed)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "Job '%s' of type %s has no speed to set", job->id,
                    job->kind->type);
    else if (job)
        job->kind->set_speed(qapi_uint(call, "speed", 0), job->opaque);
    g_mutex_unlock(&call->helper->lock);
    return NULL;
}

json_object *qmp_job_dismiss(QapiCall *call, GError **error) {
    g_mutex_lock(&call->helper->lock);
    QapiJob *job = find_for_verb_locked(call->helper, qapi_string(call, "id"), VERB_DISMISS, error);
    if (job) {
        set_status_locked(job, QAPI_JOB_NULL);
        forget_locked(job);
    }
    g_mutex_unlock(&call->helper->lock);
    if (job)
        job_free(job);
    return NULL;
}

/* ---- the end of all -------------------------------------------------------------------------------------- */

static gboolean any_runs_locked(const QapiHelper *helper) {
    for (guint i = 0; i < helper->jobs->len; i++) {
        const QapiJob *job = helper->jobs->pdata[i];
        if (job->status != QAPI_JOB_CONCLUDED)
            return TRUE;
    }
    return FALSE;
}

void qapi_jobs_end(QapiHelper *helper) {
    g_mutex_lock(&helper->lock);
    for (guint i = 0; i < helper->jobs->len; i++) {
        QapiJob *job = helper->jobs->pdata[i];
        if (accepts[VERB_CANCEL][job->status])
            cancel_locked(job);
    }
    while (any_runs_locked(helper))
        g_cond_wait(&helper->job_ended, &helper->lock);
    g_autoptr(GPtrArray) jobs = g_ptr_array_copy(helper->jobs, NULL, NULL);
    g_ptr_array_set_size(helper->jobs, 0);
    g_mutex_unlock(&helper->lock);
    for (guint i = 0; i < jobs->len; i++)
        job_free(jobs->pdata[i]);
}

/* ---- queries --------------------------------------------------------------------------------------------- */

static void add_progress_locked(json_object *object, const QapiJob *job) {
    qapi_json_add(object, "current-progress", json_object_new_int64((int64_t)job->done_bytes));
    qapi_json_add(object, "total-progress", json_object_new_int64((int64_t)job->total_bytes));
}

static json_object *job_to_json_locked(const QapiJob *job) {
    json_object *object = json_object_new_object();
    qapi_json_add_string(object, "id", job->id);
    qapi_json_add_string(object, "type", job->kind->type);
    qapi_json_add_string(object, "status", status_names[job->status]);
    add_progress_locked(object, job);
    if (job->error)
        qapi_json_add_string(object, "error", job->error->message);
    return object;
}

json_object *qmp_query_jobs(QapiCall *call, GError **error) {
    (void)error;
    json_object *list = json_object_new_array();
    g_mutex_lock(&call->helper->lock);
    for (guint i = 0; i < call->helper->jobs->len; i++) {
        const QapiJob *job = call->helper->jobs->pdata[i];
        if (job->id && job->begun)
            json_object_array_add(list, job_to_json_locked(job));
    }
    g_mutex_unlock(&call->helper->lock);
    return list;
}

static json_object *statistics_locked(const QapiJob *job) {
    gint64 end_us = job->end_us ? job->end_us : g_get_monotonic_time();
    json_object *object = json_object_new_object();
    qapi_json_add_string(object, "id", job->id);
    qapi_json_add_string(object, "type", job->kind->type);
    qapi_json_add_string(object, "status", status_names[job->status]);
    qapi_json_add_string(object, "target", job->target_id);
    qapi_json_add_string(object, "path", job->path);
    qapi_json_add_double(object, "elapsed-ms", (double)(end_us - job->start_us) / 1e3);
    add_progress_locked(object, job);
    if (job->kind->statistics)
        qapi_json_add(object, "save", job->kind->statistics(job->opaque));
    if (job->result)
        qapi_json_add(object, "result", qapi_json_copy(job->result));
    if (job->error) {
        qapi_json_add_string(object, "error", job->error->message);
        qapi_json_add_string(object, "code", qapi_error_code_name(job->error));
    }
    return object;
}

json_object *qmp_query_job_statistics(QapiCall *call, GError **error) {
    const char *id = qapi_string(call, "id");
    json_object *list = json_object_new_array();
    g_mutex_lock(&call->helper->lock);
    for (guint i = 0; i < call->helper->jobs->len; i++) {
        const QapiJob *job = call->helper->jobs->pdata[i];
        if (job->id && job->begun && (!id || g_str_equal(id, job->id)))
            json_object_array_add(list, statistics_locked(job));
    }
    g_mutex_unlock(&call->helper->lock);
    if (!id || json_object_array_length(list) > 0)
        return list;
    json_object_put(list);
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "Job not found");
    return NULL;
}
