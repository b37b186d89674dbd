/* See async-rig.h. */
#include "async-rig.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../../libsnap/uffd.h"

#define ANON (MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)

const RigKind rig_kinds[] = {
    {"anon", SNAP_MEMORY_ANON, RIG_NO_FILE, ANON, false, false},
    {"thp", SNAP_MEMORY_ANON, RIG_NO_FILE, ANON, true, false},
    {"memfd", SNAP_MEMORY_SHMEM, RIG_MEMFD, MAP_SHARED, false, false},
    {"memfd-private", SNAP_MEMORY_SHMEM_PRIVATE, RIG_MEMFD, MAP_PRIVATE, false, false},
    {"tmpfs", SNAP_MEMORY_SHMEM, RIG_TMPFS, MAP_SHARED, false, false},
    {"hugetlb", SNAP_MEMORY_HUGETLB, RIG_HUGETLB, MAP_SHARED, false, false},
    {"hugetlb-private", SNAP_MEMORY_HUGETLB_PRIVATE, RIG_HUGETLB, MAP_PRIVATE, false, false},
    {"disk", SNAP_MEMORY_COPIED, RIG_DISK, MAP_SHARED, false, false},
    {"disk-private", SNAP_MEMORY_COPIED, RIG_DISK, MAP_PRIVATE, false, false},
    {"memfd, watched", SNAP_MEMORY_SHMEM, RIG_MEMFD, MAP_SHARED, false, true},
    {"memfd-private, watched", SNAP_MEMORY_SHMEM_PRIVATE, RIG_MEMFD, MAP_PRIVATE, false, true},
    {"disk, watched", SNAP_MEMORY_COPIED, RIG_DISK, MAP_SHARED, false, true},
    {"disk-private, watched", SNAP_MEMORY_COPIED, RIG_DISK, MAP_PRIVATE, false, true},
};
const unsigned n_rig_kinds = sizeof rig_kinds / sizeof rig_kinds[0];

/* The kB behind @name in a file of the kernel's, or 0. */
static size_t read_kb(const char *path, const char *name) {
    size_t value = 0;
    char line[128];
    FILE *file = fopen(path, "re");
    while (file && !value && fgets(line, sizeof line, file)) {
        if (strncmp(line, name, strlen(name)) == 0) {
            value = strtoull(line + strlen(name), NULL, 10);
        }
    }
    if (file) {
        fclose(file);
    }
    return value;
}

long rig_page_tables_kb(void) {
    return (long)read_kb("/proc/self/status", "VmPTE:");
}

static int open_file(const RigKind *kind, size_t length) {
    int fd = -1;
    switch (kind->file) {
    case RIG_NO_FILE:
        return -1;
    case RIG_MEMFD:
        fd = memfd_create("rig", MFD_CLOEXEC);
        break;
    case RIG_HUGETLB:
        fd = memfd_create("rig", MFD_CLOEXEC | MFD_HUGETLB);
        break;
    case RIG_TMPFS:
        fd = open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
        break;
    case RIG_DISK: /* the build directory */
        fd = open(".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
        break;
    }
    return fd >= 0 && ftruncate(fd, (off_t)length) < 0 ? -1 : fd;
}

const char *rig_map(Rig *rig, const RigKind *kind, size_t length) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t huge = kind->file == RIG_HUGETLB ? read_kb("/proc/meminfo", "Hugepagesize:") << 10
                                            : page / sizeof(uint64_t) * page;
    *rig = (Rig){.kind = kind, .fd = -1};
    if (huge == 0) {
        return "no huge pages in this kernel";
    }
    length = (length + huge - 1) / huge * huge;
    *rig = (Rig){.kind = kind, .fd = -1, .length = length, .page = page, .async = {.uffd = -1}};
    rig->granule = kind->file == RIG_HUGETLB ? huge : page;
    rig->fd = open_file(kind, length);
    if (rig->fd < 0 && kind->file != RIG_NO_FILE) {
        return "no such file can be made";
    }
    /* Aligned as the kernel's tables are, and alone: a page that cannot be merged with on both sides. */
    uint8_t *place = mmap(NULL, length + 2 * huge, PROT_NONE, ANON, -1, 0);
    assert_true(place != MAP_FAILED);
    place = (uint8_t *)(((uintptr_t)place + 2 * huge - 1) / huge * huge);
    rig->memory = mmap(place, length, PROT_READ | PROT_WRITE, kind->flags | MAP_FIXED, rig->fd, 0);
    if (rig->memory == MAP_FAILED) {
        return kind->file == RIG_HUGETLB ? "too few free huge pages: sysctl vm.nr_hugepages=64" : strerror(errno);
    }
    if (kind->file != RIG_HUGETLB &&
        madvise(rig->memory, length, kind->huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) < 0 && kind->huge) {
        return "no transparent huge pages in this kernel";
    }
    rig->seen = calloc(length / page, 1);
    return NULL;
}

