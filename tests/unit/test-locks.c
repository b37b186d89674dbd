/* Where the kernel may write for a process: found in this very one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../../vmm-glue/process/locks.h"

enum { KERNEL_ERESTARTNOINTR = 513, WAITS_US = 50000 };

static gboolean has(const GArray *addresses, uint64_t address) {
    for (guint i = 0; i < addresses->len; i++) {
        if (g_array_index(addresses, uint64_t, i) == address) {
            return TRUE;
        }
    }
    return FALSE;
}

static GArray *new_list(void) {
    return g_array_new(FALSE, FALSE, sizeof(uint64_t));
}

static void init_mutex(pthread_mutex_t *mutex, int protocol, int robust) {
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setprotocol(&attributes, protocol);
    pthread_mutexattr_setrobust(&attributes, robust);
    pthread_mutex_init(mutex, &attributes);
}

static void *lock_and_unlock(void *mutex) {
    pthread_mutex_lock(mutex);
    pthread_mutex_unlock(mutex);
    return NULL;
}

/* Its tid does not matter for the registers; nobody has this one. */
static FreezeThread stopped(int64_t number, int64_t result, uint64_t operation) {
    return (FreezeThread){.tid = -1,
                          .state = FREEZE_STOPPED,
                          .captured = TRUE,
                          .registers = {.orig_rax = (uint64_t)number,
                                        .rax = (uint64_t)result,
                                        .rdi = 0x1000,
                                        .rsi = operation,
                                        .r8 = 0x2000,
                                        .rbx = 0x3000}};
}

/* ---- tests ------------------------------------------------------------------------------------------------ */

static void lock_that_a_running_process_waits_for_is_found(void **state) {
    (void)state;
    LocksSeen seen = {0};
    pthread_mutex_t mutex;
    pthread_t waiter;
    init_mutex(&mutex, PTHREAD_PRIO_INHERIT, PTHREAD_MUTEX_STALLED);
    pthread_mutex_lock(&mutex);
    pthread_create(&waiter, NULL, lock_and_unlock, &mutex);
    g_autoptr(GArray) addresses = new_list();
    for (int i = 0; i < 100 && !has(addresses, (uintptr_t)&mutex); i++) {
        usleep(WAITS_US);
        g_array_set_size(addresses, 0);
        locks_of_running(getpid(), &seen, addresses);
    }
    assert_true(has(addresses, (uintptr_t)&mutex));
    pthread_mutex_unlock(&mutex);
    pthread_join(waiter, NULL);
    g_array_set_size(addresses, 0);
    locks_of_running(getpid(), &seen, addresses);
    assert_false(has(addresses, (uintptr_t)&mutex));
    pthread_mutex_destroy(&mutex);
}

static void ordinary_lock_is_not_listed(void **state) {
    (void)state;
    LocksSeen seen = {0};
    pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    pthread_t waiter;
    pthread_mutex_lock(&mutex);
    pthread_create(&waiter, NULL, lock_and_unlock, &mutex);
    usleep(WAITS_US);
    g_autoptr(GArray) addresses = new_list();
    locks_of_running(getpid(), &seen, addresses);
    assert_false(has(addresses, (uintptr_t)&mutex));
    pthread_mutex_unlock(&mutex);
    pthread_join(waiter, NULL);
}

