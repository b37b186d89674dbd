/*
 * All threads of a process stopped at one point, and what their registers were.
 *
 * Thread: all functions between freeze_stop() and freeze_go() are called in one thread, because ptrace belongs to
 * a thread. When that thread ends, or its process is killed, the kernel lets the target go on.
 */
#pragma once

#include <glib.h>
#include <signal.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/user.h>

G_BEGIN_DECLS

typedef enum {
    FREEZE_RUNNING, /* seized at most */
    FREEZE_STOPPED, /* registers are valid */
    FREEZE_ENDED,   /* the thread is no more */
} FreezeThreadState;

/* One thread at the point. */
typedef struct {
    pid_t tid;
    FreezeThreadState state;
    gboolean seized;
    gboolean captured; /* what follows is valid; stays so after freeze_go() */
    int signal;        /* that was just being delivered and will be by freeze_go(); 0 for none */
    siginfo_t siginfo; /* of it */
    struct user_regs_struct registers;
    uint64_t signals_blocked;
    uint64_t signals_pending; /* at most the first few of this thread's own */
    void *xstate;             /* as PTRACE_GETREGSET has it, or struct user_fpregs_struct on machines without */
    gsize xstate_bytes;
} FreezeThread;

typedef struct Freeze Freeze;

/** freeze_new: for process @pid, which is not touched yet. Return: (out) free with freeze_free(). */
Freeze *freeze_new(int pid);
/** freeze_free: lets threads go if they are stopped. NULL is allowed. */
void freeze_free(Freeze *freeze);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Freeze, freeze_free)

/**
 * freeze_stop: attach to every thread, stop them all, take their registers. Some 0.2 ms for a few threads.
 * @timeout_ns: how long one that sleeps in the kernel is waited for.
 * Errors: TIMED_OUT, naming a thread that did not stop; PERMISSION; GUEST_GONE. Nothing is stopped then; a thread
 *   that stops later after all is let go by the next freeze_stop() and freeze_go(), or when the caller's thread
 * ends.
 */
gboolean freeze_stop(Freeze *freeze, uint64_t timeout_ns, GError **error);

/**
 * freeze_go: let all threads go on, with the signals that were on their way.
 * @ret_stopped_ns: (out) (nullable) from the first thread being asked to stop to the last being let go; 0 when
 *   nothing was stopped.
 * Errors: GUEST_GONE, the process ended meanwhile.
 */
gboolean freeze_go(Freeze *freeze, uint64_t *ret_stopped_ns, GError **error);

/** freeze_threads: those of the last freeze_stop(), the main thread first; (borrow) till the next one. */
const FreezeThread *freeze_threads(const Freeze *freeze, guint *ret_n_threads);

G_END_DECLS
