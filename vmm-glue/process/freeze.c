/*
 * Stopping every thread of a process at one point.
 *
 *     seize every thread until no new one appears   (the process runs)
 *     interrupt all, collect their stops            (the pause begins with the first interrupt)
 *     threads born meanwhile: seize, interrupt, collect, until the kernel counts no more than we hold
 *     …the caller's work…
 *     detach all                                    (the pause ends with the last)
 *
 * Whatever the kernel reports first counts as the stop: the one we asked for, a stop by job control (which the
 * detach leaves in force), or a signal about to be delivered, which is kept in hand and delivered by the detach.
 * If we are killed, the kernel detaches, and that signal is delivered too.
 *
 * A thread can be made to wait in the kernel for a page that we have protected; it stops once that is served, so
 * the fault thread must go on during the pause. One that sleeps uninterruptibly for long (a dead NFS server) makes
 * the stop fail, by name. It cannot be detached while it runs, so it stays seized: `seized` without `captured`.
 *
 * Invariants: no thread runs between a successful freeze_stop() and freeze_go(); registers were all read in there.
 */
#include "freeze.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "libsnap.h"
#include "pace.h"
#include "target.h"
#include "tracee.h"

enum { XSTATE_MAX_BYTES = 1 << 14, PENDING_MAX = 8, TRACER_LOOKS = 50, TRACER_STEP_US = 1000 };
#define DEATH_TIMEOUT_NS 1000000000
#define DEATH_LOOK_NS 2000000 /* threads that run stop sooner than that */
#define SIGNAL_SET_BYTES 8    /* the kernel's sigset_t */

struct Freeze {
    int pid;
    GArray *threads;   /* of FreezeThread */
    uint64_t begin_ns; /* first interrupt; 0 when nothing was asked to stop */
    Pace pace;         /* before it */
};

static FreezeThread *thread_at(const Freeze *freeze, guint i) {
    return &g_array_index(freeze->threads, FreezeThread, i);
}

static void clear_thread(gpointer data) {
    FreezeThread *thread = (FreezeThread *)data;
    g_free(thread->xstate);
}

Freeze *freeze_new(int pid) {
    Freeze *freeze = g_new0(Freeze, 1);
    freeze->pid = pid;
    freeze->threads = g_array_new(FALSE, TRUE, sizeof(FreezeThread));
    g_array_set_clear_func(freeze->threads, clear_thread);
    return freeze;
}

void freeze_free(Freeze *freeze) {
    if (freeze) {
        (void)freeze_go(freeze, NULL, NULL);
        g_array_unref(freeze->threads);
        g_free(freeze);
    }
}

const FreezeThread *freeze_threads(const Freeze *freeze, guint *ret_n_threads) {
    *ret_n_threads = freeze->threads->len;
    return (const FreezeThread *)(const void *)freeze->threads->data;
}

/* ---- seizing --------------------------------------------------------------------------------------------- */

static gboolean is_known(const Freeze *freeze, pid_t tid) {
    for (guint i = 0; i < freeze->threads->len; i++) {
        if (thread_at(freeze, i)->tid == tid && thread_at(freeze, i)->state != FREEZE_ENDED) {
            return TRUE;
        }
    }
    return FALSE;
}

/* 0 or errno. EPERM may be a tracer that is about to go, as who takes a snapshot too, or that the thread has
 * ended. */
static int attach(int pid, pid_t tid) {
    int errnum = EPERM;
    for (int i = 0; i < TRACER_LOOKS && errnum == EPERM; i++) {
        if (i > 0) {
            usleep(TRACER_STEP_US);
        }
        errnum = ptrace(PTRACE_SEIZE, tid, NULL, NULL) < 0 ? errno : 0;
        if (errnum == EPERM && target_has_ended(pid, tid)) {
            return ESRCH;
        }
    }
    return errnum;
}

