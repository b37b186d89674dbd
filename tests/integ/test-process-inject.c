/*
 * A userfaultfd is taken out of processes that do all kinds of things, and none of them notices.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "guard.h"
#include "libsnap.h"
#include "process-target.h"
#include "target.h"

enum { SKIPPED = 77, MEMORY_BYTES = 1 << 20, WAIT_MS = 1000 };

/* ---- what the children do -------------------------------------------------------------------------------- */

static void finish(TargetShared *shared, uint64_t begin, long result) {
    shared->result = result < 0 ? -errno : result;
    shared->elapsed_ns = target_clock_ns() - begin;
}

#define WAITING(name, call)                                                                                       \
    static void name(TargetShared *shared) {                                                                      \
        uint64_t begin = target_clock_ns();                                                                       \
        char buffer[16];                                                                                          \
        (void)buffer;                                                                                             \
        shared->ready = 1;                                                                                        \
        finish(shared, begin, call);                                                                              \
    }

static const struct timespec wait_time = {.tv_sec = WAIT_MS / 1000};
static int word;

static int epoll_of(const TargetShared *shared) {
    struct epoll_event event = {.events = EPOLLIN};
    int fd = epoll_create1(EPOLL_CLOEXEC);
    epoll_ctl(fd, EPOLL_CTL_ADD, shared->pipe[0], &event);
    return fd;
}

static long wait_by_epoll(const TargetShared *shared, int timeout_ms) {
    struct epoll_event event;
    return epoll_wait(epoll_of(shared), &event, 1, timeout_ms);
}

static long wait_by_sigtimedwait(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    sigprocmask(SIG_BLOCK, &set, NULL);
    return sigtimedwait(&set, NULL, &wait_time);
}

static long wait_by_semop(void) {
    int id = semget(IPC_PRIVATE, 1, 0600);
    struct sembuf down = {.sem_num = 0, .sem_op = -1};
    long r = semtimedop(id, &down, 1, &wait_time);
    int errnum = errno;
    semctl(id, 0, IPC_RMID);
    errno = errnum;
    return r;
}

