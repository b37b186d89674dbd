/* See pace.h. */
#include "pace.h"

#include <sched.h>
#include <sys/prctl.h>
#include <time.h>

#define SPIN_NS 10000
#define NAP_NS 15000
#define LONG_WAIT_NS 5000000
#define LONG_NAP_NS 200000

uint64_t pace_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void pace_hurry(Pace *ret_before) {
    struct sched_param before = {0};
    struct sched_param first = {.sched_priority = sched_get_priority_min(SCHED_FIFO)};
    *ret_before = (Pace){.policy = -1, .timer_slack_ns = prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0)};
    int policy = sched_getscheduler(0);
    gboolean ordinary = policy == SCHED_OTHER || policy == SCHED_BATCH;
    if (ordinary && sched_getparam(0, &before) == 0 &&
        sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &first) == 0) {
        ret_before->policy = policy;
        ret_before->priority = before.sched_priority;
    }
    (void)prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0);
}

void pace_relax(const Pace *before) {
    struct sched_param param = {.sched_priority = before->priority};
    if (before->policy >= 0) {
        (void)sched_setscheduler(0, before->policy, &param);
    }
    if (before->timer_slack_ns > 0) {
        (void)prctl(PR_SET_TIMERSLACK, before->timer_slack_ns, 0, 0, 0);
    }
}

void pace_wait(uint64_t begin_ns) {
    uint64_t waited = pace_now_ns() - begin_ns;
    if (waited >= SPIN_NS) {
        nanosleep(&(struct timespec){.tv_nsec = waited < LONG_WAIT_NS ? NAP_NS : LONG_NAP_NS}, NULL);
    }
}
