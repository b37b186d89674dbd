/*
 * The log of the guest that goes over, and which pages are still to be sent. See outgoing.h.
 *
 * Happy path: the log begins; everything that holds data is to be sent; from then on each collection adds what was
 * written. Pages are taken out and then read, by lanes: what is written after that is in a later collection.
 *
 * Failure modes: regions that come, go or change are seen by the log, and looked at when the guest stands
 * (outgoing-layout.c).
 *
 * Invariant: what holds no data when the log has begun is zeros at the destination too, which begins with fresh
 * memory. Holes are looked for after that moment, so what is filled in between is found or logged.
 */
#include "outgoing.h"

#include "async-area.h"

#include <unistd.h>

/* ---- the log --------------------------------------------------------------------------------------------- */

/* A SnapDirtyFunc. What is laid out differently now is found when the guest stands. */
static void add_dirty(const SnapRegion *region, uint64_t offset_bytes, uint64_t length_bytes, void *opaque) {
    SnapOutgoing *outgoing = opaque;
    SnapSource *source = snap_outgoing_find_source(outgoing, region->host_address);
    if (!source || source->late) {
        return;
    }
    const SnapRegion *announced = source->area->region;
    uint64_t end = MIN(offset_bytes + length_bytes, announced->length_bytes);
    if (offset_bytes < end) {
        snap_pageset_add_run(&source->pages, offset_bytes / announced->page_bytes, end / announced->page_bytes);
    }
}

static void add_all(SnapSource *source) {
    const SnapRegion *region = source->area->region;
    snap_pageset_add_run(&source->pages, 0, region->length_bytes / region->page_bytes);
}

/* Everything that holds data, and perhaps a little around it that the log has put marks in. */
static gboolean add_data(const SnapOutgoing *outgoing, SnapSource *source, GError **error) {
    const SnapRegion *region = source->area->region;
    uint64_t page_bytes = region->page_bytes, searched = 0;
    SnapBytes run;
    int result;
    while ((result = snap_async_next_filled(source->area, outgoing->pagemap, searched, region->length_bytes, &run,
                                            &searched)) == 1) {
        uint64_t end_page = (run.end + page_bytes - 1) / page_bytes;
        snap_pageset_add_run(&source->pages, run.start / page_bytes, end_page);
        searched = MAX(searched, end_page * page_bytes);
    }
    if (result < 0) {
        snap_set_errno(error, -result, "%s: looking for what it holds", region->name);
    }
    return result == 0;
}

gboolean snap_outgoing_add_source(SnapOutgoing *outgoing, SnapSource *source, bool last, GError **error) {
    if (!source->late) {
        return add_data(outgoing, source, error);
    }
    if (last) {
        add_all(source);
    }
    return TRUE;
}

static gboolean start_tracker(SnapOutgoing *outgoing, GError **error) {
    g_autoptr(GError) failure = NULL;
    if (snap_tracker_set_mode(outgoing->tracker, SNAP_TRACK_ASYNC, FALSE, &failure)) {
        return TRUE;
    }
    if (!g_error_matches(failure, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED)) {
        g_propagate_error(error, g_steal_pointer(&failure));
        return FALSE;
    }
    return snap_tracker_set_mode(outgoing->tracker, SNAP_TRACK_SYNC, FALSE, error);
}

gboolean snap_outgoing_begin_log(SnapOutgoing *outgoing, GError **error) {
    if (!start_tracker(outgoing, error)) {
        return FALSE;
    }
    for (guint i = 0; i < outgoing->sources->len; i++) {
        SnapSource *source = snap_outgoing_source(outgoing, i);
        if (!snap_outgoing_add_source(outgoing, source, false, error)) {
            return FALSE;
        }
        snap_outgoing_note_serial(outgoing, source);
    }
    return TRUE;
}

/* Where it cannot be announced that a mapping is another one now, all of it is sent, its holes too. */
gboolean snap_outgoing_collect(SnapOutgoing *outgoing, bool last, SnapDirtyStats *ret_stats, GError **error) {
    if (!snap_tracker_collect(outgoing->tracker, add_dirty, outgoing, ret_stats, error)) {
        return FALSE;
    }
    bool announced = snap_outgoing_can_announce(outgoing);
    for (guint i = 0; i < outgoing->sources->len; i++) {
        SnapSource *source = snap_outgoing_source(outgoing, i);
        bool same = announced || snap_outgoing_note_serial(outgoing, source);
        if (source->late ? last : !same) {
            add_all(source);
        }
    }
    return TRUE;
}

uint64_t snap_outgoing_remaining(const SnapOutgoing *outgoing) {
    uint64_t bytes = 0;
    for (guint i = 0; i < outgoing->sources->len; i++) {
        const SnapSource *source = snap_outgoing_source(outgoing, i);
        bytes += snap_pageset_count(&source->pages) * source->area->region->page_bytes;
    }
    return bytes;
}
