/* The pool of page buffers; see pool.h. */
#include "pool.h"

#include <glib.h>
#include <sys/mman.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

enum {
    RESIDENT_BYTES = 64 << 20, /* the whole pool, unless a larger --buffer was asked for */
};

typedef struct {
    uint64_t page;
    uint32_t link; /* free: next free buffer; taken: the taker's */
} Slot;

struct SnapPool {
    uint64_t page_bytes;
    uint32_t n_pages;
    uint32_t available;
    uint32_t fewest_available;
    uint32_t first_free;
    uint32_t first_fresh; /* buffers from here on were never used and are not on the stack */
    Slot *slots;
    uint8_t *data;
};

static void *map_zeros(size_t length) {
    void *p = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    g_assert(p != MAP_FAILED);
    return p;
}

SnapPool *snap_pool_new(uint64_t page_bytes, uint32_t n_pages) {
    SnapPool *pool = g_new0(SnapPool, 1);
    pool->page_bytes = page_bytes;
    pool->n_pages = n_pages;
    pool->available = pool->fewest_available = n_pages;
    pool->first_free = SNAP_POOL_NONE;
    pool->slots = map_zeros(MAX(n_pages, 1) * sizeof *pool->slots);
    pool->data = map_zeros(MAX(n_pages, 1) * page_bytes);
    /* The first part is made resident now: a page fault of ours would lengthen the guest's. */
    madvise(pool->data, MIN(n_pages * page_bytes, RESIDENT_BYTES), MADV_POPULATE_WRITE);
    return pool;
}

void snap_pool_free(SnapPool *pool) {
    if (!pool) {
        return;
    }
    munmap(pool->slots, MAX(pool->n_pages, 1) * sizeof *pool->slots);
    munmap(pool->data, MAX(pool->n_pages, 1) * pool->page_bytes);
    g_free(pool);
}

uint32_t snap_pool_available(const SnapPool *pool) {
    return pool->available;
}

uint32_t snap_pool_taken(const SnapPool *pool) {
    return pool->n_pages - pool->available;
}

uint32_t snap_pool_peak(const SnapPool *pool) {
    return pool->n_pages - pool->fewest_available;
}

void snap_pool_restart(SnapPool *pool) {
    pool->fewest_available = pool->available;
}

uint32_t snap_pool_take(SnapPool *pool, uint64_t page) {
    uint32_t index = pool->first_free;
    if (index != SNAP_POOL_NONE) {
        pool->first_free = pool->slots[index].link;
    } else if (pool->first_fresh < pool->n_pages) {
        index = pool->first_fresh++;
    } else {
        return SNAP_POOL_NONE;
    }
    pool->available--;
    pool->fewest_available = MIN(pool->fewest_available, pool->available);
    pool->slots[index] = (Slot){.page = page, .link = SNAP_POOL_NONE};
    return index;
}

void snap_pool_give(SnapPool *pool, uint32_t index) {
    pool->slots[index].link = pool->first_free;
    pool->first_free = index;
    pool->available++;
}

uint8_t *snap_pool_data(SnapPool *pool, uint32_t index) {
    return pool->data + index * pool->page_bytes;
}

uint64_t snap_pool_page(const SnapPool *pool, uint32_t index) {
    return pool->slots[index].page;
}

uint32_t *snap_pool_link(SnapPool *pool, uint32_t index) {
    return &pool->slots[index].link;
}
