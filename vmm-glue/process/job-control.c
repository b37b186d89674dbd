/*
 * SIGSTOP and SIGCONT; see job-control.h.
 *
 * Happy path: the signal goes through the pidfd, so never to another process that has got the number since; then
 * the states of the threads are read from /proc until they are what was asked for. What was read there counts only
 * if the pidfd says afterwards that the process has not ended, as the number was not free till then.
 *
 * Failure modes: it ended; the signal is not permitted; a thread is in the kernel and cannot be stopped now. A
 * thread that is being attached to or let go by ptrace runs for a moment, although it stands: the caller sees to
 * it that nobody of ours does that meanwhile.
 */
#include "job-control.h"

#include "libsnap.h"
#include "target.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define TIMEOUT_US (5 * G_USEC_PER_SEC)
#define SETTLE_US G_USEC_PER_SEC /* no more, as somebody else may have continued it meanwhile */
#define STEP_US 500

static gboolean fail_gone(int pid, GError **error) {
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_GUEST_GONE, "process %d has ended", pid);
    return FALSE;
}

gboolean job_control_is_stopped(int pidfd, int pid, gboolean *ret_stopped, GError **error) {
    g_autoptr(GArray) threads = target_threads(pid, NULL);
    gboolean stopped = TRUE;
    for (guint i = 0; threads && i < threads->len && stopped; i++) {
        g_auto(GStrv) fields = target_stat_fields(pid, g_array_index(threads, pid_t, i));
        stopped = !fields[0] || strchr("TtZX", fields[0][0]); /* stopped, traced, ended */
    }
    struct pollfd end = {.fd = pidfd, .events = POLLIN};
    if (!threads || poll(&end, 1, 0) > 0) {
        return fail_gone(pid, error);
    }
    *ret_stopped = stopped;
    return TRUE;
}

/* Until it is @stopped, but no longer than the limit; *ret_in_time says which. */
static gboolean wait_until(int pidfd, int pid, gboolean stopped, gint64 timeout_us, gboolean *ret_in_time,
                           GError **error) {
    gint64 deadline = g_get_monotonic_time() + timeout_us;
    for (;;) {
        gboolean now = FALSE;
        if (!job_control_is_stopped(pidfd, pid, &now, error)) {
            return FALSE;
        }
        *ret_in_time = now == stopped;
        if (*ret_in_time || g_get_monotonic_time() > deadline) {
            return TRUE;
        }
        g_usleep(STEP_US);
    }
}

static gboolean send_signal(int pidfd, int pid, int signum, GError **error) {
    if (syscall(SYS_pidfd_send_signal, pidfd, signum, NULL, 0) == 0) {
        return TRUE;
    }
    if (errno == ESRCH) {
        return fail_gone(pid, error);
    }
    snap_set_errno(error, errno, "cannot send %s to process %d", signum == SIGSTOP ? "SIGSTOP" : "SIGCONT", pid);
    return FALSE;
}

gboolean job_control_stop(int pidfd, int pid, GError **error) {
    gboolean in_time = FALSE;
    if (!send_signal(pidfd, pid, SIGSTOP, error) || !wait_until(pidfd, pid, TRUE, TIMEOUT_US, &in_time, error)) {
        return FALSE;
    }
    if (!in_time) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_TIMED_OUT,
                    "process %d has not stopped yet: a thread sleeps in the kernel and cannot be interrupted",
                    pid);
    }
    return in_time;
}

gboolean job_control_cont(int pidfd, int pid, GError **error) {
    gboolean in_time = FALSE;
    if (!send_signal(pidfd, pid, SIGCONT, error) || !wait_until(pidfd, pid, FALSE, TIMEOUT_US, &in_time, error)) {
        return FALSE;
    }
    if (!in_time) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_TIMED_OUT,
                    "process %d does not go on: is it being traced, or stopped again by somebody else?", pid);
    }
    return in_time;
}

void job_control_settle(int pidfd, int pid) {
    gboolean in_time;
    (void)wait_until(pidfd, pid, TRUE, SETTLE_US, &in_time, NULL);
}
