/*
 * The memory of the guest that goes over: its regions, its log, and which pages are still to be sent. See
 * outgoing.h.
 *
 * Happy path: the regions are listed and announced; the log begins; everything that holds data is to be sent; from
 * then on each collection adds what was written. Pages are taken out and then read, by lanes: what is written
 * after that is in a later collection.
 *
 * Failure modes: regions that come, go or change are seen by the log, and looked at when the guest stands: it
 * cannot be moved then, and runs on.
 *
 * Invariant: what holds no data when the log has begun is zeros at the destination too, which begins with fresh
 * memory. Holes are looked for after that moment, so what is filled in between is found or logged.
 */
#include "outgoing.h"

#include "async-area.h"
#include "pagemap.h"
#include "region.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- regions --------------------------------------------------------------------------------------------- */

static void source_free(gpointer data) {
    SnapSource *source = data;
    snap_pageset_clear(&source->pages);
    snap_area_free(source->area);
    g_free(source);
}

static GPtrArray *list_now(SnapOutgoing *outgoing, bool paused, GError **error) {
    g_autoptr(GPtrArray) regions = g_ptr_array_new_with_free_func((GDestroyNotify)snap_region_free);
    if (!outgoing->guest->ops->list_regions(outgoing->guest->opaque, paused, regions, error)) {
        return NULL;
    }
    return g_steal_pointer(&regions);
}

static gboolean check_region(const SnapRegion *region, GError **error) {
    const char *why = region->refusal                                 ? region->refusal
                      : region->page_bytes > SNAP_WIRE_MAX_PAGE_BYTES ? "its pages are too large"
                      : strlen(region->name) > SNAP_WIRE_MAX_NAME     ? "its name is too long"
                      : !*region->name                                ? "it has no name"
                      : !g_utf8_validate(region->name, -1, NULL)      ? "its name is not text"
                                                                      : NULL;
    if (why) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_REFUSED, "%s: it cannot be sent: %s", region->name, why);
    }
    return !why;
}

static gint compare_addresses(gconstpointer a, gconstpointer b, gpointer data) {
    const SnapOutgoing *outgoing = data;
    uint64_t x = snap_outgoing_region(outgoing, *(const guint *)a)->host_address;
    uint64_t y = snap_outgoing_region(outgoing, *(const guint *)b)->host_address;
    return x < y ? -1 : x > y;
}

/* Whether all of [start, end) is mapped in this process, and readable. */
static bool is_readable(uint64_t start, uint64_t end) {
    uint64_t from, to;
    char rights[5], line[8192];
    FILE *maps = fopen("/proc/self/maps", "re");
    while (maps && start < end && fgets(line, sizeof line, maps)) {
        bool parsed = sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s", &from, &to, rights) == 3;
        if (parsed && from <= start && start < to) {
            if (rights[0] != 'r') {
                break;
            }
            start = to;
        }
    }
    if (maps) {
        fclose(maps);
    }
    return start >= end;
}

static bool is_in_file(const SnapRegion *region) {
    struct stat about;
    return region->fd < 0 ||
           (fstat(region->fd, &about) == 0 && (uint64_t)about.st_size >= region->fd_offset + region->length_bytes);
}

/*
 * memcpy() is twice as fast as what the kernel offers, and ends the process where nothing is to be read. So it is
 * for memory of this process that is as good as its own: readable as a whole, and of no file that could be cut.
 * Mappings of other files are SNAP_MEMORY_COPIED or _FIXED.
 */
static bool may_copy_directly(const SnapOutgoing *outgoing, const SnapRegion *region) {
    switch (region->memory) {
    case SNAP_MEMORY_ANON:
    case SNAP_MEMORY_SHMEM:
    case SNAP_MEMORY_HUGETLB:
    case SNAP_MEMORY_HUGETLB_PRIVATE:
        return snap_guest_pid(outgoing->guest) == getpid() && is_in_file(region) &&
               is_readable(region->host_address, region->host_address + region->length_bytes);
    default:
        return false;
    }
}

static void add_source(SnapOutgoing *outgoing, SnapRegion *region) {
    SnapSource *source = g_new0(SnapSource, 1);
    guint number = outgoing->sources->len;
    source->area = snap_area_new(region);
    source->direct = may_copy_directly(outgoing, region);
    snap_pageset_init(&source->pages, source->area->n_chunks);
    g_ptr_array_add(outgoing->sources, source);
    g_array_append_val(outgoing->by_address, number);
}

static int open_readers(SnapOutgoing *outgoing) {
    int pid = snap_guest_pid(outgoing->guest);
    int result = snap_memory_reader_init(&outgoing->reader, pid);
    if (result == 0) {
        outgoing->pagemap = snap_pagemap_open(pid);
    }
    return MIN(result, outgoing->pagemap);
}

