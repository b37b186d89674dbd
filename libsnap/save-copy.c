/*
 * Regions that are copied while the guest stands, rather than protected and swept.
 *
 * What cannot be protected is copied whatever it is. What could be is copied when it is likely to be unmapped
 * before the sweep comes to it, which nobody can hold up as one can a write: that would be a loss, and another
 * attempt. What counts is what they hold: the stack of a thread is long, and nearly empty.
 */
#include "save.h"

#include <errno.h>
#include <string.h>

#include "pagemap.h"

#define YOUNG_BYTES (UINT64_C(1) << 20)
#define EAGER_MAX_BYTES (UINT64_C(16) << 20) /* in all */

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

bool snap_save_is_short_lived(const SnapSave *save, const SnapRegion *region, bool stands) {
    uint64_t most = stands ? YOUNG_BYTES : 0;
    most = region->length_bytes <= MIN(save->eager_bytes, EAGER_MAX_BYTES) ? EAGER_MAX_BYTES : most;
    most = MIN(most, EAGER_MAX_BYTES - MIN(save->copied_bytes, EAGER_MAX_BYTES));
    return most > 0 && region->length_bytes <= EAGER_MAX_BYTES && filled_bytes(save, region) <= most;
}

void snap_save_take_copy(SnapSave *save, SnapRegion *region) {
    CopiedRegion copy = {.region = region};
    g_array_append_val(save->copied, copy);
    save->copied_bytes += filled_bytes(save, region);
}

/* ---- in the pause ---------------------------------------------------------------------------------------- */

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

gboolean snap_save_copy_regions(SnapSave *save, GError **error) {
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
