/* The async log of this process's memory, as the library does it. */
#pragma once

#include "floor-memory.h"

#include "../../libsnap/track-async.h"
#include "../../libsnap/uffd.h"

/* The result of a call of the library's, or the end of the program. */
static inline int must(const char *program, int result, const char *what) {
    if (result < 0) {
        errno = -result;
        die(program, what);
    }
    return result;
}

static inline SnapArea *make_area(const Memory *memory) {
    bool hugetlb = strcmp(memory->kind, "hugetlb") == 0;
    SnapMemory kind = hugetlb                              ? SNAP_MEMORY_HUGETLB
                      : strcmp(memory->kind, "memfd") == 0 ? SNAP_MEMORY_SHMEM
                                                           : SNAP_MEMORY_ANON;
    SnapRegion *region = snap_region_new("floor", kind, (uintptr_t)memory->start, memory->size_bytes);

    if (hugetlb)
        region->granule_bytes = memory->granule_bytes;
    region->fd = memory->fd >= 0 ? dup(memory->fd) : -1;
    return snap_area_new(region);
}

static inline void open_async(const char *program, SnapAsync *async) {
    int uffd = must(program, snap_uffd_open(), "userfaultfd (needs root)");

    must(program, snap_async_init(async, getpid(), uffd), "async write-protection");
}
