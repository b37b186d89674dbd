/* Command family snapshot: saving a guest, as a job. */
#include "call.h"
#include "jobs.h"
#include "save.h"
#include "schema-handlers.h"
#include "targets.h"

#include <unistd.h>

#define PROGRESS_INTERVAL_MS 100

typedef struct {
    /* set before start */
    QapiHelper *helper;
    SnapSaveOptions options;
    char *dir;
    char *parent; /* (nullable) */

    /* under helper->lock */
    SnapSave *save;    /* (nullable) until it has ended */
    json_object *last; /* its statistics after that */
} SaveJob;

static void save_job_free(void *opaque) {
    SaveJob *job = opaque;
    snap_save_free(job->save);
    json_object_put(job->last);
    g_free(job->dir);
    g_free(job->parent);
    g_free(job);
}

/* Until it has ended. TIMED_OUT alone does not tell, as a save can fail with it too: the phase does. */
static void wait_for_end(QapiJob *job, SnapSave *save) {
    uint64_t page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
    SnapSaveStats stats;
    do {
        snap_save_wait(save, PROGRESS_INTERVAL_MS, NULL);
        snap_save_get_stats(save, &stats);
        qapi_job_go_on(job, stats.pages_done * page_bytes, stats.pages_total * page_bytes);
    } while (stats.phase != SNAP_SAVE_DONE && stats.phase != SNAP_SAVE_FAILED);
}

/* The guest may go as soon as run() has returned; what was saved may be asked for until the job is dismissed. */
static void let_go(SaveJob *task) {
    g_mutex_lock(&task->helper->lock);
    SnapSave *save = g_steal_pointer(&task->save);
    task->last = qapi_save_statistics(save);
    g_mutex_unlock(&task->helper->lock);
    snap_save_free(save);
}

static json_object *run(QapiJob *job, void *opaque, GError **error) {
    SaveJob *task = opaque;
    SnapSaveStats stats;
    wait_for_end(job, task->save);
    gboolean ok = snap_save_wait(task->save, -1, error);
    snap_save_get_stats(task->save, &stats);
    let_go(task);
    if (!ok)
        return NULL;
    if (qapi_job_commit(job, error))
        return qapi_saved_to_json(&task->options, &stats);
    snap_image_delete(task->dir, NULL);
    return NULL;
}

static void cancel(void *opaque) {
    SaveJob *job = opaque;
    if (job->save)
        snap_save_cancel(job->save);
}

static void pause_save(gboolean pause, void *opaque) {
    SaveJob *job = opaque;
    if (job->save && pause)
        snap_save_pause(job->save);
    else if (job->save)
        snap_save_resume(job->save);
}

static void set_speed(uint64_t bytes_per_second, void *opaque) {
    SaveJob *job = opaque;
    if (job->save)
        snap_save_set_max_bandwidth(job->save, bytes_per_second);
}

static json_object *statistics(void *opaque) {
    const SaveJob *job = opaque;
    return job->save ? qapi_save_statistics(job->save) : qapi_json_copy(job->last);
}

static const QapiJobKind kind = {
    .type = "snapshot-save",
    .can_rest = TRUE,
    .run = run,
    .cancel = cancel,
    .pause = pause_save,
    .set_speed = set_speed,
    .statistics = statistics,
    .free = save_job_free,
};

static SaveJob *start(QapiCall *call, QapiTarget *target, GError **error) {
    SaveJob *job = g_new0(SaveJob, 1);
    gboolean abort = g_strcmp0(qapi_string(call, "at-cap"), "abort") == 0;
    job->helper = call->helper;
    job->dir = qapi_call_path(call, "path");
    job->parent = qapi_call_path(call, "parent");
    job->options = (SnapSaveOptions){.dir = job->dir,
                                     .parent_dir = job->parent,
                                     .keep_log = qapi_bool(call, "keep-log", FALSE),
                                     .region_glob = qapi_string(call, "region"),
                                     .buffer_bytes = qapi_uint(call, "buffer", 0),
                                     .at_cap = abort ? SNAP_AT_CAP_ABORT : SNAP_AT_CAP_BLOCK,
                                     .max_bandwidth_bytes = qapi_uint(call, "max-bandwidth", 0)};
    job->save = snap_save_start(qapi_target_guest(target), &job->options, error);
    job->options.region_glob = NULL; /* the call's */
    if (job->save)
        return job;
    save_job_free(job);
    return NULL;
}

json_object *qmp_snapshot_save(QapiCall *call, GError **error) {
    g_autoptr(QapiTarget) target = qapi_check_path(call, "path", error) ? qapi_call_target(call, error) : NULL;
    g_autofree char *path = qapi_call_path(call, "path");
    QapiJob *job =
        target ? qapi_job_new(call->helper, &kind, qapi_string(call, "job-id"), target, path, error) : NULL;
    if (!job)
        return NULL;
    SaveJob *task = start(call, target, error);
    if (task)
        qapi_job_begin(job, task);
    else
        qapi_job_drop(job);
    return NULL;
}
