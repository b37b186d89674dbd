/*
 * Why the guest of a microvm stands. It runs when there is no reason; several may want it to stand at once, and
 * none of them lets go for another. Pure.
 *
 *     CLIENT        "stop" until "cont"
 *     COPY          from pause to resume, of a snapshot or a migration
 *     INCOMING      it is to come from elsewhere, and is not here, or not ours, yet
 *     HANDED_OVER   it runs elsewhere: final
 *     ENDED         it has written its exit port, or cannot go on: final
 *
 * Invariant: a final reason is never given up, so that no mistake elsewhere runs a guest that is somebody else's.
 */
#pragma once

#include <stdbool.h>

typedef enum { HOLD_CLIENT, HOLD_COPY, HOLD_INCOMING, HOLD_HANDED_OVER, HOLD_ENDED, HOLD_MAX } Hold;

typedef struct {
    unsigned reasons; /* a bit each */
} Holds;

/* For people: "a client has stopped it" …; NULL when out of range. */
const char *hold_text(Hold hold);

/* Add a reason; again is as good as once. */
void hold_add(Holds *holds, Hold hold);
/* Give one up that may not even be there. Return: 0; -EPERM, it is final. */
int hold_remove(Holds *holds, Hold hold);
bool hold_has(const Holds *holds, Hold hold);

/* Nothing keeps it from running. */
bool hold_none(const Holds *holds);
/* It runs for all that a client can tell: a copy's pause is nothing that it has asked for. */
bool hold_looks_running(const Holds *holds);
