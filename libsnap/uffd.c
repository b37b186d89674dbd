/* The userfaultfd ioctls; see uffd.h. */
#include "uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static int call(int uffd, unsigned long request, void *arg) {
    return ioctl(uffd, request, arg) < 0 ? -errno : 0;
}

int snap_uffd_open(void) {
    int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (uffd >= 0) {
        return uffd;
    }
    int denied = -errno;
    int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    if (device < 0) {
        return denied;
    }
    uffd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
    int result = uffd < 0 ? -errno : uffd;
    close(device);
    return result;
}

int snap_uffd_probe(uint64_t *ret_features) {
    int uffd = snap_uffd_open();
    if (uffd < 0) {
        return uffd;
    }
    struct uffdio_api api = {.api = UFFD_API};
    int result = call(uffd, UFFDIO_API, &api);
    close(uffd);
    if (result == 0) {
        *ret_features = api.features;
    }
    return result;
}

int snap_uffd_api(int uffd, uint64_t features) {
    struct uffdio_api api = {.api = UFFD_API, .features = features};
    return call(uffd, UFFDIO_API, &api);
}

/* -EINVAL where the range takes the registration, but not the calls that would serve it. */
static int register_for(int uffd, uint64_t start, uint64_t length, uint64_t mode, uint64_t calls) {
    struct uffdio_register reg = {.range = {.start = start, .len = length}, .mode = mode};
    int result = call(uffd, UFFDIO_REGISTER, &reg);
    return result == 0 && (reg.ioctls & calls) != calls ? -EINVAL : result;
}

int snap_uffd_register(int uffd, uint64_t start, uint64_t length) {
    return register_for(uffd, start, length, UFFDIO_REGISTER_MODE_WP, 1ull << _UFFDIO_WRITEPROTECT);
}

int snap_uffd_register_missing(int uffd, uint64_t start, uint64_t length) {
    return register_for(uffd, start, length, UFFDIO_REGISTER_MODE_MISSING, 1ull << _UFFDIO_COPY);
}

int snap_uffd_unregister(int uffd, uint64_t start, uint64_t length) {
    struct uffdio_range range = {.start = start, .len = length};
    return call(uffd, UFFDIO_UNREGISTER, &range);
}

static int writeprotect(int uffd, uint64_t start, uint64_t length, uint64_t mode) {
    struct uffdio_writeprotect wp = {.range = {.start = start, .len = length}, .mode = mode};
    return call(uffd, UFFDIO_WRITEPROTECT, &wp);
}

int snap_uffd_protect(int uffd, uint64_t start, uint64_t length) {
    return writeprotect(uffd, start, length, UFFDIO_WRITEPROTECT_MODE_WP);
}

int snap_uffd_unprotect(int uffd, uint64_t start, uint64_t length) {
    return writeprotect(uffd, start, length, 0);
}

int snap_uffd_wake(int uffd, uint64_t start, uint64_t length) {
    struct uffdio_range range = {.start = start, .len = length};
    return call(uffd, UFFDIO_WAKE, &range);
}

bool snap_uffd_event_pending(int uffd) {
    return writeprotect(uffd, 0, 0, 0) == -EAGAIN;
}

/* What was done of it, or why nothing was. The kernel says both in one field, which it does not always write. */
static int64_t done_or(int result, int64_t done) {
    return done > 0 ? done : result < 0 ? result : -EAGAIN;
}

int64_t snap_uffd_copy(int uffd, uint64_t start, const void *from, uint64_t length) {
    struct uffdio_copy copy = {.dst = start, .src = (uintptr_t)from, .len = length};
    int result = call(uffd, UFFDIO_COPY, &copy);
    return done_or(result, copy.copy);
}

int64_t snap_uffd_zero(int uffd, uint64_t start, uint64_t length) {
    struct uffdio_zeropage zero = {.range = {.start = start, .len = length}};
    int result = call(uffd, UFFDIO_ZEROPAGE, &zero);
    return done_or(result, zero.zeropage);
}

int snap_uffd_read(int uffd, struct uffd_msg *ret_msg) {
    ssize_t n = read(uffd, ret_msg, sizeof *ret_msg);
    if (n == (ssize_t)sizeof *ret_msg) {
        return 1;
    }
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
        return 0;
    }
    return n < 0 ? -errno : -EIO;
}

int snap_uffd_open_fdinfo(int uffd) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", uffd);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

int snap_uffd_unread_faults(int fdinfo) {
    char text[512];
    ssize_t n = pread(fdinfo, text, sizeof text - 1, 0);
    if (n < 0) {
        return -errno;
    }
    text[n] = '\0';
    const char *pending = strstr(text, "pending:");
    return pending ? atoi(pending + strlen("pending:")) : -EIO;
}
