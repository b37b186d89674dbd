/*
 * Dumps: see dump.h.
 *
 * A dump is a snapshot, of which a core file is made: the guest stands still as long as for a snapshot, and not,
 * as in QEMU, until the file is written.
 */
#include "dump.h"

#include "call.h"
#include "descriptors.h"
#include "jobs.h"
#include "process/process.h"
#include "schema-handlers.h"
#include "scratch-image.h"

#include <string.h>

typedef enum { DUMP_NONE, DUMP_ACTIVE, DUMP_COMPLETED, DUMP_FAILED } DumpStatus;

static const char *const statuses[] = {"none", "active", "completed", "failed"};

/* All under the helper's lock. */
struct Dump {
    DumpStatus status;
    uint64_t done_bytes;
    uint64_t total_bytes;
    char *error; /* (nullable) of one that failed */
    GCond ended;
};

Dump *qapi_dump_new(void) {
    Dump *dump = g_new0(Dump, 1);
    g_cond_init(&dump->ended);
    return dump;
}

void qapi_dump_free(Dump *dump) {
    g_cond_clear(&dump->ended);
    g_free(dump->error);
    g_free(dump);
}

static json_object *dump_to_json_locked(const Dump *dump) {
    json_object *object = json_object_new_object();
    qapi_json_add_string(object, "status", statuses[dump->status]);
    qapi_json_add(object, "completed", json_object_new_int64((int64_t)dump->done_bytes));
    qapi_json_add(object, "total", json_object_new_int64((int64_t)dump->total_bytes));
    return object;
}

/* ---- the job --------------------------------------------------------------------------------------------- */

typedef struct {
    QapiTarget *target;
    QapiJob *job;
    QapiOutput *output; /* a file */
} DumpJob;

static gboolean on_progress(uint64_t done_bytes, uint64_t total_bytes, void *opaque) {
    DumpJob *task = opaque;
    QapiHelper *helper = qapi_target_helper(task->target);
    Dump *dump = qapi_target_parts(task->target)->dump;
    g_mutex_lock(&helper->lock);
    dump->done_bytes = done_bytes;
    dump->total_bytes = total_bytes;
    g_mutex_unlock(&helper->lock);
    return qapi_job_go_on(task->job, done_bytes, total_bytes);
}

static gboolean write_core(DumpJob *task, GError **error) {
    g_autoptr(QapiScratchImage) scratch = qapi_scratch_image_take(task->target, 0, on_progress, task, error);
    QapiOutput *output = task->output;
    return scratch && on_progress(0, scratch->length_bytes, task) &&
           process_export_core(scratch->image, output->path ? output->path : output->name, on_progress, task,
                               error) &&
           qapi_output_commit(output, error);
}

static void end(DumpJob *task, const GError *error) {
    QapiHelper *helper = qapi_target_helper(task->target);
    Dump *dump = qapi_target_parts(task->target)->dump;
    json_object *data = json_object_new_object();
    g_mutex_lock(&helper->lock);
    dump->status = error ? DUMP_FAILED : DUMP_COMPLETED;
    dump->error = error ? g_strdup(error->message) : NULL;
    if (!error)
        dump->done_bytes = dump->total_bytes;
    qapi_json_add(data, "result", dump_to_json_locked(dump));
    qapi_json_add_string(data, "error", dump->error);
    qapi_json_add_string(data, "target", qapi_target_id(task->target));
    qapi_emit_locked(helper, "DUMP_COMPLETED", data);
    qapi_job_release_locked(task->job); /* who reads the event may begin the next one at once */
    g_cond_broadcast(&dump->ended);
    g_mutex_unlock(&helper->lock);
}

static json_object *run(QapiJob *job, void *opaque, GError **error) {
    DumpJob *task = opaque;
    GError *failure = NULL;
    task->job = job;
    if (!write_core(task, &failure) && !failure)
        g_set_error(&failure, SNAP_ERROR, SNAP_ERROR_CANCELLED, "cancelled");
    qapi_output_free(task->output);
    end(task, failure);
    qapi_target_unref(task->target);
    if (!failure)
        return json_object_new_object();
    g_propagate_error(error, failure);
    return NULL;
}

static const QapiJobKind kind = {.run = run, .free = g_free};

