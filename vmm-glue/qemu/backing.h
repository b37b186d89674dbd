/*
 * What a RAM block is made of: from its place in QEMU's mappings to a SnapRegion.
 */
#pragma once

#include "../process/maps.h"
#include "ramblock.h"

/**
 * backing_read_maps: the mappings of a process.
 * Errors: PERMISSION, GUEST_GONE.
 * Return: (out) free with maps_free(); NULL on error.
 */
ProcMaps *backing_read_maps(int pid, GError **error);

/**
 * backing_region: the region of a block.
 *
 * Anonymous memory, memfd, tmpfs and hugetlb, shared or private, are told apart by the file system behind the
 * mapping; a read-only mapping is FIXED. Memory that cannot be protected gives a region with a refusal.
 *
 * @maps: (borrow) of backing_read_maps().
 * Errors: NOT_SUPPORTED, the block is not mapped as one piece; PERMISSION, its file cannot be opened.
 * Return: (out) free with snap_region_free().
 */
SnapRegion *backing_region(int pid, const ProcMaps *maps, const RamBlock *block, GError **error);

/** backing_length: the length of a block's region: what is used of the block, in whole pages. */
uint64_t backing_length(const RamBlock *block, uint64_t page_bytes);
