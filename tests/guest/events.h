/*
 * A thread that does to small areas of its own what makes life hard for whoever watches the process's memory: it
 * forks, moves, unmaps and discards. What each area holds at any instant is recorded in the arena's header.
 */
#pragma once

#include "sequence.h"

#include <pthread.h>

typedef struct {
    /* set before start */
    SeqHeader *header;
    unsigned n_areas;      /* header->events[0 … n_areas) are ours */
    uint64_t interval_ns;  /* between two steps */
    uint64_t length_bytes; /* of each area, a multiple of the base page */
    int fds[SEQ_EVENTS_MAX];
    pthread_t id;

    /* atomic, relaxed */
    bool stop;
} Events;

/* events_names: what events_add() takes, separated by ','. */
const char *events_names(void);

/* events_add: one more area, by the name of what happens to it. 0; -EINVAL: no such name; -ENOSPC: too many. */
int events_add(Events *events, const char *name);

/* events_start: 0, or a -errno. */
int events_start(Events *events);

void events_stop(Events *events);
