/*
 * A post-copy at its destination, on top of incoming-fixture.h: a source made by hand, with an urgent connection,
 * that switches over with pages missing; and threads that touch these as a guest does. Needs cmocka.h before it.
 *
 *     postcopy_begin → toucher_start → postcopy_expect_request → postcopy_answer → toucher_join → …
 *                    → postcopy_finish
 *
 * There is one region. Generation 1 is what was sent and is void, 2 what comes by the post-copy.
 */
#pragma once

#include "incoming-fixture.h"

enum { POSTCOPY_PAGES = 300 };

/* Pages first, first + step, … as far as they go, and from the beginning again. */
typedef struct {
    uint64_t first, n, step;
    unsigned generation; /* that it has to find */

    Rig *rig;
    GThread *thread;
    int done;  /* atomic: how many were touched */
    int wrong; /* atomic */
} Toucher;

void toucher_start(Rig *rig, Toucher *toucher);
int toucher_done(Toucher *toucher);
/* It ends, and has found what it had to. */
void toucher_join(Toucher *toucher);
/* Both, of pages that nobody has to wait for. */
void toucher_run(Rig *rig, Toucher toucher);

/* Whether pages can be missing here at all; says what is missing for it. */
bool postcopy_can_run(void);
/* Greeted, on both connections. */
Rig *postcopy_greet(void **state, SnapMemory kind);
/* Everything was sent, all of it is missing, and it runs. */
Rig *postcopy_begin(void **state, SnapMemory kind);
void postcopy_say_missing(Rig *rig, uint64_t chunk, uint64_t mask);
void postcopy_say_all_missing(Rig *rig);
/* END with pages missing. */
void postcopy_end(Rig *rig);
/* END, READY, GO. */
void postcopy_switch_over(Rig *rig);

SnapWireRequest postcopy_expect_request(Rig *rig);
void postcopy_expect_no_request(Rig *rig);
/* The pages of a request, and nothing else. */
void postcopy_answer(Rig *rig, const SnapWireRequest *request);
/* The next request, which is for page @page. */
void postcopy_serve(Rig *rig, uint64_t page);

/* As a guest does: these pages are zeros from now on, which has to be noted when all was sent. */
bool postcopy_discard(const Rig *rig, uint64_t page, uint64_t n);

void postcopy_lose(Rig *rig);
/* The connections again: so many pages are still missing. */
void postcopy_resume(Rig *rig, uint64_t n_missing);
/* Everything is sent, or what is left; then it is complete. */
void postcopy_send_rest(Rig *rig);
void postcopy_finish(Rig *rig);
