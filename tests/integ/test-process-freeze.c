/*
 * All threads of a process stop at one point and go on as if nothing had been.
 */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "freeze.h"
#include "libsnap.h"
#include "process-target.h"

enum { SKIPPED = 77, N_THREADS = 4, TIMEOUT_NS = 1000000000 };

/* ---- what the children do -------------------------------------------------------------------------------- */

static void *count_up(void *opaque) {
    TargetShared *shared = (TargetShared *)opaque;
    for (;;) {
        __atomic_add_fetch(&shared->steps, 1, __ATOMIC_RELAXED);
    }
    return NULL;
}

static void counting_threads(TargetShared *shared) {
    pthread_t thread;
    for (int i = 1; i < N_THREADS; i++) {
        pthread_create(&thread, NULL, count_up, shared);
    }
    shared->ready = 1;
    count_up(shared);
}

static void *end_soon(void *opaque) {
    TargetShared *shared = (TargetShared *)opaque;
    __atomic_add_fetch(&shared->steps, 1, __ATOMIC_RELAXED);
    return NULL;
}

/* Threads are born and die all the time. */
static void *breed(void *opaque) {
    for (;;) {
        pthread_t threads[3];
        for (int i = 0; i < 3; i++) {
            pthread_create(&threads[i], NULL, end_soon, opaque);
        }
        for (int i = 0; i < 3; i++) {
            pthread_join(threads[i], NULL);
        }
    }
    return NULL;
}

static void breeding(TargetShared *shared) {
    pthread_t thread;
    pthread_create(&thread, NULL, breed, shared);
    shared->ready = 1;
    breed(shared);
}

/* The main thread ends, another goes on. */
static void orphaned(TargetShared *shared) {
    pthread_t thread;
    pthread_create(&thread, NULL, count_up, shared);
    shared->ready = 1;
    pthread_exit(NULL);
}

static void waiting_in_epoll(TargetShared *shared) {
    struct epoll_event event = {.events = EPOLLIN};
    int fd = epoll_create1(EPOLL_CLOEXEC);
    epoll_ctl(fd, EPOLL_CTL_ADD, shared->pipe[0], &event);
    shared->ready = 1;
    int n = epoll_wait(fd, &event, 1, -1);
    shared->result = n < 0 ? -errno : n;
}

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
        shared->steps++;
    }
}

static void in_vfork(TargetShared *shared) {
    shared->ready = 1;
    if (vfork() == 0) { /* the parent sleeps uninterruptibly until the child ends */
        while (!shared->go_on) {
            usleep(1000);
        }
        _exit(0);
    }
    count_up(shared);
}

/* ---- tests ------------------------------------------------------------------------------------------------- */

static void expect_stop(Freeze *freeze) {
    g_autoptr(GError) error = NULL;
    if (!freeze_stop(freeze, TIMEOUT_NS, &error)) {
        fail_msg("%s", error->message);
    }
}

static uint64_t expect_go(Freeze *freeze) {
    g_autoptr(GError) error = NULL;
    uint64_t stopped_ns = 0;
    if (!freeze_go(freeze, &stopped_ns, &error)) {
        fail_msg("%s", error->message);
    }
    return stopped_ns;
}

static void threads_stopped_do_nothing(void **state) {
    (void)state;
    g_autoptr(Target) target = target_start(counting_threads);
    g_autoptr(Freeze) freeze = freeze_new(target->pid);
    uint64_t best_ns = UINT64_MAX;
    for (int i = 0; i < 50; i++) {
        expect_stop(freeze);
        uint64_t steps = target->shared->steps;
        guint n_threads = 0;
        const FreezeThread *threads = freeze_threads(freeze, &n_threads);
        assert_int_equal(n_threads, N_THREADS);
        assert_int_equal(threads[0].tid, target->pid);
        for (guint k = 0; k < n_threads; k++) {
            assert_int_equal(threads[k].state, FREEZE_STOPPED);
            assert_true(threads[k].captured && threads[k].registers.rip && threads[k].xstate_bytes >= 512);
        }
        if (i == 0) {
            target_sleep_ms(20);
        }
        assert_int_equal(target->shared->steps, steps);
        uint64_t stopped_ns = expect_go(freeze);
        best_ns = i ? MIN(best_ns, stopped_ns) : best_ns;
        assert_true(target_await(&target->shared->steps, steps + 1, 1000));
        target_sleep_ms(1);
    }
    print_message("best stop of %d busy threads: %.0f us\n", N_THREADS, (double)best_ns / 1e3);
}

static void threads_born_meanwhile_are_stopped_too(void **state) {
    (void)state;
    g_autoptr(Target) target = target_start(breeding);
    g_autoptr(Freeze) freeze = freeze_new(target->pid);
    for (int i = 0; i < 200; i++) {
        expect_stop(freeze);
        uint64_t steps = target->shared->steps;
        usleep(300);
        assert_int_equal(target->shared->steps, steps);
        expect_go(freeze);
        assert_true(target_await(&target->shared->steps, steps + 1, 1000));
    }
}

static void main_thread_ended_others_are_stopped(void **state) {
    (void)state;
    g_autoptr(Target) target = target_start(orphaned);
    g_autoptr(Freeze) freeze = freeze_new(target->pid);
    assert_true(target_await_state(target->pid, 'Z'));
    expect_stop(freeze);
    uint64_t steps = target->shared->steps;
    target_sleep_ms(10);
    assert_int_equal(target->shared->steps, steps);
    expect_go(freeze);
    assert_true(target_await(&target->shared->steps, steps + 1, 1000));
}

