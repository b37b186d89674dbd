/*
 * Where a save is: what the job counts, and what is told of it.
 *
 * The job counts what it does itself as it does it. What the fault thread counts is fetched from there: by the job
 * now and then, and by whoever asks while the memory is swept, since a job that is paused, or waits for the disk,
 * counts nothing although faults go on. Nothing here fails, and nobody waits for I/O: both locks are held for
 * moments only.
 *
 * Invariant: once all is captured the numbers stand still, so those of the manifest are those that are told in the
 * end.
 */
#include "save.h"

enum {
    COUNT_FAULTS_NS = 50000000,
};

void snap_save_count_anew(SnapSave *save) {
    snap_lock(&save->lock);
    save->stats = (SnapSaveStats){
        .phase = SNAP_SAVE_PREPARING,
        .attempts = save->stats.attempts + 1,
        .buffer_cap_bytes = save->stats.buffer_cap_bytes,
    };
    save->histogram = (SnapHistogram){0};
    save->rate = (SnapRate){0};
    save->staging_bytes = save->peak_staging_bytes = 0;
    save->count_faults_ns = 0;
    snap_unlock(&save->lock);
}

/* Percentiles are a walk through all buckets: of a copy, so that no fault waits for it. */
static void count_faults_locked(SnapSave *save) SNAP_REQUIRES(save->lock) {
    SnapSync *tracker = save->tracker;
    SnapSaveStats *stats = &save->stats;
    snap_lock(&tracker->lock);
    SnapLatency latency = tracker->latency;
    uint64_t by_fault = tracker->pages_by_fault;
    uint64_t pool = snap_pool_taken(tracker->pool) * tracker->page_bytes;
    uint64_t pool_peak = snap_pool_peak(tracker->pool) * tracker->page_bytes;
    snap_unlock(&tracker->lock);
    stats->faults = latency.count;
    stats->fault_p50_ns = snap_latency_quantile(&latency, 500);
    stats->fault_p99_ns = snap_latency_quantile(&latency, 990);
    stats->fault_p999_ns = snap_latency_quantile(&latency, 999);
    stats->fault_max_ns = latency.max_ns;
    snap_latency_histogram(&latency, &save->histogram);
    stats->pages_by_fault = MIN(by_fault, stats->pages_done - stats->pages_unchanged);
    stats->pages_by_sweep = stats->pages_done - stats->pages_unchanged - stats->pages_by_fault;
    stats->buffer_bytes = pool + save->staging_bytes;
    stats->peak_buffer_bytes = MAX(stats->peak_buffer_bytes, pool_peak + save->peak_staging_bytes);
}

void snap_save_count(SnapSave *save, uint64_t done, bool faults_too) {
    snap_lock(&save->lock);
    save->stats.pages_done += done;
    save->stats.pages_zero = snap_image_writer_zero_pages(save->writer) + save->empty_pages;
    save->stats.bytes_written = snap_image_writer_bytes_written(save->writer);
    uint64_t now = snap_now_ns();
    snap_rate_look(&save->rate, now, save->stats.bytes_written);
    if (faults_too || now >= save->count_faults_ns) {
        save->count_faults_ns = now + COUNT_FAULTS_NS;
        count_faults_locked(save);
    }
    snap_unlock(&save->lock);
}

void snap_save_count_unchanged(SnapSave *save, uint64_t pages) {
    snap_lock(&save->lock);
    save->stats.pages_unchanged += pages;
    save->stats.pages_done += pages;
    snap_unlock(&save->lock);
}

void snap_save_count_staging(SnapSave *save) {
    uint64_t chunk_bytes = SNAP_CHUNK_PAGES * save->tracker->page_bytes;
    uint64_t used = (save->n_staging - snap_image_writer_free_buffers(save->writer)) * chunk_bytes;
    snap_lock(&save->lock);
    save->staging_bytes = used;
    save->peak_staging_bytes = MAX(save->peak_staging_bytes, used);
    snap_unlock(&save->lock);
}

/* ---- public ---------------------------------------------------------------------------------------------- */

/* Bring what the fault thread counts up to date. */
static void look_locked(SnapSave *save) SNAP_REQUIRES(save->lock) {
    if (save->tracker && save->stats.phase == SNAP_SAVE_SWEEPING) {
        count_faults_locked(save);
    }
}

void snap_save_get_stats(SnapSave *save, SnapSaveStats *ret_stats) {
    snap_lock(&save->lock);
    look_locked(save);
    *ret_stats = save->stats;
    if (save->done) {
        ret_stats->buffer_bytes = 0;
    } else {
        uint64_t now = snap_now_ns();
        ret_stats->total_ns = now - save->start_ns;
        ret_stats->bytes_per_second = snap_rate_look(&save->rate, now, save->stats.bytes_written);
        ret_stats->paused = g_atomic_int_get(&save->paused);
    }
    snap_unlock(&save->lock);
}

void snap_save_get_histogram(SnapSave *save, SnapHistogram *ret_histogram) {
    snap_lock(&save->lock);
    look_locked(save);
    *ret_histogram = save->histogram;
    snap_unlock(&save->lock);
}
