/*
 * What an incremental snapshot is against: the parent image, and the log of what was written since.
 *
 * Two ways to know what has changed. Where the guest was kept (keep_log) since the parent was made, its tracker's
 * dirty words tell, and nothing else of the guest is looked at. Where it was not (another process took the parent;
 * a region that came up since; memory that is not tracked), each captured page is compared with the parent's, and
 * dropped when it is the same. Either way the image holds what differs, and the pause is that of a full one.
 */
#include "save.h"

#include <string.h>

#include "chunk.h"
#include "holes.h"

gboolean snap_save_open_parent(SnapSave *save, GError **error) {
    if (!save->options.parent_dir) {
        return TRUE;
    }
    save->parent = snap_image_open(save->options.parent_dir, error);
    if (!save->parent) {
        return FALSE;
    }
    const SnapImageInfo *info = snap_image_info(save->parent);
    g_autoptr(GDateTime) created = g_date_time_new_from_iso8601(info->created, NULL);
    g_autoptr(GDateTime) now = g_date_time_new_now_utc();
    if (created && g_date_time_compare(created, now) > 0) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_REFUSED,
                    "%s: the parent image is newer than now (%s): set the clock, or save without --parent",
                    info->dir, info->created);
        return FALSE;
    }
    save->parent_pages = g_malloc(info->page_bytes * SNAP_CHUNK_PAGES);
    return TRUE;
}

gboolean snap_save_take_log(SnapSave *save) {
    SnapGuestLog *log = &save->guest->log;
    gboolean fits = log->tracker && save->parent && log->buffer_bytes == save->options.buffer_bytes &&
                    log->tracker->at_cap == save->options.at_cap && !snap_sync_failed(log->tracker, NULL) &&
                    g_strcmp0(log->image_id, snap_image_info(save->parent)->id) == 0;
    if (fits) {
        snap_save_set_tracker(save, g_steal_pointer(&log->tracker));
    }
    snap_guest_drop_log(save->guest);
    return fits;
}

void snap_save_leave_log(SnapSave *save) {
    SnapGuestLog *log = &save->guest->log;
    log->tracker = snap_save_steal_tracker(save);
    snap_sync_go_on_logging(log->tracker);
    log->image_id = g_strdup(snap_image_writer_id(save->writer));
    log->buffer_bytes = save->options.buffer_bytes;
}

gboolean snap_save_drop_known(SnapSave *save, const SnapRegion *region, SnapChunk *chunk, GError **error) {
    int number = save->parent ? snap_image_find_region(save->parent, region->name) : -1;
    uint64_t page_bytes = region->page_bytes, start = chunk->index * SNAP_CHUNK_PAGES * page_bytes;
    uint64_t has = number < 0 ? 0 : snap_image_region(save->parent, (guint)number)->length_bytes;
    if (start >= has) {
        return TRUE;
    }
    uint64_t length = MIN(has - start, SNAP_CHUNK_PAGES * page_bytes);
    if (!snap_image_read(save->parent, (guint)number, start, save->parent_pages, length, error)) {
        return FALSE;
    }
    uint64_t same = 0;
    for (unsigned i = 0; i < length / page_bytes; i++) {
        uint64_t at = i * page_bytes;
        same |= (uint64_t)(memcmp(chunk->data + at, save->parent_pages + at, page_bytes) == 0) << i;
    }
    snap_save_count_unchanged(save, (uint64_t)__builtin_popcountll(chunk->present & same));
    chunk->present &= ~same;
    return TRUE;
}

/* What is being hidden, chunk by chunk: a chunk can be recorded once only. */
typedef struct {
    SnapSave *save;
    guint number; /* of the region in the image */
    uint64_t chunk;
    uint64_t mask; /* pages of it, so far */
} Hiding;

static gboolean flush_hidden(Hiding *hiding, GError **error) {
    uint64_t mask = hiding->mask;
    hiding->mask = 0;
    return mask == 0 ||
           snap_image_writer_put_zero(hiding->save->writer, hiding->number, hiding->chunk, mask, error);
}

/* Pages [page, end). */
static gboolean hide_run(Hiding *hiding, uint64_t page, uint64_t end, GError **error) {
    while (page < end) {
        uint64_t chunk = page / SNAP_CHUNK_PAGES, first = page % SNAP_CHUNK_PAGES;
        uint64_t n = MIN(end - page, SNAP_CHUNK_PAGES - first);
        if (chunk != hiding->chunk && !flush_hidden(hiding, error)) {
            return FALSE;
        }
        hiding->chunk = chunk;
        hiding->mask |= (n >= SNAP_CHUNK_PAGES ? UINT64_MAX : (UINT64_C(1) << n) - 1) << first;
        page += n;
    }
    return TRUE;
}

gboolean snap_save_hide(SnapSave *save, const SnapRegion *region, guint number, uint64_t start, uint64_t end,
                        GError **error) {
    int in_parent = save->parent ? snap_image_find_region(save->parent, region->name) : -1;
    uint64_t page_bytes = region->page_bytes, from = start, to = 0;
    Hiding hiding = {.save = save, .number = number};
    while (in_parent >= 0 && from < end &&
           snap_image_next_data(save->parent, (guint)in_parent, from, &from, &to) && from < end) {
        to = MIN(to, end);
        if (!hide_run(&hiding, from / page_bytes, to / page_bytes, error)) {
            return FALSE;
        }
        from = to;
    }
    return flush_hidden(&hiding, error);
}
