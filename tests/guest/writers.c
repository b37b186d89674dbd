/*
 * See writers.h. Happy path: wait for the turn → a batch of writes → pass the turn.
 *
 * Each write is timed from the end of the one before, or from when it was due if that is later: what is measured
 * is how long the guest could not write, not how long it chose to wait.
 *
 * Invariant: only the holder of the turn touches arena and cursor. A thread may be stopped anywhere at any time;
 * then so are all.
 */
#include "writers.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define NS_PER_SECOND UINT64_C(1000000000)
#define SLEEP_NS 300000u         /* further away than this, sleep … */
#define WAKE_EARLY_NS 150000u    /* … until so long before, and spin: waking up takes a while */
#define FORGIVE_NS NS_PER_SECOND /* further behind than this, writes are not made up for */
#define THROTTLE_NS 10000000u    /* throttled: run a part of such a period, sleep the rest */

typedef struct {
    Writers *writers;
    unsigned number;
} Writer;

uint64_t clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_SECOND + (uint64_t)now.tv_nsec;
}

static bool stopping(const Writers *writers) {
    return __atomic_load_n(&writers->stop, __ATOMIC_RELAXED);
}

static void wait_until(uint64_t due_ns) {
    uint64_t now = clock_ns();

    if (now + SLEEP_NS < due_ns) {
        uint64_t wake_ns = due_ns - WAKE_EARLY_NS;
        struct timespec wake = {(time_t)(wake_ns / NS_PER_SECOND), (long)(wake_ns % NS_PER_SECOND)};
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &wake, NULL);
    }
    while (clock_ns() < due_ns)
        __builtin_ia32_pause();
}

static void pace(Writers *writers) {
    writers->due_ns += writers->period_ns;
    if (writers->due_ns + FORGIVE_NS < writers->last_ns)
        writers->due_ns = writers->last_ns;
    if (writers->due_ns > writers->last_ns)
        wait_until(writers->due_ns);
}

/* A throttled guest runs at most 100 - percent of the time, as a processor would that is kept from running. */
static void hold_back(Writers *writers, unsigned percent) {
    uint64_t sleep_ns = (uint64_t)THROTTLE_NS / 100 * percent;
    struct timespec sleep = {0, (long)sleep_ns};

    if (writers->last_ns < writers->slept_ns + THROTTLE_NS - sleep_ns)
        return;
    nanosleep(&sleep, NULL);
    writers->slept_ns = writers->last_ns = clock_ns();
}

static void write_one(Writers *writers) {
    unsigned percent = __atomic_load_n(&writers->throttle_percent, __ATOMIC_RELAXED);
    uint64_t start_ns, now_ns;

    if (percent)
        hold_back(writers, percent);
    if (writers->period_ns)
        pace(writers);
    start_ns = writers->due_ns > writers->last_ns ? writers->due_ns : writers->last_ns;
    seq_write(&writers->layout, &writers->cursor, writers->arena);
    now_ns = clock_ns();
    stall_add(&writers->stall, now_ns - start_ns);
    writers->last_ns = now_ns;
}

static void *writer_main(void *opaque) {
    Writer writer = *(Writer *)opaque;
    Writers *writers = writer.writers;
    unsigned next = (writer.number + 1) % writers->threads;
    bool stop = false;

    free(opaque);
    while (!stop) {
        while (writers->threads > 1 && sem_wait(&writers->turn[writer.number]) < 0)
            ; /* EINTR */
        stop = stopping(writers);
        for (uint32_t i = 0; i < writers->batch && !stop; i++) {
            write_one(writers);
            stop = writers->period_ns && stopping(writers);
        }
        sem_post(&writers->turn[next]);
    }
    return NULL;
}

void writers_prefill(Writers *writers) {
    while (writers->cursor.lap == 0)
        seq_write(&writers->layout, &writers->cursor, writers->arena);
}

static int start_one(Writers *writers, unsigned number) {
    Writer *writer = malloc(sizeof(*writer));
    char name[16];
    int result;

    if (!writer)
        return -ENOMEM;
    *writer = (Writer){writers, number};
    result = pthread_create(&writers->ids[number], NULL, writer_main, writer);
    snprintf(name, sizeof(name), "writer-%u", number);
    if (result == 0)
        pthread_setname_np(writers->ids[number], name);
    return -result;
}

int writers_start(Writers *writers) {
    int result = 0;

    for (unsigned i = 0; i < writers->threads; i++)
        sem_init(&writers->turn[i], 0, 0);
    writers->last_ns = writers->due_ns = clock_ns();
    for (unsigned i = 0; i < writers->threads && result == 0; i++)
        result = start_one(writers, i);
    sem_post(&writers->turn[0]);
    return result;
}

void writers_stop(Writers *writers) {
    __atomic_store_n(&writers->stop, true, __ATOMIC_RELAXED);
    for (unsigned i = 0; i < writers->threads; i++)
        pthread_join(writers->ids[i], NULL);
}
