/*
 * One userfaultfd of another process, made inside it by an injected system call and taken out.
 *
 * Nothing here allocates, locks or logs: it runs in a process forked from one that may have had many threads,
 * where only async-signal-safe calls are allowed.
 */
#pragma once

#include <glib.h>
#include <stdint.h>
#include <sys/types.h>

G_BEGIN_DECLS

#define INJECT_THREADS_MAX 64

/* What to do, found out beforehand by somebody who may allocate. */
typedef struct {
    pid_t pid;
    pid_t threads[INJECT_THREADS_MAX]; /* which to try, in this order */
    guint n_threads;
    uint64_t syscall_address; /* where the target has a `syscall` instruction */
    uint64_t page_bytes;
    gboolean seccomp;         /* it filters its system calls */
    uint64_t stop_timeout_ns; /* for each thread */
} InjectRequest;

/* Where it went wrong. X(NAME, what was being done) */
#define INJECT_STEP_TABLE(X)                                                                                      \
    X(DONE, "done")                                                                                               \
    X(SEIZE, "attach to the process by ptrace")                                                                   \
    X(SECCOMP, "suspend the seccomp filter")                                                                      \
    X(STOP, "stop a thread")                                                                                      \
    X(REGISTERS, "read the registers")                                                                            \
    X(NOT_64_BIT, "find a thread in 64-bit mode")                                                                 \
    X(INSTRUCTION, "find a system call instruction")                                                              \
    X(CALL, "make the process run a system call")                                                                 \
    X(USERFAULTFD, "make a userfaultfd in the process")                                                           \
    X(DEVICE, "open /dev/userfaultfd")                                                                            \
    X(SCRATCH, "map a page for the descriptor's way in")                                                          \
    X(PASS, "pass /dev/userfaultfd to the process")                                                               \
    X(TAKE, "take the userfaultfd out of the process")                                                            \
    X(CLEAN, "leave the process as it was")

typedef enum {
#define X(name, text) INJECT_STEP_##name,
    INJECT_STEP_TABLE(X)
#undef X
        INJECT_STEP_MAX
} InjectStep;

typedef struct {
    InjectStep step; /* DONE, or what failed */
    int errnum;
    pid_t tid; /* of the thread last tried */
} InjectResult;

/**
 * inject_open_uffd: attach to one thread, let it make a userfaultfd, take that out, leave no trace, detach.
 *   Blocks for some 0.3 ms, at most a few seconds. Async-signal-safe.
 *   A thread that never stopped stays attached until the calling thread ends, so call it in a process that ends
 * soon.
 * @ret_result: (out) what happened.
 * Return: the descriptor, O_CLOEXEC | O_NONBLOCK, or -1.
 */
int inject_open_uffd(const InjectRequest *request, InjectResult *ret_result);

/**
 * inject_prepare: find out what inject_open_uffd() needs. Allocates; for the parent.
 * @ret_request: (out).
 * Errors: GUEST_GONE; NOT_SUPPORTED, it has no executable mapping with a system call instruction; PERMISSION.
 */
gboolean inject_prepare(int pid, InjectRequest *ret_request, GError **error);

/** inject_set_error: put a failed @result of @pid in words: PERMISSION, GUEST_GONE, TIMED_OUT, NOT_SUPPORTED,
 * FAILED. */
void inject_set_error(GError **error, int pid, const InjectResult *result);

G_END_DECLS
