/*
 * How long each write of a guest took, counted in buckets an eighth of a power of two wide: cheap enough for every
 * write. One thread at a time adds, another may read meanwhile.
 */
#pragma once

#include <stdint.h>

#define STALL_BUCKETS 512u

typedef struct {
    /* atomic, relaxed: a reader may see a write more in one than in the other */
    uint64_t count[STALL_BUCKETS];
    uint64_t max_ns; /* since it was last taken */
} Stall;

static inline unsigned stall_bucket(uint64_t ns) {
    unsigned exponent;

    if (ns < 16)
        return (unsigned)ns;
    exponent = 63u - (unsigned)__builtin_clzll(ns);
    return (exponent - 2) * 8 + (unsigned)((ns >> (exponent - 3)) & 7);
}

/* The longest time that falls into a bucket. */
static inline uint64_t stall_bucket_ns(unsigned bucket) {
    unsigned exponent = bucket / 8 + 2;

    if (bucket < 16)
        return bucket;
    return ((uint64_t)(8 + bucket % 8 + 1) << (exponent - 3)) - 1;
}

static inline void stall_add(Stall *stall, uint64_t ns) {
    uint64_t *count = &stall->count[stall_bucket(ns)];

    __atomic_store_n(count, __atomic_load_n(count, __ATOMIC_RELAXED) + 1, __ATOMIC_RELAXED);
    if (ns > __atomic_load_n(&stall->max_ns, __ATOMIC_RELAXED))
        __atomic_store_n(&stall->max_ns, ns, __ATOMIC_RELAXED);
}

/* What was added since @previous was taken; @previous becomes what there is now. Return: the longest. */
static inline uint64_t stall_take(Stall *stall, Stall *previous, Stall *ret_window) {
    for (unsigned i = 0; i < STALL_BUCKETS; i++) {
        uint64_t count = __atomic_load_n(&stall->count[i], __ATOMIC_RELAXED);
        ret_window->count[i] = count - previous->count[i];
        previous->count[i] = count;
    }
    ret_window->max_ns = __atomic_exchange_n(&stall->max_ns, 0, __ATOMIC_RELAXED);
    return ret_window->max_ns;
}

/* The time that @per_mille of 1000 writes do not exceed, to an eighth. */
static inline uint64_t stall_percentile_ns(const Stall *stall, unsigned per_mille) {
    uint64_t total = 0, seen = 0;

    for (unsigned i = 0; i < STALL_BUCKETS; i++)
        total += stall->count[i];
    for (unsigned i = 0; i < STALL_BUCKETS; i++) {
        seen += stall->count[i];
        if (total && seen * 1000 >= total * per_mille)
            return stall_bucket_ns(i) < stall->max_ns ? stall_bucket_ns(i) : stall->max_ns;
    }
    return 0;
}
