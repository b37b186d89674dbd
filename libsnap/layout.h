/*
 * Layout: where each part of each area is mapped in the guest now.
 *
 * An area starts as one extent. The guest may move parts of it (mremap) or drop them (munmap) while they are being
 * saved; extents are split and follow. Sorted by address. Moving and cutting do not allocate: there is room for
 * SNAP_LAYOUT_SPARE splits. Not thread safe: the tracker's lock covers it.
 */
#pragma once

#include <stdint.h>

#define SNAP_LAYOUT_SPARE 1024u

typedef struct {
    uint64_t address;
    uint64_t length;
    uint64_t offset; /* in the area */
    uint32_t area;
} SnapExtent;

typedef struct {
    SnapExtent *extents;
    uint32_t n_extents;
    uint32_t capacity;
} SnapLayout;

void snap_layout_clear(SnapLayout *layout);

/* Add the extent of a new area. The only function that allocates. */
void snap_layout_add(SnapLayout *layout, uint32_t area, uint64_t offset, uint64_t address, uint64_t length);

/* Forget where @area is. */
void snap_layout_remove(SnapLayout *layout, uint32_t area);

/* The extent that @address is in, or NULL. */
const SnapExtent *snap_layout_find(const SnapLayout *layout, uint64_t address);

/* Where @offset of @area is now: the extent, or NULL when it is not mapped any more. */
const SnapExtent *snap_layout_locate(const SnapLayout *layout, uint32_t area, uint64_t offset);

/* mremap: what lay in [from, from + length) is now at @to. Return: 0, or -ENOSPC after too many splits. */
int snap_layout_move(SnapLayout *layout, uint64_t from, uint64_t to, uint64_t length);

/*
 * munmap of [start, end): take the first extent of it out and hand it to the caller; call until it returns 0.
 * Return: 1 and *ret_cut, 0 when nothing is left there, -ENOSPC.
 */
int snap_layout_cut(SnapLayout *layout, uint64_t start, uint64_t end, SnapExtent *ret_cut);
