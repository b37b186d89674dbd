/*
 * See backing.h. Happy path: the kind's row → its file, if any → an address range with guards → the mapping in it.
 *
 * Failure modes: each is the -errno of the call that failed; the program exits then, so nothing is undone.
 */
#include "backing.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef enum { NO_FILE, MEMFD, HUGE_MEMFD, TMPFS } File;
typedef enum { BASE_PAGES, TRANSPARENT, HUGETLB } Pages;

typedef struct {
    const char *name;
    File file;
    Pages pages;
    int flags; /* of mmap */
} Kind;

static const Kind kinds[] = {
    {"anon", NO_FILE, BASE_PAGES, MAP_PRIVATE | MAP_ANONYMOUS},
    {"thp", NO_FILE, TRANSPARENT, MAP_PRIVATE | MAP_ANONYMOUS},
    {"shared", NO_FILE, BASE_PAGES, MAP_SHARED | MAP_ANONYMOUS},
    {"memfd", MEMFD, BASE_PAGES, MAP_SHARED},
    {"memfd-private", MEMFD, BASE_PAGES, MAP_PRIVATE},
    {"tmpfs", TMPFS, BASE_PAGES, MAP_SHARED},
    {"tmpfs-private", TMPFS, BASE_PAGES, MAP_PRIVATE},
    {"hugetlb", HUGE_MEMFD, HUGETLB, MAP_SHARED},
    {"hugetlb-private", NO_FILE, HUGETLB, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB},
};

const char *backing_kinds(void) {
    return "anon|thp|shared|memfd|memfd-private|tmpfs|tmpfs-private|hugetlb|hugetlb-private";
}

static const Kind *find_kind(const char *name) {
    for (size_t i = 0; i < sizeof(kinds) / sizeof(*kinds); i++)
        if (strcmp(kinds[i].name, name) == 0)
            return &kinds[i];
    return NULL;
}

/* The number after @prefix in a file of the kernel's, or 0. */
static size_t read_size(const char *path, const char *prefix) {
    char line[128];
    size_t value = 0;
    FILE *file = fopen(path, "re");

    while (file && !value && fgets(line, sizeof(line), file))
        if (strncmp(line, prefix, strlen(prefix)) == 0)
            value = strtoull(line + strlen(prefix), NULL, 10);
    if (file)
        fclose(file);
    return value;
}

static size_t granule_of(const Kind *kind, size_t page_bytes) {
    size_t granule = page_bytes;

    if (kind->pages == TRANSPARENT)
        granule = read_size("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size", "");
    if (kind->pages == HUGETLB)
        granule = read_size("/proc/meminfo", "Hugepagesize:") << 10;
    return granule;
}

static int open_file(const Kind *kind, size_t length_bytes, const char *dir) {
    int fd = -1;

    switch (kind->file) {
    case NO_FILE:
        return -1;
    case MEMFD:
        fd = memfd_create("memguest", MFD_CLOEXEC);
        break;
    case HUGE_MEMFD:
        fd = memfd_create("memguest", MFD_CLOEXEC | MFD_HUGETLB);
        break;
    case TMPFS:
        fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
        break;
    }
    if (fd < 0 || ftruncate(fd, (off_t)length_bytes) < 0)
        return -errno;
    return fd;
}

/* An inaccessible range with room for the arena at an aligned address and a guard on both sides. */
static char *reserve(size_t length_bytes, size_t granule_bytes) {
    size_t total_bytes = length_bytes + 3 * granule_bytes;
    char *start = mmap(NULL, total_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    uintptr_t aligned = ((uintptr_t)start + 2 * granule_bytes - 1) / granule_bytes * granule_bytes;

    return start == MAP_FAILED ? NULL : start + (aligned - (uintptr_t)start);
}

int backing_map(const char *kind_name, size_t length_bytes, const char *dir, Backing *ret_backing) {
    const Kind *kind = find_kind(kind_name);
    Backing backing = {.kind = kind_name, .page_bytes = (size_t)sysconf(_SC_PAGESIZE)};
    char *place;

    if (!kind)
        return -EINVAL;
    backing.granule_bytes = granule_of(kind, backing.page_bytes);
    if (!backing.granule_bytes)
        return -EOPNOTSUPP;
    backing.length_bytes =
        (length_bytes + backing.granule_bytes - 1) / backing.granule_bytes * backing.granule_bytes;
    backing.fd = open_file(kind, backing.length_bytes, dir);
    if (backing.fd < 0 && kind->file != NO_FILE)
        return backing.fd;
    place = reserve(backing.length_bytes, backing.granule_bytes);
    if (!place)
        return -ENOMEM;
    backing.arena =
        mmap(place, backing.length_bytes, PROT_READ | PROT_WRITE, kind->flags | MAP_FIXED, backing.fd, 0);
    if (backing.arena == MAP_FAILED)
        return -errno;
    if (kind->pages != HUGETLB && madvise(backing.arena, backing.length_bytes,
                                          kind->pages == TRANSPARENT ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) < 0)
        return -errno;
    *ret_backing = backing;
    return 0;
}
