/*
 * What is logged: the guest's regions, and the ranges of watches that are in none of them.
 *
 * The guest's /proc/PID/maps is read at every collection, and where it differs from the last time the regions are
 * listed anew: a region that is still there is kept, one that has gone is dropped, and one that is new, longer, or
 * another file's is taken up, with all it holds dirty.
 *
 * Invariant: areas are disjoint and sorted by address. Where a new region covers the area of a watch, it takes its
 * place; the watch's view has been brought up to date before, and what the region holds becomes dirty in it.
 */
#include "track.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "hash.h"
#include "region.h"
#include "vma.h"

void snap_tracked_free(SnapTracked *tracked) {
    snap_view_clear(&tracked->own);
    snap_region_free(tracked->region);
    g_free(tracked);
}

static int64_t file_bytes(const SnapRegion *region) {
    struct stat about;
    return region->fd >= 0 && fstat(region->fd, &about) == 0 ? about.st_size : 0;
}

static SnapTracked *tracked_new(SnapRegion *region, bool listed) {
    SnapTracked *tracked = g_new0(SnapTracked, 1);
    tracked->file_bytes = file_bytes(region);
    tracked->region = region;
    tracked->listed = listed;
    snap_view_init(&tracked->own, region->host_address, region->host_address + region->length_bytes,
                   region->page_bytes);
    return tracked;
}

