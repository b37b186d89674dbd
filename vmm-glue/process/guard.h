/*
 * The guard: a process of its own that finishes what must not be left half done when we are killed.
 *
 * kill -9 of the snapshotter must never leave a guest changed or stopped. What changes a guest is therefore done
 * by the guard, to its end; what stops it is undone by the guard when it sees our end of their socket close.
 *
 * Thread: one at a time.
 */
#pragma once

#include <glib.h>
#include <stddef.h>

G_BEGIN_DECLS

typedef struct Guard Guard;

#define GUARD_BYTES_MAX 1024

/**
 * guard_new: fork a guard. It has a session of its own, no descriptor of ours but the socket, and the name
 *   "vmsnap-guard". Best made early: the pages we have by then are shared with it copy-on-write.
 * Errors: IO.
 * Return: (out) free with guard_free().
 */
Guard *guard_new(GError **error);

/** guard_free: end the guard, without its acting on our death, and reap it. NULL is allowed. */
void guard_free(Guard *guard);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Guard, guard_free)

/**
 * guard_open_uffd: a new userfaultfd of the address space of @pid, before UFFDIO_API. Nothing is left in the
 * target, not even when this process is killed meanwhile. Blocks for about a millisecond, at most some seconds.
 * The guard serves any @pid; it need not be the same every time. Errors: PERMISSION; GUEST_GONE; TIMED_OUT, no
 * thread could be stopped; NOT_SUPPORTED; FAILED. Return: (out) the descriptor, O_CLOEXEC | O_NONBLOCK; -1 on
 * error.
 */
int guard_open_uffd(Guard *guard, int pid, GError **error);

/**
 * guard_on_death: from now on, if this process dies, the guard writes @bytes to @fd.
 *   One send on a socket, no waiting (some 5 us): the guard reads all we sent before it sees our end, so the order
 *   is in force as soon as the call returns. Replaces the order before it.
 * @fd: (borrow) passed to the guard. @bytes: (borrow), @length_bytes <= GUARD_BYTES_MAX.
 * Errors: FAILED, the guard is gone.
 */
gboolean guard_on_death(Guard *guard, int fd, const void *bytes, size_t length_bytes, GError **error);

/** guard_clear_on_death: nothing is to be written any more; as quick. */
void guard_clear_on_death(Guard *guard);

/** guard_pid: the guard's process id, for tests and listings. */
int guard_pid(const Guard *guard);

G_END_DECLS