gboolean snap_outgoing_list(SnapOutgoing *outgoing, GError **error) {
    uint64_t total_bytes = 0;
    outgoing->sources = g_ptr_array_new_with_free_func(source_free);
    outgoing->by_address = g_array_new(FALSE, FALSE, sizeof(guint));
    int result = open_readers(outgoing);
    if (result < 0) {
        snap_set_errno(error, result == -ENOENT ? ESRCH : -result, "process %d", snap_guest_pid(outgoing->guest));
        return FALSE;
    }
    g_autoptr(GPtrArray) regions = list_now(outgoing, false, error);
    if (!regions) {
        return FALSE;
    }
    if (regions->len > SNAP_WIRE_MAX_REGIONS) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_REFUSED, "the guest has %u regions: too many", regions->len);
        return FALSE;
    }
    if (!regions->len) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_REFUSED, "the guest has no memory");
        return FALSE;
    }
    while (regions->len) {
        if (!check_region(g_ptr_array_index(regions, 0), error)) {
            return FALSE;
        }
        SnapRegion *region = g_ptr_array_steal_index(regions, 0);
        total_bytes += region->length_bytes;
        add_source(outgoing, region);
    }
    g_array_sort_with_data(outgoing->by_address, compare_addresses, outgoing);
    snap_lock(&outgoing->lock);
    outgoing->stats.total_bytes = total_bytes;
    outgoing->may_read = true;
    snap_unlock(&outgoing->lock);
    return TRUE;
}

void snap_outgoing_forget_regions(SnapOutgoing *outgoing) {
    snap_lock(&outgoing->lock);
    if (outgoing->may_read) {
        outgoing->stats.remaining_bytes =
            outgoing->phase == SNAP_MIGRATION_DEVICE ? 0 : snap_outgoing_remaining(outgoing);
    }
    outgoing->may_read = false;
    snap_unlock(&outgoing->lock);
    g_clear_pointer(&outgoing->sources, g_ptr_array_unref);
    g_clear_pointer(&outgoing->by_address, g_array_unref);
    snap_memory_reader_clear(&outgoing->reader);
    if (outgoing->pagemap >= 0) {
        close(outgoing->pagemap);
    }
    outgoing->pagemap = -1;
}

static bool is_the_same(const SnapRegion *a, const SnapRegion *b) {
    return snap_region_is_same(a, b) && a->length_bytes == b->length_bytes &&
           a->guest_address == b->guest_address && a->page_bytes == b->page_bytes && g_str_equal(a->name, b->name);
}

gboolean snap_outgoing_check_regions(SnapOutgoing *outgoing, GError **error) {
    g_autoptr(GPtrArray) now = list_now(outgoing, true, error);
    if (!now) {
        return FALSE;
    }
    guint same = 0;
    while (same < now->len && same < outgoing->sources->len &&
           is_the_same(g_ptr_array_index(now, same), snap_outgoing_region(outgoing, same))) {
        same++;
    }
    if (same == now->len && same == outgoing->sources->len) {
        return TRUE;
    }
    const SnapRegion *other =
        same < now->len ? g_ptr_array_index(now, same) : snap_outgoing_region(outgoing, same);
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_REFUSED,
                "%s: the guest's memory is laid out differently than when the migration began", other->name);
    return FALSE;
}

/* ---- the log --------------------------------------------------------------------------------------------- */

/* The region that was announced and the log speaks of; NULL: it has come up since. */
static SnapSource *find_source(SnapOutgoing *outgoing, uint64_t address) {
    guint low = 0, high = outgoing->by_address->len;
    SnapSource *last = snap_outgoing_source(outgoing, outgoing->last_source);
    if (last->area->region->host_address == address) {
        return last;
    }
    while (low < high) {
        guint middle = low + (high - low) / 2;
        guint number = g_array_index(outgoing->by_address, guint, middle);
        uint64_t start = snap_outgoing_region(outgoing, number)->host_address;
        if (start == address) {
            outgoing->last_source = number;
            return snap_outgoing_source(outgoing, number);
        }
        *(start < address ? &low : &high) = start < address ? middle + 1 : middle;
    }
    return NULL;
}

/* Whether it is sent in the pause only: it may be written in ways that the log does not see. */
static bool is_late(const SnapSource *source) {
    return source->area->region->memory == SNAP_MEMORY_COPIED;
}

/* A SnapDirtyFunc. What is laid out differently now is found when the guest stands. */
static void add_dirty(const SnapRegion *region, uint64_t offset_bytes, uint64_t length_bytes, void *opaque) {
    SnapOutgoing *outgoing = opaque;
    SnapSource *source = find_source(outgoing, region->host_address);
    if (!source || is_late(source)) {
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
        if (is_late(source)) {
            outgoing->late_bytes += source->area->region->length_bytes;
        } else if (!add_data(outgoing, source, error)) {
            return FALSE;
        }
    }
    return TRUE;
}

gboolean snap_outgoing_collect(SnapOutgoing *outgoing, bool last, SnapDirtyStats *ret_stats, GError **error) {
    if (!snap_tracker_collect(outgoing->tracker, add_dirty, outgoing, ret_stats, error)) {
        return FALSE;
    }
    for (guint i = 0; i < outgoing->sources->len && last; i++) {
        SnapSource *source = snap_outgoing_source(outgoing, i);
        if (is_late(source)) {
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
