/*
 * What the proofs about missing pages have in common, beside proof.h: a range registered for them, the calls that
 * put pages in place, and a thread that reads a page and says what it found.
 */
#pragma once

#include "proof.h"

/* 0 or -errno. */
static inline int missing_register(int fd, const void *start, size_t length) {
    struct uffdio_register args = {.range = {.start = (uintptr_t)start, .len = length},
                                   .mode = UFFDIO_REGISTER_MODE_MISSING};
    return ioctl(fd, UFFDIO_REGISTER, &args) < 0 ? -errno : 0;
}

/* 0 or -errno; *ret_done: bytes that were put in place, or what the kernel wrote there. */
static inline int missing_copy(int fd, const void *to, const void *from, size_t length, int64_t *ret_done) {
    struct uffdio_copy args = {.dst = (uintptr_t)to, .src = (uintptr_t)from, .len = length};
    int result = ioctl(fd, UFFDIO_COPY, &args) < 0 ? -errno : 0;
    if (ret_done)
        *ret_done = args.copy;
    return result;
}

/* 0 or -errno. */
static inline int missing_zero(int fd, const void *start, size_t length) {
    struct uffdio_zeropage args = {.range = {.start = (uintptr_t)start, .len = length}};
    return ioctl(fd, UFFDIO_ZEROPAGE, &args) < 0 ? -errno : 0;
}

static inline void missing_wake(int fd, const void *start, size_t length) {
    struct uffdio_range args = {.start = (uintptr_t)start, .len = length};
    CHECK(ioctl(fd, UFFDIO_WAKE, &args) == 0);
}

/* The body: read the byte at @address into *argument. */
static inline void task_read(Task *task) {
    *(volatile char *)task->argument = *(volatile char *)task->address;
}

/* The fault of somebody who touches @address is the next message, and that one waits. */
static inline void missing_expect(int fd, Task *task, const char *address, size_t granule) {
    struct uffd_msg message = uffd_read(fd);
    CHECK(message.event == UFFD_EVENT_PAGEFAULT);
    CHECK(!(message.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP));
    CHECK((message.arg.pagefault.address & ~(granule - 1)) == (uintptr_t)address);
    CHECK(!task_wait(task, QUIET_MS));
}