/* Take one more thread. FALSE with *error only when that makes the whole hopeless. */
static gboolean seize(Freeze *freeze, pid_t tid, GError **error) {
    FreezeThread thread = {.tid = tid};
    int errnum = attach(freeze->pid, tid);
    if (errnum == 0) {
        thread.seized = TRUE;
        thread.xstate = g_malloc(XSTATE_MAX_BYTES);
        g_array_append_val(freeze->threads, thread);
        return TRUE;
    }
    if (errnum == ESRCH) {
        thread.state = FREEZE_ENDED; /* also a main thread that ended before the others: it stays listed */
        g_array_append_val(freeze->threads, thread);
        return TRUE;
    }
    if (errnum == EPERM && !target_check_tracer(freeze->pid, error)) {
        return FALSE;
    }
    g_autofree char *name = target_name(freeze->pid, tid);
    snap_set_errno(error, errnum, "cannot attach to thread %d (%s) of process %d by ptrace", (int)tid, name,
                   freeze->pid);
    return FALSE;
}

/* Whether a thread that was found ended is listed again under the same number is no news; see seize(). */
static gboolean is_listed(const Freeze *freeze, pid_t tid) {
    for (guint i = 0; i < freeze->threads->len; i++) {
        if (thread_at(freeze, i)->tid == tid) {
            return TRUE;
        }
    }
    return FALSE;
}

/* @ret_n_new: threads that were not there in the last look. */
static gboolean seize_new(Freeze *freeze, guint *ret_n_new, GError **error) {
    g_autoptr(GArray) tids = target_threads(freeze->pid, error);
    *ret_n_new = 0;
    if (!tids) {
        return FALSE;
    }
    for (guint i = 0; i < tids->len; i++) {
        pid_t tid = g_array_index(tids, pid_t, i);
        if (is_known(freeze, tid) || (is_listed(freeze, tid) && target_has_ended(freeze->pid, tid))) {
            continue;
        }
        if (!seize(freeze, tid, error)) {
            return FALSE;
        }
        (*ret_n_new)++;
    }
    return TRUE;
}

static gboolean seize_all(Freeze *freeze, GError **error) {
    guint n_new = 0;
    do {
        if (!seize_new(freeze, &n_new, error)) {
            return FALSE;
        }
    } while (n_new > 0);
    return TRUE;
}

/* ---- stopping -------------------------------------------------------------------------------------------- */

static void read_floating_point(FreezeThread *thread) {
    struct iovec part = {thread->xstate, XSTATE_MAX_BYTES};
    if (ptrace(PTRACE_GETREGSET, thread->tid, (void *)(intptr_t)NT_X86_XSTATE, &part) < 0) {
        part.iov_len = ptrace(PTRACE_GETFPREGS, thread->tid, NULL, thread->xstate) < 0
                           ? 0
                           : sizeof(struct user_fpregs_struct);
    }
    thread->xstate_bytes = part.iov_len;
}

static void read_signals(FreezeThread *thread) {
    siginfo_t pending[PENDING_MAX];
    struct __ptrace_peeksiginfo_args window = {.off = 0, .flags = 0, .nr = PENDING_MAX};
    (void)ptrace(PTRACE_GETSIGMASK, thread->tid, (void *)SIGNAL_SET_BYTES, &thread->signals_blocked);
    long n = ptrace(PTRACE_PEEKSIGINFO, thread->tid, &window, pending);
    for (long i = 0; i < n; i++) {
        thread->signals_pending |= UINT64_C(1) << (pending[i].si_signo - 1);
    }
    if (thread->signal) {
        (void)ptrace(PTRACE_GETSIGINFO, thread->tid, NULL, &thread->siginfo);
    }
}

static void capture(FreezeThread *thread) {
    struct iovec part = {&thread->registers, sizeof(thread->registers)};
    if (ptrace(PTRACE_GETREGSET, thread->tid, (void *)(intptr_t)NT_PRSTATUS, &part) < 0) {
        return; /* killed under our hands; the next wait tells */
    }
    if (tracee_restart_interrupted(&thread->registers)) {
        (void)ptrace(PTRACE_SETREGS, thread->tid, NULL, &thread->registers);
    }
    read_floating_point(thread);
    read_signals(thread);
    thread->captured = TRUE;
}

