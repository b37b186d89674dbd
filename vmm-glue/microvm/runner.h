/*
 * The thread that runs a microvm's processor, "microvm-cpu": it runs while nobody wants the guest to stand, and no
 * more of the time than it may.
 *
 * Happy path: init, with a reason to stand → release → … → hold, which returns when it stands; what is done then
 * to registers and devices is done by the holder → release → … → clear.
 *
 * It is stopped by a signal that is sent to this thread alone and is blocked in it outside of KVM_RUN: no handler,
 * nothing that other threads see. Sent before KVM is entered it is as good as after.
 *
 * Throttled, it runs for a part of each PERIOD, which a timer ends with the same signal, and sleeps through the
 * rest, unless it is asked to stand.
 *
 * Failure mode: a guest that cannot go on is held as ENDED, and on_end is told.
 *
 * Invariant: `stands` is TRUE only while the thread waits, outside of KVM_RUN, with nothing half done.
 */
#pragma once

#include "hold.h"
#include "ports.h"
#include "vcpu.h"

/*
 * The guest has ended, or cannot go on: @why is NULL when it has written @status to its exit port. Called once at
 * most, in the processor's thread, or by runner_arrive_ended(): be quick, do not call back.
 */
typedef void (*RunnerEndFunc)(int status, const char *why, void *opaque);

typedef struct {
    /* set before start */
    Vcpu *vcpu;
    Ports *ports; /* the thread's while it runs, the holder's while it stands */
    RunnerEndFunc on_end;
    void *opaque;
    GThread *thread;

    GMutex lock;
    GCond changed;

    /* under lock */
    Holds holds;
    StateEnd end;       /* where it is held as ENDED: how, */
    uint8_t end_status; /* and with what */
    gboolean ready;     /* the thread has said whether it can do its work */
    gboolean stands;
    gboolean quit;
    unsigned throttle_percent;
    pthread_t id;  /* of the thread, from ready on */
    GError *error; /* why it cannot */

    /* the processor's thread only */
    timer_t timer;
    gboolean has_timer;
    gint64 period_us; /* when this period began */
} Runner;

/**
 * runner_init: start the thread. @vcpu, @ports: (borrow). @hold: the first reason to stand. Errors: IO.
 */
gboolean runner_init(Runner *runner, Vcpu *vcpu, Ports *ports, Hold hold, RunnerEndFunc on_end, void *opaque,
                     GError **error);
/* Of one that was zeroed only: nothing. */
void runner_clear(Runner *runner);

/* Let it stand for this reason too; returns when it stands. Thread: any. */
void runner_hold(Runner *runner, Hold hold);
/* Give a reason up. Return: 0; -EPERM, it is a final one. Thread: any. */
int runner_release(Runner *runner, Hold hold);
/* The reasons there are. Thread: any. */
Holds runner_holds(Runner *runner);

/* How it has ended, if it has. @ret_status: of EXITED. Thread: any. */
StateEnd runner_end(Runner *runner, uint8_t *ret_status);
/* It has ended before it came here: it never runs. Thread: any. */
void runner_arrive_ended(Runner *runner, StateEnd end, uint8_t status);

/* At most 100 - @percent of the time, from now on; 0 to 99. Thread: any. */
void runner_throttle(Runner *runner, unsigned percent);
