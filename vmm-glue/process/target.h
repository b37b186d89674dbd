/*
 * Is this a process that can be attached to, and what does /proc say about it.
 */
#pragma once

#include <glib.h>
#include <sys/types.h>

G_BEGIN_DECLS

/**
 * target_check: refuse what cannot be a guest, before anything is touched.
 * Errors: NOT_FOUND, no such process, or a thread's id, or one that has ended (a zombie); NOT_SUPPORTED, a kernel
 *   thread, a 32-bit program, or one whose main thread has ended; REFUSED, it is this very process, or traced by
 * another; PERMISSION, this user may not trace it. Each names @pid and says why.
 */
gboolean target_check(int pid, GError **error);

/** target_check_tracer: the part of it that may change at any moment: REFUSED, somebody traces the process, by
 * name. */
gboolean target_check_tracer(int pid, GError **error);

/**
 * target_threads: the threads of @pid now, the main thread first.
 * Errors: GUEST_GONE, it has ended.
 * Return: (out) an array of pid_t, g_array_unref() it.
 */
GArray *target_threads(int pid, GError **error);

/** target_name: what the kernel calls thread @tid of @pid, "?" when it is gone. Return: (out) g_free() it. */
char *target_name(int pid, pid_t tid);

/** target_status_number: the number in line @key ("TracerPid:") of /proc/@pid/status, or -1. */
gint64 target_status_number(int pid, const char *key);

/**
 * target_stat_fields: the fields of /proc/@pid/task/@tid/stat from the third on, which proc(5) calls (3) state.
 * Return: (out) g_strfreev() it; an empty vector when the thread is gone.
 */
char **target_stat_fields(int pid, pid_t tid);

/** target_has_ended: whether thread @tid of @pid is no more, or not reaped yet. */
gboolean target_has_ended(int pid, pid_t tid);

/**
 * target_identity: what tells @pid from every process before and after it, on this machine and others: the boot,
 * the number and when it began. Return: (out) g_free() it; NULL when it is gone.
 */
char *target_identity(int pid);

G_END_DECLS
