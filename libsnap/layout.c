/* Where areas are mapped; see layout.h. */
#include "layout.h"

#include <errno.h>
#include <glib.h>
#include <stdlib.h>
#include <string.h>

void snap_layout_clear(SnapLayout *layout) {
    g_free(layout->extents);
    *layout = (SnapLayout){0};
}

/* Index of the first extent that ends behind @address. */
static uint32_t first_behind(const SnapLayout *layout, uint64_t address) {
    uint32_t low = 0, high = layout->n_extents;
    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        const SnapExtent *e = &layout->extents[mid];
        if (e->address + e->length <= address) {
            low = mid + 1;
        } else {
            high = mid;
        }
    }
    return low;
}

static void insert(SnapLayout *layout, SnapExtent extent) {
    uint32_t at = first_behind(layout, extent.address);
    memmove(&layout->extents[at + 1], &layout->extents[at], (layout->n_extents - at) * sizeof extent);
    layout->extents[at] = extent;
    layout->n_extents++;
}

static void take_out(SnapLayout *layout, uint32_t at) {
    layout->n_extents--;
    memmove(&layout->extents[at], &layout->extents[at + 1], (layout->n_extents - at) * sizeof layout->extents[0]);
}

void snap_layout_add(SnapLayout *layout, uint32_t area, uint64_t offset, uint64_t address, uint64_t length) {
    if (layout->n_extents + SNAP_LAYOUT_SPARE >= layout->capacity) {
        layout->capacity = layout->capacity * 2 + 2 * SNAP_LAYOUT_SPARE;
        layout->extents = g_renew(SnapExtent, layout->extents, layout->capacity);
    }
    insert(layout, (SnapExtent){.address = address, .length = length, .offset = offset, .area = area});
}

void snap_layout_remove(SnapLayout *layout, uint32_t area) {
    uint32_t kept = 0;
    for (uint32_t i = 0; i < layout->n_extents; i++) {
        if (layout->extents[i].area != area) {
            layout->extents[kept++] = layout->extents[i];
        }
    }
    layout->n_extents = kept;
}

const SnapExtent *snap_layout_find(const SnapLayout *layout, uint64_t address) {
    uint32_t at = first_behind(layout, address);
    if (at == layout->n_extents || layout->extents[at].address > address) {
        return NULL;
    }
    return &layout->extents[at];
}

const SnapExtent *snap_layout_locate(const SnapLayout *layout, uint32_t area, uint64_t offset) {
    for (uint32_t i = 0; i < layout->n_extents; i++) {
        const SnapExtent *e = &layout->extents[i];
        if (e->area == area && offset >= e->offset && offset - e->offset < e->length) {
            return e;
        }
    }
    return NULL;
}

int snap_layout_cut(SnapLayout *layout, uint64_t start, uint64_t end, SnapExtent *ret_cut) {
    uint32_t at = first_behind(layout, start);
    if (at == layout->n_extents || layout->extents[at].address >= end) {
        return 0;
    }
    if (layout->n_extents + 2 > layout->capacity) {
        return -ENOSPC;
    }
    SnapExtent whole = layout->extents[at];
    uint64_t cut_start = MAX(whole.address, start);
    uint64_t cut_end = MIN(whole.address + whole.length, end);
    take_out(layout, at);
    if (cut_start > whole.address) {
        SnapExtent left = whole;
        left.length = cut_start - whole.address;
        insert(layout, left);
    }
    if (cut_end < whole.address + whole.length) {
        insert(layout, (SnapExtent){.address = cut_end,
                                    .length = whole.address + whole.length - cut_end,
                                    .offset = whole.offset + (cut_end - whole.address),
                                    .area = whole.area});
    }
    *ret_cut = (SnapExtent){.address = cut_start,
                            .length = cut_end - cut_start,
                            .offset = whole.offset + (cut_start - whole.address),
                            .area = whole.area};
    return 1;
}

int snap_layout_move(SnapLayout *layout, uint64_t from, uint64_t to, uint64_t length) {
    /* Cut everything first: the new place may overlap the old one in address order, never in content. */
    SnapExtent cut;
    SnapExtent moved[16];
    unsigned n_moved = 0;
    int result;
    while ((result = snap_layout_cut(layout, from, from + length, &cut)) == 1) {
        if (n_moved == G_N_ELEMENTS(moved)) {
            return -ENOSPC;
        }
        moved[n_moved++] = cut;
    }
    for (unsigned i = 0; i < n_moved; i++) {
        moved[i].address = moved[i].address - from + to;
        insert(layout, moved[i]);
    }
    return result;
}