guint snap_regions_find(const SnapTracker *tracker, uint64_t address) {
    guint low = 0, high = tracker->areas->len;
    while (low < high) {
        guint middle = low + (high - low) / 2;
        if (snap_tracked_end(snap_tracker_area(tracker, middle)) <= address) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

static void drop(SnapTracker *tracker, guint i) SNAP_REQUIRES(tracker->lock) {
    snap_engine_drop(tracker, snap_tracker_area(tracker, i));
    g_ptr_array_remove_index(tracker->areas, i);
}

/* Take @region (take) up. What it overlaps is told to the views, then goes. Gone already: TRUE, and nothing is
 * done. */
static gboolean take_up(SnapTracker *tracker, SnapRegion *region, bool listed, uint64_t register_start,
                        uint64_t register_end, SnapTake take, GError **error) SNAP_REQUIRES(tracker->lock) {
    uint64_t end = region->host_address + region->length_bytes;
    guint at = snap_regions_find(tracker, region->host_address);
    while (at < tracker->areas->len && snap_tracker_area(tracker, at)->region->host_address < end) {
        SnapTracked *old = snap_tracker_area(tracker, at);
        (void)snap_engine_pull(tracker, old, old->region->host_address, snap_tracked_end(old), NULL, NULL);
        drop(tracker, at);
        take = SNAP_TAKE_DIRTY;
    }
    SnapTracked *tracked = tracked_new(region, listed);
    tracked->serial = ++tracker->n_taken;
    g_ptr_array_insert(tracker->areas, (gint)at, tracked);
    GError *failure = NULL;
    if (snap_engine_add(tracker, tracked, register_start, register_end, take, &failure)) {
        return TRUE;
    }
    drop(tracker, at);
    if (failure) {
        g_propagate_error(error, failure);
        return FALSE;
    }
    tracker->maps_hash = 0; /* it may come back, and everything reads as it did */
    return TRUE;
}

/* ---- the guest's regions --------------------------------------------------------------------------------- */

static bool is_wanted(const SnapTracker *tracker, const SnapRegion *region) {
    return region->memory != SNAP_MEMORY_FIXED &&
           (!tracker->glob || g_pattern_spec_match_string(tracker->glob, region->name));
}

static bool is_unchanged(const SnapRegion *a, const SnapRegion *b) {
    return a->length_bytes == b->length_bytes && snap_region_is_same(a, b);
}

static bool is_known(const SnapTracker *tracker, const SnapRegion *region) {
    guint at = snap_regions_find(tracker, region->host_address);
    return at < tracker->areas->len && snap_tracker_area(tracker, at)->listed &&
           is_unchanged(snap_tracker_area(tracker, at)->region, region);
}

/* Drop the listed areas that are not in @now. */
static void drop_gone(SnapTracker *tracker, const GPtrArray *now) SNAP_REQUIRES(tracker->lock) {
    g_autoptr(GHashTable) there = g_hash_table_new(g_int64_hash, g_int64_equal);
    for (guint i = 0; i < now->len; i++) {
        SnapRegion *region = g_ptr_array_index(now, i);
        g_hash_table_insert(there, &region->host_address, region);
    }
    for (guint i = 0; i < tracker->areas->len;) {
        const SnapTracked *tracked = snap_tracker_area(tracker, i);
        const SnapRegion *region = g_hash_table_lookup(there, &tracked->region->host_address);
        if (tracked->listed && (!region || !is_unchanged(tracked->region, region))) {
            drop(tracker, i);
        } else {
            i++;
        }
    }
}

/* Whether another region may be of the same mapping: those above have been taken up, the one below is the next. */
static bool has_neighbour(const SnapTracker *tracker, const GPtrArray *left, const SnapRegion *region) {
    uint64_t start = region->host_address, end = start + region->length_bytes;
    const SnapRegion *next = left->len ? g_ptr_array_index(left, left->len - 1) : NULL;
    guint above = snap_regions_find(tracker, end), below = snap_regions_find(tracker, start - 1);
    return (next && next->host_address + next->length_bytes == start) ||
           (above < tracker->areas->len && snap_tracker_area(tracker, above)->region->host_address == end) ||
           (below < tracker->areas->len && snap_tracked_end(snap_tracker_area(tracker, below)) == start);
}

/* A mapping that is several regions is registered as a whole: not split, or an mremap() of the guest's would fail
 * meanwhile. */
static gboolean take_region(SnapTracker *tracker, const GPtrArray *left, SnapRegion *region, SnapTake take,
                            GError **error) SNAP_REQUIRES(tracker->lock) {
    uint64_t start = region->host_address, end = start + region->length_bytes;
    SnapVma vma;
    if (region->memory == SNAP_MEMORY_ANON && has_neighbour(tracker, left, region) &&
        snap_vma_find(snap_guest_pid(tracker->guest), start, &vma) == 0 && vma.start <= start && vma.end >= end) {
        start = vma.start;
        end = vma.end;
    }
    return take_up(tracker, region, true, start, end, take, error);
}

static gboolean list(SnapTracker *tracker, SnapTake take, GError **error) SNAP_REQUIRES(tracker->lock) {
    g_autoptr(GPtrArray) now = g_ptr_array_new_with_free_func((GDestroyNotify)snap_region_free);
    if (!tracker->guest->ops->list_regions(tracker->guest->opaque, FALSE, now, error)) {
        return FALSE;
    }
    drop_gone(tracker, now);
    while (now->len > 0) {
        SnapRegion *region = g_ptr_array_steal_index_fast(now, now->len - 1);
        if (!is_wanted(tracker, region) || is_known(tracker, region)) {
            snap_region_free(region);
            continue;
        }
        if (!take_region(tracker, now, region, take, error)) {
            return FALSE;
        }
    }
    for (guint i = 0; i < tracker->areas->len; i++) {
        SnapTracked *tracked = snap_tracker_area(tracker, i);
        tracked->file_bytes = file_bytes(tracked->region);
    }
    return TRUE;
}

uint64_t snap_tracker_serial(SnapTracker *tracker, const SnapRegion *region) {
    snap_lock(&tracker->lock);
    guint at = snap_regions_find(tracker, region->host_address);
    const SnapTracked *tracked = is_known(tracker, region) ? snap_tracker_area(tracker, at) : NULL;
    uint64_t serial = tracked ? tracked->serial : 0;
    snap_unlock(&tracker->lock);
    return serial;
}

/* Return: 0 or -errno. */
static int hash_maps(int pid, uint64_t *ret_hash) {
    g_autofree char *path = g_strdup_printf("/proc/%d/maps", pid);
    g_autoptr(SnapHash) state = snap_hash_new();
    char buffer[16384];
    ssize_t n;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return errno == ENOENT ? -ESRCH : -errno;
    }
    while ((n = read(fd, buffer, sizeof buffer)) > 0) {
        XXH3_64bits_update(state, buffer, (size_t)n);
    }
    close(fd);
    *ret_hash = XXH3_64bits_digest(state);
    return n < 0 ? -errno : 0;
}

/* A region ends where its file does: that moves, and no mapping shows it. */
static bool has_other_file(const SnapTracker *tracker) {
    bool same = true;
    for (guint i = 0; i < tracker->areas->len && same; i++) {
        const SnapTracked *tracked = snap_tracker_area(tracker, i);
        same = tracked->file_bytes == file_bytes(tracked->region);
    }
    return !same;
}

gboolean snap_regions_refresh(SnapTracker *tracker, bool force, SnapTake take, GError **error) {
    int pid = snap_guest_pid(tracker->guest);
    uint64_t hash = 0;
    if (tracker->region_glob && !*tracker->region_glob) {
        return TRUE;
    }
    int result = hash_maps(pid, &hash);
    if (result < 0) {
        snap_set_errno(error, -result, "process %d: cannot read its mappings", pid);
        return FALSE;
    }
    if (hash == tracker->maps_hash && !force && !has_other_file(tracker)) {
        return TRUE;
    }
    tracker->maps_hash = hash;
    return list(tracker, take, error);
}

void snap_regions_drop_unwatched(SnapTracker *tracker) {
    for (guint i = 0; i < tracker->areas->len;) {
        const SnapTracked *tracked = snap_tracker_area(tracker, i);
        bool used = tracked->listed;
        for (guint w = 0; w < tracker->watches->len && !used; w++) {
            const SnapWatch *watch = g_ptr_array_index(tracker->watches, w);
            used =
                watch->view.start < snap_tracked_end(tracked) && watch->view.end > tracked->region->host_address;
        }
        if (used) {
            i++;
        } else {
            drop(tracker, i);
        }
    }
}

gboolean snap_regions_renew(SnapTracker *tracker, SnapTake take, GError **error) {
    for (guint i = 0; i < tracker->areas->len;) {
        SnapTracked *tracked = snap_tracker_area(tracker, i);
        GError *failure = NULL;
        uint64_t start = tracked->region->host_address, end = snap_tracked_end(tracked);
        SnapVma vma;
        if (!tracked->listed && snap_vma_find(snap_guest_pid(tracker->guest), start, &vma) == 0 &&
            vma.end >= end) {
            start = vma.start; /* as a whole, as it was */
            end = vma.end;
        }
        if (snap_engine_add(tracker, tracked, start, end, take, &failure)) {
            i++;
        } else if (failure) {
            g_propagate_error(error, failure);
            return FALSE;
        } else {
            drop(tracker, i);
        }
    }
    return TRUE;
}

/* ---- ranges of watches ----------------------------------------------------------------------------------- */

static SnapMemory memory_of(const SnapVma *vma, uint64_t base_page_bytes) {
    if (vma->page_bytes > base_page_bytes) {
        return vma->shared ? SNAP_MEMORY_HUGETLB : SNAP_MEMORY_HUGETLB_PRIVATE;
    }
    return vma->anonymous ? SNAP_MEMORY_ANON : SNAP_MEMORY_COPIED;
}

/* The part of @vma in [start, end), as an area of its own; registered as a whole, so that it is not split. */
static gboolean take_vma(SnapTracker *tracker, const SnapVma *vma, uint64_t start, uint64_t end, GError **error)
    SNAP_REQUIRES(tracker->lock) {
    uint64_t page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
    g_autofree char *name = g_strdup_printf("watch@%" G_GINT64_MODIFIER "x", start);
    SnapRegion *region = snap_region_new(name, memory_of(vma, page_bytes), start, end - start);
    region->granule_bytes = vma->page_bytes;
    guint before = tracker->areas->len;
    if (!take_up(tracker, region, false, vma->start, vma->end, SNAP_TAKE_CLEAN, error)) {
        return FALSE;
    }
    if (tracker->areas->len == before) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED,
                    "0x%" G_GINT64_MODIFIER "x: writes to this mapping cannot be logged", start);
        return FALSE;
    }
    return TRUE;
}

