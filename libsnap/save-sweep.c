/*
 * From the point in time to the manifest: capture what the guest had, chunk by chunk, hand it to the writer, let
 * the guest go, make the image complete. See save.c for the whole way.
 */
#include "save.h"

#include <errno.h>
#include <string.h>

enum {
    RELEASE_STEP_US = 100, /* between tries to un-protect while an event of the guest is pending */
};

/* Name the saved regions to the writer, and count them. */
static gboolean add_regions(SnapSave *save, GError **error) {
    guint number = 0;
    uint64_t pages = 0;
    g_array_set_size(save->numbers, 0);
    for (guint i = 0; i < save->tracker->areas->len; i++) {
        const SnapArea *area = snap_sync_area(save->tracker, i);
        guint at = area->dropped ? G_MAXUINT : number;
        g_array_append_val(save->numbers, at);
        if (area->dropped) {
            continue;
        }
        if (!snap_image_writer_add_region(save->writer, area->region, error)) {
            return FALSE;
        }
        pages += area->region->length_bytes / area->region->page_bytes;
        number++;
    }
    for (guint i = 0; i < save->copied->len; i++) {
        CopiedRegion *copy = &g_array_index(save->copied, CopiedRegion, i);
        copy->number = number++;
        pages += copy->region->length_bytes / copy->region->page_bytes;
        if (!snap_image_writer_add_region(save->writer, copy->region, error)) {
            return FALSE;
        }
    }
    for (guint i = 0; i < save->fixed->len; i++) {
        const SnapRegion *region = g_ptr_array_index(save->fixed, i);
        pages += region->length_bytes / region->page_bytes;
        if (!snap_image_writer_add_region(save->writer, region, error)) {
            return FALSE;
        }
    }
    snap_lock(&save->lock);
    save->stats.pages_total = pages;
    snap_unlock(&save->lock);
    return TRUE;
}

static SnapChunk *get_buffer(SnapSave *save, GError **error) {
    for (;;) {
        GError *failed = NULL;
        SnapChunk *chunk = snap_image_writer_get(save->writer, SNAP_SINK_WAIT_MS, &failed);
        if (failed) {
            g_propagate_error(error, failed);
            return NULL;
        }
        if (chunk) {
            snap_save_count_staging(save);
            return chunk;
        }
        snap_sweep_release(save->tracker);
        if (!snap_save_go_on(save, error)) {
            return NULL;
        }
    }
}

/* @known: chunk->present is what has changed; otherwise it is compared with the parent's. */
static gboolean put_buffer(SnapSave *save, SnapChunk *chunk, const SnapRegion *region, guint number, bool known,
                           GError **error) {
    chunk->region = number;
    if (!known && !snap_save_drop_known(save, region, chunk, error)) {
        return FALSE;
    }
    uint64_t before = snap_image_writer_bytes_written(save->writer);
    uint64_t pages = (uint64_t)__builtin_popcountll(chunk->present);
    if (!snap_image_writer_put(save->writer, chunk, error)) {
        return FALSE;
    }
    uint64_t bytes = snap_image_writer_bytes_written(save->writer) - before;
    snap_save_count(save, pages, false);
    return bytes == 0 || snap_save_pace(save, bytes, error);
}

static gboolean sweep_unit(SnapSave *save, uint32_t area, uint64_t chunk, GError **error) {
    SnapUnit unit = snap_sweep_unit(save->tracker, area, chunk, save->n_staging);
    if (unit.n_chunks == 0) {
        return TRUE;
    }
    g_autofree SnapChunk **buffers = g_new(SnapChunk *, unit.n_chunks);
    for (uint32_t i = 0; i < unit.n_chunks; i++) {
        buffers[i] = get_buffer(save, error);
        if (!buffers[i]) {
            return FALSE;
        }
    }
    if (!snap_save_go_on(save, error) || !snap_sweep_capture(save->tracker, unit, buffers, error)) {
        return FALSE;
    }
    const SnapArea *from = snap_sync_area(save->tracker, area);
    for (uint32_t i = 0; i < unit.n_chunks; i++) {
        if (!put_buffer(save, buffers[i], from->region, g_array_index(save->numbers, guint, area), from->logged,
                        error)) {
            return FALSE;
        }
    }
    snap_sweep_release(save->tracker);
    return TRUE;
}

