/*
 * Up to and across the point in time: regions, pre-arm, pause. See save.c for the whole way.
 *
 * What the guest has is listed twice: while it runs, to protect it ahead, and when it stands still, to learn what
 * has come, gone or shrunk since. Regions keep their identity by name.
 */
#include "save.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "pagemap.h"
#include "region.h"
#include "spared.h"

enum {
    PREARM_ROUNDS_MAX = 12,
    PREARM_FEW_PAGES = 64, /* so few that protecting them in the pause does not show */
    STAGING_MAX_CHUNKS = 64,
    STAGING_MIN_CHUNKS = 2,
    SPARE_LOOKS = 16,
    SPARE_STEP_US = 200,
};

#define SPARE_AHEAD_NS UINT64_C(10000000)
#define SPARE_SHORT_NS UINT64_C(100000) /* a look that does not lengthen a round by much */

#define YOUNG_BYTES (UINT64_C(1) << 20)
#define EAGER_MAX_BYTES (UINT64_C(16) << 20)

/* ---- regions --------------------------------------------------------------------------------------------- */

static bool is_tracked(const SnapRegion *region) {
    return region->memory != SNAP_MEMORY_COPIED && region->memory != SNAP_MEMORY_FIXED;
}

/* What the guest has now, without what --region leaves out. */
static GPtrArray *list_regions(SnapSave *save, gboolean paused, GError **error) {
    g_autoptr(GPtrArray) listed = g_ptr_array_new_with_free_func((GDestroyNotify)snap_region_free);
    if (!save->guest->ops->list_regions(save->guest->opaque, paused, listed, error)) {
        return NULL;
    }
    for (guint i = 0; i < listed->len;) {
        SnapRegion *region = g_ptr_array_index(listed, i);
        if (save->glob && !g_pattern_spec_match_string(save->glob, region->name)) {
            g_ptr_array_remove_index(listed, i);
            continue;
        }
        if (region->refusal) {
            g_set_error(error, SNAP_ERROR, SNAP_ERROR_REFUSED, "region %s: %s", region->name, region->refusal);
            return NULL;
        }
        i++;
    }
    if (listed->len == 0) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_FOUND, "no region of the guest matches \"%s\"",
                    save->options.region_glob ? save->options.region_glob : "*");
        return NULL;
    }
    return g_steal_pointer(&listed);
}

static gint by_length(gconstpointer a, gconstpointer b) {
    const SnapRegion *const *x = a, *const *y = b;
    return (*x)->length_bytes < (*y)->length_bytes ? -1 : (*x)->length_bytes > (*y)->length_bytes;
}

/* The buffer: staging chunks for the sink, the rest for pre-images. Huge pages are captured whole, twice over. */
static gboolean divide_buffer(SnapSave *save, GPtrArray *regions, guint *ret_staging, uint32_t *ret_pool,
                              GError **error) {
    uint64_t total = snap_save_buffer_cap(save);
    uint64_t page = 0, granule = 0, tracked = 0;
    for (guint i = 0; i < regions->len; i++) {
        const SnapRegion *region = g_ptr_array_index(regions, i);
        page = MAX(page, region->page_bytes);
        granule = is_tracked(region) ? MAX(granule, region->granule_bytes) : granule;
        tracked += is_tracked(region) ? region->length_bytes : 0;
    }
    g_assert(page > 0); /* list_regions() returns at least one */
    uint64_t chunk = page * SNAP_CHUNK_PAGES;
    uint64_t least = MAX(granule, STAGING_MIN_CHUNKS * chunk);
    if (total < 2 * least) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_USAGE,
                    "a buffer of %" G_GUINT64_FORMAT
                    " KiB is too small for this guest: at least %" G_GUINT64_FORMAT " KiB",
                    total >> 10, 2 * least >> 10);
        return FALSE;
    }
    uint64_t staging =
        CLAMP(total / 4 / chunk, (least + chunk - 1) / chunk, MAX(STAGING_MAX_CHUNKS, least / chunk));
    *ret_staging = (guint)staging;
    *ret_pool = (uint32_t)MIN(MIN(total - staging * chunk, tracked) / page, UINT32_MAX - 1);
    return TRUE;
}

