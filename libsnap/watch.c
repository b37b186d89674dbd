/*
 * Collections and watches: each consumer's own view of one log. See track.h.
 *
 * Happy path of a collection that is alone: what the kernel reports goes straight to the caller. As soon as a
 * watch or a marked page is there, it goes into the views of all, and each takes its own bits.
 *
 * Failure modes: an area that is no longer registered as a whole (-EPERM) was unmapped, moved or mapped anew. A
 * region of the guest's is listed and taken up anew, all of it dirty; in a watch it is an error.
 */
#include "track.h"

#include <errno.h>
#include <unistd.h>

#include "stats.h"

enum { REFRESH_MAX = 3 }; /* times that regions may change under one collection */

/* ---- collecting ------------------------------------------------------------------------------------------ */

typedef struct {
    const SnapTracked *tracked;
    SnapDirtyFunc func;
    void *opaque;
    SnapDirtyStats stats;
} Collector;

static void report(void *opaque, uint64_t start, uint64_t end) {
    Collector *collector = opaque;
    const SnapRegion *region = collector->tracked->region;
    collector->stats.n_ranges++;
    collector->stats.n_pages += (end - start) / region->page_bytes;
    collector->func(region, start - region->host_address, end - start, collector->opaque);
}

/* What was told of this area, and is told on. */
static void drain(SnapTracked *tracked, Collector *collector) {
    uint64_t start = tracked->region->host_address, end = snap_tracked_end(tracked), stop;
    while (snap_view_next(&tracked->own, start, end, &start, &stop)) {
        report(collector, start, stop);
        start = stop;
    }
    snap_view_unmark(&tracked->own, tracked->region->host_address, end);
}

static int pull_area(SnapTracker *tracker, SnapTracked *tracked, Collector *collector)
    SNAP_REQUIRES(tracker->lock) {
    uint64_t start = tracked->region->host_address, end = snap_tracked_end(tracked);
    collector->tracked = tracked;
    if (tracker->suspended) {
        report(collector, start, end);
        return 0;
    }
    bool direct = tracker->alone && tracker->mode == SNAP_TRACK_ASYNC;
    int result = snap_engine_pull(tracker, tracked, start, end, direct ? report : NULL, collector);
    if (result == 0 && !direct) {
        drain(tracked, collector);
    }
    return result;
}

/* Take up anew what is not registered any more: unmapped, moved, or another mapping in its place. */
static gboolean renew_area(SnapTracker *tracker, guint i, GError **error) SNAP_REQUIRES(tracker->lock) {
    SnapTracked *tracked = snap_tracker_area(tracker, i);
    tracked->listed = false; /* so that the listing does not know it */
    if (!snap_regions_refresh(tracker, true, SNAP_TAKE_DIRTY, error)) {
        return FALSE;
    }
    snap_regions_drop_unwatched(tracker);
    return TRUE;
}

static gboolean collect_area(SnapTracker *tracker, guint i, int *ret_renewals, Collector *collector,
                             GError **error) SNAP_REQUIRES(tracker->lock) {
    SnapTracked *tracked = snap_tracker_area(tracker, i);
    int result = pull_area(tracker, tracked, collector);
    if (result == -EPERM && *ret_renewals < REFRESH_MAX) {
        (*ret_renewals)++;
        return renew_area(tracker, i, error);
    }
    if (result == -EPERM) { /* it keeps changing: nothing is known of it until the next collection */
        report(collector, tracked->region->host_address, snap_tracked_end(tracked));
        return TRUE;
    }
    return result == 0 || snap_engine_fail(result, tracked->region, error);
}

static gboolean begin(SnapTracker *tracker, GError **error) SNAP_REQUIRES(tracker->lock) {
    if (tracker->mode == SNAP_TRACK_OFF) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_USAGE, "writes are not logged: the mode is off");
        return FALSE;
    }
    tracker->round_due = true;
    if (!tracker->suspended && !snap_regions_refresh(tracker, false, SNAP_TAKE_DIRTY, error)) {
        return FALSE;
    }
    snap_engine_mark_unseen(tracker);
    return TRUE;
}

