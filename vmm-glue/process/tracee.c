/*
 * ptrace on one thread, in the way that leaves no trace.
 *
 *     SEIZE → INTERRUPT → wait → save registers and mask, block all signals → (call)… → put back → DETACH
 *
 * Why each is as it is:
 * - SEIZE, because ATTACH sends a SIGSTOP that others can see.
 * - All signals are blocked while calls run, so that none is taken from the queue and lost; what is pending then
 * is delivered after the detach, by the kernel, with its siginfo. SIGSTOP cannot be blocked: it is held back and
 * sent again. A process that is stopped (^Z) runs our calls nevertheless and is stopped again by the detach.
 * - orig_rax = -1 says "not in a system call", so that the kernel does not rewind our registers to restart the
 * call that the stop interrupted; with the saved registers back in place it does so then.
 * - A restartable sequence (rseq) would be cut in two by a jump elsewhere: the kernel forgets the sequence when it
 *   sees the foreign address, and does not abort it any more. Such a thread is let go untouched.
 */
#include "tracee.h"

#include <elf.h>
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "pace.h"

#define CODE_SEGMENT_64_BIT 0x33 /* __USER_CS */
#define KERNEL_ERESTARTNOHAND 514
#define SYSCALL_INSTRUCTION_BYTES 2
#define SIGNAL_SET_BYTES 8 /* the kernel's sigset_t */
#define CALL_TIMEOUT_NS (2 * G_GUINT64_CONSTANT(1000000000))

int tracee_wait(pid_t tid, uint64_t deadline_ns, int *ret_status) {
    uint64_t begin = pace_now_ns();
    for (;;) {
        pid_t got = waitpid(tid, ret_status, __WALL | WNOHANG);
        if (got == tid) {
            return 0;
        }
        if (got < 0 && errno != EINTR) {
            return -errno;
        }
        if (pace_now_ns() >= deadline_ns) {
            return -ETIMEDOUT;
        }
        pace_wait(begin);
    }
}

gboolean tracee_restart_interrupted(struct user_regs_struct *registers) {
    static const uint16_t calls[] = {
        SYS_epoll_wait,      SYS_epoll_pwait, SYS_epoll_pwait2, SYS_semop,         SYS_semtimedop,
        SYS_rt_sigtimedwait, SYS_read,        SYS_readv,        SYS_write,         SYS_writev,
        SYS_recvfrom,        SYS_recvmsg,     SYS_recvmmsg,     SYS_sendto,        SYS_sendmsg,
        SYS_accept,          SYS_accept4,     SYS_io_getevents, SYS_io_pgetevents, SYS_io_uring_enter,
    };
    if ((int64_t)registers->rax != -EINTR) {
        return FALSE;
    }
    for (size_t i = 0; i < G_N_ELEMENTS(calls); i++) {
        if (registers->orig_rax == calls[i]) {
            registers->rax = (uint64_t)-KERNEL_ERESTARTNOHAND;
            return TRUE;
        }
    }
    return FALSE;
}

/* Wait for the stop that INTERRUPT asked for, or a group-stop. */
static int wait_for_stop(pid_t tid, uint64_t timeout_ns) {
    uint64_t deadline = pace_now_ns() + timeout_ns;
    for (;;) {
        int status = 0;
        int r = tracee_wait(tid, deadline, &status);
        if (r < 0) {
            return r == -ECHILD ? -ESRCH : r;
        }
        if (!WIFSTOPPED(status)) {
            return -ESRCH;
        }
        if (status >> 16 == PTRACE_EVENT_STOP) {
            return 0;
        }
        /* A signal was on its way. Our stop is still due: it comes right after the handler's frame was made. */
        if (ptrace(PTRACE_CONT, tid, NULL, (void *)(intptr_t)WSTOPSIG(status)) < 0) {
            return -errno;
        }
    }
}

static int read_registers(Tracee *tracee) {
    struct iovec part = {&tracee->registers, sizeof(tracee->registers)};
    if (ptrace(PTRACE_GETREGSET, tracee->tid, (void *)(intptr_t)NT_PRSTATUS, &part) < 0) {
        return -errno;
    }
    return part.iov_len == sizeof(tracee->registers) && tracee->registers.cs == CODE_SEGMENT_64_BIT ? 0 : -ENOEXEC;
}

static gboolean read_memory(pid_t pid, uint64_t address, void *data, size_t length) {
    struct iovec here = {data, length};
    struct iovec there = {(void *)(uintptr_t)address, length};
    return process_vm_readv(pid, &here, 1, &there, 1, 0) == (ssize_t)length;
}

