/* One mapping; see vma.h. */
#include "vma.h"

#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "uapi.h"

static int query(int maps, uint64_t address, SnapVma *ret_vma) {
    struct procmap_query query = {.size = sizeof query, .query_addr = address};
    if (ioctl(maps, PROCMAP_QUERY, &query) < 0) {
        return -errno;
    }
    bool shared = query.vma_flags & PROCMAP_QUERY_VMA_SHARED;
    *ret_vma = (SnapVma){.start = query.vma_start,
                         .end = query.vma_end,
                         .page_bytes = query.vma_page_size,
                         .shared = shared,
                         .anonymous = !shared && query.inode == 0};
    return 0;
}

/* The line of /proc/PID/smaps that heads a mapping: "7f…-7f… rw-p offset dev inode path". */
static bool parse_head(const char *line, SnapVma *ret_vma) {
    uint64_t start, end, inode;
    char rights[5];
    if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %*x %*s %" SCNu64, &start, &end, rights, &inode) != 4) {
        return false;
    }
    bool shared = rights[3] == 's';
    *ret_vma = (SnapVma){.start = start, .end = end, .shared = shared, .anonymous = !shared && inode == 0};
    return true;
}

static int read_smaps(int pid, uint64_t address, SnapVma *ret_vma) {
    g_autofree char *path = g_strdup_printf("/proc/%d/smaps", pid);
    FILE *file = fopen(path, "re");
    char line[8192];
    SnapVma vma;
    bool inside = false;
    if (!file) {
        return errno == ENOENT ? -ESRCH : -errno;
    }
    int result = -ENOENT;
    while (result == -ENOENT && fgets(line, sizeof line, file)) {
        uint64_t kib;
        if (parse_head(line, &vma)) {
            inside = vma.start <= address && address < vma.end;
        } else if (inside && sscanf(line, "KernelPageSize: %" SCNu64 " kB", &kib) == 1) {
            vma.page_bytes = kib << 10;
            *ret_vma = vma;
            result = 0;
        }
    }
    fclose(file);
    return result;
}

int snap_vma_find(int pid, uint64_t address, SnapVma *ret_vma) {
    g_autofree char *path = g_strdup_printf("/proc/%d/maps", pid);
    int maps = open(path, O_RDONLY | O_CLOEXEC);
    if (maps < 0) {
        return errno == ENOENT ? -ESRCH : -errno;
    }
    int result = query(maps, address, ret_vma);
    close(maps);
    return result == -ENOTTY ? read_smaps(pid, address, ret_vma) : result;
}
