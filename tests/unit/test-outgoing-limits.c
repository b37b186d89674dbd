/*
 * What the owner of a source may ask for, and what it is told: a dirty limit is refused where the guest cannot be
 * throttled; and the downtime is all of the time that the guest stood, also where a connection was lost in it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "move-guest.h"

#include "../../libsnap/channel.h"
#include "../../libsnap/transport.h"

#include <string.h>
#include <unistd.h>

enum { SILENCE_MS = 5000, PATIENCE_MS = 20000, EPOCH_MS = 20, LOST_MS = 400 };
#define RAM_BYTES ((size_t)4 << 20)
#define PERIOD_NS 20000u

/* ---- limits ---------------------------------------------------------------------------------------------- */

static const SnapMigrationLimits dirty = {.dirty_limit_bytes = 1 << 20}, none = {0};

static void ignore(void *opaque) {
    (void)opaque;
}

static const SnapMoveOps without_throttle = {.hand_over = ignore};

static void expect_refused(const GError *error) {
    assert_true(g_error_matches(error, SNAP_ERROR, SNAP_ERROR_REFUSED));
    assert_non_null(strstr(error->message, "dirty limit"));
    assert_non_null(strstr(error->message, "throttled"));
}

static void limits_at_start_dirty_one_without_throttle_is_refused(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    MoveGuest guest;
    assert_true(move_guest_init(&guest, "anon", RAM_BYTES, PERIOD_NS));
    snap_guest_set_move_ops(guest.guest, &without_throttle);
    const SnapOutgoingOptions options = {.uri = "unix:nobody-listens-here", .limits = dirty};
    assert_null(snap_outgoing_start(guest.guest, &options, NULL, NULL, &error));
    expect_refused(error);
    move_guest_clear(&guest);
}

/* A guest that is replicated into a file. */
static SnapOutgoing *replicate(MoveGuest *guest, const char *uri) {
    g_autoptr(GError) error = NULL;
    const SnapOutgoingOptions options = {.uri = uri, .epoch_ms = EPOCH_MS};
    assert_true(move_guest_init(guest, "anon", RAM_BYTES, PERIOD_NS));
    SnapOutgoing *outgoing = snap_outgoing_start(guest->guest, &options, NULL, NULL, &error);
    fail_on(error);
    return outgoing;
}

static void limits_changed_dirty_one_without_throttle_is_refused(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    MoveGuest guest;
    SnapOutgoing *outgoing = replicate(&guest, "file:outgoing-limits.stream");
    assert_true(snap_outgoing_set_limits(outgoing, &dirty, &error)); /* it has one */
    snap_guest_set_move_ops(guest.guest, &without_throttle);
    assert_false(snap_outgoing_set_limits(outgoing, &dirty, &error));
    expect_refused(error);
    g_clear_error(&error);
    assert_true(snap_outgoing_set_limits(outgoing, &none, &error));
    snap_outgoing_free(outgoing);
    unlink("outgoing-limits.stream");
    move_guest_clear(&guest);
}

/* ---- downtime -------------------------------------------------------------------------------------------- */

/* A destination made by hand. */
typedef struct {
    SnapTransport *transport;
    SnapChannel channel;
    SnapWireHello hello;
    SnapWireAt at; /* where it says it is when it is met again */
    int over_fd;   /* readable when the test is over */
    uint8_t *body, *bulk;
} Peer;

static SnapWireType peer_next(Peer *peer) {
    SnapWireHead head;
    struct iovec part = {.iov_base = peer->bulk};
    assert_true(snap_channel_receive(&peer->channel, PATIENCE_MS, &head, peer->body, NULL));
    part.iov_len = head.bulk_bytes;
    assert_true(!head.bulk_bytes || snap_channel_receive_bulk(&peer->channel, &part, 1, NULL));
    if (head.type == SNAP_WIRE_HELLO) {
        assert_null(snap_wire_decode_hello(&head, peer->body, &peer->hello));
    }
    return head.type;
}

static void peer_await(Peer *peer, SnapWireType type) {
    while (peer_next(peer) != type) {
        continue;
    }
}

static void peer_send(Peer *peer, SnapWireType type, const void *body, uint32_t n) {
    assert_true(snap_channel_send(&peer->channel, type, 0, body, n, NULL, 0, NULL));
}

