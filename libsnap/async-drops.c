/* What was there when it was last looked at; see async-drops.h. */
#include "async-drops.h"

#include <sys/sysinfo.h>

SnapDrops *snap_drops_new(const SnapArea *area) {
    const SnapRegion *region = area->region;
    SnapDrops *drops = g_new0(SnapDrops, 1);
    drops->own = region->memory == SNAP_MEMORY_SHMEM_PRIVATE || region->memory == SNAP_MEMORY_COPIED ||
                 region->memory == SNAP_MEMORY_FIXED;
    snap_view_init(&drops->there, region->host_address, region->host_address + region->length_bytes,
                   region->granule_bytes);
    return drops;
}

void snap_drops_free(SnapDrops *drops) {
    if (drops) {
        snap_view_clear(&drops->there);
        g_free(drops);
    }
}

uint64_t snap_drops_categories(const SnapDrops *drops) {
    return PAGE_IS_PRESENT | PAGE_IS_SWAPPED | (drops->own ? PAGE_IS_FILE : 0u);
}

bool snap_drops_there(const SnapDrops *drops, uint64_t categories) {
    if ((categories & PAGE_IS_SWAPPED) && (categories & PAGE_IS_WRITTEN)) {
        return true; /* a marker is always protected: this is a page in swap, or being moved */
    }
    return (categories & PAGE_IS_PRESENT) && !(drops->own && (categories & PAGE_IS_FILE));
}

static bool machine_swaps(void) {
    struct sysinfo info;
    return sysinfo(&info) < 0 || info.totalswap > 0;
}

bool snap_drops_unclear(const SnapDrops *drops, uint64_t categories) {
    return drops->own && (categories & PAGE_IS_SWAPPED) && !(categories & PAGE_IS_WRITTEN) && machine_swaps();
}

void snap_drops_set(SnapDrops *drops, uint64_t start, uint64_t end, bool there) {
    if (there) {
        snap_view_mark(&drops->there, start, end);
    } else {
        snap_view_unmark(&drops->there, start, end);
    }
}

bool snap_drops_next(const SnapDrops *drops, uint64_t from, uint64_t end, SnapBytes *ret_run) {
    return snap_view_next(&drops->there, from, end, &ret_run->start, &ret_run->end);
}
