/* See outgoing-fixture.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "expect.h"
#include "outgoing-fixture.h"

#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

/* ---- the destination: what it hears ---------------------------------------------------------------------- */

void peer_check(Peer *peer, bool good) {
    peer->wrong = peer->wrong || !good;
}

static void put(const Peer *peer, const SnapWireChunk *chunk) {
    const uint8_t *from = peer->bulk;
    for (unsigned i = 0; i < 64 && peer->copy; i++) {
        uint64_t bit = UINT64_C(1) << i;
        uint8_t *to = peer->copy + (chunk->chunk * 64 + i) * 4096;
        if (chunk->record.zero & bit) {
            memset(to, 0, 4096);
        } else if (chunk->record.present & bit) {
            memcpy(to, from, 4096);
            from += 4096;
        }
    }
}

static bool receive_chunk(Peer *peer, Hand *hand) {
    SnapWireChunk chunk;
    const struct iovec part = {peer->bulk, hand->head.bulk_bytes};
    const char *wrong = snap_wire_decode_chunk(&hand->head, hand->body, &chunk);
    wrong = wrong ? wrong : snap_wire_check_chunk(&chunk, RAM_BYTES, 4096);
    peer_check(peer, !wrong);
    if (wrong || (part.iov_len > 0 && !snap_channel_receive_bulk(&hand->channel, &part, 1, NULL))) {
        return false;
    }
    put(peer, &chunk);
    hand->n_chunks++;
    hand->n_pages += (uint64_t)__builtin_popcountll(chunk.record.present);
    return true;
}

SnapWireType peer_next(Peer *peer, Hand *hand) {
    if (!snap_channel_receive(&hand->channel, HAND_PATIENCE_MS, &hand->head, hand->body, NULL)) {
        return SNAP_WIRE_NONE;
    }
    if (hand->head.type == SNAP_WIRE_CHUNK && !receive_chunk(peer, hand)) {
        return SNAP_WIRE_NONE;
    }
    peer->n_records[hand->head.type]++;
    return hand->head.type;
}

/* A peer that lives says so, and goes on saying it while it waits. */
static SnapWireType next_alive(Peer *peer) {
    do {
        hand_say_number(&peer->main, SNAP_WIRE_ALIVE, 0);
    } while (!snap_channel_wait(&peer->main.channel, -1, 50));
    return peer_next(peer, &peer->main);
}

bool peer_await(Peer *peer, SnapWireType type) {
    SnapWireType got;
    do {
        got = next_alive(peer);
    } while (got != type && got != SNAP_WIRE_NONE);
    return got == type;
}

/* A source that has given it up does not come so far. */
void peer_meet(Peer *peer, Hand *hand) {
    SnapWireRegion region;
    if (!snap_channel_expect(&hand->channel, SNAP_WIRE_HELLO, HAND_PATIENCE_MS, &hand->head, hand->body, NULL)) {
        return;
    }
    peer_check(peer, !snap_wire_decode_hello(&hand->head, hand->body, &peer->hello));
    hand->id = peer->hello.id;
    for (uint64_t i = 0; i < peer->hello.n_regions; i++) {
        if (snap_channel_expect(&hand->channel, SNAP_WIRE_REGION, HAND_PATIENCE_MS, &hand->head, hand->body,
                                NULL)) {
            peer_check(peer, !snap_wire_decode_region(&hand->head, hand->body, &region));
        }
    }
}

void peer_welcome(Hand *hand, SnapWireAt at) {
    uint8_t body[32];
    const SnapWireWelcome welcome = {.id = hand->id, .version = SNAP_WIRE_VERSION, .at = at};
    hand_say(hand, SNAP_WIRE_WELCOME, 0, body, snap_wire_encode_welcome(&welcome, body));
}