static void peer_meet(Peer *peer, SnapWireAt at) {
    g_autoptr(GError) error = NULL;
    int in, out;
    uint8_t body[32];
    snap_transport_accept(peer->transport, PATIENCE_MS, &in, &out, &error);
    fail_on(error);
    assert_true(snap_channel_init(&peer->channel, SNAP_WIRE_FROM_DESTINATION, in, out, SILENCE_MS, NULL));
    peer_await(peer, SNAP_WIRE_HELLO);
    for (uint64_t i = 0; i < peer->hello.n_regions; i++) {
        assert_int_equal(peer_next(peer), SNAP_WIRE_REGION);
    }
    const SnapWireWelcome welcome = {.id = peer->hello.id, .version = 1, .at = at};
    peer_send(peer, SNAP_WIRE_WELCOME, body, snap_wire_encode_welcome(&welcome, body));
}

/* The connection goes with GO; the guest has started when it is met again. */
static void *peer_lose_and_meet_again(void *opaque) {
    Peer *peer = opaque;
    uint8_t body[16], byte;
    peer_meet(peer, SNAP_WIRE_AT_BEGIN);
    peer_await(peer, SNAP_WIRE_END);
    peer_send(peer, SNAP_WIRE_READY, body, snap_wire_encode_number(0, body));
    peer_await(peer, SNAP_WIRE_GO);
    snap_channel_clear(&peer->channel);
    peer_meet(peer, peer->at);
    if (peer->at == SNAP_WIRE_AT_READY) {
        peer_await(peer, SNAP_WIRE_GO);
    }
    peer_send(peer, SNAP_WIRE_STARTED, body, snap_wire_encode_id(&peer->hello.id, body));
    assert_int_equal(read(peer->over_fd, &byte, 1), 0);
    snap_channel_clear(&peer->channel);
    return NULL;
}

/* Return: the downtime in the figures of a source that is resumed LOST_MS after it has lost its connection. */
static uint64_t downtime_ns_at(const char *uri) {
    g_autoptr(GError) error = NULL;
    MoveGuest guest;
    SnapMigrationStats stats;
    const SnapOutgoingOptions options = {.uri = uri, .silence_ms = SILENCE_MS};
    assert_true(move_guest_init(&guest, "anon", RAM_BYTES, PERIOD_NS));
    SnapOutgoing *outgoing = snap_outgoing_start(guest.guest, &options, NULL, NULL, &error);
    fail_on(error);
    assert_false(snap_outgoing_wait(outgoing, PATIENCE_MS, NULL));
    snap_outgoing_get_stats(outgoing, &stats);
    assert_int_equal(stats.phase, SNAP_MIGRATION_UNCONNECTED);
    assert_int_equal(stats.downtime_ns, 0); /* not known yet */
    g_usleep(LOST_MS * 1000);
    snap_outgoing_resume(outgoing, uri, &error);
    fail_on(error);
    snap_outgoing_wait(outgoing, PATIENCE_MS, &error);
    fail_on(error);
    snap_outgoing_get_stats(outgoing, &stats);
    assert_true(stats.downtime_ns < stats.total_ns);
    snap_outgoing_free(outgoing);
    move_guest_clear(&guest);
    return stats.downtime_ns;
}

static void downtime_of_a_move_that_was_resumed_is_from_stop_to_started(void **state) {
    (void)state;
    for (SnapWireAt at = SNAP_WIRE_AT_READY; at < SNAP_WIRE_AT_MAX; at++) {
        int over[2];
        pthread_t thread;
        Peer peer = {.at = at};
        assert_int_equal(pipe(over), 0);
        peer.over_fd = over[0];
        peer.body = g_malloc(SNAP_WIRE_MAX_BODY_BYTES);
        peer.bulk = g_malloc(SNAP_WIRE_MAX_BULK_BYTES);
        peer.transport = snap_transport_new_destination("unix:outgoing-limits.socket", NULL);
        assert_non_null(peer.transport);
        assert_int_equal(pthread_create(&thread, NULL, peer_lose_and_meet_again, &peer), 0);
        assert_true(downtime_ns_at("unix:outgoing-limits.socket") >= LOST_MS * UINT64_C(1000000));
        close(over[1]);
        pthread_join(thread, NULL);
        close(over[0]);
        snap_transport_free(peer.transport);
        g_free(peer.body);
        g_free(peer.bulk);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(limits_at_start_dirty_one_without_throttle_is_refused),
        cmocka_unit_test(limits_changed_dirty_one_without_throttle_is_refused),
        cmocka_unit_test(downtime_of_a_move_that_was_resumed_is_from_stop_to_started),
    };
    if (!move_can_run()) {
        return 77;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
