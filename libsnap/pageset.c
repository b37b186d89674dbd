/* Pages still to be sent; see pageset.h. */
#include "pageset.h"

#include <glib.h>
#include <sys/mman.h>

enum { WORD_BITS = 64 };

/* Resident only where it is used. */
static uint64_t *map_words(uint64_t n) {
    void *p = mmap(NULL, MAX(n, 1) * sizeof(uint64_t), PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    g_assert(p != MAP_FAILED);
    return p;
}

static void unmap_words(uint64_t *words, uint64_t n) {
    if (words) {
        munmap(words, MAX(n, 1) * sizeof(uint64_t));
    }
}

static uint64_t n_filled(const SnapPageSet *set) {
    return set->n_chunks / WORD_BITS + 1;
}

void snap_pageset_init(SnapPageSet *set, uint64_t n_chunks) {
    *set = (SnapPageSet){.n_chunks = n_chunks};
    set->words = map_words(n_chunks);
    set->filled = map_words(n_filled(set));
}

void snap_pageset_clear(SnapPageSet *set) {
    unmap_words(set->words, set->n_chunks);
    unmap_words(set->filled, n_filled(set));
    *set = (SnapPageSet){0};
}

void snap_pageset_empty(SnapPageSet *set) {
    uint64_t chunk = 0;
    while (snap_pageset_next(set, chunk, set->n_chunks, &chunk)) {
        snap_pageset_take(set, chunk, UINT64_MAX);
    }
}

static uint64_t count(uint64_t mask) {
    return (uint64_t)__builtin_popcountll(mask);
}

void snap_pageset_add(SnapPageSet *set, uint64_t chunk, uint64_t mask) {
    g_assert(chunk < set->n_chunks);
    if (mask) {
        uint64_t before = __atomic_fetch_or(&set->words[chunk], mask, __ATOMIC_RELAXED);
        __atomic_fetch_or(&set->filled[chunk / WORD_BITS], UINT64_C(1) << chunk % WORD_BITS, __ATOMIC_RELAXED);
        __atomic_fetch_add(&set->n_pages, count(mask & ~before), __ATOMIC_RELAXED);
    }
}

/* Bits [first, end) of a word, end at most 64. */
static uint64_t bits(uint64_t first, uint64_t end) {
    uint64_t below = end < WORD_BITS ? (UINT64_C(1) << end) - 1 : UINT64_MAX;
    return first < WORD_BITS ? below & (UINT64_MAX << first) : 0;
}

void snap_pageset_add_run(SnapPageSet *set, uint64_t first_page, uint64_t end_page) {
    while (first_page < end_page) {
        uint64_t chunk = first_page / WORD_BITS;
        uint64_t stop = MIN(end_page, (chunk + 1) * WORD_BITS);
        snap_pageset_add(set, chunk, bits(first_page - chunk * WORD_BITS, stop - chunk * WORD_BITS));
        first_page = stop;
    }
}

uint64_t snap_pageset_take(SnapPageSet *set, uint64_t chunk, uint64_t mask) {
    uint64_t before = __atomic_fetch_and(&set->words[chunk], ~mask, __ATOMIC_RELAXED);
    if (before && !(before & ~mask)) {
        __atomic_fetch_and(&set->filled[chunk / WORD_BITS], ~(UINT64_C(1) << chunk % WORD_BITS), __ATOMIC_RELAXED);
    }
    __atomic_fetch_sub(&set->n_pages, count(before & mask), __ATOMIC_RELAXED);
    return before & mask;
}

uint64_t snap_pageset_get(const SnapPageSet *set, uint64_t chunk) {
    return __atomic_load_n(&set->words[chunk], __ATOMIC_RELAXED);
}

uint64_t snap_pageset_count(const SnapPageSet *set) {
    return __atomic_load_n(&set->n_pages, __ATOMIC_RELAXED);
}

bool snap_pageset_next(const SnapPageSet *set, uint64_t chunk, uint64_t end, uint64_t *ret_chunk) {
    end = MIN(end, set->n_chunks);
    while (chunk < end) {
        uint64_t word = __atomic_load_n(&set->filled[chunk / WORD_BITS], __ATOMIC_RELAXED);
        word &= UINT64_MAX << chunk % WORD_BITS;
        if (!word) {
            chunk = (chunk / WORD_BITS + 1) * WORD_BITS;
            continue;
        }
        chunk = chunk / WORD_BITS * WORD_BITS + (uint64_t)__builtin_ctzll(word);
        if (chunk < end && snap_pageset_get(set, chunk)) {
            *ret_chunk = chunk;
            return true;
        }
        chunk++;
    }
    return false;
}
