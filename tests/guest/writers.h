/*
 * The threads that write the sequence, in turns: a batch each, so that there is one writer at any instant.
 */
#pragma once

#include "sequence.h"
#include "stall.h"

#include <pthread.h>
#include <semaphore.h>

typedef struct {
    /* set before start */
    SeqLayout layout;
    void *arena;
    unsigned threads;
    uint32_t batch;
    uint64_t period_ns; /* from one write to the next; 0: as fast as it goes */
    pthread_t ids[SEQ_THREADS_MAX];

    /* the thread whose turn it is; handed on by sem_post, which orders them */
    SeqCursor cursor;
    uint64_t last_ns;  /* end of the last write */
    uint64_t due_ns;   /* when the next write should be */
    uint64_t slept_ns; /* when it last woke from a throttled sleep */
    sem_t turn[SEQ_THREADS_MAX];

    /* atomic, relaxed: seen sooner or later */
    bool stop;
    unsigned throttle_percent; /* sleep so much of the time, 0 to 99 */
    Stall stall;
} Writers;

uint64_t clock_ns(void);

/* writers_prefill: do lap 0 in this thread, before the start. */
void writers_prefill(Writers *writers);

/* writers_start: 0, or the -errno of pthread_create(). */
int writers_start(Writers *writers);

/* writers_stop: let the current batch end, and join them. */
void writers_stop(Writers *writers);