void rig_unmap(Rig *rig) {
    if (rig->memory != MAP_FAILED && rig->memory) {
        munmap(rig->memory, rig->length);
    }
    if (rig->fd >= 0) {
        close(rig->fd);
    }
    free(rig->seen);
}

/* Return: NULL and the log of this process, or what is missing. */
static const char *open_log(SnapAsync *async) {
    int uffd = snap_uffd_open();
    if (uffd < 0) {
        return "no userfaultfd: root, or sysctl vm.unprivileged_userfaultfd=1";
    }
    int result = snap_async_init(async, getpid(), uffd);
    if (result == -EOPNOTSUPP) {
        snap_async_clear(async);
        return "no UFFD_FEATURE_WP_ASYNC or no PAGEMAP_SCAN (Linux 6.7)";
    }
    assert_int_equal(result, 0);
    return NULL;
}

int rig_skip(void) {
    SnapAsync async;
    const char *missing = open_log(&async);
    if (missing) {
        printf("skip: %s\n", missing);
        return 77;
    }
    snap_async_clear(&async);
    return 0;
}

void rig_start(Rig *rig) {
    assert_null(open_log(&rig->async));
    rig_make_area(rig);
    if (rig->kind->watched) {
        snap_async_watch_drops(&rig->async, rig->area);
    }
    if (rig->kind->huge) {
        rig_fill(rig, 0, rig->length / rig->page); /* what is filled later comes, and is new, by the huge page */
    }
    assert_int_equal(snap_async_register(&rig->async, (uintptr_t)rig->memory, rig->length), 0);
    assert_int_equal(snap_async_arm(&rig->async, rig->area), 0);
}

void rig_make_area(Rig *rig) {
    SnapRegion *region = snap_region_new(rig->kind->name, rig->kind->memory, (uintptr_t)rig->memory, rig->length);
    region->granule_bytes = rig->granule;
    if (rig->kind->memory == SNAP_MEMORY_SHMEM || rig->kind->memory == SNAP_MEMORY_SHMEM_PRIVATE) {
        region->fd = fcntl(rig->fd, F_DUPFD_CLOEXEC, 0);
    }
    rig->area = snap_area_new(region);
}

void rig_clear(Rig *rig) {
    if (rig->area) {
        snap_async_clear(&rig->async);
        snap_area_free(rig->area);
        rig->area = NULL;
    }
}

void rig_write(const Rig *rig, size_t i) {
    ((volatile uint8_t *)rig->memory)[i * rig->page + 1]++;
}

void rig_read(const Rig *rig, size_t i) {
    (void)((volatile uint8_t *)rig->memory)[i * rig->page + 1];
}

void rig_fill(const Rig *rig, size_t first, size_t end) {
    for (size_t i = first; i < end; i++) {
        rig_write(rig, i);
    }
}

uint64_t rig_random(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

size_t rig_pages(const Rig *rig) {
    return rig->granule / rig->page;
}

size_t rig_first(const Rig *rig, size_t i) {
    return i - i % rig_pages(rig);
}

void rig_report(void *opaque, uint64_t start, uint64_t end) {
    Rig *rig = opaque;
    assert_true(start < end && end <= rig->length && start % rig->page == 0 && end % rig->page == 0);
    rig->disorder |= start <= rig->last && rig->last != 0;
    rig->last = end;
    rig->pages += (end - start) / rig->page;
    for (uint64_t i = start / rig->page; i < end / rig->page; i++) {
        rig->seen[i]++;
    }
}

void rig_forget(Rig *rig) {
    memset(rig->seen, 0, rig->length / rig->page);
    rig->pages = 0;
}

int rig_collect_some(Rig *rig, uint64_t from, uint64_t end, SnapCollect how, uint64_t max_pages,
                     uint64_t *ret_next) {
    rig->last = 0;
    int result = snap_async_collect(&rig->async, rig->area, from, end, how, max_pages, rig_report, rig, ret_next);
    assert_false(rig->disorder);
    return result;
}

int rig_collect(Rig *rig, SnapCollect how) {
    uint64_t next = 0;
    int result = rig_collect_some(rig, 0, rig->length, how, 0, &next);
    assert_true(result < 0 || next == rig->length);
    return result;
}

void rig_each_kind(size_t length, void (*body)(Rig *rig)) {
    for (unsigned i = 0; i < n_rig_kinds; i++) {
        Rig rig;
        const char *missing = rig_map(&rig, &rig_kinds[i], length);
        if (missing) {
            print_message("not tried: %s: %s\n", rig_kinds[i].name, missing);
        } else {
            rig_start(&rig);
            body(&rig);
        }
        rig_clear(&rig);
        rig_unmap(&rig);
    }
}
