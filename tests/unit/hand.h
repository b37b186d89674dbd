/*
 * One end of a connection of the migration protocol that is made by hand: it says what a test wants said, record
 * by record, and expects what has to come. Needs cmocka.h before it.
 */
#pragma once

#include "../../libsnap/channel.h"
#include "../lib/own-process.h"

enum { HAND_PATIENCE_MS = 20000 }; /* for what has to come */

typedef struct {
    SnapChannel channel;
    SnapWireId id; /* of the migration, as this end says it */
    bool lenient;  /* the other end may be gone: it need not hear all */

    /* what was received last */
    SnapWireHead head;
    uint8_t *body;

    /* CHUNKs sent since END */
    uint64_t n_chunks, n_pages;
} Hand;

/* @in, @out: taken. */
void hand_init(Hand *hand, SnapWireSender self, int in, int out);
/* Close the connection. Of one that is closed, or zeroed: nothing. */
void hand_close(Hand *hand);

void hand_say(Hand *hand, SnapWireType type, uint16_t flags, const void *body, uint32_t body_bytes);
void hand_say_id(Hand *hand, SnapWireType type);                      /* GO, STARTED, ALL_SENT */
void hand_say_number(Hand *hand, SnapWireType type, uint64_t number); /* READY, ALIVE */
void hand_say_failed(Hand *hand, const char *text);
void hand_say_garbage(Hand *hand);
/* ALIVE for so long, to who may be gone. */
void hand_live_on(Hand *hand, unsigned ms);
void hand_say_chunk(Hand *hand, const SnapWireChunk *chunk, const void *bulk);
void hand_say_state(Hand *hand, const SnapWireState *state);
void hand_say_missing(Hand *hand, const SnapWireMissing *missing, const uint64_t *masks);
/* With the CHUNKs as they were sent. */
void hand_say_end(Hand *hand, uint64_t epoch, uint64_t n_states, uint16_t flags);

/* The next record that is not ALIVE. */
void hand_expect(Hand *hand, SnapWireType type);
/* READY, with that epoch. */
void hand_expect_ready(Hand *hand, uint64_t epoch);
/* FAILED, whose text has @part in it. */
void hand_expect_failed(Hand *hand, const char *part);
/* The connection ends, without FAILED. */
void hand_expect_closed(Hand *hand);