/* All areas; again from the start after the regions were listed anew, since they are in other places then. */
static gboolean collect_all(SnapTracker *tracker, const char *only, Collector *collector, GError **error)
    SNAP_REQUIRES(tracker->lock) {
    int renewals = 0, seen = 0;
    for (guint i = 0; i < tracker->areas->len; i++) {
        const SnapTracked *tracked = snap_tracker_area(tracker, i);
        if (!tracked->listed || (only && !g_str_equal(tracked->region->name, only))) {
            continue;
        }
        if (!collect_area(tracker, i, &renewals, collector, error)) {
            return FALSE;
        }
        if (renewals > seen) {
            seen = renewals;
            tracker->alone = false; /* what was new has been told to the views */
            i = G_MAXUINT;          /* from the start */
        }
    }
    tracker->alone = tracker->alone || (!only && tracker->watches->len == 0);
    return TRUE;
}

gboolean snap_tracker_collect(SnapTracker *tracker, SnapDirtyFunc func, void *opaque, SnapDirtyStats *ret_stats,
                              GError **error) {
    Collector collector = {.func = func, .opaque = opaque};
    uint64_t start_ns = snap_now_ns();
    snap_lock(&tracker->lock);
    gboolean done = begin(tracker, error) && collect_all(tracker, NULL, &collector, error);
    for (guint i = 0; i < tracker->areas->len && done; i++) {
        const SnapTracked *tracked = snap_tracker_area(tracker, i);
        collector.stats.pages_total +=
            tracked->listed ? tracked->region->length_bytes / tracked->region->page_bytes : 0;
    }
    snap_unlock(&tracker->lock);
    collector.stats.scan_ns = snap_now_ns() - start_ns;
    if (done && ret_stats) {
        *ret_stats = collector.stats;
    }
    return done;
}

/* ---- into a bitmap --------------------------------------------------------------------------------------- */

typedef struct {
    uint64_t *bits;
    uint64_t n_pages;
} Bitmap;

static void set_bits(const SnapRegion *region, uint64_t offset_bytes, uint64_t length_bytes, void *opaque) {
    const Bitmap *bitmap = opaque;
    uint64_t first = offset_bytes / region->page_bytes, end = first + length_bytes / region->page_bytes;
    for (uint64_t page = first; page < MIN(end, bitmap->n_pages); page++) {
        bitmap->bits[page / 64] |= UINT64_C(1) << page % 64;
    }
}

static const SnapRegion *find_region(const SnapTracker *tracker, const char *name) {
    for (guint i = 0; i < tracker->areas->len; i++) {
        const SnapTracked *tracked = snap_tracker_area(tracker, i);
        if (tracked->listed && g_str_equal(tracked->region->name, name)) {
            return tracked->region;
        }
    }
    return NULL;
}

static gboolean check_bitmap(const SnapTracker *tracker, const char *name, const Bitmap *bitmap, GError **error) {
    const SnapRegion *region = find_region(tracker, name);
    if (!region) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_FOUND, "there is no region %s", name);
        return FALSE;
    }
    if (region->length_bytes / region->page_bytes > bitmap->n_pages) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_USAGE,
                    "region %s has %" G_GUINT64_FORMAT " pages, the bitmap has room for %" G_GUINT64_FORMAT, name,
                    (guint64)(region->length_bytes / region->page_bytes), (guint64)bitmap->n_pages);
        return FALSE;
    }
    return TRUE;
}

gboolean snap_tracker_collect_bitmap(SnapTracker *tracker, const char *region, uint64_t *bitmap, gsize n_words,
                                     GError **error) {
    Bitmap into = {bitmap, (uint64_t)n_words * 64};
    Collector collector = {.func = set_bits, .opaque = &into};
    snap_lock(&tracker->lock);
    gboolean done = begin(tracker, error) && check_bitmap(tracker, region, &into, error) &&
                    collect_all(tracker, region, &collector, error);
    snap_unlock(&tracker->lock);
    return done;
}

/* ---- watches --------------------------------------------------------------------------------------------- */

static gboolean fail_hole(uint64_t address, GError **error) {
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_REFUSED,
                "0x%" G_GINT64_MODIFIER "x: not mapped, or not watched, any more: free the watch and make it anew",
                address);
    return FALSE;
}

/* Bring the view up to date from @start on. */
static gboolean pull_range(SnapTracker *tracker, const SnapWatch *watch, uint64_t start, GError **error)
    SNAP_REQUIRES(tracker->lock) {
    uint64_t end = watch->view.end;
    tracker->round_due = true;
    snap_engine_mark_unseen(tracker);
    for (guint i = 0; i < tracker->areas->len && start < end; i++) {
        SnapTracked *tracked = snap_tracker_area(tracker, i);
        uint64_t stop = MIN(end, snap_tracked_end(tracked));
        if (stop <= start) {
            continue;
        }
        if (tracked->region->host_address > start) {
            return fail_hole(start, error);
        }
        int result = snap_engine_pull(tracker, tracked, start, stop, NULL, NULL);
        if (result < 0) {
            return result == -EPERM ? fail_hole(start, error) : snap_engine_fail(result, tracked->region, error);
        }
        start = stop;
    }
    return start >= end || fail_hole(start, error);
}