/*
 * What the guest has written first. While the save is paused this waits; where the guest needs room and no written
 * chunk is known (their queue has an end), the caller goes on with the next one of its own, and comes back.
 */
static gboolean sweep_hot(SnapSave *save, GError **error) {
    SnapUnit hot;
    while (snap_save_rest(save, error)) {
        if (!snap_sweep_next_hot(save->tracker, &hot)) {
            return TRUE;
        }
        if (!sweep_unit(save, hot.area, hot.first, error)) {
            return FALSE;
        }
    }
    return FALSE;
}

/* Chunks [run) of an area; what the log calls unchanged is counted, but not looked at. */
static gboolean sweep_run(SnapSave *save, uint32_t number, SnapRun run, GError **error) {
    const SnapArea *area = snap_sync_area(save->tracker, number);
    uint64_t unchanged = 0;
    for (uint64_t chunk = run.first; chunk < MIN(run.end, area->n_chunks); chunk++) {
        uint64_t dirty = area->chunks[chunk].dirty;
        unchanged += (uint64_t)__builtin_popcountll(snap_area_chunk_mask(area, chunk) & ~dirty);
        if (!sweep_hot(save, error) || (dirty && !sweep_unit(save, number, chunk, error)) ||
            !snap_sweep_check_holes(save->tracker, number, chunk, error)) {
            return FALSE;
        }
    }
    snap_save_count_unchanged(save, unchanged);
    return TRUE;
}

/* What was never armed held nothing at the point; nor at the one before, where the log tells. */
static gboolean pass_gaps(SnapSave *save, uint32_t number, GError **error) {
    const SnapArea *area = snap_sync_area(save->tracker, number);
    SnapRun gap = {0, 0};
    while (snap_area_next_gap(area, gap.end, &gap)) {
        uint64_t start, end;
        snap_area_bytes(area, gap, &start, &end);
        uint64_t empty = (end - start) / area->region->page_bytes;
        save->empty_pages += empty;
        snap_save_count(save, empty, false);
        if (!area->logged &&
            !snap_save_hide(save, area->region, g_array_index(save->numbers, guint, number), start, end, error)) {
            return FALSE;
        }
    }
    return TRUE;
}

static gboolean sweep_area(SnapSave *save, uint32_t number, GError **error) {
    const SnapArea *area = snap_sync_area(save->tracker, number);
    if (area->dropped) {
        return TRUE;
    }
    for (guint r = 0; r < area->armed->len; r++) {
        if (!sweep_run(save, number, g_array_index(area->armed, SnapRun, r), error)) {
            return FALSE;
        }
    }
    return pass_gaps(save, number, error);
}

/*
 * Fill @chunk from @data, or where that is NULL from the guest's memory, which nobody writes. What cannot be read
 * (a mapping behind the end of its file) is not present.
 */
static gboolean fill_untracked(SnapSave *save, const SnapRegion *region, const uint8_t *data, SnapChunk *chunk,
                               GError **error) {
    uint64_t page_bytes = region->page_bytes, at = chunk->index * SNAP_CHUNK_PAGES * page_bytes;
    uint64_t length = MIN(SNAP_CHUNK_PAGES * page_bytes, region->length_bytes - at);
    if (data) {
        memcpy(chunk->data, data + at, length);
        return TRUE;
    }
    const SnapMemoryReader *reader = &save->tracker->reader;
    int result = snap_memory_read(reader, region, at, region->host_address + at, chunk->data, length);
    for (uint64_t i = 0; i < length / page_bytes && result == -EFAULT; i++) {
        uint64_t page = at + i * page_bytes;
        if (snap_memory_read(reader, region, page, region->host_address + page, chunk->data + i * page_bytes,
                             page_bytes) < 0) {
            chunk->present &= ~(UINT64_C(1) << i);
        }
    }
    if (result < 0 && result != -EFAULT) {
        snap_set_errno(error, -result, "region %s: cannot read it", region->name);
        return FALSE;
    }
    return TRUE;
}