static void epoll_wait_frozen_does_not_return(void **state) {
    (void)state;
    g_autoptr(Target) target = target_start(waiting_in_epoll);
    g_autoptr(Freeze) freeze = freeze_new(target->pid);
    target_sleep_ms(20);
    for (int i = 0; i < 10; i++) {
        expect_stop(freeze);
        expect_go(freeze);
        target_sleep_ms(2);
    }
    assert_false(target->shared->done);
    assert_int_equal(write(target->shared->pipe[1], "x", 1), 1);
    assert_true(target_await_done(target, 1000));
    assert_int_equal(target->shared->result, 1);
}

static void signals_during_freeze_are_all_delivered(void **state) {
    (void)state;
    enum { N_SIGNALS = 2000 };
    g_autoptr(Target) target = target_start(counting_signals);
    g_autoptr(Freeze) freeze = freeze_new(target->pid);
    pid_t sender = fork();
    if (sender == 0) {
        for (int i = 0; i < N_SIGNALS; i++) {
            while (sigqueue(target->pid, SIGRTMIN, (union sigval){0}) < 0 && errno == EAGAIN) {
            }
            usleep(50);
        }
        _exit(0);
    }
    guint with_signal = 0;
    while (waitpid(sender, NULL, WNOHANG) == 0) {
        guint n_threads = 0;
        expect_stop(freeze);
        with_signal += freeze_threads(freeze, &n_threads)[0].signal == SIGRTMIN;
        expect_go(freeze);
    }
    (void)target_await(&target->shared->signals, N_SIGNALS, 2000);
    print_message("%u stops met a signal\n", with_signal);
    assert_int_equal(target->shared->signals, N_SIGNALS);
}

static void stopped_process_frozen_stays_stopped(void **state) {
    (void)state;
    g_autoptr(Target) target = target_start(counting_threads);
    g_autoptr(Freeze) freeze = freeze_new(target->pid);
    kill(target->pid, SIGSTOP);
    assert_true(target_await_state(target->pid, 'T'));
    uint64_t steps = target->shared->steps;
    expect_stop(freeze);
    expect_go(freeze);
    target_sleep_ms(20);
    assert_int_equal(target_state(target->pid), 'T');
    assert_int_equal(target->shared->steps, steps);
    kill(target->pid, SIGCONT);
    assert_true(target_await(&target->shared->steps, steps + 1, 1000));
}

static void snapshotter_killed_threads_go_on(void **state) {
    (void)state;
    for (int i = 0; i < 10; i++) {
        g_autoptr(Target) target = target_start(counting_threads);
        pid_t snapshotter = fork();
        if (snapshotter == 0) {
            Freeze *freeze = freeze_new(target->pid);
            while (freeze_stop(freeze, TIMEOUT_NS, NULL)) {
                usleep(2000);
                (void)freeze_go(freeze, NULL, NULL);
            }
            _exit(1);
        }
        usleep((useconds_t)(5000 + i * 397));
        kill(snapshotter, SIGKILL);
        waitpid(snapshotter, NULL, 0);
        uint64_t steps = target->shared->steps;
        assert_true(target_await(&target->shared->steps, steps + 1000, 1000));
        assert_int_equal(target_tracer(target->pid), 0);
    }
}

static void process_killed_while_frozen_is_reported(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    g_autoptr(Target) target = target_start(counting_threads);
    g_autoptr(Freeze) freeze = freeze_new(target->pid);
    expect_stop(freeze);
    kill(target->pid, SIGKILL);
    target_sleep_ms(20);
    assert_false(freeze_go(freeze, NULL, &error));
    assert_true(g_error_matches(error, SNAP_ERROR, SNAP_ERROR_GUEST_GONE));
    g_clear_error(&error);
    assert_int_equal(waitpid(target->pid, NULL, 0), target->pid); /* not held back by us */
    assert_false(freeze_stop(freeze, TIMEOUT_NS, &error));
    assert_true(g_error_matches(error, SNAP_ERROR, SNAP_ERROR_GUEST_GONE));
}

static void thread_that_cannot_stop_fails_by_name(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    g_autoptr(Target) target = target_start(in_vfork);
    g_autoptr(Freeze) freeze = freeze_new(target->pid);
    assert_true(target_await_state(target->pid, 'D'));
    assert_false(freeze_stop(freeze, 50000000, &error));
    assert_true(g_error_matches(error, SNAP_ERROR, SNAP_ERROR_TIMED_OUT));
    g_autofree char *number = g_strdup_printf("thread %d", (int)target->pid);
    assert_non_null(strstr(error->message, number));
    target->shared->go_on = 1;
    /* The next attempt takes it over where the last one left it, and lets it go. */
    expect_stop(freeze);
    expect_go(freeze);
    assert_true(target_await(&target->shared->steps, 1000, 1000));
    assert_int_equal(target_tracer(target->pid), 0);
}

int main(void) {
    if (geteuid() != 0) {
        print_message("needs root\n");
        return SKIPPED;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(threads_stopped_do_nothing),
        cmocka_unit_test(threads_born_meanwhile_are_stopped_too),
        cmocka_unit_test(main_thread_ended_others_are_stopped),
        cmocka_unit_test(epoll_wait_frozen_does_not_return),
        cmocka_unit_test(signals_during_freeze_are_all_delivered),
        cmocka_unit_test(stopped_process_frozen_stays_stopped),
        cmocka_unit_test(snapshotter_killed_threads_go_on),
        cmocka_unit_test(process_killed_while_frozen_is_reported),
        cmocka_unit_test(thread_that_cannot_stop_fails_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