/* The next run of [from, end) of a region that may hold something: of anonymous memory, what is filled. */
static bool next_filled(const SnapSave *save, const SnapRegion *region, uint64_t from, uint64_t *ret_start,
                        uint64_t *ret_end) {
    uint64_t base = region->host_address;
    *ret_start = from;
    *ret_end = region->length_bytes;
    if (region->memory != SNAP_MEMORY_ANON || from >= region->length_bytes) {
        return from < region->length_bytes;
    }
    struct page_region run;
    int n = snap_pagemap_find(save->tracker->pagemap, PAGE_IS_PRESENT | PAGE_IS_SWAPPED, base + from,
                              base + region->length_bytes, &run);
    if (n == 1) {
        *ret_start = run.start - base;
        *ret_end = run.end - base;
    }
    return n != 0; /* what cannot be asked may be filled */
}

static uint64_t filled_bytes(const SnapSave *save, const SnapRegion *region) {
    uint64_t filled = 0, start = 0, end = 0;
    while (filled <= EAGER_MAX_BYTES && next_filled(save, region, end, &start, &end)) {
        filled += end - start;
    }
    return filled;
}

/*
 * Copied in the pause rather than swept: mappings that came up since the first listing, because what is young is
 * likely to be gone soon, and after a loss everything about as long as what was lost. munmap() cannot be held up as
 * a write can. What counts is what they hold: the stack of a thread is long, and nearly empty.
 */
static bool is_short_lived(const SnapSave *save, const SnapRegion *region, bool stands) {
    uint64_t most = stands ? YOUNG_BYTES : 0;
    most = region->length_bytes <= MIN(save->eager_bytes, EAGER_MAX_BYTES) ? EAGER_MAX_BYTES : most;
    most = MIN(most, EAGER_MAX_BYTES - MIN(save->copied_bytes, EAGER_MAX_BYTES));
    return most > 0 && region->length_bytes <= EAGER_MAX_BYTES && filled_bytes(save, region) <= most;
}

static void take_copy(SnapSave *save, SnapRegion *region) {
    CopiedRegion copy = {.region = region};
    g_array_append_val(save->copied, copy);
    save->copied_bytes += filled_bytes(save, region);
}

static gboolean take_region(SnapSave *save, SnapRegion *region, bool stands, GError **error) {
    switch (region->memory) {
    case SNAP_MEMORY_FIXED:
        g_ptr_array_add(save->fixed, region);
        return TRUE;
    case SNAP_MEMORY_COPIED:
        take_copy(save, region);
        return TRUE;
    default:
        if (is_short_lived(save, region, stands)) {
            take_copy(save, region);
            return TRUE;
        }
        return snap_sync_add(save->tracker, region, stands, error);
    }
}

/* Whether @now can be @known as it is now: shorter, or as long. */
static bool is_left_of(const SnapRegion *known, const SnapRegion *now) {
    return now->length_bytes <= known->length_bytes && snap_region_is_same(known, now);
}

/* What the kept tracker has already is taken out of @regions; what it has in vain is dropped from it. */
static void match_kept(SnapSave *save, GPtrArray *regions) {
    g_autoptr(GHashTable) now = g_hash_table_new(g_str_hash, g_str_equal);
    for (guint i = 0; i < regions->len; i++) {
        SnapRegion *region = g_ptr_array_index(regions, i);
        g_hash_table_insert(now, region->name, region);
    }
    for (guint i = 0; i < save->tracker->areas->len; i++) {
        SnapArea *area = snap_sync_area(save->tracker, i);
        SnapRegion *region = g_hash_table_lookup(now, area->region->name);
        if (area->dropped || !region || !is_left_of(area->region, region)) {
            snap_sync_drop(save->tracker, i);
        } else {
            snap_sync_shrink(save->tracker, i, region->length_bytes);
            g_hash_table_remove(now, region->name);
            g_ptr_array_remove(regions, region); /* frees it */
        }
    }
}

