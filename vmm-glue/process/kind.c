/*
 * Telling mappings apart.
 *
 * The name in maps tells the kernel's own mappings. A file is asked through /proc/PID/map_files, which names the
 * very object, deleted or not, in whatever mount namespace; it is only looked at, never opened, before it is known
 * to be memory: opening a device has effects.
 */
#include "kind.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

static char *map_file(int pid, const ProcMap *map) {
    return g_strdup_printf("/proc/%d/map_files/%lx-%lx", pid, map->start, map->end);
}

static MappingKind kind_by_name(const ProcMap *map) {
    static const char *const anonymous[] = {"[heap]", "[stack]"};
    for (size_t i = 0; i < G_N_ELEMENTS(anonymous); i++) {
        if (strcmp(map->path, anonymous[i]) == 0) {
            return MAPPING_ANON;
        }
    }
    if (strcmp(map->path, "[vdso]") == 0) {
        return MAPPING_VDSO;
    }
    return g_str_has_prefix(map->path, "[anon:") || g_str_has_prefix(map->path, "[stack:") ? MAPPING_ANON
                                                                                           : MAPPING_NONE;
}

/* Mappings that the kernel gives a process to talk with: not memory of its own, and no loss. */
static gboolean is_harmless(const char *path) {
    static const char *const prefixes[] = {"anon_inode:[io_uring]", "anon_inode:[perf_event]",
                                           "anon_inode:kvm-vcpu", "anon_inode:bpf-map"};
    for (size_t i = 0; i < G_N_ELEMENTS(prefixes); i++) {
        if (g_str_has_prefix(path, prefixes[i])) {
            return TRUE;
        }
    }
    return FALSE;
}

static MappingKind kind_by_file(int pid, const ProcMap *map, MappingInfo *ret_info) {
    g_autofree char *by_number = map_file(pid, map);
    g_autofree char *by_name = g_strdup_printf("/proc/%d/root%s", pid, map->path);
    const char *path = by_number;
    struct stat info;
    struct statfs system;
    if (stat(path, &info) < 0) {
        /* map_files is root's. The name will do if it is still the same file. */
        path = by_name;
        if (errno == ENOENT || stat(path, &info) < 0 || info.st_ino != map->ino) {
            return MAPPING_UNKNOWN;
        }
    }
    if (!S_ISREG(info.st_mode)) {
        return MAPPING_DEVICE;
    }
    ret_info->file_bytes = (uint64_t)info.st_size;
    if (statfs(path, &system) < 0) {
        return MAPPING_UNKNOWN;
    }
    switch ((unsigned long)system.f_type) {
    case TMPFS_MAGIC:
        return MAPPING_SHMEM;
    case HUGETLBFS_MAGIC:
        ret_info->granule_bytes = (uint64_t)system.f_bsize;
        return MAPPING_HUGETLB;
    default:
        return MAPPING_FILE;
    }
}

MappingInfo kind_of_mapping(int pid, const ProcMap *map, uint64_t page_bytes) {
    MappingInfo info = {.granule_bytes = page_bytes, .file_bytes = UINT64_MAX};
    gboolean named_shmem = g_str_has_prefix(map->path, "[anon_shmem:");
    if (map->path[0] == '[' && !named_shmem) {
        info.kind = kind_by_name(map);
    } else if (!map->shared && (!map->path[0] || (strcmp(map->path, "/dev/zero") == 0 && !map->deleted))) {
        info.kind = MAPPING_ANON; /* a private mapping of /dev/zero is anonymous memory with a name */
    } else if (is_harmless(map->path)) {
        info.kind = MAPPING_NONE;
    } else {
        info.kind = kind_by_file(pid, map, &info);
    }
    return info;
}

int kind_open(int pid, const ProcMap *map) {
    g_autofree char *by_number = map_file(pid, map);
    int fd = open(by_number, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        return fd;
    }
    g_autofree char *by_name = g_strdup_printf("/proc/%d/root%s", pid, map->path);
    struct stat info;
    return stat(by_name, &info) == 0 && info.st_ino == map->ino ? open(by_name, O_RDONLY | O_CLOEXEC) : -1;
}

char *kind_label(const ProcMap *map) {
    g_autofree char *label = NULL;
    if (map->path[0] == '[') {
        label = g_strndup(map->path + 1, strlen(map->path) - 2);
    } else if (map->path[0] == '\0') {
        label = g_strdup("anon");
    } else if (g_str_has_prefix(map->path, "/memfd:")) {
        label = g_strdup(map->path + 1);
    } else {
        label = g_path_get_basename(map->path);
    }
    char *valid = g_utf8_make_valid(label, -1);
    return g_strdelimit(valid, "/\n", '_');
}

/* ---- copied on write? ------------------------------------------------------------------------------------ */

/* Bits of a /proc/PID/pagemap entry: Documentation/admin-guide/mm/pagemap.rst. */
#define ENTRY_PRESENT (UINT64_C(1) << 63)
#define ENTRY_SWAPPED (UINT64_C(1) << 62)
#define ENTRY_FILE (UINT64_C(1) << 61)

gboolean kind_was_written(int pagemap_fd, uint64_t start, uint64_t end, uint64_t page_bytes) {
    uint64_t entries[512];
    uint64_t page = start / page_bytes, last = end / page_bytes;
    while (page < last) {
        size_t wanted = MIN((size_t)(last - page), G_N_ELEMENTS(entries));
        ssize_t n = pread(pagemap_fd, entries, wanted * sizeof(entries[0]), (off_t)(page * sizeof(entries[0])));
        if (n < (ssize_t)sizeof(entries[0])) {
            return TRUE;
        }
        size_t got = (size_t)n / sizeof(entries[0]);
        for (size_t i = 0; i < got; i++) {
            if ((entries[i] & (ENTRY_PRESENT | ENTRY_SWAPPED)) && !(entries[i] & ENTRY_FILE)) {
                return TRUE;
            }
        }
        page += got;
    }
    return FALSE;
}
