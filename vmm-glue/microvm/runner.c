/* See runner.h. */
#include "runner.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Nobody else sends it to this thread; where it went astray it would be passed over. */
#define KICK SIGURG
#define PERIOD_US 10000

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

/* ---- the thread's own ------------------------------------------------------------------------------------ */

static gboolean set_up_thread(Runner *runner, GError **error) {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = KICK};
    event.sigev_notify_thread_id = (pid_t)syscall(SYS_gettid);
    if (timer_create(CLOCK_MONOTONIC, &event, &runner->timer) < 0) {
        snap_set_errno(error, errno, "a timer");
        return FALSE;
    }
    runner->has_timer = TRUE;
    return vcpu_set_signal(runner->vcpu, KICK, error);
}

/* Kicks that have done their work. */
static void take_kicks(void) {
    sigset_t kick;
    sigemptyset(&kick);
    sigaddset(&kick, KICK);
    while (sigtimedwait(&kick, NULL, &(struct timespec){0}) == KICK)
        continue;
}

static void end_run_at(const Runner *runner, gint64 at_us) {
    struct itimerspec at = {
        .it_value = {.tv_sec = at_us / G_USEC_PER_SEC, .tv_nsec = at_us % G_USEC_PER_SEC * 1000}};
    timer_settime(runner->timer, TIMER_ABSTIME, &at, NULL);
}

/* Return: whether it may run now; otherwise it has slept until it may look again. */
static gboolean may_run_locked(Runner *runner) {
    if (runner->throttle_percent == 0)
        return TRUE;
    gint64 now_us = g_get_monotonic_time();
    if (now_us >= runner->period_us + PERIOD_US)
        runner->period_us = now_us;
    gint64 until_us = runner->period_us + PERIOD_US * (gint64)(100 - runner->throttle_percent) / 100;
    if (now_us < until_us) {
        end_run_at(runner, until_us);
        return TRUE;
    }
    g_cond_wait_until(&runner->changed, &runner->lock, runner->period_us + PERIOD_US);
    return FALSE;
}

static void end_with(Runner *runner, StateEnd end, uint8_t status, const char *why) {
    g_mutex_lock(&runner->lock);
    hold_add(&runner->holds, HOLD_ENDED);
    runner->end = end;
    runner->end_status = status;
    g_mutex_unlock(&runner->lock);
    runner->on_end(status, why, runner->opaque);
}

/* The access that ended it is completed, so that its state is one that can be got. */
static void end_guest(Runner *runner, VcpuStop stop, uint8_t status, const char *why) {
    uint8_t ignored_status;
    g_autofree char *ignored_why = NULL;
    vcpu_leave(runner->vcpu);
    if (stop == VCPU_EXITED)
        vcpu_run(runner->vcpu, runner->ports, &ignored_status, &ignored_why);
    end_with(runner, stop == VCPU_EXITED ? STATE_EXITED : STATE_FAILED, status, why);
}

static void run_guest(Runner *runner) {
    uint8_t status = 0;
    g_autofree char *why = NULL;
    VcpuStop stop = vcpu_run(runner->vcpu, runner->ports, &status, &why);
    if (stop != VCPU_INTERRUPTED)
        end_guest(runner, stop, status, why);
    take_kicks();
}

static void stand_locked(Runner *runner) {
    runner->stands = TRUE;
    g_cond_broadcast(&runner->changed);
    while (!hold_none(&runner->holds) && !runner->quit)
        g_cond_wait(&runner->changed, &runner->lock);
    runner->stands = FALSE;
}

static void run_until_quit_locked(Runner *runner) {
    while (!runner->quit) {
        if (!hold_none(&runner->holds)) {
            stand_locked(runner);
            continue;
        }
        if (!may_run_locked(runner))
            continue;
        vcpu_go_on(runner->vcpu);
        g_mutex_unlock(&runner->lock);
        run_guest(runner);
        g_mutex_lock(&runner->lock);
    }
}

static gpointer run_thread(gpointer opaque) {
    Runner *runner = opaque;
    GError *error = NULL;
    gboolean ok = set_up_thread(runner, &error);
    g_mutex_lock(&runner->lock);
    runner->id = pthread_self();
    runner->ready = TRUE;
    runner->error = error;
    g_cond_broadcast(&runner->changed);
    if (ok)
        run_until_quit_locked(runner);
    g_mutex_unlock(&runner->lock);
    if (runner->has_timer)
        timer_delete(runner->timer);
    return NULL;
}

/* ---- other threads --------------------------------------------------------------------------------------- */

/* It comes out of KVM, or out of its sleep, and looks again. */
static void kick_locked(Runner *runner) {
    vcpu_leave(runner->vcpu);
    pthread_kill(runner->id, KICK);
    g_cond_broadcast(&runner->changed);
}

void runner_hold(Runner *runner, Hold hold) {
    g_mutex_lock(&runner->lock);
    hold_add(&runner->holds, hold);
    if (!runner->stands)
        kick_locked(runner);
    while (!runner->stands)
        g_cond_wait(&runner->changed, &runner->lock);
    g_mutex_unlock(&runner->lock);
}

int runner_release(Runner *runner, Hold hold) {
    g_mutex_lock(&runner->lock);
    int result = hold_remove(&runner->holds, hold);
    g_cond_broadcast(&runner->changed);
    g_mutex_unlock(&runner->lock);
    return result;
}

Holds runner_holds(Runner *runner) {
    g_mutex_lock(&runner->lock);
    Holds holds = runner->holds;
    g_mutex_unlock(&runner->lock);
    return holds;
}

StateEnd runner_end(Runner *runner, uint8_t *ret_status) {
    g_mutex_lock(&runner->lock);
    StateEnd end = runner->end;
    *ret_status = runner->end_status;
    g_mutex_unlock(&runner->lock);
    return end;
}

void runner_arrive_ended(Runner *runner, StateEnd end, uint8_t status) {
    g_assert(end != STATE_NOT_ENDED);
    end_with(runner, end, status, end == STATE_FAILED ? "the guest could not go on where it came from" : NULL);
}

void runner_throttle(Runner *runner, unsigned percent) {
    g_mutex_lock(&runner->lock);
    runner->throttle_percent = MIN(percent, 99);
    kick_locked(runner);
    g_mutex_unlock(&runner->lock);
}

/* ---- life ------------------------------------------------------------------------------------------------ */

gboolean runner_init(Runner *runner, Vcpu *vcpu, Ports *ports, Hold hold, RunnerEndFunc on_end, void *opaque,
                     GError **error) {
    *runner = (Runner){.vcpu = vcpu, .ports = ports, .on_end = on_end, .opaque = opaque};
    hold_add(&runner->holds, hold);
    g_mutex_init(&runner->lock);
    g_cond_init(&runner->changed);
    runner->thread = g_thread_new("microvm-cpu", run_thread, runner);
    g_mutex_lock(&runner->lock);
    while (!runner->ready)
        g_cond_wait(&runner->changed, &runner->lock);
    GError *failure = g_steal_pointer(&runner->error);
    g_mutex_unlock(&runner->lock);
    if (!failure)
        return TRUE;
    runner_clear(runner);
    g_propagate_error(error, failure);
    return FALSE;
}

void runner_clear(Runner *runner) {
    if (!runner->thread)
        return;
    g_mutex_lock(&runner->lock);
    runner->quit = TRUE;
    kick_locked(runner);
    g_mutex_unlock(&runner->lock);
    g_thread_join(runner->thread);
    g_mutex_clear(&runner->lock);
    g_cond_clear(&runner->changed);
    *runner = (Runner){0};
}
