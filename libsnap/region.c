/*
 * Regions of guest memory and blobs of device state: what guests hand to a job, as plain values.
 *
 * Nothing here reads memory, or what is in a file. A region owns its name, its refusal and its descriptor.
 */
#include "region.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *const memory_names[] = {
    [SNAP_MEMORY_ANON] = "anon",
    [SNAP_MEMORY_SHMEM] = "shmem",
    [SNAP_MEMORY_SHMEM_PRIVATE] = "shmem-private",
    [SNAP_MEMORY_HUGETLB] = "hugetlb",
    [SNAP_MEMORY_HUGETLB_PRIVATE] = "hugetlb-private",
    [SNAP_MEMORY_COPIED] = "copied",
    [SNAP_MEMORY_FIXED] = "fixed",
};
G_STATIC_ASSERT(G_N_ELEMENTS(memory_names) == SNAP_MEMORY_MAX);

const char *snap_memory_name(SnapMemory memory) {
    return (unsigned)memory < SNAP_MEMORY_MAX ? memory_names[memory] : NULL;
}

SnapRegion *snap_region_new(const char *name, SnapMemory memory, uint64_t host_address, uint64_t length_bytes) {
    uint64_t page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
    SnapRegion *region = g_new0(SnapRegion, 1);
    region->name = g_strdup(name);
    region->memory = memory;
    region->guest_address = SNAP_NO_ADDRESS;
    region->host_address = host_address;
    region->length_bytes = length_bytes;
    region->page_bytes = page_bytes;
    region->granule_bytes = page_bytes;
    region->fd = -1;
    return region;
}

SnapRegion *snap_region_copy(const SnapRegion *region) {
    SnapRegion *copy = g_memdup2(region, sizeof(*region));
    copy->name = g_strdup(region->name);
    copy->refusal = g_strdup(region->refusal);
    if (region->fd < 0) {
        return copy;
    }
    copy->fd = fcntl(region->fd, F_DUPFD_CLOEXEC, 0);
    if (copy->fd < 0 && !copy->refusal) {
        copy->refusal = g_strdup_printf("no descriptor for it: %s; raise the limit of open files (ulimit -n)",
                                        g_strerror(errno));
    }
    return copy;
}

void snap_region_free(SnapRegion *region) {
    if (!region)
        return;
    if (region->fd >= 0)
        close(region->fd);
    g_free(region->name);
    g_free(region->refusal);
    g_free(region);
}

static bool is_same_file(const SnapRegion *a, const SnapRegion *b) {
    struct stat x, y;
    if (a->fd < 0 || b->fd < 0)
        return a->fd < 0 && b->fd < 0;
    return fstat(a->fd, &x) == 0 && fstat(b->fd, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino &&
           a->fd_offset == b->fd_offset;
}

bool snap_region_is_same(const SnapRegion *a, const SnapRegion *b) {
    return a->host_address == b->host_address && a->memory == b->memory && a->granule_bytes == b->granule_bytes &&
           is_same_file(a, b);
}

SnapState *snap_state_new(const char *name, GBytes *data) {
    SnapState *state = g_new0(SnapState, 1);
    state->name = g_strdup(name);
    state->data = data;
    return state;
}

void snap_state_free(SnapState *state) {
    if (!state)
        return;
    g_free(state->name);
    g_clear_pointer(&state->data, g_bytes_unref);
    g_free(state);
}
