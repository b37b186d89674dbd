/*
 * One thread of another process, held by ptrace: stop it, run system calls in it, let it go as it was.
 *
 * Async-signal-safe throughout: no allocation, no lock, errors are -errno. Every function is called by the thread
 * that seized, because ptrace belongs to a thread.
 */
#pragma once

#include <glib.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/user.h>

G_BEGIN_DECLS

typedef struct {
    pid_t pid;
    pid_t tid;
    uint64_t syscall_address;
    struct user_regs_struct registers; /* as they are to be when it is let go */
    uint64_t signal_mask;
    gboolean stop_again; /* a SIGSTOP arrived while we worked */
} Tracee;

/**
 * tracee_wait: wait until thread @tid, which this thread traces, stops or ends.
 * Return: 0 with *ret_status of waitpid(2); -ETIMEDOUT; -errno.
 */
int tracee_wait(pid_t tid, uint64_t deadline_ns, int *ret_status);

/**
 * tracee_restart_interrupted: make a system call that our stop has cut short with EINTR start again.
 *   Most calls ask for that themselves; the few that report EINTR even when no signal was there (epoll_wait and
 * its like, waits with a timeout on sockets) get the answer that means "again unless a handler runs". Return: TRUE
 * when @registers was changed.
 */
gboolean tracee_restart_interrupted(struct user_regs_struct *registers);

/**
 * tracee_stop: seize and stop the thread @tracee->tid. Signals on their way are delivered first.
 * @seccomp: suspend its filters as long as it is held.
 * Return: 0; -ESRCH, it ended; -EPERM; -EAGAIN, it is inside a restartable sequence, try again; -ENOEXEC, it is
 *   not in 64-bit mode; -ETIMEDOUT, it never stopped and remains seized; another -errno. Not held unless 0 or
 *   -ETIMEDOUT.
 */
int tracee_stop(Tracee *tracee, gboolean seccomp, uint64_t timeout_ns);

/**
 * tracee_call: run one system call in a stopped tracee.
 * @ret_result: (out) what it returned: -errno or a value.
 * Return: 0; -errno when it could not be run.
 */
int tracee_call(Tracee *tracee, long number, const uint64_t arguments[6], int64_t *ret_result);

/** tracee_go: put back registers and signal mask, detach. Return: 0 or -errno. */
int tracee_go(Tracee *tracee);

G_END_DECLS
