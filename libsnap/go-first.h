/* A thread that a guest waits for goes first on a busy machine. */
#pragma once

#include <sched.h>
#include <stdbool.h>

/* Let this thread run at the lowest real-time priority, where that is permitted; or at none again. */
static inline void snap_go_first(bool first) {
    struct sched_param param = {.sched_priority = first ? sched_get_priority_min(SCHED_RR) : 0};
    sched_setscheduler(0, (first ? SCHED_RR : SCHED_OTHER) | SCHED_RESET_ON_FORK, &param);
}