/* ---- commands -------------------------------------------------------------------------------------------- */

/* "file:PATH", or "fd:NAME", which is written by its name in /proc. */
static QapiOutput *open_output(QapiCall *call, GError **error) {
    const char *protocol = qapi_string(call, "protocol");
    if (g_str_has_prefix(protocol, "fd:")) {
        int fd = qapi_descriptors_take(call->descriptors, protocol + strlen("fd:"), error);
        return fd < 0 ? NULL : qapi_output_new_fd(fd);
    }
    if (g_str_has_prefix(protocol, "file:"))
        return qapi_open_file(call->helper, protocol + strlen("file:"), error);
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "Invalid parameter 'protocol'");
    return NULL;
}

/* First what QEMU says too. */
static gboolean check(QapiCall *call, GError **error) {
    const char *format = qapi_string(call, "format");
    gboolean elf = g_strcmp0(format, "elf") == 0 || !format;
    gboolean begin = qapi_has(call, "begin"), length = qapi_has(call, "length");
    if (!elf && (qapi_bool(call, "paging", FALSE) || begin || length))
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED,
                    "kdump-compressed format doesn't support paging or filter");
    else if (begin != length)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "Parameter '%s' is missing", begin ? "length" : "begin");
    else if (qapi_bool(call, "paging", FALSE))
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED,
                    "Parameter 'paging' expects false: guest page tables are not looked at");
    else if (begin)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED,
                    "Parameters 'begin' and 'length' are not supported here: a dump is whole");
    else if (!elf)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED, "%s is not available now", format);
    else
        return TRUE;
    return FALSE;
}

/* @begin: make it the one that runs. */
static gboolean check_alone(QapiCall *call, QapiTarget *target, gboolean begin, GError **error) {
    Dump *dump = qapi_target_parts(target)->dump;
    g_mutex_lock(&call->helper->lock);
    gboolean runs = dump->status == DUMP_ACTIVE;
    if (!runs && begin) {
        dump->status = DUMP_ACTIVE;
        dump->done_bytes = dump->total_bytes = 0;
        g_clear_pointer(&dump->error, g_free);
    }
    g_mutex_unlock(&call->helper->lock);
    if (runs)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "There is a dump in process, please wait.");
    return !runs;
}

static void wait_for_end(QapiCall *call, QapiTarget *target, GError **error) {
    Dump *dump = qapi_target_parts(target)->dump;
    g_mutex_lock(&call->helper->lock);
    while (dump->status == DUMP_ACTIVE)
        g_cond_wait(&dump->ended, &call->helper->lock);
    if (dump->status == DUMP_FAILED)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "%s", dump->error);
    g_mutex_unlock(&call->helper->lock);
}

json_object *qmp_dump_guest_memory(QapiCall *call, GError **error) {
    g_autoptr(QapiTarget) target = qapi_call_target(call, error);
    gboolean ok = target && check_alone(call, target, FALSE, error) && check(call, error);
    QapiOutput *output = ok ? open_output(call, error) : NULL;
    QapiJob *job = output ? qapi_job_new(call->helper, &kind, NULL, target, NULL, error) : NULL;
    if (!job || !check_alone(call, target, TRUE, error)) {
        if (job)
            qapi_job_drop(job);
        qapi_output_free(output);
        return NULL;
    }
    DumpJob *task = g_new(DumpJob, 1);
    *task = (DumpJob){.target = qapi_target_ref(target), .output = output};
    qapi_job_begin(job, task);
    if (!qapi_bool(call, "detach", FALSE))
        wait_for_end(call, target, error);
    return NULL;
}

static json_object *parts_to_json_locked(const QapiTargetParts *parts) {
    return dump_to_json_locked(parts->dump);
}

json_object *qmp_query_dump(QapiCall *call, GError **error) {
    return qapi_target_query(call, parts_to_json_locked, error);
}

json_object *qmp_query_dump_guest_memory_capability(QapiCall *call, GError **error) {
    (void)call, (void)error;
    json_object *formats = json_object_new_array(), *result = json_object_new_object();
    json_object_array_add(formats, json_object_new_string("elf"));
    qapi_json_add(result, "formats", formats);
    return result;
}
