/* Command family save: see save.h. */
#include "save.h"

#include "process/process.h"
#include "qemu/qemu.h"

#define PROGRESS_INTERVAL_MS 100

SnapGuest *qapi_open_guest(const QapiGuestOptions *target, GError **error) {
    switch (target->kind) {
    case QAPI_GUEST_PROCESS:
        return process_guest_new(target->process.pid, error);
    case QAPI_GUEST_QEMU: {
        QemuGuestOptions options = {.disks = target->qemu.ignore_disks ? QEMU_DISKS_IGNORE : QEMU_DISKS_REFUSE};
        return qemu_guest_new(target->qemu.qmp_path, &options, error);
    }
    }
    g_assert_not_reached();
}

static double us(uint64_t ns) {
    return (double)ns / 1e3;
}

static json_object *latency_to_json(const SnapSaveStats *stats) {
    json_object *object = json_object_new_object();
    qapi_json_add_double(object, "p50", us(stats->fault_p50_ns));
    qapi_json_add_double(object, "p99", us(stats->fault_p99_ns));
    qapi_json_add_double(object, "p999", us(stats->fault_p999_ns));
    qapi_json_add_double(object, "max", us(stats->fault_max_ns));
    return object;
}

static json_object *pages_to_json(const SnapSaveStats *stats) {
    json_object *pages = json_object_new_object();
    qapi_json_add_uint(pages, "total", stats->pages_total);
    qapi_json_add_uint(pages, "zero", stats->pages_zero);
    qapi_json_add_uint(pages, "unchanged", stats->pages_unchanged);
    qapi_json_add_uint(pages, "by-sweep", stats->pages_by_sweep);
    qapi_json_add_uint(pages, "by-fault", stats->pages_by_fault);
    return pages;
}

static void add_times(json_object *object, const SnapSaveStats *stats) {
    qapi_json_add_double(object, "pause-us", us(stats->pause_ns));
    qapi_json_add_double(object, "prepare-ms", us(stats->prepare_ns) / 1e3);
    qapi_json_add_double(object, "total-ms", us(stats->total_ns) / 1e3);
}

json_object *qapi_saved_to_json(const SnapSaveOptions *options, const SnapSaveStats *stats) {
    json_object *object = json_object_new_object();
    qapi_json_add_string(object, "image", options->dir);
    if (options->parent_dir)
        qapi_json_add_string(object, "parent", options->parent_dir);
    qapi_json_add_uint(object, "attempts", stats->attempts);
    add_times(object, stats);
    qapi_json_add(object, "pages", pages_to_json(stats));
    qapi_json_add_uint(object, "bytes-written", stats->bytes_written);
    qapi_json_add_uint(object, "faults", stats->faults);
    qapi_json_add(object, "fault-latency-us", latency_to_json(stats));
    qapi_json_add_uint(object, "peak-buffer-bytes", stats->peak_buffer_bytes);
    return object;
}

static gboolean has_ended(const SnapSaveStats *stats) {
    return stats->phase == SNAP_SAVE_DONE || stats->phase == SNAP_SAVE_FAILED;
}

/*
 * Until it has ended, one way or the other. TIMED_OUT alone does not tell whether it still runs, as a save can
 * fail with it too: the phase does. After a cancel the end comes by itself.
 */
gboolean qapi_save_wait(SnapSave *save, QapiSaveProgressFunc progress, void *opaque, GError **error) {
    gboolean cancelled = FALSE;
    while (!snap_save_wait(save, PROGRESS_INTERVAL_MS, NULL)) {
        SnapSaveStats stats;
        snap_save_get_stats(save, &stats);
        if (has_ended(&stats))
            break;
        if (!cancelled && progress && !progress(&stats, opaque)) {
            cancelled = TRUE;
            snap_save_cancel(save);
        }
    }
    return snap_save_wait(save, -1, error);
}

json_object *qapi_save_guest(SnapGuest *guest, const SnapSaveOptions *options, QapiSaveProgressFunc progress,
                             void *opaque, GError **error) {
    g_autoptr(SnapSave) save = snap_save_start(guest, options, error);
    if (!save || !qapi_save_wait(save, progress, opaque, error))
        return NULL;
    SnapSaveStats stats;
    snap_save_get_stats(save, &stats);
    return qapi_saved_to_json(options, &stats);
}

/* ---- while it runs --------------------------------------------------------------------------------------- */

static const char *const phases[] = {
    [SNAP_SAVE_PREPARING] = "preparing", [SNAP_SAVE_PAUSED] = "paused", [SNAP_SAVE_SWEEPING] = "sweeping",
    [SNAP_SAVE_FINISHING] = "finishing", [SNAP_SAVE_DONE] = "done",     [SNAP_SAVE_FAILED] = "failed",
};

static json_object *histogram_to_json(SnapSave *save) {
    SnapHistogram histogram;
    snap_save_get_histogram(save, &histogram);
    json_object *list = json_object_new_array();
    for (guint i = 0; i < G_N_ELEMENTS(histogram.buckets); i++) {
        if (histogram.buckets[i].count == 0)
            continue;
        json_object *bucket = json_object_new_object();
        qapi_json_add_double(bucket, "up-to-us", us(histogram.buckets[i].upper_ns));
        qapi_json_add_uint(bucket, "count", histogram.buckets[i].count);
        json_object_array_add(list, bucket);
    }
    return list;
}

static json_object *buffers_to_json(const SnapSaveStats *stats) {
    json_object *object = json_object_new_object();
    qapi_json_add_uint(object, "in-use-bytes", stats->buffer_bytes);
    qapi_json_add_uint(object, "peak-bytes", stats->peak_buffer_bytes);
    qapi_json_add_uint(object, "cap-bytes", stats->buffer_cap_bytes);
    return object;
}

json_object *qapi_save_statistics(SnapSave *save) {
    SnapSaveStats stats;
    snap_save_get_stats(save, &stats);
    json_object *latency = latency_to_json(&stats), *pages = pages_to_json(&stats);
    qapi_json_add(latency, "histogram", histogram_to_json(save));
    qapi_json_add_uint(pages, "done", stats.pages_done);
    json_object *object = json_object_new_object();
    qapi_json_add_string(object, "phase", phases[stats.phase]);
    qapi_json_add_uint(object, "attempts", stats.attempts);
    qapi_json_add(object, "pages", pages);
    qapi_json_add_uint(object, "bytes-written", stats.bytes_written);
    qapi_json_add_uint(object, "bytes-per-second", stats.bytes_per_second);
    qapi_json_add_uint(object, "faults", stats.faults);
    qapi_json_add(object, "fault-latency-us", latency);
    qapi_json_add(object, "buffers", buffers_to_json(&stats));
    add_times(object, &stats);
    return object;
}
