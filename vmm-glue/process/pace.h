/*
 * Being quick while somebody stands still for us: how to wait for a thread that is about to stop, and how not to
 * be held up by other load meanwhile. Async-signal-safe.
 */
#pragma once

#include <glib.h>
#include <stdint.h>

G_BEGIN_DECLS

/* What the calling thread was before pace_hurry(). */
typedef struct {
    int policy; /* -1: nothing to put back */
    int priority;
    int timer_slack_ns;
} Pace;

/**
 * pace_hurry: let the calling thread run before all ordinary ones, where that is permitted, and sleep exactly.
 *   On a busy machine every wait would otherwise cost a time slice of somebody else, some milliseconds.
 * @ret_before: (out) for pace_relax(), in the same thread.
 */
void pace_hurry(Pace *ret_before);

/** pace_relax: be as before. */
void pace_relax(const Pace *before);

/** pace_now_ns: CLOCK_MONOTONIC. */
uint64_t pace_now_ns(void);

/**
 * pace_wait: wait a moment before looking again.
 *   For the first few microseconds not at all: a thread on another CPU stops sooner than a sleep would last. Then
 * by short sleeps, which leave the CPU to the threads waited for; sched_yield() would leave it to anybody, for
 * long.
 * @begin_ns: when the waiting began.
 */
void pace_wait(uint64_t begin_ns);

G_END_DECLS