static gboolean save_untracked(SnapSave *save, const SnapRegion *region, guint number, const uint8_t *data,
                               GError **error) {
    uint64_t n_pages = region->length_bytes / region->page_bytes;
    for (uint64_t done = 0; done < n_pages; done += SNAP_CHUNK_PAGES) {
        bool go_on = snap_save_go_on(save, error) && snap_save_rest(save, error);
        SnapChunk *chunk = go_on ? get_buffer(save, error) : NULL;
        if (!chunk) {
            return FALSE;
        }
        chunk->index = done / SNAP_CHUNK_PAGES;
        chunk->present = n_pages - done >= SNAP_CHUNK_PAGES ? UINT64_MAX : (UINT64_C(1) << (n_pages - done)) - 1;
        if (!fill_untracked(save, region, data, chunk, error) ||
            !put_buffer(save, chunk, region, number, false, error)) {
            return FALSE;
        }
    }
    return TRUE;
}

static gboolean sweep_everything(SnapSave *save, GError **error) {
    for (guint i = 0; i < save->tracker->areas->len; i++) {
        if (!sweep_area(save, i, error)) {
            return FALSE;
        }
    }
    while (!snap_sweep_release(save->tracker)) {
        g_usleep(RELEASE_STEP_US);
        if (!snap_save_go_on(save, error)) {
            return FALSE;
        }
    }
    guint number = 0;
    for (guint i = 0; i < save->copied->len; i++) {
        const CopiedRegion *copy = &g_array_index(save->copied, CopiedRegion, i);
        number = copy->number;
        if (!save_untracked(save, copy->region, number, copy->data, error)) {
            return FALSE;
        }
    }
    guint first_fixed = 0;
    for (guint i = 0; i < save->numbers->len; i++) {
        first_fixed += g_array_index(save->numbers, guint, i) != G_MAXUINT;
    }
    first_fixed += save->copied->len;
    for (guint i = 0; i < save->fixed->len; i++) {
        if (!save_untracked(save, g_ptr_array_index(save->fixed, i), first_fixed + i, NULL, error)) {
            return FALSE;
        }
    }
    return TRUE;
}

static void final_counts(SnapSave *save, SnapSaveStats *ret_stats) {
    snap_save_count(save, 0, true);
    snap_lock(&save->lock);
    save->stats.total_ns = snap_now_ns() - save->start_ns;
    *ret_stats = save->stats;
    snap_unlock(&save->lock);
}

static gboolean finish(SnapSave *save, GError **error) {
    snap_save_set_phase(save, SNAP_SAVE_FINISHING);
    if (!save->options.keep_log) {
        snap_sync_release(save->tracker);
    }
    for (guint i = 0; i < save->states->len; i++) {
        if (!snap_image_writer_add_state(save->writer, g_ptr_array_index(save->states, i), error)) {
            return FALSE;
        }
    }
    SnapSaveStats s;
    final_counts(save, &s);
    const SnapStatistic statistics[] = {
        {"pause-us", s.pause_ns / 1000},
        {"prepare-ms", s.prepare_ns / 1000000},
        {"pages-total", s.pages_total},
        {"pages-zero", s.pages_zero},
        {"pages-unchanged", s.pages_unchanged},
        {"pages-by-sweep", s.pages_by_sweep},
        {"pages-by-fault", s.pages_by_fault},
        {"bytes-written", s.bytes_written},
        {"faults", s.faults},
        {"fault-p50-us", s.fault_p50_ns / 1000},
        {"fault-p99-us", s.fault_p99_ns / 1000},
        {"fault-max-us", s.fault_max_ns / 1000},
        {"peak-buffer-bytes", s.peak_buffer_bytes},
    };
    return snap_image_writer_commit(save->writer, save->created_us, statistics, G_N_ELEMENTS(statistics), error);
}

gboolean snap_save_sweep(SnapSave *save, GError **error) {
    return add_regions(save, error) && sweep_everything(save, error) && snap_save_rest(save, error) &&
           finish(save, error);
}
