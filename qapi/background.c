/*
 * QEMU's way to a background snapshot: with that capability, migrate writes the stream of a QEMU as it is at one
 * moment, and the guest runs on.
 *
 * Happy path: the output is opened, the guest saved into an image that is only a step, the stream made of it and
 * written; the output is complete, and the image gone.
 *
 * Failure modes: whatever fails or is cancelled, the guest runs on, and no output is left that looks complete.
 */
#include "migration-state.h"
#include "qemu/qemu.h"
#include "scratch-image.h"
#include "stream-output.h"

#include <unistd.h>

typedef struct {
    QapiTarget *target;
    QapiJob *job;
    QapiStreamOutput *output;
    gint64 start_us;
    uint64_t length_bytes, data_bytes; /* of memory; of this, not zero; 0 while that is not known */
} Background;

/*
 * Pages of zeros are nine bytes each in the stream: what was sent tells how many were not, until all is known.
 */
static void count(const Background *task, uint64_t done_bytes, uint64_t total_bytes, uint64_t sent_bytes,
                  SnapMigrationStats *stats) {
    gboolean complete = done_bytes == total_bytes && total_bytes > 0;
    uint64_t elapsed_us = (uint64_t)MAX(g_get_monotonic_time() - task->start_us, 1);
    uint64_t sent_of_done = MIN(sent_bytes, done_bytes);
    uint64_t normal = (complete ? task->data_bytes : MIN(sent_of_done, task->data_bytes)) / stats->page_bytes;
    stats->total_bytes = total_bytes;
    stats->remaining_bytes = total_bytes - done_bytes;
    stats->sent_bytes = stats->precopy_bytes = sent_bytes;
    stats->pages_normal = normal;
    stats->pages_zero = done_bytes / stats->page_bytes - normal;
    stats->total_ns = elapsed_us * 1000;
    stats->bytes_per_second = (uint64_t)((double)sent_bytes / (double)elapsed_us * 1e6);
    stats->pages_per_second =
        (uint64_t)((double)done_bytes / (double)stats->page_bytes / (double)elapsed_us * 1e6);
}

static gboolean on_progress(uint64_t done_bytes, uint64_t total_bytes, void *opaque) {
    Background *task = opaque;
    QapiHelper *helper = qapi_target_helper(task->target);
    Migration *migration = qapi_target_parts(task->target)->migration;
    g_mutex_lock(&helper->lock);
    count(task, done_bytes, total_bytes, *qapi_stream_output_sent_bytes(task->output), &migration->stats);
    g_mutex_unlock(&helper->lock);
    return qapi_job_go_on(task->job, done_bytes, total_bytes);
}

/* Return: the limit that holds for it. */
static uint64_t begin_active(Background *task) {
    QapiHelper *helper = qapi_target_helper(task->target);
    Migration *migration = qapi_target_parts(task->target)->migration;
    g_mutex_lock(&helper->lock);
    SnapMigrationStats *stats = &migration->stats;
    stats->setup_ns = (uint64_t)(g_get_monotonic_time() - task->start_us) * 1000;
    stats->expected_downtime_ns = migration->settings.downtime_limit_ms * 1000000;
    if (migration->status == MIGRATION_SETUP)
        qapi_migration_set_status_locked(helper, task->target, migration, MIGRATION_ACTIVE);
    uint64_t max_bandwidth = migration->settings.max_bandwidth_bytes;
    g_mutex_unlock(&helper->lock);
    return max_bandwidth;
}

static gboolean send_snapshot(Background *task, GError **error) {
    QapiHelper *helper = qapi_target_helper(task->target);
    Migration *migration = qapi_target_parts(task->target)->migration;
    uint64_t max_bandwidth = begin_active(task);
    g_autoptr(QapiScratchImage) scratch =
        qapi_scratch_image_take(task->target, max_bandwidth, on_progress, task, error);
    if (!scratch)
        return FALSE;
    g_mutex_lock(&helper->lock);
    task->length_bytes = scratch->length_bytes;
    task->data_bytes = scratch->data_bytes;
    migration->stats.downtime_ns = scratch->pause_ns;
    migration->stats.total_bytes = migration->stats.remaining_bytes = scratch->length_bytes;
    g_mutex_unlock(&helper->lock);
    return qemu_export_stream(scratch->image, qapi_stream_output_fd(task->output),
                              qapi_stream_output_sent_bytes(task->output), on_progress, task, error) &&
           qapi_stream_output_end(task->output, scratch->length_bytes, on_progress, task, error) &&
           qapi_job_commit(task->job, error) && qapi_stream_output_keep(task->output, error);
}

/* Who reads the event may begin the next one at once. */
static void end(const Background *task, uint64_t sent_bytes, const GError *failure) {
    QapiHelper *helper = qapi_target_helper(task->target);
    Migration *migration = qapi_target_parts(task->target)->migration;
    g_mutex_lock(&helper->lock);
    gboolean cancelled = migration->status == MIGRATION_CANCELLING;
    migration->job = NULL;
    qapi_job_release_locked(task->job);
    if (!failure)
        count(task, task->length_bytes, task->length_bytes, sent_bytes, &migration->stats);
    else if (!cancelled)
        migration->error = g_strdup(failure->message);
    qapi_migration_set_status_locked(helper, task->target, migration,
                                     !failure    ? MIGRATION_COMPLETED
                                     : cancelled ? MIGRATION_CANCELLED
                                                 : MIGRATION_FAILED);
    g_mutex_unlock(&helper->lock);
}

static json_object *run(QapiJob *job, void *opaque, GError **error) {
    Background *task = opaque;
    GError *failure = NULL;
    task->job = job;
    send_snapshot(task, &failure);
    uint64_t sent_bytes = *qapi_stream_output_sent_bytes(task->output);
    qapi_stream_output_free(task->output);
    end(task, sent_bytes, failure);
    qapi_target_unref(task->target);
    if (!failure)
        return json_object_new_object();
    g_propagate_error(error, failure);
    return NULL;
}

static const QapiJobKind kind = {.run = run, .free = g_free};

/* ---- begin ----------------------------------------------------------------------------------------------- */

static gboolean check(const QapiTarget *target, GError **error) {
    if (g_str_equal(qapi_target_driver(target), "qemu"))
        return TRUE;
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED,
                "target %s is no QEMU, and has no migration stream; snapshot-save saves it",
                qapi_target_id(target));
    return FALSE;
}

/* Another client may have been quicker. */
static gboolean begin_setup(QapiTarget *target, QapiJob *job, GError **error) {
    QapiHelper *helper = qapi_target_helper(target);
    Migration *migration = qapi_target_parts(target)->migration;
    g_mutex_lock(&helper->lock);
    gboolean ok = qapi_migration_check_locked(migration, error);
    if (ok) {
        qapi_migration_begin_locked(helper, target, migration, job);
        migration->stats.page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
    }
    g_mutex_unlock(&helper->lock);
    return ok;
}

void qapi_background_start(QapiCall *call, QapiTarget *target, GError **error) {
    if (!check(target, error))
        return;
    QapiStreamOutput *output = qapi_stream_output_open(call, qapi_string(call, "uri"), error);
    QapiJob *job = output ? qapi_job_new(call->helper, &kind, NULL, target, NULL, error) : NULL;
    if (!job || !begin_setup(target, job, error)) {
        if (job)
            qapi_job_drop(job);
        qapi_stream_output_free(output);
        return;
    }
    Background *task = g_new(Background, 1);
    *task = (Background){.target = qapi_target_ref(target), .output = output, .start_us = g_get_monotonic_time()};
    qapi_job_begin(job, task);
}