static void robust_locks_are_found_while_they_are_held(void **state) {
    (void)state;
    LocksSeen seen = {0};
    pthread_mutex_t first, second;
    init_mutex(&first, PTHREAD_PRIO_NONE, PTHREAD_MUTEX_ROBUST);
    init_mutex(&second, PTHREAD_PRIO_INHERIT, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_lock(&first);
    pthread_mutex_lock(&second);
    g_autoptr(GArray) held = new_list(), released = new_list();
    locks_of_running(getpid(), &seen, held);
    pthread_mutex_unlock(&second);
    pthread_mutex_unlock(&first);
    locks_of_running(getpid(), &seen, released);
    assert_true(seen.robust && !seen.waits);
    assert_true(has(held, (uintptr_t)&first) && has(held, (uintptr_t)&second));
    assert_false(has(released, (uintptr_t)&first) || has(released, (uintptr_t)&second));
}

/* The number that its end clears is close before it. */
static void head_of_the_list_of_a_thread_that_is_ending_is_listed(void **state) {
    (void)state;
    uint64_t head = 0;
    size_t length = 0;
    assert_int_equal(syscall(SYS_get_robust_list, 0, &head, &length), 0);
    static const struct {
        int64_t number, result;
        uint64_t blocked;
        gboolean listed;
    } threads[] = {
        {-1, 0, UINT64_MAX, TRUE},
        {SYS_madvise, 0, ~(UINT64_C(1) << (SIGKILL - 1)), TRUE},
        {-1, 0, UINT64_MAX - 1, FALSE},
        {SYS_read, -KERNEL_ERESTARTNOINTR, UINT64_MAX, FALSE},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(threads); i++) {
        LocksSeen seen = {0};
        g_autoptr(GArray) addresses = new_list();
        FreezeThread thread = stopped(threads[i].number, threads[i].result, 0);
        thread.tid = getpid();
        thread.signals_blocked = threads[i].blocked;
        locks_of_stopped(&thread, 1, &seen, addresses);
        assert_int_equal(has(addresses, head) && has(addresses, head - 64), threads[i].listed);
        assert_int_equal(addresses->len > 0, threads[i].listed);
    }
}

/* In the pause only of a process that was seen to use them: each thread costs two calls. */
static void robust_locks_of_stopped_threads_are_found_where_there_were_some(void **state) {
    (void)state;
    pthread_mutex_t mutex;
    init_mutex(&mutex, PTHREAD_PRIO_NONE, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_lock(&mutex);
    FreezeThread thread = stopped(SYS_read, -KERNEL_ERESTARTNOINTR, 0);
    thread.tid = getpid();
    LocksSeen nothing = {0}, seen = {.robust = TRUE};
    g_autoptr(GArray) without = new_list(), with = new_list();
    locks_of_stopped(&thread, 1, &nothing, without);
    locks_of_stopped(&thread, 1, &seen, with);
    pthread_mutex_unlock(&mutex);
    assert_int_equal(without->len, 0);
    assert_true(has(with, (uintptr_t)&mutex));
}

static void interrupted_call_tells_the_word_that_the_kernel_writes(void **state) {
    (void)state;
    static const struct {
        int operation;
        uint64_t word; /* 0: none */
    } calls[] = {
        {FUTEX_WAIT, 0},
        {FUTEX_WAKE, 0},
        {FUTEX_REQUEUE, 0},
        {FUTEX_LOCK_PI, 0x1000},
        {FUTEX_LOCK_PI | FUTEX_PRIVATE_FLAG, 0x1000},
        {FUTEX_LOCK_PI | FUTEX_PRIVATE_FLAG | FUTEX_CLOCK_REALTIME, 0x1000},
        {13 /* LOCK_PI2 */ | FUTEX_PRIVATE_FLAG, 0x1000},
        {FUTEX_UNLOCK_PI, 0x1000},
        {FUTEX_TRYLOCK_PI, 0x1000},
        {FUTEX_WAKE_OP, 0x2000},
        {FUTEX_WAIT_REQUEUE_PI, 0x2000},
        {FUTEX_CMP_REQUEUE_PI, 0x2000},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(calls); i++) {
        LocksSeen seen = {0};
        g_autoptr(GArray) addresses = new_list();
        FreezeThread thread = stopped(SYS_futex, -KERNEL_ERESTARTNOINTR, (uint64_t)calls[i].operation);
        locks_of_stopped(&thread, 1, &seen, addresses);
        assert_int_equal(addresses->len, calls[i].word ? 1 : 0);
        assert_true(!calls[i].word || has(addresses, calls[i].word));
        assert_int_equal(seen.waits, calls[i].word != 0);
    }
}

/* Which of them it is about to hand to the kernel nobody knows. */
static void all_registers_of_a_thread_that_runs_are_listed_where_locks_are_waited_for(void **state) {
    (void)state;
    static const struct {
        int64_t number, result;
    } running[] = {{-1, 0}, {SYS_futex, 0}, {SYS_getpid, 5}, {SYS_read, -EAGAIN}};
    for (size_t i = 0; i < G_N_ELEMENTS(running); i++) {
        LocksSeen seen = {0};
        g_autoptr(GArray) alone = new_list(), together = new_list();
        FreezeThread threads[] = {stopped(running[i].number, running[i].result, 0),
                                  stopped(SYS_futex, -KERNEL_ERESTARTNOINTR, FUTEX_LOCK_PI)};
        locks_of_stopped(threads, 1, &seen, alone);
        assert_int_equal(alone->len, 0);
        locks_of_stopped(threads, 2, &seen, together);
        assert_true(has(together, 0x1000) && has(together, 0x2000) && has(together, 0x3000));
        assert_true(seen.waits);
        locks_of_stopped(threads, 1, &seen, alone); /* it was seen once */
        assert_true(has(alone, 0x3000));
    }
}

static void thread_that_has_ended_is_passed_over(void **state) {
    (void)state;
    LocksSeen seen = {0};
    FreezeThread threads[] = {stopped(-1, 0, 0), stopped(-1, 0, 0)};
    threads[0].state = FREEZE_ENDED;
    threads[1].captured = FALSE;
    g_autoptr(GArray) addresses = new_list();
    locks_of_stopped(threads, G_N_ELEMENTS(threads), &seen, addresses);
    assert_int_equal(addresses->len, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lock_that_a_running_process_waits_for_is_found),
        cmocka_unit_test(ordinary_lock_is_not_listed),
        cmocka_unit_test(robust_locks_are_found_while_they_are_held),
        cmocka_unit_test(robust_locks_of_stopped_threads_are_found_where_there_were_some),
        cmocka_unit_test(head_of_the_list_of_a_thread_that_is_ending_is_listed),
        cmocka_unit_test(interrupted_call_tells_the_word_that_the_kernel_writes),
        cmocka_unit_test(all_registers_of_a_thread_that_runs_are_listed_where_locks_are_waited_for),
        cmocka_unit_test(thread_that_has_ended_is_passed_over),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
