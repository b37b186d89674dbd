/*
 * What the proofs have in common. A proof is a program about one fact of the kernel that libsnap relies on:
 * exit status 0 it holds, 1 it does not, 77 it cannot be tried here, with the reason.
 */
#pragma once

#include "uapi.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define WAIT_MS 2000 /* for what must come */
#define QUIET_MS 100 /* for what must not */

/* Ends the program: the fact does not hold, or a call failed that proves nothing by failing. */
#define CHECK(condition)                                                                                          \
    do {                                                                                                          \
        if (!(condition))                                                                                         \
            end(1, "%s:%d: not so: %s (errno: %s)", __FILE__, __LINE__, #condition, strerror(errno));             \
    } while (0)

__attribute__((format(printf, 2, 3), noreturn)) static inline void end(int status, const char *format, ...) {
    va_list args;
    va_start(args, format);
    fputs(status == 77 ? "skip: " : "", stdout);
    vprintf(format, args);
    va_end(args);
    puts("");
    fflush(stdout);
    _exit(status);
}

static inline size_t page_bytes(void) {
    return (size_t)sysconf(_SC_PAGESIZE);
}

/* ---- memory ---------------------------------------------------------------------------------------------- */

static inline char *map(size_t length, int flags, int fd) {
    char *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, flags, fd, 0);
    CHECK(memory != MAP_FAILED);
    return memory;
}

static inline char *map_anon(size_t n_pages) {
    return map(n_pages * page_bytes(), MAP_PRIVATE | MAP_ANONYMOUS, -1);
}

static inline int make_memfd(size_t length) {
    int fd = memfd_create("proof", MFD_CLOEXEC);
    CHECK(fd >= 0 && ftruncate(fd, (off_t)length) == 0);
    return fd;
}

/* ---- userfaultfd ----------------------------------------------------------------------------------------- */

/* Before UFFDIO_API. Faults of user mode are all that the proofs raise. */
static inline int uffd_new(void) {
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
    if (fd < 0)
        end(77, "no userfaultfd: %s", strerror(errno));
    return fd;
}

static inline void uffd_api(int fd, uint64_t features) {
    struct uffdio_api api = {.api = UFFD_API, .features = features};
    if (ioctl(fd, UFFDIO_API, &api) < 0)
        end(77, "this kernel lacks one of the userfaultfd features %#llx", (unsigned long long)features);
}

static inline int uffd_open(uint64_t features) {
    int fd = uffd_new();
    uffd_api(fd, features);
    return fd;
}

/* 0 or -errno. */
static inline int uffd_register(int fd, const void *start, size_t length) {
    struct uffdio_register args = {.range = {.start = (uintptr_t)start, .len = length},
                                   .mode = UFFDIO_REGISTER_MODE_WP};
    return ioctl(fd, UFFDIO_REGISTER, &args) < 0 ? -errno : 0;
}

static inline int uffd_set_protection(int fd, const void *start, size_t length, uint64_t mode) {
    struct uffdio_writeprotect args = {.range = {.start = (uintptr_t)start, .len = length}, .mode = mode};
    return ioctl(fd, UFFDIO_WRITEPROTECT, &args) < 0 ? -errno : 0;
}

static inline int uffd_protect(int fd, const void *start, size_t length) {
    return uffd_set_protection(fd, start, length, UFFDIO_WRITEPROTECT_MODE_WP);
}

static inline int uffd_unprotect(int fd, const void *start, size_t length) {
    return uffd_set_protection(fd, start, length, 0);
}

/* Is there something to read within @timeout_ms? */
static inline bool uffd_wait(int fd, int timeout_ms) {
    struct pollfd pollfd = {.fd = fd, .events = POLLIN};
    return poll(&pollfd, 1, timeout_ms) == 1 && (pollfd.revents & POLLIN);
}

static inline struct uffd_msg uffd_read(int fd) {
    struct uffd_msg message = {0};
    CHECK(uffd_wait(fd, WAIT_MS));
    CHECK(read(fd, &message, sizeof(message)) == sizeof(message));
    return message;
}

/* ---- what the page tables say ---------------------------------------------------------------------------- */

/* The categories of the page at @address that are in @mask; 0 as well where there is no page at all. */
static inline uint64_t page_categories(const void *address, uint64_t mask) {
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0);
    struct page_region found = {0};
    struct pm_scan_arg scan = {
        .size = sizeof(scan),
        .start = (uintptr_t)address,
        .end = (uintptr_t)address + page_bytes(),
        .vec = (uintptr_t)&found,
        .vec_len = 1,
        .category_anyof_mask = mask,
        .return_mask = mask,
    };
    int n = ioctl(fd, PAGEMAP_SCAN, &scan);
    if (n < 0)
        end(77, "no PAGEMAP_SCAN: %s", strerror(errno));
    close(fd);
    return n ? found.categories : 0;
}

