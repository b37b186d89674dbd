/* Pages that are not left protected: see spared.h. */
#include "spared.h"

#include <unistd.h>

#include "faults.h"

enum {
    EVENT_STEP_US = 50, /* between tries while an event of the guest is pending */
    EVENT_TRIES = 200,
};

static uint64_t address_at(const GArray *addresses, guint i) {
    return g_array_index(addresses, uint64_t, i);
}

static bool is_spared(const SnapSync *tracker, uint64_t page) {
    for (guint i = 0; i < tracker->spared->len; i++) {
        if (address_at(tracker->spared, i) == page) {
            return true;
        }
    }
    return false;
}

static gint by_address(gconstpointer a, gconstpointer b) {
    uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;
    return left < right ? -1 : left > right;
}

/* The pages of @addresses, each once. */
static GArray *pages_of(const SnapSync *tracker, const GArray *addresses) {
    GArray *pages = g_array_sized_new(FALSE, FALSE, sizeof(uint64_t), addresses->len);
    for (guint i = 0; i < addresses->len; i++) {
        uint64_t page = address_at(addresses, i) / tracker->page_bytes * tracker->page_bytes;
        g_array_append_val(pages, page);
    }
    g_array_sort(pages, by_address);
    guint n = 0;
    for (guint i = 0; i < pages->len; i++) {
        if (n == 0 || address_at(pages, i) != address_at(pages, n - 1)) {
            g_array_index(pages, uint64_t, n++) = address_at(pages, i);
        }
    }
    g_array_set_size(pages, n);
    return pages;
}

static void serve(SnapSync *tracker, uint64_t address) {
    for (int i = 0; i < EVENT_TRIES && !snap_faults_serve(tracker, address); i++) {
        usleep(EVENT_STEP_US);
    }
}

void snap_spared_add(SnapSync *tracker, const GArray *addresses) {
    snap_lock(&tracker->lock);
    bool remember = tracker->mode == SNAP_SYNC_LOG;
    snap_unlock(&tracker->lock);
    g_autoptr(GArray) pages = pages_of(tracker, addresses);
    if (remember && tracker->spared->len + pages->len > SNAP_SPARED_MAX) {
        g_array_set_size(tracker->spared, 0);
    }
    for (guint i = 0; i < pages->len; i++) {
        uint64_t page = address_at(pages, i);
        if (remember && tracker->spared->len < SNAP_SPARED_MAX && !is_spared(tracker, page)) {
            g_array_append_val(tracker->spared, page);
        }
        serve(tracker, page);
    }
}

void snap_spared_serve(SnapSync *tracker) {
    for (guint i = 0; i < tracker->spared->len; i++) {
        serve(tracker, address_at(tracker->spared, i));
    }
}

void snap_spared_fit(SnapSync *tracker) {
    snap_lock(&tracker->lock);
    uint64_t room = snap_pool_available(tracker->pool) / 2;
    guint n = 0;
    for (; n < tracker->spared->len; n++) {
        const SnapExtent *extent = snap_layout_find(&tracker->layout, address_at(tracker->spared, n));
        const SnapRegion *region = extent ? snap_sync_area(tracker, extent->area)->region : NULL;
        uint64_t pages = region ? region->granule_bytes / region->page_bytes : 0;
        if (pages > room) {
            break;
        }
        room -= pages;
    }
    snap_unlock(&tracker->lock);
    g_array_set_size(tracker->spared, n);
}

uint64_t snap_spared_next(const SnapSync *tracker, const SnapArea *area, uint64_t address) {
    uint64_t next = UINT64_MAX;
    for (guint i = 0; i < tracker->spared->len; i++) {
        uint64_t page = address_at(tracker->spared, i);
        uint64_t granule = page - page % area->region->granule_bytes;
        if (granule >= address && granule < next) {
            next = granule;
        }
    }
    return next;
}
