/*
 * Where the kernel is about to write the locks of a process: SnapGuestOps.list_spared. libsnap/spared.h says why
 * it has to be known.
 *
 * - What a thread waits for in futex(2) with one of the operations that write: the word is in its registers.
 * - The robust locks that a thread holds: in a list that the kernel knows, and marks when the thread ends.
 * - Where a process has been seen to wait for locks of the first kind: what a thread that runs is just about to
 * hand to futex(2) is in some register of it, so all of them count.
 * - Of a thread that is ending, which C libraries do with all signals blocked: what they keep beside the head of
 * the robust list, the number that its end clears (glibc: struct pthread, tid and robust_head; musl has it alike).
 *
 * Advice: what cannot be read is left out. Most processes use neither kind, and pay nothing for it in the pause.
 */
#pragma once

#include <glib.h>

#include "freeze.h"

G_BEGIN_DECLS

/* What a process was seen to use. */
typedef struct {
    gboolean waits;  /* a thread waited for a lock that the kernel writes */
    gboolean robust; /* a thread held a robust lock */
} LocksSeen;

/** locks_of_running: append addresses (uint64_t) of process @pid, which runs; some 10 µs a thread.
 * @seen: what is seen is added to it. */
void locks_of_running(int pid, LocksSeen *seen, GArray *addresses);

/** locks_of_stopped: append those of @n threads that stand still. */
void locks_of_stopped(const FreezeThread *threads, guint n, LocksSeen *seen, GArray *addresses);

G_END_DECLS