static gboolean fail_unmapped(uint64_t address, GError **error) {
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_FOUND, "nothing is mapped at 0x%" G_GINT64_MODIFIER "x",
                address);
    return FALSE;
}

gboolean snap_regions_cover(SnapTracker *tracker, uint64_t start, uint64_t end, uint64_t *ret_granule_bytes,
                            GError **error) {
    int pid = snap_guest_pid(tracker->guest);
    *ret_granule_bytes = 0;
    while (start < end) {
        guint at = snap_regions_find(tracker, start);
        const SnapTracked *next = at < tracker->areas->len ? snap_tracker_area(tracker, at) : NULL;
        if (next && next->region->host_address <= start) {
            *ret_granule_bytes = MAX(*ret_granule_bytes, next->region->granule_bytes);
            start = snap_tracked_end(next);
            continue;
        }
        SnapVma vma;
        int result = snap_vma_find(pid, start, &vma);
        if (result < 0) {
            return result == -ENOENT ? fail_unmapped(start, error)
                                     : snap_engine_fail(result, next ? next->region : NULL, error);
        }
        uint64_t stop = MIN(MIN(end, vma.end), next ? next->region->host_address : UINT64_MAX);
        if (start % vma.page_bytes || stop % vma.page_bytes) {
            g_set_error(error, SNAP_ERROR, SNAP_ERROR_USAGE,
                        "0x%" G_GINT64_MODIFIER "x: not whole pages of %" G_GUINT64_FORMAT " KiB", start,
                        (guint64)(vma.page_bytes >> 10));
            return FALSE;
        }
        if (!take_vma(tracker, &vma, start, stop, error)) {
            return FALSE;
        }
    }
    return TRUE;
}