/* Hand all regions on; @regions is empty after it. */
static gboolean take_regions(SnapSave *save, GPtrArray *regions, GError **error) {
    while (regions->len > 0) {
        if (!snap_save_go_on(save, error) ||
            !take_region(save, g_ptr_array_steal_index(regions, 0), false, error)) {
            return FALSE;
        }
    }
    return TRUE;
}

/* ---- up to the point ------------------------------------------------------------------------------------- */

static gboolean open_writer(SnapSave *save, const GPtrArray *regions, GError **error) {
    uint64_t page_bytes = 0;
    for (guint i = 0; i < regions->len; i++) {
        page_bytes = MAX(page_bytes, ((SnapRegion *)g_ptr_array_index(regions, i))->page_bytes);
    }
    save->writer = snap_image_writer_new(save->dir, save->guest->driver, page_bytes, save->n_staging, error);
    return save->writer &&
           (!save->guest->identity || snap_image_writer_set_guest(save->writer, save->guest->identity, error)) &&
           (!save->parent || snap_image_writer_set_parent(save->writer, save->parent, error));
}

static gboolean open_tracker(SnapSave *save, uint32_t pool_pages, GError **error) {
    int uffd = snap_guest_open_uffd(save->guest, error);
    if (uffd < 0) {
        return FALSE;
    }
    SnapSync *tracker = snap_sync_new(snap_guest_pid(save->guest), uffd, pool_pages, save->options.at_cap, error);
    if (!tracker) {
        return FALSE;
    }
    snap_sync_start(tracker);
    snap_save_set_tracker(save, tracker);
    return TRUE;
}

/* What is written past the page tables cannot be protected either. Return: how many pages it is. */
static uint64_t list_unseen(const SnapSave *save, GArray *addresses) {
    g_autoptr(GArray) ranges = g_array_new(FALSE, FALSE, sizeof(SnapRange));
    snap_guest_list_unseen(save->guest, ranges);
    for (guint i = 0; i < ranges->len; i++) {
        SnapRange range = g_array_index(ranges, SnapRange, i);
        uint64_t page_bytes = save->tracker->page_bytes, end = range.address + range.length_bytes;
        for (uint64_t page = range.address / page_bytes * page_bytes; page < end; page += page_bytes) {
            g_array_append_val(addresses, page);
        }
    }
    return addresses->len;
}

/* Return: how long it took, in ns. */
static uint64_t spare(SnapSave *save, gboolean paused) {
    uint64_t begin_ns = snap_now_ns();
    g_autoptr(GArray) addresses = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    if (!paused || save->has_unseen) { /* the question takes a while */
        save->has_unseen = list_unseen(save, addresses) > 0;
    }
    snap_guest_list_spared(save->guest, paused, addresses);
    snap_spared_add(save->tracker, addresses);
    return snap_now_ns() - begin_ns;
}

/*
 * A lock that is fought for has to be seen before it is first protected. One look finds somebody waiting for it in
 * one of some cases, so it is looked several times.
 */
static void spare_ahead(SnapSave *save) {
    uint64_t end_ns = snap_now_ns() + SPARE_AHEAD_NS;
    for (int i = 0; i < SPARE_LOOKS && save->guest->ops->list_spared && snap_now_ns() < end_ns; i++) {
        save->spare_ns = spare(save, FALSE);
        usleep(SPARE_STEP_US);
    }
}

/* It is copied in the pause, and there has to be room for it and for the guest's first writes. */
static gboolean check_unseen(const SnapSave *save, uint32_t pool_pages, GError **error) {
    g_autoptr(GArray) addresses = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    uint64_t pages = list_unseen(save, addresses);
    if (pages <= pool_pages / 2) {
        return TRUE;
    }
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_USAGE,
                "%" G_GUINT64_FORMAT
                " KiB of the guest are written past the page tables, and the buffer is too small to "
                "hold them: give it more by --buffer",
                (guint64)(pages * save->tracker->page_bytes >> 10));
    return FALSE;
}

