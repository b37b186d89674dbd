/*
 * The source of a migration, which moves a guest that runs (move-guest.h), and a destination that is made by hand
 * (hand.h), in a thread: it speaks the protocol up to a point, and then does something else. Needs cmocka.h before
 * it.
 *
 *     [options, guest] → rig_start → rig_expect_… → [rig_join → what the peer has seen]
 *
 * Each test by TEST() has a rig of its own, *state. Its teardown looks at the guest: it is not throttled, its
 * memory is the state after one write, and what the peer had to see has come.
 */
#pragma once

#include "hand.h"
#include "move-guest.h"

#include "../../libsnap/transport.h"

enum { SILENCE_MS = 700 };
#define RAM_BYTES ((size_t)8 << 20)
#define PERIOD_NS 20000u

/* ---- the destination ------------------------------------------------------------------------------------- */

/* How far it goes along. */
typedef enum {
    PEER_CONNECTED,
    PEER_MET,       /* HELLO and REGIONs have come */
    PEER_WELCOMED,  /* and WELCOME was said */
    PEER_IN_MEMORY, /* a CHUNK has come */
    PEER_AT_END,    /* the guest stands, all was sent */
    PEER_AT_GO,     /* READY was said, and GO has come */
} PeerPoint;

typedef struct Peer Peer;
typedef void (*PeerAct)(Peer *peer);

struct Peer {
    /* set before start */
    PeerPoint until;
    PeerAct then;
    int fd; /* one end of a socket pair; -1: listens */
    SnapTransport *transport;
    uint8_t *copy;     /* (nullable) of the memory, as it comes */
    int stay_fd;       /* readable when the test is over */
    SnapWireAt met_at; /* where it says it is when it is met again */

    /* its thread; for the test after rig_join(). Hands count what they have received */
    Hand main, urgent;
    SnapWireHello hello;
    uint8_t *bulk;
    uint64_t n_records[SNAP_WIRE_MAX];
    bool wrong; /* something did not come, or not as it should */
};

/* What it may do then: close; */
void peer_leave(Peer *peer);
void peer_babble(Peer *peer);     /* say garbage, and live on; */
void peer_refuse(Peer *peer);     /* FAILED, "no room"; */
void peer_keep_still(Peer *peer); /* stay connected, and say nothing; */
void peer_live_on(Peer *peer);    /* ALIVE, and take everything; */
void peer_take_it(Peer *peer);    /* STARTED, and live on; */
void peer_meet_again(Peer *peer); /* close, be met again, where it says met_at, and take it. */

void peer_open(Peer *peer, Hand *hand);
/* @from and @until are steps that are gone, and so are those between them. */
void peer_reach(Peer *peer, PeerPoint from, PeerPoint until);
void peer_meet(Peer *peer, Hand *hand);
void peer_welcome(Hand *hand, SnapWireAt at);
/* One record, with its bulk. Return: its type; NONE: the other side is gone. */
SnapWireType peer_next(Peer *peer, Hand *hand);
/* On the main connection, alive, until @type has come. FALSE: the other side is gone. */
bool peer_await(Peer *peer, SnapWireType type);
/* It has to be so. */
void peer_check(Peer *peer, bool good);

/* ---- the source ------------------------------------------------------------------------------------------ */

typedef struct {
    MoveGuest guest;
    SnapOutgoingOptions options;
    SnapOutgoing *outgoing;
    Peer peer;
    pthread_t thread; /* of the peer */
    bool has_peer;
    int stay[2];
    char uri[64];
    char folder[32];
} Rig;

int rig_new(void **state);
int rig_free(void **state);
void rig_again(void **state);
#define TEST(name) cmocka_unit_test_setup_teardown(name, rig_new, rig_free)

/* The peer: on a socket pair, or where it listens for as many connections as come. */
void rig_pair(Rig *rig, PeerPoint until, PeerAct then);
void rig_listen(Rig *rig, PeerPoint until, PeerAct then);
/* The migration begins. */
void rig_begin(Rig *rig);
/* Both, on a socket pair. */
void rig_start(Rig *rig, PeerPoint until, PeerAct then);
/* The migration is freed, and the peer has ended. */
void rig_join(Rig *rig);

SnapMigrationStats rig_stats(const Rig *rig);
void rig_expect_phase(Rig *rig, SnapMigrationPhase phase);
/* The guest was handed over. */
void rig_expect_completed(Rig *rig);
/* It failed, or was cancelled, with @code and @words; the guest runs on here. */
void rig_expect_stays(Rig *rig, SnapErrorCode code, const char *words);
/* It is UNCONNECTED; the guest stands here. */
void rig_expect_lost(Rig *rig, SnapErrorCode code, const char *words, SnapMigrationPhase since);