static gboolean in_restartable_sequence(const Tracee *tracee) {
    struct __ptrace_rseq_configuration config = {0};
    uint64_t descriptor = 0;
    struct { /* struct rseq_cs of linux/rseq.h */
        uint32_t version, flags;
        uint64_t start, length, abort;
    } sequence;
    const size_t descriptor_offset = 8; /* struct rseq, member rseq_cs */
    if (ptrace(PTRACE_GET_RSEQ_CONFIGURATION, tracee->tid, (void *)sizeof(config), &config) < 0 ||
        !config.rseq_abi_pointer ||
        !read_memory(tracee->tid, config.rseq_abi_pointer + descriptor_offset, &descriptor, sizeof(descriptor)) ||
        !descriptor || !read_memory(tracee->tid, descriptor, &sequence, sizeof(sequence))) {
        return FALSE;
    }
    return tracee->registers.rip - sequence.start < sequence.length;
}

static int take_over(Tracee *tracee) {
    int r = read_registers(tracee);
    if (r < 0) {
        return r;
    }
    if (in_restartable_sequence(tracee)) {
        return -EAGAIN;
    }
    (void)tracee_restart_interrupted(&tracee->registers);
    uint64_t all = UINT64_MAX;
    if (ptrace(PTRACE_GETSIGMASK, tracee->tid, (void *)SIGNAL_SET_BYTES, &tracee->signal_mask) < 0 ||
        ptrace(PTRACE_SETSIGMASK, tracee->tid, (void *)SIGNAL_SET_BYTES, &all) < 0) {
        return -errno;
    }
    return 0;
}

int tracee_stop(Tracee *tracee, gboolean seccomp, uint64_t timeout_ns) {
    uintptr_t options = seccomp ? PTRACE_O_SUSPEND_SECCOMP : 0;
    tracee->stop_again = FALSE;
    if (ptrace(PTRACE_SEIZE, tracee->tid, NULL, (void *)options) < 0) {
        return -errno;
    }
    int r =
        ptrace(PTRACE_INTERRUPT, tracee->tid, NULL, NULL) < 0 ? -errno : wait_for_stop(tracee->tid, timeout_ns);
    if (r == 0) {
        r = take_over(tracee);
    }
    if (r < 0 && r != -ETIMEDOUT) {
        (void)ptrace(PTRACE_DETACH, tracee->tid, NULL, NULL);
    }
    return r;
}

/* Let it run one instruction. What must not interfere is put off or passed over. */
static int step(Tracee *tracee) {
    uint64_t deadline = pace_now_ns() + CALL_TIMEOUT_NS;
    for (;;) {
        int status = 0;
        if (ptrace(PTRACE_SINGLESTEP, tracee->tid, NULL, NULL) < 0) {
            return -errno;
        }
        int r = tracee_wait(tracee->tid, deadline, &status);
        if (r < 0) {
            return r;
        }
        if (!WIFSTOPPED(status)) {
            return -ESRCH;
        }
        if (status >> 16 == PTRACE_EVENT_STOP) {
            continue; /* stopped or continued by job control: the instruction has not run yet */
        }
        if (WSTOPSIG(status) == SIGSTOP) {
            tracee->stop_again = TRUE;
            continue;
        }
        return WSTOPSIG(status) == SIGTRAP ? 0 : -ENOSYS; /* SIGSYS: the call was taken away from us */
    }
}

int tracee_call(Tracee *tracee, long number, const uint64_t arguments[6], int64_t *ret_result) {
    struct user_regs_struct registers = tracee->registers;
    registers.rip = tracee->syscall_address;
    registers.orig_rax = UINT64_MAX;
    registers.rax = (uint64_t)number;
    registers.rdi = arguments[0];
    registers.rsi = arguments[1];
    registers.rdx = arguments[2];
    registers.r10 = arguments[3];
    registers.r8 = arguments[4];
    registers.r9 = arguments[5];
    if (ptrace(PTRACE_SETREGS, tracee->tid, NULL, &registers) < 0) {
        return -errno;
    }
    int r = step(tracee);
    if (r < 0) {
        return r;
    }
    if (ptrace(PTRACE_GETREGS, tracee->tid, NULL, &registers) < 0) {
        return -errno;
    }
    if (registers.rip != tracee->syscall_address + SYSCALL_INSTRUCTION_BYTES) {
        return -ENOSYS;
    }
    *ret_result = (int64_t)registers.rax;
    return 0;
}

int tracee_go(Tracee *tracee) {
    int r = 0;
    if (ptrace(PTRACE_SETREGS, tracee->tid, NULL, &tracee->registers) < 0 ||
        ptrace(PTRACE_SETSIGMASK, tracee->tid, (void *)SIGNAL_SET_BYTES, &tracee->signal_mask) < 0) {
        r = -errno;
    }
    if (ptrace(PTRACE_DETACH, tracee->tid, NULL, NULL) < 0) {
        r = -errno;
    }
    if (tracee->stop_again) {
        (void)syscall(SYS_tgkill, tracee->pid, tracee->tid, SIGSTOP);
    }
    return r;
}