static void step(Peer *peer, PeerPoint point) {
    switch (point) {
    case PEER_CONNECTED:
        peer_open(peer, &peer->main);
        break;
    case PEER_MET:
        peer_meet(peer, &peer->main);
        break;
    case PEER_WELCOMED:
        peer_welcome(&peer->main, SNAP_WIRE_AT_BEGIN);
        break;
    case PEER_IN_MEMORY:
        peer_await(peer, SNAP_WIRE_CHUNK);
        break;
    case PEER_AT_END:
        peer_check(peer, peer_await(peer, SNAP_WIRE_END));
        break;
    case PEER_AT_GO:
        hand_say_number(&peer->main, SNAP_WIRE_READY, 0);
        peer_check(peer, peer_await(peer, SNAP_WIRE_GO));
        break;
    }
}

void peer_reach(Peer *peer, PeerPoint from, PeerPoint until) {
    for (PeerPoint point = from; point <= until; point++) {
        step(peer, point);
    }
}

/* ---- the destination: what it does ----------------------------------------------------------------------- */

void peer_leave(Peer *peer) {
    (void)peer;
}

void peer_babble(Peer *peer) {
    hand_say_garbage(&peer->main);
    peer_live_on(peer);
}

void peer_refuse(Peer *peer) {
    hand_say_failed(&peer->main, "no room");
}

void peer_keep_still(Peer *peer) {
    char byte;
    peer_check(peer, read(peer->stay_fd, &byte, 1) == 0);
}

void peer_live_on(Peer *peer) {
    while (next_alive(peer) != SNAP_WIRE_NONE) {
    }
}

void peer_take_it(Peer *peer) {
    hand_say_id(&peer->main, SNAP_WIRE_STARTED);
    peer_live_on(peer);
}

static void end(Peer *peer) {
    hand_close(&peer->main);
    hand_close(&peer->urgent);
    pthread_exit(NULL);
}

void peer_open(Peer *peer, Hand *hand) {
    int in = peer->fd, out = peer->fd;
    if (peer->transport && !snap_transport_accept(peer->transport, HAND_PATIENCE_MS, &in, &out, NULL)) {
        peer_check(peer, false);
        end(peer);
    }
    hand_init(hand, SNAP_WIRE_FROM_DESTINATION, in, out);
    hand->lenient = true;
    peer->fd = -1;
}

void peer_meet_again(Peer *peer) {
    SnapWireId id = peer->hello.id;
    hand_close(&peer->main);
    peer_open(peer, &peer->main);
    peer_meet(peer, &peer->main);
    peer_check(peer, memcmp(&id, &peer->hello.id, sizeof id) == 0);
    peer_welcome(&peer->main, peer->met_at);
    if (peer->met_at == SNAP_WIRE_AT_READY) {
        peer_check(peer, peer_await(peer, SNAP_WIRE_GO));
    }
    peer_take_it(peer);
}

static void *peer_run(void *opaque) {
    Peer *peer = opaque;
    peer_reach(peer, PEER_CONNECTED, peer->until);
    peer->then(peer);
    end(peer);
    return NULL;
}

/* ---- the source ------------------------------------------------------------------------------------------ */

int rig_new(void **state) {
    Rig *rig = *state = g_new0(Rig, 1);
    assert_true(move_guest_init(&rig->guest, "anon", RAM_BYTES, PERIOD_NS));
    assert_int_equal(pipe(rig->stay), 0);
    strcpy(rig->folder, "outgoing-XXXXXX");
    assert_non_null(mkdtemp(rig->folder));
    rig->options = (SnapOutgoingOptions){.uri = rig->uri, .silence_ms = SILENCE_MS};
    rig->peer = (Peer){.fd = -1, .stay_fd = rig->stay[0], .bulk = g_malloc(SNAP_WIRE_MAX_BULK_BYTES)};
    return 0;
}

static void start_peer(Rig *rig, PeerPoint until, PeerAct then) {
    rig->peer.until = until;
    rig->peer.then = then;
    rig->has_peer = true;
    assert_int_equal(pthread_create(&rig->thread, NULL, peer_run, &rig->peer), 0);
}