static void take_status(FreezeThread *thread, int status) {
    if (!WIFSTOPPED(status)) {
        thread->state = FREEZE_ENDED;
        return;
    }
    thread->signal = status >> 16 ? 0 : WSTOPSIG(status);
    thread->state = FREEZE_STOPPED;
    capture(thread);
}

/* Look at every thread that has not stopped yet, without waiting. How many still run. */
static guint collect(Freeze *freeze) {
    guint n_running = 0;
    for (guint i = 0; i < freeze->threads->len; i++) {
        FreezeThread *thread = thread_at(freeze, i);
        int status = 0;
        if (thread->state != FREEZE_RUNNING) {
            continue;
        }
        pid_t got = waitpid(thread->tid, &status, __WALL | WNOHANG);
        if (got == thread->tid) {
            take_status(thread, status);
        } else if (got < 0 && errno == ECHILD) {
            thread->state = FREEZE_ENDED;
        } else {
            n_running++;
        }
    }
    return n_running;
}

/* The pause begins: from here to its end nobody else is to hold us up. */
static void begin(Freeze *freeze) {
    if (!freeze->begin_ns) {
        pace_hurry(&freeze->pace);
        freeze->begin_ns = pace_now_ns();
    }
}

/* Return: how long it was, in ns. */
static uint64_t end(Freeze *freeze) {
    uint64_t begin_ns = freeze->begin_ns;
    if (!begin_ns) {
        return 0;
    }
    uint64_t stopped_ns = pace_now_ns() - begin_ns;
    freeze->begin_ns = 0;
    pace_relax(&freeze->pace);
    return stopped_ns;
}

static void interrupt_running(Freeze *freeze) {
    begin(freeze);
    for (guint i = 0; i < freeze->threads->len; i++) {
        if (thread_at(freeze, i)->state == FREEZE_RUNNING) {
            (void)ptrace(PTRACE_INTERRUPT, thread_at(freeze, i)->tid, NULL, NULL);
        }
    }
}

static gboolean fail_by_name(const Freeze *freeze, uint64_t timeout_ns, GError **error) {
    for (guint i = 0; i < freeze->threads->len; i++) {
        const FreezeThread *thread = thread_at(freeze, i);
        if (thread->state == FREEZE_RUNNING) {
            g_autofree char *name = target_name(freeze->pid, thread->tid);
            g_set_error(
                error, SNAP_ERROR, SNAP_ERROR_TIMED_OUT,
                "thread %d (%s) of process %d did not stop within %.1f s: it sleeps in the kernel and cannot be "
                "interrupted; try again later",
                (int)thread->tid, name, freeze->pid, (double)timeout_ns / 1e9);
            return FALSE;
        }
    }
    g_assert_not_reached();
}

/*
 * SIGKILL ends threads that have stopped, too. Their end has to be seen, for the main thread's is not reported
 * before that of all others: it would be waited for in vain.
 */
static void collect_deaths(Freeze *freeze) {
    for (guint i = 0; i < freeze->threads->len; i++) {
        FreezeThread *thread = thread_at(freeze, i);
        int status = 0;
        if (thread->state == FREEZE_STOPPED && waitpid(thread->tid, &status, __WALL | WNOHANG) == thread->tid &&
            !WIFSTOPPED(status)) {
            thread->state = FREEZE_ENDED;
        }
    }
}

static gboolean collect_all(Freeze *freeze, uint64_t timeout_ns, GError **error) {
    uint64_t begin_ns = pace_now_ns();
    while (collect(freeze) > 0) {
        uint64_t waited_ns = pace_now_ns() - begin_ns;
        if (waited_ns > timeout_ns) {
            return fail_by_name(freeze, timeout_ns, error);
        }
        if (waited_ns > DEATH_LOOK_NS) {
            collect_deaths(freeze);
        }
        pace_wait(begin_ns);
    }
    return TRUE;
}

static guint count(const Freeze *freeze, FreezeThreadState state) {
    guint n = 0;
    for (guint i = 0; i < freeze->threads->len; i++) {
        n += thread_at(freeze, i)->state == state;
    }
    return n;
}

/*
 * Does the kernel count more threads than have stopped? The link count of /proc/PID/task is 2 + threads, one stat
 * instead of a listing. It counts an ended main thread too: then the listing is made, and finds nothing.
 */