SnapWatch *snap_watch_new(SnapTracker *tracker, uint64_t address, uint64_t length_bytes, GError **error) {
    uint64_t page_bytes = (uint64_t)sysconf(_SC_PAGESIZE), granule = 0;
    if (length_bytes == 0 || address % page_bytes || length_bytes % page_bytes ||
        address + length_bytes < address) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_USAGE,
                    "a watch is of whole pages of %" G_GUINT64_FORMAT " bytes", (guint64)page_bytes);
        return NULL;
    }
    snap_lock(&tracker->lock);
    SnapWatch *watch = NULL;
    if (tracker->mode == SNAP_TRACK_OFF || tracker->suspended) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_USAGE, "writes are not logged now: %s",
                    tracker->suspended ? "a snapshot is being taken" : "the mode is off");
    } else if (snap_regions_cover(tracker, address, address + length_bytes, &granule, error)) {
        watch = g_new0(SnapWatch, 1);
        watch->tracker = tracker;
        snap_view_init(&watch->view, address, address + length_bytes, granule);
        /* What was written until now is the others'. */
        if (pull_range(tracker, watch, address, error)) {
            tracker->alone = false;
            g_ptr_array_add(tracker->watches, watch);
        } else {
            snap_view_clear(&watch->view);
            g_clear_pointer(&watch, g_free);
        }
    }
    snap_unlock(&tracker->lock);
    return watch;
}

void snap_watch_free(SnapWatch *watch) {
    if (!watch) {
        return;
    }
    snap_lock(&watch->tracker->lock);
    g_ptr_array_remove_fast(watch->tracker->watches, watch);
    snap_regions_drop_unwatched(watch->tracker);
    snap_unlock(&watch->tracker->lock);
    snap_view_clear(&watch->view);
    g_free(watch);
}

static gboolean check(SnapWatch *watch, uint64_t start, GError **error) SNAP_REQUIRES(watch->tracker->lock) {
    if (watch->tracker->mode == SNAP_TRACK_OFF) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_USAGE, "writes are not logged: the mode is off");
        return FALSE;
    }
    if (start < watch->view.start || start > watch->view.end ||
        (start - watch->view.start) % watch->view.page_bytes) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_USAGE, "0x%" G_GINT64_MODIFIER "x: not a page of the watch",
                    start);
        return FALSE;
    }
    if (watch->tracker->suspended) {
        snap_view_mark(&watch->view, start, watch->view.end);
        return TRUE;
    }
    return pull_range(watch->tracker, watch, start, error);
}

gboolean snap_watch_get(SnapWatch *watch, SnapWatchGet how, uint64_t start_address, uint64_t *ret_addresses,
                        gsize n_addresses, gsize *ret_n, uint64_t *ret_next, uint64_t *ret_granule_bytes,
                        GError **error) {
    snap_lock(&watch->tracker->lock);
    gboolean done = check(watch, start_address, error);
    if (done) {
        SnapView *view = &watch->view;
        uint64_t at = start_address, start, stop;
        gsize n = 0;
        while (n < n_addresses && snap_view_next(view, at, view->end, &start, &stop)) {
            for (at = start; at < stop && n < n_addresses; at += view->page_bytes) {
                ret_addresses[n++] = at;
            }
        }
        if (n < n_addresses) {
            at = view->end;
        }
        if (how == SNAP_WATCH_RESET) {
            snap_view_unmark(view, start_address, at);
        }
        *ret_n = n;
        *ret_next = at;
        if (ret_granule_bytes) {
            *ret_granule_bytes = view->page_bytes;
        }
    }
    snap_unlock(&watch->tracker->lock);
    return done;
}

gboolean snap_watch_reset(SnapWatch *watch, GError **error) {
    snap_lock(&watch->tracker->lock);
    gboolean done = check(watch, watch->view.start, error);
    if (done) {
        snap_view_unmark(&watch->view, watch->view.start, watch->view.end);
    }
    snap_unlock(&watch->tracker->lock);
    return done;
}
