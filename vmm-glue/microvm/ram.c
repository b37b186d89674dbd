/* See ram.h. */
#include "ram.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#define HUGE_BYTES (UINT64_C(2) << 20)
#ifndef MFD_HUGE_2MB
#define MFD_HUGE_2MB (21u << 26)
#endif

static const struct {
    SnapMemory memory;
    gboolean has_fd;
    gboolean wants_huge;
    unsigned memfd_flags;
} kinds[] = {
    [RAM_ANON] = {SNAP_MEMORY_ANON, FALSE, FALSE, 0},
    [RAM_ANON_HUGE] = {SNAP_MEMORY_ANON, FALSE, TRUE, 0},
    [RAM_MEMFD] = {SNAP_MEMORY_SHMEM, TRUE, FALSE, 0},
    [RAM_MEMFD_HUGE] = {SNAP_MEMORY_SHMEM, TRUE, TRUE, 0},
    [RAM_HUGETLB] = {SNAP_MEMORY_HUGETLB, TRUE, FALSE, MFD_HUGETLB | MFD_HUGE_2MB},
};
G_STATIC_ASSERT(G_N_ELEMENTS(kinds) == RAM_MAX);

static gboolean fail(const Ram *ram, GError **error) {
    g_autofree char *size = g_format_size_full(ram->length_bytes, G_FORMAT_SIZE_IEC_UNITS);
    if (ram->kind == RAM_HUGETLB && (errno == ENOMEM || errno == EINVAL))
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NO_SPACE,
                    "guest memory of %s: too few huge pages are reserved (raise vm.nr_hugepages)", size);
    else
        snap_set_errno(error, errno == ENOMEM ? ENOSPC : errno, "guest memory of %s", size);
    return FALSE;
}

static gboolean make_file(Ram *ram, GError **error) {
    ram->fd = memfd_create("microvm-ram", MFD_CLOEXEC | kinds[ram->kind].memfd_flags);
    return (ram->fd >= 0 && ftruncate(ram->fd, (off_t)ram->length_bytes) == 0) || fail(ram, error);
}

/* Room for it at an aligned address with something before and behind. */
static gboolean reserve(Ram *ram, GError **error) {
    size_t length = (size_t)(ram->length_bytes + 2 * HUGE_BYTES);
    void *whole = mmap(NULL, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (whole == MAP_FAILED)
        return fail(ram, error);
    ram->whole = whole;
    ram->whole_bytes = length;
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t from = ((uintptr_t)whole + page + HUGE_BYTES - 1) & ~(uintptr_t)(HUGE_BYTES - 1);
    ram->bytes = (uint8_t *)whole + (from - (uintptr_t)whole);
    return TRUE;
}

static gboolean map(Ram *ram, GError **error) {
    gboolean has_fd = kinds[ram->kind].has_fd;
    int flags = MAP_FIXED | (has_fd ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS);
    if (mmap(ram->bytes, (size_t)ram->length_bytes, PROT_READ | PROT_WRITE, flags, ram->fd, 0) == MAP_FAILED)
        return fail(ram, error);
    if (kinds[ram->kind].wants_huge && madvise(ram->bytes, (size_t)ram->length_bytes, MADV_HUGEPAGE) < 0)
        return fail(ram, error);
    return TRUE;
}

gboolean ram_init(Ram *ram, RamKind kind, uint64_t length_bytes, GError **error) {
    *ram = (Ram){.length_bytes = length_bytes, .kind = kind, .fd = -1};
    if (length_bytes < RAM_MIN_BYTES || length_bytes > RAM_MAX_BYTES || length_bytes % HUGE_BYTES != 0) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_USAGE, "guest memory is 32M to 3G, in steps of 2M");
        return FALSE;
    }
    if ((!kinds[kind].has_fd || make_file(ram, error)) && reserve(ram, error) && map(ram, error))
        return TRUE;
    ram_clear(ram);
    return FALSE;
}

void ram_clear(Ram *ram) {
    if (!ram->length_bytes)
        return;
    if (ram->whole)
        munmap(ram->whole, ram->whole_bytes);
    if (ram->fd >= 0)
        close(ram->fd);
    *ram = (Ram){.fd = -1};
}

SnapRegion *ram_region(const Ram *ram) {
    SnapRegion *region = snap_region_new("ram", kinds[ram->kind].memory, (uintptr_t)ram->bytes, ram->length_bytes);
    region->guest_address = 0;
    if (kinds[ram->kind].memory == SNAP_MEMORY_HUGETLB)
        region->granule_bytes = HUGE_BYTES;
    if (ram->fd >= 0)
        region->fd = fcntl(ram->fd, F_DUPFD_CLOEXEC, 0);
    return region;
}
