/*
 * A userfaultfd of another process, made in it and taken out.
 *
 * A userfaultfd belongs to the address space of whoever makes it, so the target itself has to. Happy path: one of
 * its threads is stopped, runs userfaultfd(2), we copy the descriptor by pidfd_getfd(2), it runs close(2), and
 * goes on: 0.3 ms, other threads never stop.
 *
 * A target without privileges gets EPERM (vm.unprivileged_userfaultfd = 0). Then it is handed our own open
 * /dev/userfaultfd, whose ioctl asks for no privilege: it maps a scratch page, makes a socket pair, receives the
 * device through it, and makes the userfaultfd by ioctl. A fresh page is used and not the room below its stack
 * pointer, because for some runtimes (Go) that room is another thread's memory.
 *
 * Invariant: whatever fails, every descriptor and page that was made in the target is gone before it is let go,
 * and its registers are as they were. Only the death of the thread itself can prevent it, and then nothing is left
 * to restore.
 */
#include "inject.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "tracee.h"

#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif
#ifndef PIDFD_THREAD
#define PIDFD_THREAD O_EXCL
#endif

#define UFFD_FLAGS (O_CLOEXEC | O_NONBLOCK)
#define SEQUENCE_RETRIES 50
#define TRACER_GOES_US 1000

/* What stands in the scratch page, as the target sees it. */
typedef struct {
    int sockets[2];
    struct msghdr message;
    struct iovec part;
    char byte;
    union {
        struct cmsghdr head; /* for its alignment */
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
} Scratch;

typedef struct {
    const InjectRequest *request;
    InjectResult *result;
    Tracee tracee;
    int pidfd;
} Injection;

static int fail(Injection *injection, InjectStep step, int errnum) {
    if (injection->result->step == INJECT_STEP_DONE) {
        injection->result->step = step;
        injection->result->errnum = errnum;
    }
    return -1;
}

/* Its result, or -errno. That it could not be run at all is recorded, and looks like a failed call. */
static int64_t call(Injection *injection, long number, uint64_t a, uint64_t b, uint64_t c, uint64_t d) {
    const uint64_t arguments[6] = {a, b, c, d, number == SYS_mmap ? UINT64_MAX : 0, 0};
    int64_t result = 0;
    int r = tracee_call(&injection->tracee, number, arguments, &result);
    if (r < 0) {
        fail(injection, INJECT_STEP_CALL, -r);
        return r;
    }
    return result;
}

static void close_in_target(Injection *injection, int64_t fd) {
    if (fd >= 0) {
        int64_t r = call(injection, SYS_close, (uint64_t)fd, 0, 0, 0);
        if (r < 0) {
            fail(injection, INJECT_STEP_CLEAN, (int)-r);
        }
    }
}

static gboolean copy_out(const Injection *injection, uint64_t address, void *data, size_t length) {
    struct iovec here = {data, length}, there = {(void *)(uintptr_t)address, length};
    return process_vm_readv(injection->tracee.tid, &here, 1, &there, 1, 0) == (ssize_t)length;
}

static gboolean copy_in(const Injection *injection, uint64_t address, const void *data, size_t length) {
    struct iovec here = {(void *)(uintptr_t)data, length}, there = {(void *)(uintptr_t)address, length};
    return process_vm_writev(injection->tracee.tid, &here, 1, &there, 1, 0) == (ssize_t)length;
}

static int take_descriptor(const Injection *injection, int64_t fd) {
    return (int)syscall(SYS_pidfd_getfd, injection->pidfd, (int)fd, 0);
}

/* Send one byte and @fd. */
static gboolean send_descriptor(int sock, int fd) {
    Scratch s = {.byte = 0};
    s.part = (struct iovec){&s.byte, 1};
    s.message = (struct msghdr){.msg_iov = &s.part,
                                .msg_iovlen = 1,
                                .msg_control = s.control.bytes,
                                .msg_controllen = sizeof(s.control.bytes)};
    struct cmsghdr *head = CMSG_FIRSTHDR(&s.message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(head), &fd, sizeof(fd));
    return sendmsg(sock, &s.message, MSG_NOSIGNAL) == 1;
}

/* The target receives what was sent to its socket @sock. Its descriptor number, or -1. */
static int64_t receive_in_target(Injection *injection, uint64_t address, int sock) {
    Scratch s = {.byte = 0};
    s.part = (struct iovec){(void *)(uintptr_t)(address + offsetof(Scratch, byte)), 1};
    s.message = (struct msghdr){.msg_iov = (void *)(uintptr_t)(address + offsetof(Scratch, part)),
                                .msg_iovlen = 1,
                                .msg_control = (void *)(uintptr_t)(address + offsetof(Scratch, control)),
                                .msg_controllen = sizeof(s.control.bytes)};
    if (!copy_in(injection, address, &s, sizeof(s))) {
        return fail(injection, INJECT_STEP_PASS, errno);
    }
    int64_t r = call(injection, SYS_recvmsg, (uint64_t)sock, address + offsetof(Scratch, message),
                     MSG_CMSG_CLOEXEC | MSG_DONTWAIT, 0);
    if (r < 0) {
        return fail(injection, INJECT_STEP_PASS, (int)-r);
    }
    int fd = -1;
    if (!copy_out(injection, address, &s, sizeof(s)) || s.control.head.cmsg_len != CMSG_LEN(sizeof(int))) {
        return fail(injection, INJECT_STEP_PASS, EMFILE); /* it has no room for a descriptor */
    }
    memcpy(&fd, CMSG_DATA(&s.control.head), sizeof(fd));
    return fd;
}

/* Bring @device into the target through a socket pair. Its number there, or -1. */
static int64_t pass_device(Injection *injection, uint64_t address, int device) {
    int sockets[2] = {-1, -1};
    int64_t r = call(injection, SYS_socketpair, AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, address);
    if (r < 0) {
        return fail(injection, INJECT_STEP_PASS, (int)-r);
    }
    int64_t received = -1;
    if (copy_out(injection, address, sockets, sizeof(sockets))) {
        int ours = take_descriptor(injection, sockets[1]);
        if (ours >= 0 && send_descriptor(ours, device)) {
            received = receive_in_target(injection, address, sockets[0]);
        } else {
            fail(injection, INJECT_STEP_PASS, errno);
        }
        if (ours >= 0) {
            close(ours);
        }
        close_in_target(injection, sockets[0]);
        close_in_target(injection, sockets[1]);
    } else {
        fail(injection, INJECT_STEP_PASS, errno);
    }
    return received;
}

/* The way for a target without privileges. Number of the userfaultfd in the target, or -1. */
static int64_t make_by_device(Injection *injection) {
    int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    if (device < 0) {
        return fail(injection, INJECT_STEP_DEVICE, errno);
    }
    uint64_t page = injection->request->page_bytes;
    int64_t address = call(injection, SYS_mmap, 0, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
    if (address < 0) {
        close(device);
        return fail(injection, INJECT_STEP_SCRATCH, (int)-address);
    }
    int64_t uffd = -1;
    int64_t received = pass_device(injection, (uint64_t)address, device);
    close(device);
    if (received >= 0) {
        uffd = call(injection, SYS_ioctl, (uint64_t)received, USERFAULTFD_IOC_NEW, UFFD_FLAGS, 0);
        if (uffd < 0) {
            fail(injection, INJECT_STEP_USERFAULTFD, (int)-uffd);
        }
    }
    close_in_target(injection, received);
    int64_t r = call(injection, SYS_munmap, (uint64_t)address, page, 0, 0);
    if (r < 0) {
        fail(injection, INJECT_STEP_CLEAN, (int)-r);
    }
    return uffd;
}

static int64_t make(Injection *injection) {
    int64_t uffd = call(injection, SYS_userfaultfd, UFFD_FLAGS, 0, 0, 0);
    if (uffd == -EPERM) {
        return make_by_device(injection);
    }
    return uffd >= 0 ? uffd : fail(injection, INJECT_STEP_USERFAULTFD, (int)-uffd);
}

static int make_and_take(Injection *injection) {
    int64_t uffd = make(injection);
    if (uffd < 0) {
        return -1;
    }
    int ours = take_descriptor(injection, uffd);
    if (ours < 0) {
        fail(injection, INJECT_STEP_TAKE, errno);
    }
    close_in_target(injection, uffd);
    return ours;
}

static gboolean check_instruction(Injection *injection) {
    static const unsigned char expected[] = {0x0f, 0x05};
    unsigned char found[sizeof(expected)];
    if (copy_out(injection, injection->request->syscall_address, found, sizeof(found)) &&
        memcmp(found, expected, sizeof(found)) == 0) {
        return TRUE;
    }
    fail(injection, INJECT_STEP_INSTRUCTION, ENOEXEC); /* another program since we looked */
    return FALSE;
}

static InjectStep step_of_stop(int r, gboolean seccomp) {
    switch (-r) {
    case ETIMEDOUT:
    case EAGAIN:
        return INJECT_STEP_STOP;
    case ENOEXEC:
        return INJECT_STEP_NOT_64_BIT;
    case EPERM:
    case EINVAL:
        return seccomp ? INJECT_STEP_SECCOMP : INJECT_STEP_SEIZE;
    default:
        return INJECT_STEP_SEIZE;
    }
}

/* The thread's own descriptor table, where the kernel can name a thread (6.9); else the main thread's. */
static int open_pidfd(const InjectRequest *request, pid_t tid) {
    int fd = (int)syscall(SYS_pidfd_open, tid, PIDFD_THREAD);
    return fd >= 0 ? fd : (int)syscall(SYS_pidfd_open, request->pid, 0);
}

static int try_thread(const InjectRequest *request, pid_t tid, InjectResult *result) {
    *result = (InjectResult){.step = INJECT_STEP_DONE, .tid = tid};
    Injection injection = {.request = request, .result = result};
    injection.tracee = (Tracee){.pid = request->pid, .tid = tid, .syscall_address = request->syscall_address};
    injection.pidfd = open_pidfd(request, tid);
    if (injection.pidfd < 0) {
        return fail(&injection, INJECT_STEP_SEIZE, errno);
    }
    int r = -EAGAIN;
    for (int i = 0; i < SEQUENCE_RETRIES && (r == -EAGAIN || r == -EPERM); i++) {
        if (r == -EPERM) {
            usleep(TRACER_GOES_US); /* another one, which may be about to go */
        }
        r = tracee_stop(&injection.tracee, request->seccomp, request->stop_timeout_ns);
        if (r == -EAGAIN) {
            sched_yield();
        }
    }
    if (r < 0) {
        close(injection.pidfd);
        return fail(&injection, step_of_stop(r, request->seccomp), -r);
    }
    int ours = check_instruction(&injection) ? make_and_take(&injection) : -1;
    r = tracee_go(&injection.tracee);
    if (r < 0) {
        fail(&injection, INJECT_STEP_CLEAN, -r);
    }
    close(injection.pidfd);
    if (result->step != INJECT_STEP_DONE && ours >= 0) {
        close(ours);
        ours = -1;
    }
    return ours;
}

/* Another thread may do better where this one could not be stopped; not where the process as a whole is at fault.
 */
static gboolean is_of_thread(const InjectResult *result) {
    return result->step == INJECT_STEP_STOP || result->step == INJECT_STEP_NOT_64_BIT ||
           (result->step == INJECT_STEP_SEIZE && (result->errnum == ESRCH || result->errnum == EPERM));
}

int inject_open_uffd(const InjectRequest *request, InjectResult *ret_result) {
    int fd = -1;
    *ret_result = (InjectResult){.step = INJECT_STEP_SEIZE, .errnum = ESRCH, .tid = request->pid};
    InjectResult first = *ret_result;
    for (guint i = 0; i < request->n_threads && fd < 0; i++) {
        fd = try_thread(request, request->threads[i], ret_result);
        if (i == 0) {
            first = *ret_result;
        }
        if (fd < 0 && !is_of_thread(ret_result)) {
            return -1;
        }
    }
    if (fd < 0) {
        *ret_result = first; /* the main thread's reason says more than the last thread's */
    }
    return fd;
}
