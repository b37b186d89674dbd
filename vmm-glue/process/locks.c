/* What the kernel may write for a process: see locks.h. */
#include "locks.h"

#include <errno.h>
#include <linux/futex.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "target.h"

#ifndef FUTEX_LOCK_PI2
#define FUTEX_LOCK_PI2 13
#endif

enum {
    ROBUST_LOCKS_MAX = 64,       /* of one thread; the kernel itself follows 2048 */
    NUMBER_BEFORE_HEAD = 64,     /* bytes; glibc: 16 */
    KERNEL_ERESTARTSYS = 512,    /* the first and the last of what the kernel says inside */
    KERNEL_ERESTART_BLOCK = 516, /* of a call that a stop has interrupted */
};

/* What a system call was given: as far as any of these needs it. */
typedef struct {
    uint64_t number;
    uint64_t word, operation, second_word;
} Call;

static void spare(GArray *addresses, uint64_t address) {
    g_array_append_val(addresses, address);
}

/* Return: whether it is a call that writes. */
static gboolean spare_futex(GArray *addresses, const Call *call) {
    if (call->number != SYS_futex) {
        return FALSE;
    }
    switch ((int)call->operation & FUTEX_CMD_MASK) {
    case FUTEX_WAKE_OP:
    case FUTEX_WAIT_REQUEUE_PI:
    case FUTEX_CMP_REQUEUE_PI:
        spare(addresses, call->second_word);
        return TRUE;
    case FUTEX_LOCK_PI:
    case FUTEX_LOCK_PI2:
    case FUTEX_TRYLOCK_PI:
    case FUTEX_UNLOCK_PI:
        spare(addresses, call->word);
        return TRUE;
    default:
        return FALSE;
    }
}

/* ---- robust locks ---------------------------------------------------------------------------------------- */

static gboolean read_memory(pid_t tid, uint64_t address, void *data, size_t length) {
    struct iovec here = {data, length}, there = {(void *)(uintptr_t)address, length};
    return process_vm_readv(tid, &here, 1, &there, 1, 0) == (ssize_t)length;
}

/* The lowest bit of a pointer says that the lock has priority inheritance. */
static uint64_t entry_of(const void *pointer) {
    return (uint64_t)(uintptr_t)pointer & ~UINT64_C(1);
}

/* Where the list of a thread begins; 0: it has none. */
static uint64_t head_of(pid_t tid) {
    uint64_t at = 0;
    size_t length = 0;
    return syscall(SYS_get_robust_list, tid, &at, &length) == 0 ? at : 0;
}

/* Return: whether it holds one. */
static gboolean spare_robust(GArray *addresses, pid_t tid) {
    struct robust_list_head head;
    uint64_t at = head_of(tid);
    guint before = addresses->len;
    if (!at || !read_memory(tid, at, &head, sizeof(head))) {
        return FALSE;
    }
    uint64_t offset = (uint64_t)head.futex_offset;
    if (head.list_op_pending) {
        spare(addresses, entry_of(head.list_op_pending) + offset);
    }
    uint64_t entry = entry_of(head.list.next);
    for (int i = 0; i < ROBUST_LOCKS_MAX && entry && entry != at; i++) {
        struct robust_list next;
        spare(addresses, entry + offset);
        entry = read_memory(tid, entry, &next, sizeof(next)) ? entry_of(next.next) : 0;
    }
    return addresses->len > before;
}

/* What the end of a thread clears is close before the head. */
static void spare_number(GArray *addresses, pid_t tid) {
    uint64_t at = head_of(tid);
    if (at) {
        spare(addresses, at - NUMBER_BEFORE_HEAD);
        spare(addresses, at);
    }
}

/* ---- threads --------------------------------------------------------------------------------------------- */

/* /proc/PID/task/TID/syscall: "running", "-1 SP PC", or number, six arguments, SP and PC. */
static void look_at_running(int pid, pid_t tid, LocksSeen *seen, GArray *addresses) {
    g_autofree char *path = g_strdup_printf("/proc/%d/task/%d/syscall", pid, (int)tid);
    g_autofree char *text = NULL;
    Call call;
    if (g_file_get_contents(path, &text, NULL, NULL) &&
        sscanf(text,
               "%" G_GUINT64_FORMAT " %" G_GINT64_MODIFIER "x %" G_GINT64_MODIFIER "x %*x %*x %" G_GINT64_MODIFIER
               "x",
               &call.number, &call.word, &call.operation, &call.second_word) == 4) {
        seen->waits |= spare_futex(addresses, &call);
    }
    seen->robust |= spare_robust(addresses, tid);
}

void locks_of_running(int pid, LocksSeen *seen, GArray *addresses) {
    g_autoptr(GArray) tids = target_threads(pid, NULL);
    for (guint i = 0; tids && i < tids->len; i++) {
        look_at_running(pid, g_array_index(tids, pid_t, i), seen, addresses);
    }
}

static gboolean was_asleep(const struct user_regs_struct *registers) {
    int64_t result = -(int64_t)registers->rax;
    return (int64_t)registers->orig_rax >= 0 &&
           (result == EINTR || (result >= KERNEL_ERESTARTSYS && result <= KERNEL_ERESTART_BLOCK));
}

static void spare_registers(GArray *addresses, const struct user_regs_struct *registers) {
    const uint64_t values[] = {
        registers->rax, registers->rbx, registers->rcx, registers->rdx, registers->rsi, registers->rdi,
        registers->rbp, registers->rsp, registers->r8,  registers->r9,  registers->r10, registers->r11,
        registers->r12, registers->r13, registers->r14, registers->r15,
    };
    g_array_append_vals(addresses, values, G_N_ELEMENTS(values));
}

/* A thread that has nothing more to do with signals is at its end, or at its beginning. */
static gboolean may_be_ending(const FreezeThread *thread) {
    const uint64_t never = UINT64_C(1) << (SIGKILL - 1) | UINT64_C(1) << (SIGSTOP - 1);
    return (thread->signals_blocked | never) == UINT64_MAX;
}

static gboolean stands(const FreezeThread *thread) {
    return thread->captured && thread->state == FREEZE_STOPPED;
}

static void look_at_stopped(const FreezeThread *thread, LocksSeen *seen, GArray *addresses) {
    const struct user_regs_struct *registers = &thread->registers;
    if (was_asleep(registers)) {
        Call call = {registers->orig_rax, registers->rdi, registers->rsi, registers->r8};
        seen->waits |= spare_futex(addresses, &call);
    } else if (may_be_ending(thread)) {
        spare_number(addresses, thread->tid);
    }
    if (seen->robust) {
        (void)spare_robust(addresses, thread->tid);
    }
}

void locks_of_stopped(const FreezeThread *threads, guint n, LocksSeen *seen, GArray *addresses) {
    for (guint i = 0; i < n; i++) {
        if (stands(&threads[i])) {
            look_at_stopped(&threads[i], seen, addresses);
        }
    }
    for (guint i = 0; i < n && seen->waits; i++) {
        if (stands(&threads[i]) && !was_asleep(&threads[i].registers)) {
            spare_registers(addresses, &threads[i].registers);
        }
    }
}
