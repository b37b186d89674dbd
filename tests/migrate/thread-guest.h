/*
 * A guest that can be moved: memory of this process, and threads that write the known sequence into it.
 *
 * Happy path, where it is born: map, lay out, run. Where it arrives: map; memory and state are put in place by a
 * migration; load_state, start. As everything that a write overwrites is checked (../guest/sequence.h), a page
 * that came late, torn or not at all is counted by the guest itself; and with `verify` the whole of the memory is
 * checked to the byte before its first instruction.
 *
 * Several may want it to stand, each with a bit of its own (Hold): it runs when none of them is set. What must not
 * happen (it is started twice, or before its state is there, or resumed after it was handed over) is written into
 * the journal as VIOLATION, and not done.
 *
 * State blob "threads", little endian as the machine is:
 *
 *     [8] "thrdvm01"  [8] number of the next write  [8] errors so far  [8] held by a client: 0, 1
 *     [8 each] pages, page_bytes, touched, hot, stride
 *
 * Threads: guest_*() any, but new and free. The functions of the tables are called as libsnap.h says.
 */
#pragma once

#include "journal.h"

#include "../../qapi/libsnap-qmp.h"
#include "../guest/backing.h"
#include "../guest/seqcheck.h"
#include "../guest/writers.h"

#include <pthread.h>

typedef enum {
    HOLD_CLIENT = 1,   /* `stop` */
    HOLD_PAUSE = 2,    /* a snapshot or a migration, for its point in time */
    HOLD_INCOMING = 4, /* has not come yet */
    HOLD_GONE = 8,     /* was handed over */
} Hold;

typedef struct {
    /* set before start */
    Backing backing;
    SnapMemory memory;
    unsigned n_regions; /* that the memory is listed as */
    size_t unit_bytes;  /* where they may meet */
    unsigned n_peeks;   /* pages that load_state looks at */
    unsigned ready_ms;  /* that it takes to get ready for a pause */
    bool verify;
    Journal journal;
    FILE *serial; /* (nullable) */

    pthread_mutex_t lock;
    pthread_cond_t changed; /* `end` is */

    /* under lock */
    Writers writers; /* its sequence while nothing runs */
    unsigned held;   /* of Hold */
    bool writing;
    bool loaded;
    bool end;
    uint64_t paused_ns;
    uint64_t errors_before; /* that its state tells of, or its memory when it last stood */
    SnapState *state;       /* of the last pause */

    /* the thread that prints */
    pthread_t printer;
    Stall reported;
    uint64_t reported_n;
    uint64_t reported_ns;
} ThreadGuest;

/* guest_lay_out: the sequence, and its header unless it is to come from elsewhere. */
void guest_lay_out(ThreadGuest *guest, const SeqLayout *layout, unsigned threads, uint32_t batch);

/* guest_start: let it run if nothing holds it, and the thread that prints. */
void guest_start(ThreadGuest *guest);
/* guest_end: stop everything. Return: the errors that the guest has counted. */
uint64_t guest_end(ThreadGuest *guest);

/* guest_hold: set or clear one of the bits. Return: whether it is as it should be. */
bool guest_hold(ThreadGuest *guest, Hold hold, bool on);
/* guest_runs: nothing holds it, but perhaps a pause. */
bool guest_runs(ThreadGuest *guest);

/* For snap_guest_new() and snap_guest_set_move_ops(), with the ThreadGuest as opaque. */
extern const SnapGuestOps thread_guest_ops;
extern const SnapMoveOps thread_guest_move_ops;