void rig_pair(Rig *rig, PeerPoint until, PeerAct then) {
    int ends[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    g_snprintf(rig->uri, sizeof rig->uri, "fd:%d", ends[0]);
    rig->peer.fd = ends[1];
    start_peer(rig, until, then);
}

void rig_listen(Rig *rig, PeerPoint until, PeerAct then) {
    g_autoptr(GError) error = NULL;
    g_snprintf(rig->uri, sizeof rig->uri, "unix:%s/s", rig->folder);
    rig->peer.transport = snap_transport_new_destination(rig->uri, &error);
    fail_on(error);
    start_peer(rig, until, then);
}

void rig_begin(Rig *rig) {
    g_autoptr(GError) error = NULL;
    rig->outgoing = snap_outgoing_start(rig->guest.guest, &rig->options, NULL, NULL, &error);
    fail_on(error);
}

void rig_start(Rig *rig, PeerPoint until, PeerAct then) {
    rig_pair(rig, until, then);
    rig_begin(rig);
}

void rig_join(Rig *rig) {
    g_clear_pointer(&rig->outgoing, snap_outgoing_free);
    if (rig->has_peer) {
        close(g_steal_fd(&rig->stay[1]));
        pthread_join(rig->thread, NULL);
        rig->has_peer = false;
    }
}

int rig_free(void **state) {
    Rig *rig = g_steal_pointer((Rig **)state);
    rig_join(rig);
    close(rig->stay[0]);
    if (rig->stay[1] >= 0) {
        close(rig->stay[1]);
    }
    snap_transport_free(rig->peer.transport);
    g_free(rig->peer.bulk);
    assert_int_equal(rmdir(rig->folder), 0);
    assert_false(rig->peer.wrong);
    assert_int_equal(move_count(&rig->guest.throttle), 0);
    move_guest_check(&rig->guest);
    move_guest_clear(&rig->guest);
    g_free(rig);
    return 0;
}

void rig_again(void **state) {
    rig_free(state);
    rig_new(state);
}

/* ---- what becomes of it ---------------------------------------------------------------------------------- */

SnapMigrationStats rig_stats(const Rig *rig) {
    SnapMigrationStats stats;
    snap_outgoing_get_stats(rig->outgoing, &stats);
    return stats;
}

static SnapMigrationPhase where_is(const void *rig) {
    return rig_stats(rig).phase;
}

void rig_expect_phase(Rig *rig, SnapMigrationPhase phase) {
    expect_phase(where_is, rig, phase, HAND_PATIENCE_MS);
}

void rig_expect_completed(Rig *rig) {
    g_autoptr(GError) error = NULL;
    snap_outgoing_wait(rig->outgoing, HAND_PATIENCE_MS, &error);
    fail_on(error);
    assert_int_equal(rig_stats(rig).phase, SNAP_MIGRATION_COMPLETED);
    assert_int_equal(move_count(&rig->guest.hand_overs), 1);
    assert_int_equal(move_count(&rig->guest.resumes), 0);
}

static void expect_ended(Rig *rig, SnapErrorCode code, const char *words, SnapMigrationPhase phase) {
    GError *error = NULL;
    bool good = snap_outgoing_wait(rig->outgoing, HAND_PATIENCE_MS, &error);
    expect_error(good, &error, code, words);
    assert_string_equal(snap_migration_phase_name(rig_stats(rig).phase), snap_migration_phase_name(phase));
}

void rig_expect_stays(Rig *rig, SnapErrorCode code, const char *words) {
    expect_ended(rig, code, words,
                 code == SNAP_ERROR_CANCELLED ? SNAP_MIGRATION_CANCELLED : SNAP_MIGRATION_FAILED);
    assert_int_equal(move_count(&rig->guest.hand_overs), 0);
    assert_int_equal(move_count(&rig->guest.resumes), move_count(&rig->guest.pauses));
    move_guest_check_runs(&rig->guest);
}

void rig_expect_lost(Rig *rig, SnapErrorCode code, const char *words, SnapMigrationPhase since) {
    expect_ended(rig, code, words, SNAP_MIGRATION_UNCONNECTED);
    assert_string_equal(snap_migration_phase_name(rig_stats(rig).since), snap_migration_phase_name(since));
    assert_int_equal(move_count(&rig->guest.hand_overs), since == SNAP_MIGRATION_POSTCOPY);
    assert_int_equal(move_count(&rig->guest.resumes), 0);
    move_guest_check_stands(&rig->guest);
}
