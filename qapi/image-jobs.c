/* Command family snapshot: what is done to images, as jobs. */
#include "call.h"
#include "export.h"
#include "image.h"
#include "jobs.h"
#include "restore.h"
#include "schema-handlers.h"

#include <glib/gstdio.h>

/* What one of these jobs works on. */
typedef struct {
    char *path;
    char *out;                /* merge, export */
    char *region;             /* export: (nullable) */
    QapiExportOptions export; /* export */
    char **command;           /* load */
} ImageJob;

static void image_job_free(void *opaque) {
    ImageJob *job = opaque;
    g_free(job->path);
    g_free(job->out);
    g_free(job->region);
    g_strfreev(job->command);
    g_free(job);
}

static json_object *begin(QapiCall *call, const QapiJobKind *kind, ImageJob *task, GError **error) {
    QapiJob *job = qapi_check_path(call, "path", error)
                       ? qapi_job_new(call->helper, kind, qapi_string(call, "job-id"), NULL, task->path, error)
                       : NULL;
    if (job)
        qapi_job_begin(job, task);
    else
        image_job_free(task);
    return NULL;
}

static ImageJob *new_task(QapiCall *call) {
    ImageJob *task = g_new0(ImageJob, 1);
    task->path = qapi_call_path(call, "path");
    return task;
}

/* ---- delete ---------------------------------------------------------------------------------------------- */

static json_object *run_delete(QapiJob *job, void *opaque, GError **error) {
    const ImageJob *task = opaque;
    return qapi_job_commit(job, error) ? qapi_image_delete(task->path, error) : NULL;
}

json_object *qmp_snapshot_delete(QapiCall *call, GError **error) {
    static const QapiJobKind kind = {.type = "snapshot-delete", .run = run_delete, .free = image_job_free};
    return begin(call, &kind, new_task(call), error);
}

/* ---- verify ---------------------------------------------------------------------------------------------- */

static json_object *run_verify(QapiJob *job, void *opaque, GError **error) {
    const ImageJob *task = opaque;
    g_autoptr(json_object) result = qapi_image_verify(task->path, qapi_job_progress, job, error);
    return result && qapi_job_commit(job, error) ? g_steal_pointer(&result) : NULL;
}

json_object *qmp_snapshot_verify(QapiCall *call, GError **error) {
    static const QapiJobKind kind = {
        .type = "snapshot-verify", .can_rest = TRUE, .run = run_verify, .free = image_job_free};
    return begin(call, &kind, new_task(call), error);
}

/* ---- merge ----------------------------------------------------------------------------------------------- */

static json_object *run_merge(QapiJob *job, void *opaque, GError **error) {
    const ImageJob *task = opaque;
    g_autoptr(json_object) result = qapi_image_merge(task->path, task->out, qapi_job_progress, job, error);
    if (!result || qapi_job_commit(job, error))
        return g_steal_pointer(&result);
    snap_image_delete(task->out, NULL);
    return NULL;
}

json_object *qmp_snapshot_merge(QapiCall *call, GError **error) {
    static const QapiJobKind kind = {
        .type = "snapshot-merge", .can_rest = TRUE, .run = run_merge, .free = image_job_free};
    ImageJob *task = new_task(call);
    task->out = qapi_call_path(call, "out");
    return begin(call, &kind, task, error);
}

/* ---- export ---------------------------------------------------------------------------------------------- */

/* A device or a FIFO was there before. */
static void remove_exported(const char *out) {
    GStatBuf status;
    if (g_lstat(out, &status) == 0 && S_ISREG(status.st_mode))
        g_unlink(out);
}

static json_object *run_export(QapiJob *job, void *opaque, GError **error) {
    const ImageJob *task = opaque;
    g_autoptr(json_object) result = qapi_export(&task->export, qapi_job_progress, job, error);
    if (!result || qapi_job_commit(job, error))
        return g_steal_pointer(&result);
    remove_exported(task->out);
    return NULL;
}

static gboolean take_range(QapiCall *call, ImageJob *task, GError **error) {
    QapiRange *range = &task->export.range;
    task->region = g_strdup(qapi_string(call, "region"));
    if (qapi_has(call, "address") != qapi_has(call, "length") || (task->region && qapi_has(call, "address"))) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED,
                    "one range, please: 'region', or 'address' and 'length'");
        return FALSE;
    }
    if (task->region)
        *range = (QapiRange){.kind = QAPI_RANGE_REGION, .region = task->region};
    else if (qapi_has(call, "address"))
        *range = (QapiRange){.kind = QAPI_RANGE_ADDRESS,
                             .address = qapi_uint(call, "address", 0),
                             .length_bytes = qapi_uint(call, "length", 0)};
    return TRUE;
}

json_object *qmp_snapshot_export(QapiCall *call, GError **error) {
    static const QapiJobKind kind = {
        .type = "snapshot-export", .can_rest = TRUE, .run = run_export, .free = image_job_free};
    ImageJob *task = new_task(call);
    task->out = qapi_call_path(call, "out");
    task->export = (QapiExportOptions){
        .dir = task->path, .out = task->out, .format = qapi_export_format(qapi_string(call, "format"))};
    if (take_range(call, task, error))
        return begin(call, &kind, task, error);
    image_job_free(task);
    return NULL;
}

/* ---- load ------------------------------------------------------------------------------------------------ */

/* Until it ends: what it writes to standard error goes to ours. */
static gpointer wait_for_child(gpointer process) {
    qemu_process_wait(process);
    qemu_process_free(process);
    return NULL;
}

static json_object *run_load(QapiJob *job, void *opaque, GError **error) {
    const ImageJob *task = opaque;
    QemuProcess *process = NULL;
    QapiRestoreOptions options = {.dir = task->path, .argv = task->command};
    json_object *result = qapi_restore(&options, &process, error);
    if (!result)
        return NULL;
    if (qapi_job_commit(job, error)) {
        g_thread_unref(g_thread_new("qapi-child", wait_for_child, process));
        return result;
    }
    qemu_process_kill(process);
    qemu_process_free(process);
    json_object_put(result);
    return NULL;
}

static char **to_strv(json_object *list) {
    gsize n = json_object_array_length(list);
    char **strings = g_new0(char *, n + 1);
    for (gsize i = 0; i < n; i++)
        strings[i] = g_strdup(json_object_get_string(json_object_array_get_idx(list, i)));
    return strings;
}

json_object *qmp_snapshot_load(QapiCall *call, GError **error) {
    static const QapiJobKind kind = {.type = "snapshot-load", .run = run_load, .free = image_job_free};
    ImageJob *task = new_task(call);
    task->command = to_strv(qapi_argument(call, "command"));
    if (task->command[0])
        return begin(call, &kind, task, error);
    image_job_free(task);
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "Parameter 'command' expects the program and its arguments");
    return NULL;
}
