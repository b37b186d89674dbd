/*
 * An area as the async log sees it: which parts of it are armed, and what is filled in the others.
 *
 * It is armed in *units*: as many pages as a chunk has, aligned in the address space. A unit that holds something
 * lies in a block whose page table exists, so markers in it cost no memory; and few enough of them are set for a
 * lonely page that a very sparse area is armed quickly.
 *
 * Offsets are bytes of the area. Nothing here changes anything but snap_async_add_armed(); functions return 0 (or
 * a count) or -errno.
 */
#pragma once

#include "area.h"
#include "pagemap.h"

/* Bytes [start, end), of an area or of an address space. */
typedef struct {
    uint64_t start;
    uint64_t end;
} SnapBytes;

bool snap_async_is_hugetlb(const SnapArea *area);

/* Bounds of the units that [start, end) lies in, and of the blocks, cut at the area's ends. */
uint64_t snap_async_unit_start(const SnapArea *area, uint64_t start);
uint64_t snap_async_unit_end(const SnapArea *area, uint64_t end);
uint64_t snap_async_block_start(const SnapArea *area, uint64_t start);
uint64_t snap_async_block_end(const SnapArea *area, uint64_t end);

/* Add the units of [start, end) to the armed ones. */
void snap_async_add_armed(SnapArea *area, uint64_t start, uint64_t end);

/*
 * The whole units in armed run @i, perhaps none. The run's ends are those of chunks, and where the region does not
 * begin at a chunk's multiple a chunk reaches into a unit that is not armed, and may have no page table. (One unit
 * between two others can be taken for armed then, though it never was: what is not protected there is reported
 * once.)
 */
SnapBytes snap_async_armed_units(const SnapArea *area, guint i);

/* Whether @offset is armed; that is so up to @ret_end, at most @end. */
bool snap_async_is_armed(const SnapArea *area, uint64_t offset, uint64_t end, uint64_t *ret_end);

/* Whether the area can have gaps: there is a way to tell what was filled in them. */
bool snap_async_has_gaps(const SnapArea *area);

/* What tells, in page tables of private memory, content from what a hole reads as. */
SnapScanFilter snap_async_filled_filter(const SnapArea *area);

/*
 * The next run of [from, end), in a gap, that is filled. Of memory that has a file by that too: page tables tell
 * nothing of what was swapped out or dropped since it was written. @ret_searched: behind the run nothing is filled
 * up to there; @end when there is no run. Return: 1, 0 when there is none, or -errno.
 */
int snap_async_next_filled(const SnapArea *area, int pagemap, uint64_t from, uint64_t end, SnapBytes *ret_run,
                           uint64_t *ret_searched);

/* The next run of [from, end) that is data in the memory's file, which it has. Return: as before. */
int snap_async_next_data(const SnapArea *area, uint64_t from, uint64_t end, SnapBytes *ret_run);