static gboolean prepare(SnapSave *save, GError **error) {
    g_autoptr(GPtrArray) regions = list_regions(save, FALSE, error);
    uint32_t pool_pages;
    if (!regions || !divide_buffer(save, regions, &save->n_staging, &pool_pages, error) ||
        !snap_save_open_parent(save, error) || !open_writer(save, regions, error)) {
        return FALSE;
    }
    if (snap_save_take_log(save)) {
        match_kept(save, regions);
    } else if (!open_tracker(save, pool_pages, error)) {
        return FALSE;
    }
    save->tracker->keep = save->options.keep_log; /* the fault thread looks at it in SYNC only */
    g_ptr_array_sort(regions, by_length);
    spare_ahead(save);
    if (!check_unseen(save, pool_pages, error)) {
        return FALSE;
    }
    if (!take_regions(save, regions, error)) {
        return FALSE;
    }
    save->spare_ns = spare(save, FALSE); /* who has begun to wait since: a signal would make it begin again */
    return TRUE;
}

/* Rounds until one finds little; what a round leaves depends on how long it took, so they shrink. */
static gboolean prearm(SnapSave *save, GError **error) {
    uint64_t pages = UINT64_MAX;
    for (int i = 0; i < PREARM_ROUNDS_MAX && pages > PREARM_FEW_PAGES; i++) {
        if (save->spare_ns < SPARE_SHORT_NS) {
            save->spare_ns = spare(save, FALSE);
        }
        if (!snap_save_go_on(save, error) || !snap_sync_round(save->tracker, &pages, error)) {
            return FALSE;
        }
    }
    return TRUE;
}

/* ---- the pause ------------------------------------------------------------------------------------------- */

/* @known as it is now: shorter, or gone. TRUE when it is not there at all. */
static bool shrink_to(SnapRegion *known, const SnapRegion *now) {
    if (!now || !is_left_of(known, now)) {
        return true;
    }
    known->length_bytes = now->length_bytes;
    return false;
}

static void reconcile_tracked(SnapSave *save, GHashTable *now, GHashTable *taken) {
    for (guint i = 0; i < save->tracker->areas->len; i++) {
        SnapArea *area = snap_sync_area(save->tracker, i);
        const SnapRegion *region = g_hash_table_lookup(now, area->region->name);
        if (area->dropped || !region || !is_left_of(area->region, region)) {
            snap_sync_drop(save->tracker, i);
        } else {
            snap_sync_shrink(save->tracker, i, region->length_bytes);
            g_hash_table_add(taken, area->region->name);
        }
    }
}

static void reconcile_untracked(SnapSave *save, GHashTable *now, GHashTable *taken) {
    for (guint i = 0; i < save->fixed->len;) {
        SnapRegion *region = g_ptr_array_index(save->fixed, i);
        if (shrink_to(region, g_hash_table_lookup(now, region->name))) {
            g_ptr_array_remove_index(save->fixed, i);
        } else {
            g_hash_table_add(taken, region->name);
            i++;
        }
    }
    for (guint i = 0; i < save->copied->len;) {
        CopiedRegion *copy = &g_array_index(save->copied, CopiedRegion, i);
        if (shrink_to(copy->region, g_hash_table_lookup(now, copy->region->name))) {
            snap_region_free(copy->region);
            g_array_remove_index(save->copied, i);
        } else {
            g_hash_table_add(taken, copy->region->name);
            i++;
        }
    }
}

