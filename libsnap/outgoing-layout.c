/*
 * The memory of the guest that goes over: which regions it has, and which it has now. See outgoing.h.
 *
 * Happy path: the regions are listed and announced. A guest that is moved keeps them; one that is replicated, as a
 * process is, may map and unmap as it likes: before each epoch it is asked again, standing, and what it has then
 * is announced (LAYOUT). A region is *kept* where it is the same mapping as before: the same place and length, and
 * the log has it still as it took it up. Of any other one everything is sent that it holds.
 *
 * Failure modes: a guest that is moved, or sent on several channels, and has other regions than it began with:
 * REFUSED, and it runs on.
 *
 * Invariant: who is not the job looks at sources under the lock, and they are exchanged under it.
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

/* ---- listing --------------------------------------------------------------------------------------------- */

static void source_free(gpointer data) {
    SnapSource *source = data;
    if (source) {
        snap_pageset_clear(&source->pages);
        snap_area_free(source->area);
        g_free(source);
    }
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

static gboolean check_regions(const SnapOutgoing *outgoing, const GPtrArray *regions, GError **error) {
    if (regions->len > SNAP_WIRE_MAX_REGIONS) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_REFUSED, "the guest has %u regions: too many", regions->len);
        return FALSE;
    }
    if (!regions->len) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_REFUSED,
                    outgoing->glob ? "the guest has no region of such a name" : "the guest has no memory");
        return FALSE;
    }
    for (guint i = 0; i < regions->len; i++) {
        if (!check_region(g_ptr_array_index(regions, i), error)) {
            return FALSE;
        }
    }
    return TRUE;
}

/* Of @regions, what was not asked for is none of ours. */
static void drop_others(const SnapOutgoing *outgoing, GPtrArray *regions) {
    for (guint i = 0; i < regions->len && outgoing->glob;) {
        const SnapRegion *region = g_ptr_array_index(regions, i);
        if (g_pattern_spec_match_string(outgoing->glob, region->name)) {
            i++;
        } else {
            g_ptr_array_remove_index(regions, i);
        }
    }
}

/* What the guest has now, all of which can be sent. */
static GPtrArray *list_now(SnapOutgoing *outgoing, bool paused, GError **error) {
    g_autoptr(GPtrArray) regions = g_ptr_array_new_with_free_func((GDestroyNotify)snap_region_free);
    if (!outgoing->guest->ops->list_regions(outgoing->guest->opaque, paused, regions, error)) {
        return NULL;
    }
    drop_others(outgoing, regions);
    return check_regions(outgoing, regions, error) ? g_steal_pointer(&regions) : NULL;
}

