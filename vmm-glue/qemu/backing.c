/*
 * RAM block → SnapRegion.
 *
 * Happy path: the mappings that cover the block are found (mprotect may have cut it into several), they are seen
 * to be of one file, and the file is opened through /proc/PID/map_files, or, where that is not permitted, through
 * the descriptor that QEMU itself has open. The file system's magic number says what the memory is.
 *
 * Failure modes: QEMU maps a block from several files, or not at all: NOT_SUPPORTED. A file of a file system that
 * userfaultfd cannot write-protect: a refusal that names it, so that `--region` can leave the block out.
 */
#include "backing.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

ProcMaps *backing_read_maps(int pid, GError **error) {
    g_autofree char *path = g_strdup_printf("/proc/%d/maps", pid);
    g_autoptr(GString) text = g_string_new(NULL);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        int code = errno == ENOENT ? ESRCH : errno;
        snap_set_errno(error, code, "process %d: its mappings", pid);
        return NULL;
    }
    gboolean ok = maps_read_text(fd, text, error);
    close(fd);
    return ok ? maps_parse(text->str, text->len, error) : NULL;
}

static gboolean same_backing(const ProcMap *a, const ProcMap *b) {
    return a->end == b->start && a->shared == b->shared && a->ino == b->ino && a->dev == b->dev &&
           (a->ino == 0 || a->offset + (a->end - a->start) == b->offset);
}

/* The mapping that holds @start, if all up to @end is of the same kind. @ret_writable: any of it is. */
static const ProcMap *find_cover(const ProcMaps *maps, uint64_t start, uint64_t end, gboolean *ret_writable) {
    const ProcMap *first = maps_find(maps, start);
    const ProcMap *past = maps->entries + maps->n_entries;
    *ret_writable = FALSE;
    for (const ProcMap *map = first; map && map < past; map++) {
        if (map > first && !same_backing(map - 1, map))
            return NULL;
        *ret_writable |= map->writable;
        if (map->end >= end)
            return first;
    }
    return NULL;
}

static gboolean is_mapped_file(int fd, const ProcMap *mapping) {
    struct stat about;
    return fstat(fd, &about) == 0 && about.st_ino == mapping->ino && about.st_dev == mapping->dev;
}

static int open_own_descriptor(int pid, const ProcMap *mapping) {
    g_autofree char *folder = g_strdup_printf("/proc/%d/fd", pid);
    DIR *dir = opendir(folder);
    int found = -1;
    if (!dir)
        return -1;
    for (struct dirent *entry; found < 0 && (entry = readdir(dir));) {
        struct stat about;
        if (!g_ascii_isdigit(entry->d_name[0]) || fstatat(dirfd(dir), entry->d_name, &about, 0) < 0 ||
            about.st_ino != mapping->ino || !S_ISREG(about.st_mode))
            continue;
        int fd = openat(dirfd(dir), entry->d_name, O_RDONLY | O_CLOEXEC);
        if (fd >= 0 && is_mapped_file(fd, mapping))
            found = fd;
        else if (fd >= 0)
            close(fd);
    }
    closedir(dir);
    return found;
}

static int open_backing(int pid, const ProcMap *mapping) {
    g_autofree char *path = g_strdup_printf("/proc/%d/map_files/%" G_GINT64_MODIFIER "x-%" G_GINT64_MODIFIER "x",
                                            pid, mapping->start, mapping->end);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    return fd >= 0 ? fd : open_own_descriptor(pid, mapping);
}

static void refuse_file(SnapRegion *region, const ProcMap *mapping) {
    region->memory = SNAP_MEMORY_COPIED;
    region->refusal =
        g_strdup_printf("RAM block %s is mapped from the file %s, whose writes the kernel cannot hold up: "
                        "use memory-backend-memfd, or a file in /dev/shm",
                        region->name, mapping->path);
}

/* By the file system of @fd (taken). */
static void set_file_memory(SnapRegion *region, const ProcMap *mapping, int fd) {
    gboolean is_shared = mapping->shared;
    struct statfs about;
    memset(&about, 0, sizeof(about));
    gboolean known = fstatfs(fd, &about) == 0;
    if (known && (uint32_t)about.f_type == TMPFS_MAGIC) {
        region->memory = is_shared ? SNAP_MEMORY_SHMEM : SNAP_MEMORY_SHMEM_PRIVATE;
    } else if (known && (uint32_t)about.f_type == HUGETLBFS_MAGIC) {
        region->memory = is_shared ? SNAP_MEMORY_HUGETLB : SNAP_MEMORY_HUGETLB_PRIVATE;
        region->granule_bytes = (uint64_t)about.f_bsize;
    } else {
        refuse_file(region, mapping);
        is_shared = FALSE;
    }
    if (is_shared) {
        region->fd = fd;
        region->fd_offset = mapping->offset + (region->host_address - mapping->start);
    } else {
        close(fd);
    }
}

uint64_t backing_length(const RamBlock *block, uint64_t page_bytes) {
    return (block->used_bytes + page_bytes - 1) / page_bytes * page_bytes;
}

SnapRegion *backing_region(int pid, const ProcMaps *maps, const RamBlock *block, GError **error) {
    g_autoptr(SnapRegion) region = snap_region_new(block->name, SNAP_MEMORY_ANON, block->host_address, 0);
    gboolean is_writable;
    region->length_bytes = backing_length(block, region->page_bytes);
    region->guest_address = block->guest_address;
    const ProcMap *mapping =
        find_cover(maps, region->host_address, region->host_address + region->length_bytes, &is_writable);
    if (!mapping) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED,
                    "RAM block %s: QEMU does not map it as one piece of memory", block->name);
        return NULL;
    }
    if (!is_writable)
        region->memory = SNAP_MEMORY_FIXED;
    if (!is_writable || mapping->ino == 0)
        return g_steal_pointer(&region);
    int fd = open_backing(pid, mapping);
    if (fd < 0) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_PERMISSION, "RAM block %s: its file %s cannot be opened: %s",
                    block->name, mapping->path, g_strerror(errno));
        return NULL;
    }
    set_file_memory(region, mapping, fd);
    return g_steal_pointer(&region);
}