/* Bring what was prepared in line with what the stopped guest has; what is new is taken as well. */
static gboolean reconcile(SnapSave *save, GError **error) {
    g_autoptr(GPtrArray) regions = list_regions(save, TRUE, error);
    if (!regions) {
        return FALSE;
    }
    g_autoptr(GHashTable) now = g_hash_table_new(g_str_hash, g_str_equal);
    g_autoptr(GHashTable) taken = g_hash_table_new(g_str_hash, g_str_equal);
    for (guint i = 0; i < regions->len; i++) {
        SnapRegion *region = g_ptr_array_index(regions, i);
        g_hash_table_insert(now, region->name, region);
    }
    reconcile_tracked(save, now, taken);
    reconcile_untracked(save, now, taken);
    for (guint i = 0; i < regions->len;) {
        const SnapRegion *region = g_ptr_array_index(regions, i);
        if (g_hash_table_contains(taken, region->name)) {
            i++;
            continue;
        }
        if (!take_region(save, g_ptr_array_steal_index(regions, i), true, error)) {
            return FALSE;
        }
    }
    return TRUE;
}

/* What cannot be read stays zero: a mapping behind the end of its file, which the guest cannot read either. */
static int copy_run(const SnapMemoryReader *reader, const SnapRegion *region, uint64_t from, uint64_t end,
                    uint8_t *data) {
    uint64_t base = region->host_address;
    int result = snap_memory_read(reader, region, from, base + from, data + from, end - from);
    for (uint64_t at = from; at < end && result == -EFAULT; at += region->page_bytes) {
        if (snap_memory_read(reader, region, at, base + at, data + at, region->page_bytes) < 0) {
            memset(data + at, 0, region->page_bytes);
        }
    }
    return result == -EFAULT ? 0 : result;
}

static int copy_region(const SnapSave *save, const SnapRegion *region, uint8_t *data) {
    uint64_t start = 0, end = 0;
    int result = 0;
    while (result == 0 && next_filled(save, region, end, &start, &end)) {
        result = copy_run(&save->tracker->reader, region, start, end, data);
    }
    return result;
}

static gboolean copy_regions(SnapSave *save, GError **error) {
    for (guint i = 0; i < save->copied->len; i++) {
        CopiedRegion *copy = &g_array_index(save->copied, CopiedRegion, i);
        copy->data = g_malloc0(copy->region->length_bytes); /* costs what is put there */
        int result = copy_region(save, copy->region, copy->data);
        if (result < 0) {
            snap_set_errno(error, -result, "region %s: cannot copy it", copy->region->name);
            return FALSE;
        }
    }
    return TRUE;
}

static gboolean stop_and_take(SnapSave *save, GError **error) {
    const SnapGuest *guest = save->guest;
    /* To get ready takes a while, in which the guest has touched more than one round has to find in the pause. */
    if (!guest->ops->pause(guest->opaque, SNAP_PAUSE_READY, error) || !prearm(save, error) ||
        !guest->ops->pause(guest->opaque, SNAP_PAUSE_STOP, error)) {
        return FALSE;
    }
    if (!reconcile(save, error) || !snap_sync_point(save->tracker, error) || !copy_regions(save, error)) {
        return FALSE;
    }
    (void)spare(save, TRUE);
    save->created_us = g_get_real_time();
    return TRUE;
}

/* The guest is resumed whatever happens in between; the first error is the one that counts. */
static gboolean pause_and_take(SnapSave *save, GError **error) {
    snap_save_set_phase(save, SNAP_SAVE_PAUSED);
    uint64_t prepare_ns = snap_now_ns() - save->start_ns;
    uint64_t pause_ns = 0;
    gboolean taken = stop_and_take(save, error);
    gboolean resumed = save->guest->ops->resume(save->guest->opaque, &pause_ns, taken ? error : NULL);
    snap_lock(&save->lock);
    save->stats.prepare_ns = prepare_ns;
    save->stats.pause_ns = pause_ns;
    save->stats.phase = SNAP_SAVE_SWEEPING;
    snap_unlock(&save->lock);
    return taken && resumed && snap_guest_get_state(save->guest, save->states, error);
}

gboolean snap_save_take_point(SnapSave *save, GError **error) {
    return prepare(save, error) && prearm(save, error) && pause_and_take(save, error);
}