static gint compare_addresses(gconstpointer a, gconstpointer b, gpointer data) {
    const GPtrArray *sources = data;
    const SnapSource *x = g_ptr_array_index(sources, *(const guint *)a);
    const SnapSource *y = g_ptr_array_index(sources, *(const guint *)b);
    uint64_t at = x->area->region->host_address, other = y->area->region->host_address;
    return at < other ? -1 : at > other;
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

/* What cannot be written may have been writable a moment ago, or be another object, where the guest does as it
 * likes. */
static bool is_late(const SnapOutgoing *outgoing, const SnapRegion *region) {
    return region->memory == SNAP_MEMORY_COPIED ||
           (region->memory == SNAP_MEMORY_FIXED && snap_outgoing_can_announce(outgoing));
}

/* @region: (take) */
static SnapSource *source_new(const SnapOutgoing *outgoing, SnapRegion *region) {
    SnapSource *source = g_new0(SnapSource, 1);
    source->area = snap_area_new(region);
    source->late = is_late(outgoing, region);
    source->direct = may_copy_directly(outgoing, region);
    snap_pageset_init(&source->pages, source->area->n_chunks);
    return source;
}

/* These are the guest's now (take); what was there before is gone. */
static void use_sources(SnapOutgoing *outgoing, GPtrArray *sources) {
    GArray *by_address = g_array_new(FALSE, FALSE, sizeof(guint));
    uint64_t total_bytes = 0, late_bytes = 0;
    for (guint i = 0; i < sources->len; i++) {
        const SnapSource *source = g_ptr_array_index(sources, i);
        uint64_t length_bytes = source->area->region->length_bytes;
        total_bytes += length_bytes;
        late_bytes += source->late ? length_bytes : 0;
        g_array_append_val(by_address, i);
    }
    g_array_sort_with_data(by_address, compare_addresses, sources);
    snap_lock(&outgoing->lock);
    g_clear_pointer(&outgoing->sources, g_ptr_array_unref);
    g_clear_pointer(&outgoing->by_address, g_array_unref);
    outgoing->sources = sources;
    outgoing->by_address = by_address;
    outgoing->last_source = 0;
    outgoing->late_bytes = late_bytes;
    outgoing->stats.total_bytes = total_bytes;
    outgoing->may_read = true;
    snap_unlock(&outgoing->lock);
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
    int result = open_readers(outgoing);
    if (result < 0) {
        snap_set_errno(error, result == -ENOENT ? ESRCH : -result, "process %d", snap_guest_pid(outgoing->guest));
        return FALSE;
    }
    g_autoptr(GPtrArray) regions = list_now(outgoing, false, error);
    if (!regions) {
        return FALSE;
    }
    GPtrArray *sources = g_ptr_array_new_with_free_func(source_free);
    while (regions->len) {
        g_ptr_array_add(sources, source_new(outgoing, g_ptr_array_steal_index(regions, 0)));
    }
    use_sources(outgoing, sources);
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

SnapSource *snap_outgoing_find_source(SnapOutgoing *outgoing, uint64_t address) {
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

/* ---- what it has now ------------------------------------------------------------------------------------- */

static bool is_the_same(const SnapRegion *a, const SnapRegion *b) {
    return snap_region_is_same(a, b) && a->length_bytes == b->length_bytes &&
           a->guest_address == b->guest_address && a->page_bytes == b->page_bytes && g_str_equal(a->name, b->name);
}

/* The first region of @now that is not as it was announced, or of those that were and are no more; NULL: none. */
static const SnapRegion *find_other(const SnapOutgoing *outgoing, const GPtrArray *now) {
    guint i = 0;
    while (i < now->len && i < outgoing->sources->len &&
           is_the_same(g_ptr_array_index(now, i), snap_outgoing_region(outgoing, i))) {
        i++;
    }
    return i < now->len                 ? g_ptr_array_index(now, i)
           : i < outgoing->sources->len ? snap_outgoing_region(outgoing, i)
                                        : NULL;
}

static gboolean check_same(const SnapOutgoing *outgoing, const GPtrArray *now, GError **error) {
    const SnapRegion *other = find_other(outgoing, now);
    if (other) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_REFUSED,
                    "%s: the guest's memory is laid out differently than when the migration began%s", other->name,
                    outgoing->options.epoch_ms && outgoing->n_lanes > 1
                        ? "; images can follow that over one channel, without multifd"
                        : "");
    }
    return !other;
}

gboolean snap_outgoing_check_regions(SnapOutgoing *outgoing, GError **error) {
    g_autoptr(GPtrArray) now = list_now(outgoing, true, error);
    return now && check_same(outgoing, now, error);
}

/* ---- another layout -------------------------------------------------------------------------------------- */

/* Which mapping it is, as far as the log knows: another number is another mapping. What cannot be written is not
 * logged; where it may be another all the same, it is late. */
static uint64_t serial_of(const SnapOutgoing *outgoing, const SnapRegion *region) {
    return region->memory == SNAP_MEMORY_FIXED ? UINT64_MAX : snap_tracker_serial(outgoing->tracker, region);
}

bool snap_outgoing_note_serial(const SnapOutgoing *outgoing, SnapSource *source) {
    uint64_t before = source->serial;
    source->serial = serial_of(outgoing, source->area->region);
    return source->serial == before;
}

/* The source that @region is kept of, or NULL: it is new. */
static SnapSource *find_kept(SnapOutgoing *outgoing, const SnapRegion *region) {
    SnapSource *source = snap_outgoing_find_source(outgoing, region->host_address);
    uint64_t serial = serial_of(outgoing, region);
    bool kept = source && serial && serial == source->serial && is_the_same(region, source->area->region);
    return kept ? source : NULL;
}

static bool is_unchanged(SnapOutgoing *outgoing, const GPtrArray *now) {
    bool same = now->len == outgoing->sources->len;
    for (guint i = 0; i < now->len && same; i++) {
        same = find_kept(outgoing, g_ptr_array_index(now, i)) == snap_outgoing_source(outgoing, i);
    }
    return same;
}

/* Those of @now that are not kept, at their places; NULL where one is. */
static GPtrArray *new_sources(SnapOutgoing *outgoing, GPtrArray *now, GError **error) {
    g_autoptr(GPtrArray) sources = g_ptr_array_new_with_free_func(source_free);
    g_ptr_array_set_size(sources, (gint)now->len);
    for (guint i = 0; i < now->len; i++) {
        SnapRegion *region = g_ptr_array_index(now, i);
        if (find_kept(outgoing, region)) {
            continue;
        }
        g_ptr_array_index(now, i) = NULL;
        SnapSource *source = g_ptr_array_index(sources, i) = source_new(outgoing, region);
        source->serial = serial_of(outgoing, region);
        if (!snap_outgoing_add_source(outgoing, source, true, error)) {
            return NULL;
        }
    }
    return g_steal_pointer(&sources);
}

/* Put the others of @now into @sources. Nobody else looks while a source is in both arrays, or in none. */
static void keep_others(SnapOutgoing *outgoing, const GPtrArray *now, GPtrArray *sources) {
    snap_lock(&outgoing->lock);
    outgoing->stats.remaining_bytes = snap_outgoing_remaining(outgoing);
    outgoing->may_read = false;
    snap_unlock(&outgoing->lock);
    for (guint i = 0; i < outgoing->sources->len; i++) {
        snap_outgoing_source(outgoing, i)->kept = false;
    }
    for (guint i = 0; i < now->len; i++) {
        const SnapRegion *region = g_ptr_array_index(now, i);
        SnapSource *source = region ? find_kept(outgoing, region) : NULL;
        if (source) {
            source->kept = true;
            g_ptr_array_index(sources, i) = source;
        }
    }
    for (guint i = 0; i < outgoing->sources->len; i++) {
        SnapSource *source = snap_outgoing_source(outgoing, i);
        if (!source->kept) {
            source_free(source);
        }
    }
    g_ptr_array_set_free_func(outgoing->sources, NULL);
}

gboolean snap_outgoing_update_layout(SnapOutgoing *outgoing, bool *ret_changed, GError **error) {
    g_autoptr(GPtrArray) now = list_now(outgoing, true, error);
    if (!now || !snap_outgoing_can_announce(outgoing)) {
        return now && check_same(outgoing, now, error);
    }
    *ret_changed = !is_unchanged(outgoing, now);
    if (!*ret_changed) {
        return TRUE;
    }
    GPtrArray *sources = new_sources(outgoing, now, error);
    if (!sources) {
        return FALSE;
    }
    keep_others(outgoing, now, sources);
    use_sources(outgoing, sources);
    snap_lane_fit(&outgoing->lanes[0]);
    return TRUE;
}
