/*
 * Pool: preallocated page buffers for pre-images, with a hard cap.
 *
 * One anonymous mapping, and a stack of free indices (last out, first in: what is warm is used again). The first
 * 64 MiB are resident from the start, more as it is used. Taking and giving allocate nothing and never fail for
 * another reason than the cap. Not thread safe: the tracker's lock covers it.
 */
#pragma once

#include <stdint.h>

#define SNAP_POOL_NONE UINT32_MAX

typedef struct SnapPool SnapPool;

/* @page_bytes: size of one buffer. @n_pages: the cap, may be 0. Aborts when there is no address space for it. */
SnapPool *snap_pool_new(uint64_t page_bytes, uint32_t n_pages);
/* NULL is allowed. */
void snap_pool_free(SnapPool *pool);

/* How many buffers are free, and how many are not. */
uint32_t snap_pool_available(const SnapPool *pool);
uint32_t snap_pool_taken(const SnapPool *pool);
/* The most that was ever taken at once. */
uint32_t snap_pool_peak(const SnapPool *pool);

/* Count the peak from now on. */
void snap_pool_restart(SnapPool *pool);

/* A buffer, SNAP_POOL_NONE when there is none. @page: what it will hold, kept for the taker. */
uint32_t snap_pool_take(SnapPool *pool, uint64_t page);
void snap_pool_give(SnapPool *pool, uint32_t index);

/* The buffer's memory, the page it was taken for, and a link for the taker's lists. */
uint8_t *snap_pool_data(SnapPool *pool, uint32_t index);
uint64_t snap_pool_page(const SnapPool *pool, uint32_t index);
uint32_t *snap_pool_link(SnapPool *pool, uint32_t index);
