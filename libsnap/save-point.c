/*
 * Up to and across the point in time: regions, pre-arm, pause. See save.c for the whole way.
 *
 * What the guest has is listed twice: while it runs, to protect it ahead, and when it stands still, to learn what
 * has come, gone or shrunk since. Regions keep their identity by name.
 */
#include "save.h"

#include "region.h"

enum {
    PREARM_ROUNDS_MAX = 12,
    PREARM_FEW_PAGES = 64, /* so few that protecting them in the pause does not show */
    STAGING_MAX_CHUNKS = 64,
    STAGING_MIN_CHUNKS = 2,
};

#define SPARE_SHORT_NS UINT64_C(100000) /* a look that does not lengthen a round by much */

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

static gboolean take_region(SnapSave *save, SnapRegion *region, bool stands, GError **error) {
    switch (region->memory) {
    case SNAP_MEMORY_FIXED:
        g_ptr_array_add(save->fixed, region);
        return TRUE;
    case SNAP_MEMORY_COPIED:
        snap_save_take_copy(save, region);
        return TRUE;
    default:
        if (snap_save_is_short_lived(save, region, stands)) {
            snap_save_take_copy(save, region);
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
    snap_save_spare_ahead(save);
    if (!snap_save_check_unseen(save, pool_pages, error)) {
        return FALSE;
    }
    if (!take_regions(save, regions, error)) {
        return FALSE;
    }
    save->spare_ns =
        snap_save_spare(save, FALSE); /* who has begun to wait since: a signal would make it begin again */
    return TRUE;
}

/* Rounds until one finds little; what a round leaves depends on how long it took, so they shrink. */
static gboolean prearm(SnapSave *save, GError **error) {
    uint64_t pages = UINT64_MAX;
    for (int i = 0; i < PREARM_ROUNDS_MAX && pages > PREARM_FEW_PAGES; i++) {
        if (save->spare_ns < SPARE_SHORT_NS) {
            save->spare_ns = snap_save_spare(save, FALSE);
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

static gboolean stop_and_take(SnapSave *save, GError **error) {
    const SnapGuest *guest = save->guest;
    /* To get ready takes a while, in which the guest has touched more than one round has to find in the pause. */
    if (!guest->ops->pause(guest->opaque, SNAP_PAUSE_READY, error) || !prearm(save, error) ||
        !guest->ops->pause(guest->opaque, SNAP_PAUSE_STOP, error)) {
        return FALSE;
    }
    if (!reconcile(save, error) || !snap_sync_point(save->tracker, error) ||
        !snap_save_copy_regions(save, error)) {
        return FALSE;
    }
    (void)snap_save_spare(save, TRUE);
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