static inline bool page_is_written(const void *address) {
    return page_categories(address, PAGE_IS_WRITTEN) != 0;
}

/* ---- a second thread ------------------------------------------------------------------------------------- */

/* Does one thing, and says when it is done. */
typedef struct Task {
    void (*body)(struct Task *task);
    char *address;
    size_t length;
    void *argument;
    atomic_bool done;
    pthread_t thread;
} Task;

static inline void *task_main(void *opaque) {
    Task *task = opaque;
    task->body(task);
    atomic_store(&task->done, true);
    return NULL;
}

static inline void task_start(Task *task) {
    atomic_store(&task->done, false);
    CHECK(pthread_create(&task->thread, NULL, task_main, task) == 0);
}

/* Is it done within @timeout_ms? */
static inline bool task_wait(Task *task, int timeout_ms) {
    for (int ms = 0; ms < timeout_ms && !atomic_load(&task->done); ms++)
        usleep(1000);
    return atomic_load(&task->done);
}

/* The body that most proofs want: write one byte. */
static inline void task_write(Task *task) {
    *(volatile char *)task->address = 'w';
}

/* Write at @address in a thread: does the write raise a fault? It is let through afterwards, by un-protection. */
static inline bool write_is_caught(int fd, char *address, size_t granule) {
    Task task = {.body = task_write, .address = address};
    task_start(&task);
    bool caught = false;
    for (int ms = 0; ms < WAIT_MS && !caught && !atomic_load(&task.done); ms++)
        caught = uffd_wait(fd, 1);
    if (caught) {
        struct uffd_msg message = uffd_read(fd);
        CHECK(message.event == UFFD_EVENT_PAGEFAULT);
        CHECK(message.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP);
        CHECK((message.arg.pagefault.address & ~(granule - 1)) == ((uintptr_t)address & ~(granule - 1)));
        CHECK(!atomic_load(&task.done));
        CHECK(uffd_unprotect(fd, (char *)((uintptr_t)address & ~(granule - 1)), granule) == 0);
    }
    CHECK(task_wait(&task, WAIT_MS));
    pthread_join(task.thread, NULL);
    return caught;
}

/* ---- huge pages ------------------------------------------------------------------------------------------ */

static inline size_t huge_page_bytes(void) {
    size_t kib = 0;
    char line[128];
    FILE *meminfo = fopen("/proc/meminfo", "re");
    CHECK(meminfo);
    while (fgets(line, sizeof(line), meminfo))
        sscanf(line, "Hugepagesize: %zu kB", &kib);
    fclose(meminfo);
    return kib * 1024;
}

/* Returns what it was before, or -1 where that cannot be changed. */
static inline long set_overcommitted_huge_pages(long pages) {
    long before = -1;
    FILE *file = fopen("/proc/sys/vm/nr_overcommit_hugepages", "r+e");
    if (!file)
        return -1;
    if (fscanf(file, "%ld", &before) != 1)
        before = -1;
    rewind(file);
    fprintf(file, "%ld\n", pages);
    fclose(file);
    return before;
}

/*
 * A memfd of @n huge pages, mapped and reserved, or a skip. Where there are none in the pool and we may, the
 * kernel is allowed to find some for just as long as the reservation takes.
 */
static inline char *map_hugetlb(size_t n, int flags, size_t *ret_bytes, int *ret_fd) {
    size_t bytes = huge_page_bytes();
    int fd = memfd_create("proof", MFD_CLOEXEC | MFD_HUGETLB);
    if (fd < 0 || bytes == 0)
        end(77, "no hugetlb: %s", strerror(errno));
    CHECK(ftruncate(fd, (off_t)(n * bytes)) == 0);
    char *memory = mmap(NULL, n * bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
    if (memory == MAP_FAILED) {
        long before = set_overcommitted_huge_pages(64);
        memory = mmap(NULL, n * bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
        if (before >= 0)
            set_overcommitted_huge_pages(before);
    }
    if (memory == MAP_FAILED)
        end(77, "%zu free huge pages are needed: sysctl vm.nr_hugepages=%zu", n, n);
    *ret_bytes = bytes;
    *ret_fd = fd;
    return memory;
}

/* One transparent huge page, populated, at its natural boundary, or a skip. */
static inline char *make_thp(size_t *ret_bytes) {
    size_t bytes = 0;
    FILE *file = fopen("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size", "re");
    if (!file || fscanf(file, "%zu", &bytes) != 1)
        end(77, "no transparent huge pages in this kernel");
    fclose(file);
    char *memory = map(2 * bytes, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    memory = (char *)(((uintptr_t)memory + bytes - 1) / bytes * bytes);
    madvise(memory, bytes, MADV_HUGEPAGE);
    memset(memory, 1, bytes);
    if (!page_categories(memory, PAGE_IS_HUGE))
        end(77, "no transparent huge page was to be had (transparent_hugepage/enabled is never, or no free one)");
    *ret_bytes = bytes;
    return memory;
}
