/*
 * Holes: find out that a shared page was punched out before it was copied.
 *
 * Punching a hole into a memfd (fallocate, by any descriptor of it) discards the content, raises no event, and
 * leaves the write-protection marker in place: a protected hole reads as zeros just as a page of zeros does. So
 * for shared memory each chunk remembers which of its pages held data when they were protected, and a page that
 * has become a hole since is a loss. For other memory the lost protection tells (see track.h).
 *
 * tmpfs says exactly where its holes are. hugetlbfs does not; there a page counts as punched when it was mapped at
 * the point, is not now, and reads as zeros. (A huge page of zeros that the guest unmapped by MADV_DONTNEED is
 * then called lost as well: an error, never a wrong image.)
 */
#pragma once

#include "area.h"

/* Remember what holds data in @run, which is protected by now. Return: 0 or -errno. Job thread. */
int snap_holes_record(SnapArea *area, int pagemap, SnapRun run);

/* Pages of @chunk may hold data from now on: they were written while they were un-protected. Job thread. */
void snap_holes_touched(SnapArea *area, uint64_t chunk, uint64_t mask);

/*
 * [offset, offset + length) of @area, inside one chunk, mapped at @address, was just copied to @data: was any page
 * of it punched out since it was recorded? Return: 0; -EFAULT, yes; other -errno. Allocates nothing. Any thread.
 */
int snap_holes_check(const SnapArea *area, int pagemap, uint64_t offset, uint64_t address, const uint8_t *data,
                     size_t length);
