/*
 * Holes: find out that a shared page was punched out before it was copied.
 *
 * Punching a hole into a memfd (fallocate, by any descriptor of it) discards the content, raises no event, and
 * leaves the write-protection in place; the next touch puts a protected page of zeros there. Neither protection,
 * nor SEEK_DATA, nor the file's times or block count tell it from a page that was always zero. So for shared
 * memory each chunk remembers which of its pages were *not zero* when they were protected. A page that was not,
 * and is copied as zeros, is a loss; one that was zero reads the same whether it was punched or not. (Other memory
 * loses its protection with its content, see track-sync.h.)
 */
#pragma once

#include "area.h"
#include "memory.h"

/*
 * Remember which pages of the run of chunks, or of @mask in one chunk, are not zero; they are protected by now.
 * Return: 0 or -errno. Job thread.
 */
int snap_holes_record_run(SnapArea *area, const SnapMemoryReader *reader, int pagemap, SnapRun run);
int snap_holes_record_pages(SnapArea *area, const SnapMemoryReader *reader, uint64_t chunk, uint64_t mask);

/* Which pages of @mask, recorded as not zero, are zero now. Return: 0 or -errno. Allocates nothing. Any thread. */
int snap_holes_find(const SnapArea *area, const SnapMemoryReader *reader, uint64_t chunk, uint64_t mask,
                    uint64_t *ret_punched);

/*
 * [offset, offset + length) of @area, inside one chunk, was just copied to @data: FALSE when any page of it was
 * punched out since it was recorded. Allocates nothing. Any thread.
 */
bool snap_holes_check(const SnapArea *area, uint64_t offset, const uint8_t *data, size_t length);
