/*
 * Stopping a process as a shell does, for as long as one likes: SIGSTOP and SIGCONT.
 *
 * Unlike freeze.h, nobody has to stay attached, and it outlives the caller. The process can tell: its parent is
 * told, and a handler of SIGCONT runs.
 *
 * Thread: any. @pidfd tells which process it is; @pid is its number, for /proc.
 */
#pragma once

#include <glib.h>

G_BEGIN_DECLS

/**
 * job_control_stop: stop it, and wait until all its threads stand. One that stands already stays so.
 * Errors: GUEST_GONE; PERMISSION; TIMED_OUT, a thread sleeps in the kernel: it stops when it comes out.
 */
gboolean job_control_stop(int pidfd, int pid, GError **error);

/** job_control_cont: let it run, and wait until it does. Errors: GUEST_GONE; PERMISSION; TIMED_OUT. */
gboolean job_control_cont(int pidfd, int pid, GError **error);

/** job_control_is_stopped: whether all its threads stand, whoever has stopped it. Errors: GUEST_GONE. */
gboolean job_control_is_stopped(int pidfd, int pid, gboolean *ret_stopped, GError **error);

/** job_control_settle: it stood, was traced, and was let go: wait until it stands again, which it does by itself.
 */
void job_control_settle(int pidfd, int pid);

G_END_DECLS
