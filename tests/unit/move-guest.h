/*
 * A guest that is moved: memory of this process, and threads that write the known sequence (../guest/sequence.h)
 * into it. Its device state is how far they are. Where it arrives they go on from there, and look at every word
 * they write over. Needs cmocka.h before it.
 */
#pragma once

#include "../guest/backing.h"
#include "../guest/seqcheck.h"
#include "../guest/writers.h"
#include "../lib/own-process.h"

typedef struct {
    SnapGuest *guest;
    Backing backing;
    SnapMemory memory;
    Writers writers;
    SeqCursor at; /* when it was stopped last */
    bool writing;
    bool lives;       /* it is this side that has it */
    bool other_shape; /* lists its memory differently when it stands */
    bool fails_to_load;
    bool fails_to_pause;
    unsigned slow_ms; /* that getting ready for a stop takes */
    bool fails_to_start;

    /* atomic: how often each was called */
    unsigned pauses, resumes, hand_overs, loads, starts, throttles;
    unsigned throttle_max; /* the most that was asked for */
    unsigned throttle;     /* now */
} MoveGuest;

/* The source: memory of @kind, filled, and writers that run, one write every @period_ns. FALSE: such memory is not
 * to be had. */
bool move_guest_init(MoveGuest *guest, const char *kind, size_t length_bytes, uint64_t period_ns);
/* The destination: memory, and nothing in it. */
bool move_guest_init_empty(MoveGuest *guest, const char *kind, size_t length_bytes, uint64_t period_ns);

/* Stop it and check that it is exactly the state after one write, and that it never found a wrong word. */
void move_guest_check(MoveGuest *guest);
/* Writers run, and get on. */
void move_guest_check_runs(MoveGuest *guest);
void move_guest_check_stands(MoveGuest *guest);
void move_guest_clear(MoveGuest *guest);

unsigned move_count(const unsigned *counter);
uint64_t move_written(const MoveGuest *guest);

/* Whether a guest can be moved here at all; says what is missing. */
bool move_can_run(void);
