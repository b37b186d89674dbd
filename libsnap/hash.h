/*
 * XXH3-64, by the fastest code the processor has: libxxhash's own entry points are built for the least processor
 * (6 GB/s measured), its dispatching ones choose AVX2 and more at run time (11 GB/s).
 */
#pragma once

#include <glib.h>
#include <xxhash.h>
#if defined(__x86_64__) && __has_include(<xxh_x86dispatch.h>)
#include <xxh_x86dispatch.h> /* redirects the XXH3 functions */
#endif

typedef XXH3_state_t SnapHash;
static inline void snap_hash_free(SnapHash *hash) {
    XXH3_freeState(hash);
}
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SnapHash, snap_hash_free)

static inline SnapHash *snap_hash_new(void) {
    SnapHash *hash = XXH3_createState();
    g_assert(hash);
    XXH3_64bits_reset(hash);
    return hash;
}