static gboolean has_more_threads(const Freeze *freeze) {
    g_autofree char *path = g_strdup_printf("/proc/%d/task", freeze->pid);
    struct stat info;
    return stat(path, &info) == 0 && info.st_nlink != count(freeze, FREEZE_STOPPED) + 2;
}

static gboolean stop_all(Freeze *freeze, uint64_t timeout_ns, GError **error) {
    guint n_new = 1;
    while (n_new > 0) {
        interrupt_running(freeze);
        if (!collect_all(freeze, timeout_ns, error)) {
            return FALSE;
        }
        n_new = 0;
        if (has_more_threads(freeze) && !seize_new(freeze, &n_new, error)) {
            return FALSE;
        }
    }
    if (count(freeze, FREEZE_STOPPED) == 0) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_GUEST_GONE, "process %d has ended", freeze->pid);
        return FALSE;
    }
    return TRUE;
}

/* Forget the last point; keep those that are still seized because they could not be let go. */
static void forget(Freeze *freeze) {
    for (guint i = freeze->threads->len; i-- > 0;) {
        FreezeThread *thread = thread_at(freeze, i);
        if (thread->state == FREEZE_RUNNING && thread->seized) {
            thread->captured = FALSE;
        } else {
            g_array_remove_index(freeze->threads, i);
        }
    }
}

gboolean freeze_stop(Freeze *freeze, uint64_t timeout_ns, GError **error) {
    (void)freeze_go(freeze, NULL, NULL);
    forget(freeze);
    if (seize_all(freeze, error) && stop_all(freeze, timeout_ns, error)) {
        return TRUE;
    }
    if (!freeze->begin_ns) {
        interrupt_running(freeze); /* to be let go they have to be stopped */
        (void)collect_all(freeze, timeout_ns, NULL);
    }
    (void)freeze_go(freeze, NULL, NULL);
    return FALSE;
}

/* ---- going on -------------------------------------------------------------------------------------------- */

/*
 * A traced thread that was killed keeps its process from ending until its end is seen. A process of our own is
 * left to whoever waits for it.
 */
static void bury(const Freeze *freeze, FreezeThread *thread) {
    int status = 0;
    thread->state = FREEZE_ENDED;
    if (thread->tid == freeze->pid && target_status_number(freeze->pid, "\nPPid:") == getpid()) {
        return;
    }
    if (tracee_wait(thread->tid, pace_now_ns() + DEATH_TIMEOUT_NS, &status) == 0 && WIFSTOPPED(status)) {
        (void)ptrace(PTRACE_DETACH, thread->tid, NULL, (void *)(intptr_t)(status >> 16 ? 0 : WSTOPSIG(status)));
    }
}

gboolean freeze_go(Freeze *freeze, uint64_t *ret_stopped_ns, GError **error) {
    guint n_stopped = count(freeze, FREEZE_STOPPED), n_gone = 0;
    for (guint i = 0; i < freeze->threads->len; i++) {
        FreezeThread *thread = thread_at(freeze, i);
        if (thread->state != FREEZE_STOPPED) {
            continue;
        }
        thread->seized = FALSE;
        thread->state = FREEZE_RUNNING;
        if (ptrace(PTRACE_DETACH, thread->tid, NULL, (void *)(intptr_t)thread->signal) < 0) {
            thread->state = FREEZE_ENDED;
            n_gone++;
        }
    }
    uint64_t stopped_ns = end(freeze);
    /* From the end: the main thread's end, the first, is reported after all others' were seen. */
    for (guint i = freeze->threads->len; n_gone > 0 && i-- > 0;) {
        if (thread_at(freeze, i)->state == FREEZE_ENDED && thread_at(freeze, i)->captured) {
            bury(freeze, thread_at(freeze, i));
        }
    }
    if (ret_stopped_ns) {
        *ret_stopped_ns = stopped_ns;
    }
    if (n_gone > 0 && n_gone == n_stopped) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_GUEST_GONE, "process %d ended while it was stopped",
                    freeze->pid);
        return FALSE;
    }
    return TRUE;
}
