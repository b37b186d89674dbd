/*
 * Areas that go: dropped, shrunk, forgotten. See track-sync.h.
 *
 * Happy path: drop() takes an area out of the layout, so that no fault finds it any more, and what it covered may
 * be added anew; the next round in LOG frees it.
 *
 * Invariant: areas get other numbers only in LOG, where nobody but the layout and the list of what was touched
 * knows them by their number. A failure does, too: after one nothing is freed, it is the end anyway.
 */
#include "track-sync.h"

#define NO_NUMBER UINT32_MAX

void snap_sync_drop(SnapSync *tracker, guint i) {
    snap_lock(&tracker->lock);
    snap_sync_area(tracker, i)->dropped = true;
    snap_layout_remove(&tracker->layout, i);
    snap_unlock(&tracker->lock);
}

void snap_sync_shrink(SnapSync *tracker, guint i, uint64_t length_bytes) {
    SnapArea *area = snap_sync_area(tracker, i);
    uint64_t start = area->region->host_address, end = start + area->region->length_bytes;
    SnapExtent cut;
    snap_lock(&tracker->lock);
    while (length_bytes < area->region->length_bytes &&
           snap_layout_cut(&tracker->layout, start + length_bytes, end, &cut) == 1) {
    }
    snap_area_shrink(area, length_bytes);
    snap_unlock(&tracker->lock);
}

/* Give the areas new numbers where they are remembered by it; what is said of those that have none goes. */
static void renumber_locked(SnapSync *tracker, const uint32_t *numbers) SNAP_REQUIRES(tracker->lock) {
    SnapLayout *layout = &tracker->layout;
    uint32_t n_touched = 0, n_extents = 0;
    for (uint32_t i = 0; i < tracker->n_touched; i++) {
        SnapPageRef ref = tracker->touched[i], chunk = ref & ((UINT64_C(1) << SNAP_PAGE_REF_BITS) - 1);
        uint32_t number = numbers[ref >> SNAP_PAGE_REF_BITS];
        if (number != NO_NUMBER) {
            tracker->touched[n_touched++] = (SnapPageRef)number << SNAP_PAGE_REF_BITS | chunk;
        }
    }
    for (uint32_t i = 0; i < layout->n_extents; i++) {
        SnapExtent extent = layout->extents[i];
        extent.area = numbers[extent.area];
        if (extent.area != NO_NUMBER) {
            layout->extents[n_extents++] = extent;
        }
    }
    tracker->n_touched = n_touched;
    layout->n_extents = n_extents;
}

void snap_sync_forget_dropped(SnapSync *tracker) {
    guint n = tracker->areas->len;
    uint32_t n_left = 0;
    g_autofree uint32_t *numbers = g_new(uint32_t, MAX(n, 1));
    for (guint i = 0; i < n; i++) {
        numbers[i] = snap_sync_area(tracker, i)->dropped ? NO_NUMBER : n_left++;
    }
    if (n_left == n) {
        return;
    }
    g_autoptr(GPtrArray) gone = g_ptr_array_new_full(n - n_left, (GDestroyNotify)snap_area_free);
    snap_lock(&tracker->lock);
    if (tracker->failure.code < 0) {
        renumber_locked(tracker, numbers);
        for (guint i = n; i > 0; i--) {
            if (numbers[i - 1] == NO_NUMBER) {
                g_ptr_array_add(gone, g_ptr_array_steal_index(tracker->areas, i - 1));
            }
        }
    }
    snap_unlock(&tracker->lock);
}