static long receive_with_timeout(const TargetShared *shared) {
    struct timeval limit = {.tv_sec = WAIT_MS / 1000};
    char byte;
    setsockopt(shared->sockets[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    return recv(shared->sockets[0], &byte, 1, 0);
}

static long send_much(const TargetShared *shared) {
    static char bytes[4000];
    /* Full first: a transfer that has moved something already ends with that count, as after any stop. */
    while (send(shared->sockets[0], bytes, sizeof(bytes), MSG_DONTWAIT) > 0) {
    }
    struct iovec part = {bytes, sizeof(bytes)};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    return sendmsg(shared->sockets[0], &message, 0);
}

static struct pollfd poll_of(const TargetShared *shared) {
    return (struct pollfd){.fd = shared->pipe[0], .events = POLLIN};
}

WAITING(in_nanosleep, nanosleep(&wait_time, NULL))
WAITING(in_clock_nanosleep, (errno = clock_nanosleep(CLOCK_MONOTONIC, 0, &wait_time, NULL), errno ? -1 : 0))
WAITING(in_futex, syscall(SYS_futex, &word, FUTEX_WAIT, 0, &wait_time, NULL, 0))
WAITING(in_ppoll, (ppoll((struct pollfd[]){poll_of(shared)}, 1, &wait_time, &(sigset_t){0})))
WAITING(in_poll, (poll((struct pollfd[]){poll_of(shared)}, 1, -1)))
WAITING(in_epoll, wait_by_epoll(shared, WAIT_MS))
WAITING(in_epoll_forever, wait_by_epoll(shared, -1))
WAITING(in_sigtimedwait, wait_by_sigtimedwait())
WAITING(in_semop, wait_by_semop())
WAITING(in_recv_timeout, receive_with_timeout(shared))
WAITING(in_read, read(shared->pipe[0], buffer, sizeof(buffer)))
WAITING(in_sendmsg, send_much(shared))

static void in_a_loop(TargetShared *shared) {
    double x = 1.0; /* floating point must survive as well */
    for (uint64_t i = 0;; i++) {
        x = x * 1.0000001 + (double)(i & 7);
        double back = (x - (double)(i & 7)) / 1.0000001;
        if (back < 0) {
            shared->result++;
        }
        if (x > 1e15) {
            x = 1.0;
        }
        shared->steps++;
        shared->ready = 1;
    }
}

/* ---- opening --------------------------------------------------------------------------------------------- */

/* A descriptor that works on @memory of process @pid? */
static void check_uffd(int fd, void *memory) {
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP};
    assert_int_equal(ioctl(fd, UFFDIO_API, &api), 0);
    struct uffdio_register range = {.range = {.start = (uintptr_t)memory, .len = MEMORY_BYTES},
                                    .mode = UFFDIO_REGISTER_MODE_WP};
    if (ioctl(fd, UFFDIO_REGISTER, &range) != 0) {
        fail_msg("UFFDIO_REGISTER: %s", strerror(errno));
    }
    assert_true(fcntl(fd, F_GETFL) & O_NONBLOCK);
    assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
}

static void *memory;

static void open_and_check(Guard *guard, pid_t pid) {
    g_autoptr(GError) error = NULL;
    g_autofree char *before = target_descriptors(pid);
    int fd = guard_open_uffd(guard, pid, &error);
    if (error) {
        fail_msg("%s", error->message);
    }
    g_autofree char *after = target_descriptors(pid);
    check_uffd(fd, memory);
    close(fd);
    assert_string_equal(before, after);
    assert_int_equal(target_tracer(pid), 0);
}

static int set_up(void **state) {
    (void)state;
    memory = mmap(NULL, MEMORY_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return memory == MAP_FAILED;
}

/* ---- waiting calls --------------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    void (*body)(TargetShared *);
    gboolean wake;  /* by a byte in the pipe */
    gboolean drain; /* by reading the other socket */
    int64_t expected;
} waits[] = {
    {"nanosleep", in_nanosleep, FALSE, FALSE, 0},
    {"clock_nanosleep", in_clock_nanosleep, FALSE, FALSE, 0},
    {"futex", in_futex, FALSE, FALSE, -ETIMEDOUT},
    {"ppoll timing out", in_ppoll, FALSE, FALSE, 0},
    {"ppoll woken", in_ppoll, TRUE, FALSE, 1},
    {"poll", in_poll, TRUE, FALSE, 1},
    {"epoll_wait timing out", in_epoll, FALSE, FALSE, 0},
    {"epoll_wait woken", in_epoll_forever, TRUE, FALSE, 1},
    {"sigtimedwait", in_sigtimedwait, FALSE, FALSE, -EAGAIN},
    {"semtimedop", in_semop, FALSE, FALSE, -EAGAIN},
    {"recv with a timeout", in_recv_timeout, FALSE, FALSE, -EAGAIN},
    {"read of a pipe", in_read, TRUE, FALSE, 1},
    {"sendmsg to a full socket", in_sendmsg, FALSE, TRUE, 4000},
};

static void drain(const Target *target) {
    static char bytes[1 << 16];
    while (!target->shared->done) {
        if (recv(target->shared->sockets[1], bytes, sizeof(bytes), MSG_DONTWAIT) < 0) {
            target_sleep_ms(1);
        }
    }
}

static void waiting_call_interrupted_goes_on(void **state) {
    (void)state;
    g_autoptr(Guard) guard = guard_new(NULL);
    for (size_t i = 0; i < G_N_ELEMENTS(waits); i++) {
        g_autoptr(Target) target = target_start(waits[i].body);
        target_sleep_ms(20);
        for (int k = 0; k < 3; k++) {
            open_and_check(guard, target->pid);
            target_sleep_ms(5);
        }
        if (target->shared->done) {
            fail_msg("%s ended early with %ld", waits[i].name, (long)target->shared->result);
        }
        if (waits[i].wake) {
            assert_int_equal(write(target->shared->pipe[1], "x", 1), 1);
        }
        if (waits[i].drain) {
            drain(target);
        }
        if (!target_await_done(target, 10000)) {
            fail_msg("%s never ended", waits[i].name);
        }
        if (target->shared->result != waits[i].expected) {
            fail_msg("%s gave %ld", waits[i].name, (long)target->shared->result);
        }
        if (!waits[i].wake && !waits[i].drain) {
            assert_true(target->shared->elapsed_ns >= WAIT_MS * UINT64_C(1000000));
        }
    }
}

static void computation_interrupted_goes_on(void **state) {
    (void)state;
    g_autoptr(Guard) guard = guard_new(NULL);
    g_autoptr(Target) target = target_start(in_a_loop);
    for (int i = 0; i < 50; i++) {
        uint64_t steps = target->shared->steps;
        open_and_check(guard, target->pid);
        assert_true(target_await(&target->shared->steps, steps + 1000, 2000));
    }
    assert_int_equal(target->shared->result, 0);
}

/* ---- signals --------------------------------------------------------------------------------------------- */

static TargetShared *volatile counting;

static void count_signal(int number) {
    (void)number;
    counting->signals++;
}

static void counting_signals(TargetShared *shared) {
    struct sigaction action = {.sa_handler = count_signal, .sa_flags = SA_RESTART};
    counting = shared;
    sigaction(SIGRTMIN, &action, NULL);
    shared->ready = 1;
    for (;;) {
        poll((struct pollfd[]){poll_of(shared)}, 1, 1);
        shared->steps++;
    }
}

static void signals_during_injection_are_all_delivered(void **state) {
    (void)state;
    enum { N_SIGNALS = 600 };
    g_autoptr(Guard) guard = guard_new(NULL);
    g_autoptr(Target) target = target_start(counting_signals);
    pid_t sender = fork();
    if (sender == 0) {
        for (int i = 0; i < N_SIGNALS; i++) {
            while (sigqueue(target->pid, SIGRTMIN, (union sigval){0}) < 0 && errno == EAGAIN) {
            }
            usleep(100);
        }
        _exit(0);
    }
    while (waitpid(sender, NULL, WNOHANG) == 0) {
        open_and_check(guard, target->pid);
    }
    assert_true(target_await(&target->shared->signals, N_SIGNALS, 2000));
    assert_int_equal(target->shared->signals, N_SIGNALS);
}

static void stopped_process_injected_stays_stopped(void **state) {
    (void)state;
    g_autoptr(Guard) guard = guard_new(NULL);
    g_autoptr(Target) target = target_start(in_a_loop);
    kill(target->pid, SIGSTOP);
    assert_true(target_await_state(target->pid, 'T'));
    uint64_t steps = target->shared->steps;
    open_and_check(guard, target->pid);
    target_sleep_ms(20);
    assert_int_equal(target_state(target->pid), 'T');
    assert_int_equal(target->shared->steps, steps);
    kill(target->pid, SIGCONT);
    assert_true(target_await(&target->shared->steps, steps + 1, 1000));
}

static void stop_and_continue_during_injection_are_obeyed(void **state) {
    (void)state;
    g_autoptr(Guard) guard = guard_new(NULL);
    g_autoptr(Target) target = target_start(in_a_loop);
    for (int i = 0; i < 40; i++) {
        pid_t sender = fork();
        if (sender == 0) {
            usleep((useconds_t)(i * 20));
            kill(target->pid, SIGSTOP);
            _exit(0);
        }
        open_and_check(guard, target->pid);
        waitpid(sender, NULL, 0);
        assert_true(target_await_state(target->pid, 'T'));
        kill(target->pid, SIGCONT);
        uint64_t steps = target->shared->steps;
        assert_true(target_await(&target->shared->steps, steps + 1, 1000));
    }
}

/* ---- confined targets ------------------------------------------------------------------------------------ */

static void as_nobody(TargetShared *shared) {
    if (setresgid(65534, 65534, 65534) < 0 || setresuid(65534, 65534, 65534) < 0) {
        _exit(1);
    }
    in_nanosleep(shared);
}

static void under_seccomp(TargetShared *shared) {
    struct sock_filter rules[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 3, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_socketpair, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_close, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
    };
    struct sock_fprog program = {.len = G_N_ELEMENTS(rules), .filter = rules};
    if (setresuid(65534, 65534, 65534) < 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0) {
        _exit(1);
    }
    in_nanosleep(shared);
}

static void unprivileged_process_gets_one_through_the_device(void **state) {
    (void)state;
    g_autoptr(Guard) guard = guard_new(NULL);
    g_autoptr(Target) target = target_start(as_nobody);
    open_and_check(guard, target->pid);
    assert_true(target_await_done(target, 10000));
    assert_int_equal(target->shared->result, 0);
}

static void filtered_process_survives_forbidden_calls(void **state) {
    (void)state;
    g_autoptr(Guard) guard = guard_new(NULL);
    g_autoptr(Target) target = target_start(under_seccomp);
    open_and_check(guard, target->pid);
    assert_true(target_await_done(target, 10000));
    assert_int_equal(target->shared->result, 0);
}

/* ---- kill -9 --------------------------------------------------------------------------------------------- */

static void await_end(pid_t pid) {
    for (int i = 0; i < 1000 && !strchr("?Z", target_state(pid)); i++) {
        target_sleep_ms(1);
    }
    assert_non_null(strchr("?Z", target_state(pid)));
}

static void snapshotter_killed_leaves_target_as_it_was(void **state) {
    (void)state;
    g_autoptr(Target) target = target_start(in_a_loop);
    g_autofree char *before = target_descriptors(target->pid);
    for (int i = 0; i < 40; i++) {
        pid_t snapshotter = fork();
        if (snapshotter == 0) {
            Guard *guard = guard_new(NULL);
            target->shared->result = guard_pid(guard);
            for (;;) {
                int fd = guard_open_uffd(guard, target->pid, NULL);
                close(fd);
            }
        }
        usleep((useconds_t)(2000 + i * 137));
        kill(snapshotter, SIGKILL);
        waitpid(snapshotter, NULL, 0);
        uint64_t steps = target->shared->steps;
        if (!target_await(&target->shared->steps, steps + 1000, 3000)) {
            fail_msg("the target stands still in state %c, traced by %d", target_state(target->pid),
                     (int)target_tracer(target->pid));
        }
        await_end((pid_t)target->shared->result);
        g_autofree char *after = target_descriptors(target->pid);
        assert_string_equal(before, after);
        assert_int_equal(target_tracer(target->pid), 0);
    }
}

static void guard_killed_fails_cleanly(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    g_autoptr(Guard) guard = guard_new(NULL);
    g_autoptr(Target) target = target_start(in_a_loop);
    kill(guard_pid(guard), SIGKILL);
    target_sleep_ms(20);
    assert_int_equal(guard_open_uffd(guard, target->pid, &error), -1);
    assert_true(g_error_matches(error, SNAP_ERROR, SNAP_ERROR_FAILED));
    g_clear_error(&error);
    assert_false(guard_on_death(guard, target->shared->pipe[1], "x", 1, &error));
    assert_true(g_error_matches(error, SNAP_ERROR, SNAP_ERROR_FAILED));
}

/* Fork a process that gives the order (and takes it back if @clear), then dies; what came through the pipe? */
static ssize_t order_and_die(gboolean clear, gboolean orderly, char *bytes, size_t length) {
    int ends[2];
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    pid_t pid = fork();
    if (pid == 0) {
        Guard *guard = guard_new(NULL);
        guard_on_death(guard, ends[1], "{\"execute\":\"cont\"}\n", 19, NULL);
        if (clear) {
            guard_clear_on_death(guard);
        }
        if (orderly) {
            guard_free(guard);
        }
        kill(getpid(), SIGKILL);
    }
    waitpid(pid, NULL, 0);
    close(ends[1]);
    ssize_t n = read(ends[0], bytes, length);
    close(ends[0]);
    return n;
}

static void parent_killed_guard_says_last_words(void **state) {
    (void)state;
    char bytes[64] = "";
    for (int i = 0; i < 20; i++) {
        assert_int_equal(order_and_die(FALSE, FALSE, bytes, sizeof(bytes)), 19);
        assert_memory_equal(bytes, "{\"execute\":\"cont\"}\n", 19);
        assert_int_equal(order_and_die(TRUE, FALSE, bytes, sizeof(bytes)), 0);
        assert_int_equal(order_and_die(FALSE, TRUE, bytes, sizeof(bytes)), 0);
    }
}

/* ---- refusals -------------------------------------------------------------------------------------------- */

static void expect_refusal(int pid, SnapErrorCode code, const char *words) {
    g_autoptr(GError) error = NULL;
    assert_false(target_check(pid, &error));
    if (!g_error_matches(error, SNAP_ERROR, (gint)code) || !strstr(error->message, words)) {
        fail_msg("process %d: code %d, \"%s\", not \"%s\"", pid, error->code, error->message, words);
    }
}

static void impossible_target_is_refused_by_name(void **state) {
    (void)state;
    expect_refusal(0x3fffff, SNAP_ERROR_NOT_FOUND, "no process 4194303");
    expect_refusal(0, SNAP_ERROR_NOT_FOUND, "no process 0");
    expect_refusal(getpid(), SNAP_ERROR_REFUSED, "itself");
    expect_refusal(2, SNAP_ERROR_NOT_SUPPORTED, "kernel thread");
}

static void zombie_is_refused(void **state) {
    (void)state;
    pid_t pid = fork();
    if (pid == 0) {
        _exit(0);
    }
    assert_true(target_await_state(pid, 'Z'));
    expect_refusal(pid, SNAP_ERROR_NOT_FOUND, "zombie");
    waitpid(pid, NULL, 0);
}

static void *stay(void *opaque) {
    for (;;) {
        pause();
    }
    return opaque;
}

static void without_main_thread(TargetShared *shared) {
    pthread_t thread;
    pthread_create(&thread, NULL, stay, NULL);
    shared->ready = 1;
    pthread_exit(NULL);
}

static void process_without_main_thread_is_refused(void **state) {
    (void)state;
    g_autoptr(Target) target = target_start(without_main_thread);
    assert_true(target_await_state(target->pid, 'Z'));
    expect_refusal(target->pid, SNAP_ERROR_NOT_SUPPORTED, "main thread has ended");
}

static void thread_id_is_refused(void **state) {
    (void)state;
    pthread_t thread;
    pthread_create(&thread, NULL, stay, NULL);
    g_autoptr(GArray) threads = target_threads(getpid(), NULL);
    assert_int_equal(threads->len, 2);
    expect_refusal(g_array_index(threads, pid_t, 1), SNAP_ERROR_NOT_FOUND, "is a thread of process");
    pthread_cancel(thread);
    pthread_join(thread, NULL);
}

static void traced_process_is_refused(void **state) {
    (void)state;
    g_autoptr(Target) target = target_start(in_a_loop);
    assert_int_equal(ptrace(PTRACE_SEIZE, target->pid, NULL, NULL), 0);
    expect_refusal(target->pid, SNAP_ERROR_REFUSED, "traced by process");
    g_autoptr(GError) error = NULL;
    g_autoptr(Guard) guard = guard_new(NULL);
    assert_int_equal(guard_open_uffd(guard, target->pid, &error), -1);
    assert_true(g_error_matches(error, SNAP_ERROR, SNAP_ERROR_REFUSED));
    assert_non_null(strstr(error->message, "traced by process"));
}

static void user_without_permission_is_refused(void **state) {
    (void)state;
    g_autoptr(Target) target = target_start(in_a_loop);
    pid_t pid = fork();
    if (pid == 0) {
        g_autoptr(GError) error = NULL;
        if (setresuid(65534, 65534, 65534) < 0) {
            _exit(3);
        }
        gboolean ok = !target_check(target->pid, &error) &&
                      g_error_matches(error, SNAP_ERROR, SNAP_ERROR_PERMISSION) &&
                      strstr(error->message, "run as root");
        _exit(ok ? 0 : 1);
    }
    int status = 0;
    waitpid(pid, &status, 0);
    assert_int_equal(status, 0);
}

int main(void) {
    if (geteuid() != 0) {
        print_message("needs root\n");
        return SKIPPED;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(waiting_call_interrupted_goes_on),
        cmocka_unit_test(computation_interrupted_goes_on),
        cmocka_unit_test(signals_during_injection_are_all_delivered),
        cmocka_unit_test(stopped_process_injected_stays_stopped),
        cmocka_unit_test(stop_and_continue_during_injection_are_obeyed),
        cmocka_unit_test(unprivileged_process_gets_one_through_the_device),
        cmocka_unit_test(filtered_process_survives_forbidden_calls),
        cmocka_unit_test(snapshotter_killed_leaves_target_as_it_was),
        cmocka_unit_test(guard_killed_fails_cleanly),
        cmocka_unit_test(parent_killed_guard_says_last_words),
        cmocka_unit_test(impossible_target_is_refused_by_name),
        cmocka_unit_test(zombie_is_refused),
        cmocka_unit_test(process_without_main_thread_is_refused),
        cmocka_unit_test(thread_id_is_refused),
        cmocka_unit_test(traced_process_is_refused),
        cmocka_unit_test(user_without_permission_is_refused),
    };
    return cmocka_run_group_tests(tests, set_up, NULL);
}
