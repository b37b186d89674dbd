/*
 * The source of a migration, against a destination that is made by hand: it speaks the protocol, up to where it
 * does not. At each point of it: closes, says garbage, gives up, is silent. What has to hold is that the guest
 * runs on here whatever fails before GO, and never after it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "move-guest.h"

#include "../../libsnap/channel.h"
#include "../../libsnap/transport.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

enum { SILENCE_MS = 700, PATIENCE_MS = 20000 };
#define RAM_BYTES ((size_t)8 << 20)
#define PERIOD_NS 20000u

/* ---- the other side -------------------------------------------------------------------------------------- */

typedef struct Peer Peer;
typedef void (*Script)(Peer *peer);

struct Peer {
    /* set before start */
    Script script;
    int fd; /* one end of a socket pair; -1: listens */
    SnapTransport *transport;
    uint8_t *copy; /* (nullable) of the memory, as it comes */
    pthread_t thread;

    /* its thread */
    SnapChannel channel;
    SnapWireHello hello;
    uint8_t *body;
    uint8_t *bulk;
    uint64_t n_chunks, n_pages, n_records[SNAP_WIRE_MAX];
    uint64_t asked_pages; /* that came where they were asked for */
    int stay_fd;          /* readable when the test is over */
};

static void peer_send(Peer *peer, SnapWireType type, const void *body, uint32_t n) {
    snap_channel_send(&peer->channel, type, 0, body, n, NULL, 0, NULL); /* who is gone has not to hear it */
}

static void peer_welcome(Peer *peer, SnapWireAt at, uint64_t n_missing) {
    uint8_t body[32];
    SnapWireWelcome welcome = {.id = peer->hello.id, .version = 1, .at = at, .n_missing = n_missing};
    peer_send(peer, SNAP_WIRE_WELCOME, body, snap_wire_encode_welcome(&welcome, body));
}

static void peer_send_id(Peer *peer, SnapWireType type) {
    uint8_t body[16];
    peer_send(peer, type, body, snap_wire_encode_id(&peer->hello.id, body));
}

static void peer_ready(Peer *peer, uint64_t epoch) {
    uint8_t body[16];
    peer_send(peer, SNAP_WIRE_READY, body, snap_wire_encode_number(epoch, body));
}

static void peer_alive(Peer *peer) {
    uint8_t body[16];
    peer_send(peer, SNAP_WIRE_ALIVE, body, snap_wire_encode_number(0, body));
}

static void peer_garbage(Peer *peer) {
    static const char text[] = "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    assert_int_equal(write(peer->channel.out, text, sizeof text), sizeof text);
}

static void peer_put(Peer *peer, const SnapWireChunk *chunk) {
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

/* One record, with its bulk. Return: its type; NONE: the other side is gone. */
static SnapWireType peer_next(Peer *peer) {
    SnapWireHead head;
    SnapWireChunk chunk;
    if (!snap_channel_receive(&peer->channel, PATIENCE_MS, &head, peer->body, NULL)) {
        return SNAP_WIRE_NONE;
    }
    if (head.type == SNAP_WIRE_CHUNK) {
        struct iovec part = {.iov_base = peer->bulk, .iov_len = head.bulk_bytes};
        assert_null(snap_wire_decode_chunk(&head, peer->body, &chunk));
        if (head.bulk_bytes && !snap_channel_receive_bulk(&peer->channel, &part, 1, NULL)) {
            return SNAP_WIRE_NONE;
        }
        assert_null(snap_wire_check_chunk(&chunk, RAM_BYTES, 4096));
        peer_put(peer, &chunk);
        peer->n_chunks++;
        peer->n_pages += (uint64_t)__builtin_popcountll(chunk.record.present);
    }
    peer->n_records[head.type]++;
    return head.type;
}

/* A peer that lives says so, and goes on saying it while it waits. */
static SnapWireType peer_next_alive(Peer *peer) {
    do {
        peer_alive(peer);
    } while (!snap_channel_wait(&peer->channel, -1, 50));
    return peer_next(peer);
}

/* Until @type has come. FALSE: the other side is gone. */
static bool peer_until(Peer *peer, SnapWireType type) {
    SnapWireType got;
    do {
        got = peer_next_alive(peer);
    } while (got != type && got != SNAP_WIRE_NONE);
    return got == type;
}

/* HELLO and REGIONs have come; or not, of a source that gave it up. */
static void peer_meet(Peer *peer) {
    SnapWireHead head;
    SnapWireRegion region;
    if (!snap_channel_expect(&peer->channel, SNAP_WIRE_HELLO, PATIENCE_MS, &head, peer->body, NULL)) {
        return;
    }
    assert_null(snap_wire_decode_hello(&head, peer->body, &peer->hello));
    for (uint64_t i = 0; i < peer->hello.n_regions; i++) {
        if (snap_channel_expect(&peer->channel, SNAP_WIRE_REGION, PATIENCE_MS, &head, peer->body, NULL)) {
            assert_null(snap_wire_decode_region(&head, peer->body, &region));
        }
    }
}

static void peer_greet(Peer *peer) {
    peer_meet(peer);
    peer_welcome(peer, SNAP_WIRE_AT_BEGIN, 0);
}

/* Alive, and nothing else, until the other side is gone. */
static void peer_live_on(Peer *peer) {
    while (peer_next_alive(peer) != SNAP_WIRE_NONE) {
    }
}

/* Connected, and silent. */
static void peer_keep_still(Peer *peer) {
    char byte;
    assert_int_equal(read(peer->stay_fd, &byte, 1), 0);
}

static void peer_open(Peer *peer) {
    g_autoptr(GError) error = NULL;
    int in = peer->fd, out = peer->fd;
    if (peer->transport) {
        snap_transport_accept(peer->transport, PATIENCE_MS, &in, &out, &error);
        fail_on(error);
    }
    snap_channel_init(&peer->channel, SNAP_WIRE_FROM_DESTINATION, in, out, PATIENCE_MS, &error);
    fail_on(error);
    peer->fd = -1;
}

static void peer_close(Peer *peer) {
    snap_channel_clear(&peer->channel);
}

static void *peer_run(void *opaque) {
    Peer *peer = opaque;
    peer_open(peer);
    peer->script(peer);
    peer_close(peer);
    return NULL;
}

/* ---- scripts: what the other side does ------------------------------------------------------------------- */

static void close_at_once(Peer *peer) {
    (void)peer;
}
static void close_in_greeting(Peer *peer) {
    peer_meet(peer);
}
static void garbage_in_greeting(Peer *peer) {
    peer_meet(peer);
    peer_garbage(peer);
    peer_keep_still(peer);
}
static void refuse_in_greeting(Peer *peer) {
    peer_meet(peer);
    snap_channel_send_failed(&peer->channel, "no room");
}
static void silent_in_greeting(Peer *peer) {
    peer_meet(peer);
    peer_keep_still(peer);
}
static void greet_another(Peer *peer) {
    peer_meet(peer);
    peer->hello.id.bytes[3] ^= 1;
    peer_welcome(peer, SNAP_WIRE_AT_BEGIN, 0);
    peer_keep_still(peer);
}
static void greet_as_started(Peer *peer) {
    peer_meet(peer);
    peer_welcome(peer, SNAP_WIRE_AT_STARTED, 0);
    peer_keep_still(peer);
}

static void close_in_memory(Peer *peer) {
    peer_greet(peer);
    peer_until(peer, SNAP_WIRE_CHUNK);
}
static void garbage_in_memory(Peer *peer) {
    peer_greet(peer);
    peer_until(peer, SNAP_WIRE_CHUNK);
    peer_garbage(peer);
    peer_live_on(peer);
}
static void refuse_in_memory(Peer *peer) {
    peer_greet(peer);
    peer_until(peer, SNAP_WIRE_CHUNK);
    snap_channel_send_failed(&peer->channel, "the roof leaks");
}
static void stall_in_memory(Peer *peer) {
    peer_greet(peer);
    peer_until(peer, SNAP_WIRE_CHUNK);
    peer_keep_still(peer);
}
/* It takes everything, and is never heard of. */
static void mute_in_memory(Peer *peer) {
    peer_greet(peer);
    while (peer_next(peer) != SNAP_WIRE_NONE) {
    }
}
/* It hears everything, and says that it lives. */
static void follow(Peer *peer) {
    peer_greet(peer);
    peer_live_on(peer);
}
static void ready_in_memory(Peer *peer) {
    peer_greet(peer);
    peer_until(peer, SNAP_WIRE_CHUNK);
    peer_ready(peer, 0);
    peer_live_on(peer);
}

static void close_before_ready(Peer *peer) {
    peer_greet(peer);
    assert_true(peer_until(peer, SNAP_WIRE_END));
}
static void refuse_state(Peer *peer) {
    close_before_ready(peer);
    snap_channel_send_failed(&peer->channel, "no such device");
}
static void never_ready_silent(Peer *peer) {
    close_before_ready(peer);
    peer_keep_still(peer);
}
static void never_ready_alive(Peer *peer) {
    close_before_ready(peer);
    peer_live_on(peer);
}
static void ready_of_another_epoch(Peer *peer) {
    close_before_ready(peer);
    peer_ready(peer, 7);
    peer_keep_still(peer);
}
static void garbage_before_ready(Peer *peer) {
    close_before_ready(peer);
    peer_garbage(peer);
    peer_keep_still(peer);
}

static void until_go_without_greeting(Peer *peer) {
    assert_true(peer_until(peer, SNAP_WIRE_END));
    peer_ready(peer, 0);
    assert_true(peer_until(peer, SNAP_WIRE_GO));
}
static void until_go(Peer *peer) {
    peer_greet(peer);
    until_go_without_greeting(peer);
}
static void refuse_to_start(Peer *peer) {
    until_go(peer);
    snap_channel_send_failed(&peer->channel, "the key does not fit");
}
static void silent_after_go(Peer *peer) {
    until_go(peer);
    peer_keep_still(peer);
}
static void garbage_after_go(Peer *peer) {
    until_go(peer);
    peer_garbage(peer);
    peer_keep_still(peer);
}
static void started_of_another(Peer *peer) {
    until_go(peer);
    peer->hello.id.bytes[0] ^= 1;
    peer_send_id(peer, SNAP_WIRE_STARTED);
    peer_keep_still(peer);
}
static void take_it(Peer *peer) {
    until_go(peer);
    peer_send_id(peer, SNAP_WIRE_STARTED);
    peer_live_on(peer);
}

static void peer_request(Peer *peer, uint32_t region, uint64_t page) {
    uint8_t body[24];
    SnapWireRequest request = {.region = region, .n_pages = 1, .first_page = page};
    peer_send(peer, SNAP_WIRE_REQUEST, body, snap_wire_encode_request(&request, body));
}

/* It runs the guest with pages missing, asks for one, and gets it; then it asks for one that there is not. */
static void ask_for_nonsense(Peer *peer) {
    Peer urgent = *peer;
    peer_greet(peer);
    peer_open(&urgent);
    peer_greet(&urgent);
    assert_int_equal(urgent.hello.channel, SNAP_WIRE_URGENT);
    until_go_without_greeting(peer);
    peer_send_id(peer, SNAP_WIRE_STARTED);
    peer_request(&urgent, 0, 130);
    assert_int_equal(peer_next(&urgent), SNAP_WIRE_CHUNK);
    peer->asked_pages = urgent.n_pages;
    peer_request(&urgent, 1, 0);
    peer_live_on(peer);
    peer_close(&urgent);
}

/* ---- a migration to it ----------------------------------------------------------------------------------- */

typedef struct {
    MoveGuest guest;
    Peer peer;
    int stay[2];
    SnapOutgoing *outgoing;
    char uri[64];
    char folder[32];
} Rig;

static void rig_init(Rig *rig) {
    *rig = (Rig){.peer.fd = -1};
    assert_true(move_guest_init(&rig->guest, "anon", RAM_BYTES, PERIOD_NS));
    assert_int_equal(pipe(rig->stay), 0);
    rig->peer.stay_fd = rig->stay[0];
    rig->peer.body = g_malloc(SNAP_WIRE_MAX_BODY_BYTES);
    rig->peer.bulk = g_malloc(SNAP_WIRE_MAX_BULK_BYTES);
}

static void peer_start(Rig *rig, Script script) {
    rig->peer.script = script;
    assert_int_equal(pthread_create(&rig->peer.thread, NULL, peer_run, &rig->peer), 0);
}

static SnapOutgoingOptions options_of(const Rig *rig) {
    return (SnapOutgoingOptions){.uri = rig->uri, .silence_ms = SILENCE_MS};
}

/* One connection. */
static void rig_pair(Rig *rig, Script script) {
    int ends[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    snprintf(rig->uri, sizeof rig->uri, "fd:%d", ends[0]);
    rig->peer.fd = ends[1];
    peer_start(rig, script);
}

/* As many as come. */
static void rig_listen(Rig *rig, Script script) {
    g_autoptr(GError) error = NULL;
    strcpy(rig->folder, "outgoing-XXXXXX");
    assert_non_null(mkdtemp(rig->folder));
    snprintf(rig->uri, sizeof rig->uri, "unix:%s/s", rig->folder);
    rig->peer.transport = snap_transport_new_destination(rig->uri, &error);
    fail_on(error);
    peer_start(rig, script);
}

static void rig_begin(Rig *rig, const SnapOutgoingOptions *options) {
    g_autoptr(GError) error = NULL;
    rig->outgoing = snap_outgoing_start(rig->guest.guest, options, NULL, NULL, &error);
    fail_on(error);
}

static void rig_clear(Rig *rig) {
    snap_outgoing_free(rig->outgoing);
    close(rig->stay[1]);
    pthread_join(rig->peer.thread, NULL);
    close(rig->stay[0]);
    snap_transport_free(rig->peer.transport);
    if (*rig->folder) {
        rmdir(rig->folder);
    }
    assert_int_equal(move_count(&rig->guest.throttle), 0);
    move_guest_check(&rig->guest);
    move_guest_clear(&rig->guest);
    g_free(rig->peer.body);
    g_free(rig->peer.bulk);
}

static SnapMigrationPhase phase_of(Rig *rig) {
    SnapMigrationStats stats;
    snap_outgoing_get_stats(rig->outgoing, &stats);
    return stats.phase;
}

static void await_phase(Rig *rig, SnapMigrationPhase phase) {
    for (int i = 0; i < PATIENCE_MS && phase_of(rig) != phase; i++) {
        g_usleep(1000);
    }
    assert_string_equal(snap_migration_phase_name(phase_of(rig)), snap_migration_phase_name(phase));
}

static void expect_end(Rig *rig, SnapErrorCode code, const char *words) {
    g_autoptr(GError) error = NULL;
    assert_false(snap_outgoing_wait(rig->outgoing, PATIENCE_MS, &error));
    if (!g_error_matches(error, SNAP_ERROR, (gint)code) || (words && !strstr(error->message, words))) {
        fail_msg("the error was %d: %s", error->code, error->message);
    }
}

/* ---- what fails before GO -------------------------------------------------------------------------------- */

typedef struct {
    const char *name;
    Script script;
    SnapErrorCode code;
    const char *words;
    bool stopped; /* the guest had been by then */
} Case;

static const Case cases[] = {
    {"close_at_once", close_at_once, SNAP_ERROR_IO, NULL, false},
    {"close_in_greeting", close_in_greeting, SNAP_ERROR_IO, "closed", false},
    {"garbage_in_greeting", garbage_in_greeting, SNAP_ERROR_PROTOCOL, NULL, false},
    {"refuse_in_greeting", refuse_in_greeting, SNAP_ERROR_REFUSED, "no room", false},
    {"silent_in_greeting", silent_in_greeting, SNAP_ERROR_IO, "silent", false},
    {"greet_another", greet_another, SNAP_ERROR_PROTOCOL, "id", false},
    {"greet_as_started", greet_as_started, SNAP_ERROR_PROTOCOL, NULL, false},
    {"close_in_memory", close_in_memory, SNAP_ERROR_IO, "closed", false},
    {"garbage_in_memory", garbage_in_memory, SNAP_ERROR_PROTOCOL, NULL, false},
    {"refuse_in_memory", refuse_in_memory, SNAP_ERROR_REFUSED, "the roof leaks", false},
    {"stall_in_memory", stall_in_memory, SNAP_ERROR_IO, "silent", false},
    {"mute_in_memory", mute_in_memory, SNAP_ERROR_IO, "silent", false},
    {"ready_in_memory", ready_in_memory, SNAP_ERROR_PROTOCOL, "READY", false},
    {"close_before_ready", close_before_ready, SNAP_ERROR_IO, "closed", true},
    {"refuse_state", refuse_state, SNAP_ERROR_REFUSED, "no such device", true},
    {"never_ready_silent", never_ready_silent, SNAP_ERROR_IO, "silent", true},
    {"never_ready_alive", never_ready_alive, SNAP_ERROR_IO, "not ready", true},
    {"ready_of_another_epoch", ready_of_another_epoch, SNAP_ERROR_PROTOCOL, "epoch", true},
    {"garbage_before_ready", garbage_before_ready, SNAP_ERROR_PROTOCOL, NULL, true},
    {"refuse_to_start", refuse_to_start, SNAP_ERROR_REFUSED, "the key does not fit", true},
};

static void source_fails_before_it_is_too_late_guest_runs_on(void **state) {
    (void)state;
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        Rig rig;
        rig_init(&rig);
        print_message("  %s\n", cases[i].name);
        rig_pair(&rig, cases[i].script);
        SnapOutgoingOptions options = options_of(&rig);
        rig_begin(&rig, &options);
        expect_end(&rig, cases[i].code, cases[i].words);
        assert_int_equal(phase_of(&rig), SNAP_MIGRATION_FAILED);
        assert_int_equal(move_count(&rig.guest.hand_overs), 0);
        assert_int_equal(move_count(&rig.guest.resumes), move_count(&rig.guest.pauses));
        if (cases[i].stopped) {
            assert_int_equal(move_count(&rig.guest.resumes), 1);
        }
        move_guest_check_runs(&rig.guest);
        rig_clear(&rig);
    }
}

static void source_fails_other_side_is_told(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig);
    rig_pair(&rig, follow);
    rig.guest.other_shape = true;
    SnapOutgoingOptions options = options_of(&rig);
    rig_begin(&rig, &options);
    expect_end(&rig, SNAP_ERROR_REFUSED, "ram");
    move_guest_check_runs(&rig.guest);
    rig_clear(&rig);
    assert_int_equal(rig.peer.n_records[SNAP_WIRE_FAILED], 1);
}

static void source_guest_cannot_be_stopped_fails(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig);
    rig_pair(&rig, follow);
    rig.guest.fails_to_pause = true;
    SnapOutgoingOptions options = options_of(&rig);
    rig_begin(&rig, &options);
    expect_end(&rig, SNAP_ERROR_FAILED, "the lid is open");
    assert_int_equal(move_count(&rig.guest.resumes), 1);
    move_guest_check_runs(&rig.guest);
    rig_clear(&rig);
}

/* ---- what fails after GO --------------------------------------------------------------------------------- */

static const Case lost[] = {
    {"close_after_go", until_go, SNAP_ERROR_IO, "closed", true},
    {"silent_after_go", silent_after_go, SNAP_ERROR_IO, "silent", true},
    {"garbage_after_go", garbage_after_go, SNAP_ERROR_PROTOCOL, NULL, true},
    {"started_of_another", started_of_another, SNAP_ERROR_PROTOCOL, "another migration", true},
};

static void source_lost_after_go_guest_stands_here(void **state) {
    (void)state;
    for (size_t i = 0; i < G_N_ELEMENTS(lost); i++) {
        g_autoptr(GError) error = NULL;
        Rig rig;
        SnapMigrationStats stats;
        rig_init(&rig);
        print_message("  %s\n", lost[i].name);
        rig_pair(&rig, lost[i].script);
        SnapOutgoingOptions options = options_of(&rig);
        rig_begin(&rig, &options);
        expect_end(&rig, lost[i].code, lost[i].words);
        snap_outgoing_get_stats(rig.outgoing, &stats);
        assert_int_equal(stats.phase, SNAP_MIGRATION_UNCONNECTED);
        assert_int_equal(stats.since, SNAP_MIGRATION_DEVICE);
        assert_false(snap_outgoing_cancel(rig.outgoing, &error));
        assert_true(g_error_matches(error, SNAP_ERROR, SNAP_ERROR_REFUSED));
        move_guest_check_stands(&rig.guest);
        rig_clear(&rig);
        assert_int_equal(move_count(&rig.guest.resumes), 0);
        assert_int_equal(move_count(&rig.guest.hand_overs), 0);
    }
}

static void source_lost_after_go_is_taken_back_by_its_owner(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    Rig rig;
    rig_init(&rig);
    rig_pair(&rig, until_go);
    SnapOutgoingOptions options = options_of(&rig);
    rig_begin(&rig, &options);
    expect_end(&rig, SNAP_ERROR_IO, "closed");
    move_guest_check_stands(&rig.guest);
    snap_outgoing_reclaim(rig.outgoing, &error);
    fail_on(error);
    expect_end(&rig, SNAP_ERROR_FAILED, "taken back");
    assert_int_equal(phase_of(&rig), SNAP_MIGRATION_FAILED);
    assert_false(snap_outgoing_reclaim(rig.outgoing, NULL));
    assert_int_equal(move_count(&rig.guest.resumes), 1);
    assert_int_equal(move_count(&rig.guest.hand_overs), 0);
    move_guest_check_runs(&rig.guest);
    rig_clear(&rig);
}

static SnapWireAt met_at;

/* Lost after GO; then it is where the test says. */
static void lose_and_meet_again(Peer *peer) {
    until_go(peer);
    peer_close(peer);
    peer_open(peer);
    SnapWireId id = peer->hello.id;
    peer_meet(peer);
    assert_memory_equal(&id, &peer->hello.id, sizeof id);
    peer_welcome(peer, met_at, 0);
    if (met_at == SNAP_WIRE_AT_READY) {
        assert_true(peer_until(peer, SNAP_WIRE_GO));
    }
    peer_send_id(peer, SNAP_WIRE_STARTED);
    peer_live_on(peer);
}

static void source_resumed_hands_over(void **state) {
    (void)state;
    for (met_at = SNAP_WIRE_AT_READY; met_at < SNAP_WIRE_AT_MAX; met_at++) {
        g_autoptr(GError) error = NULL;
        Rig rig;
        rig_init(&rig);
        rig_listen(&rig, lose_and_meet_again);
        SnapOutgoingOptions options = options_of(&rig);
        rig_begin(&rig, &options);
        expect_end(&rig, SNAP_ERROR_IO, NULL);
        assert_int_equal(move_count(&rig.guest.hand_overs), 0);
        snap_outgoing_resume(rig.outgoing, rig.uri, &error);
        fail_on(error);
        snap_outgoing_wait(rig.outgoing, PATIENCE_MS, &error);
        fail_on(error);
        assert_int_equal(move_count(&rig.guest.hand_overs), 1);
        assert_int_equal(move_count(&rig.guest.resumes), 0);
        rig_clear(&rig);
    }
}

static void source_resumed_nobody_there_is_unconnected_again(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    Rig rig;
    rig_init(&rig);
    rig_pair(&rig, until_go);
    SnapOutgoingOptions options = options_of(&rig);
    rig_begin(&rig, &options);
    expect_end(&rig, SNAP_ERROR_IO, NULL);
    assert_false(snap_outgoing_resume(rig.outgoing, "file:x", &error));
    assert_true(g_error_matches(error, SNAP_ERROR, SNAP_ERROR_REFUSED));
    g_clear_error(&error);
    snap_outgoing_resume(rig.outgoing, "unix:nobody-listens-here", &error);
    fail_on(error);
    expect_end(&rig, SNAP_ERROR_IO, NULL);
    assert_int_equal(phase_of(&rig), SNAP_MIGRATION_UNCONNECTED);
    move_guest_check_stands(&rig.guest);
    rig_clear(&rig);
}

static void source_asked_for_nonsense_is_unconnected(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    SnapMigrationStats stats;
    Rig rig;
    rig_init(&rig);
    rig_listen(&rig, ask_for_nonsense);
    SnapOutgoingOptions options = options_of(&rig);
    options.may_postcopy = TRUE;
    options.limits.max_postcopy_bandwidth_bytes = 1 << 20;
    rig_begin(&rig, &options);
    snap_outgoing_start_postcopy(rig.outgoing, &error);
    fail_on(error);
    expect_end(&rig, SNAP_ERROR_PROTOCOL, "REQUEST");
    snap_outgoing_get_stats(rig.outgoing, &stats);
    assert_int_equal(stats.phase, SNAP_MIGRATION_UNCONNECTED);
    assert_int_equal(stats.since, SNAP_MIGRATION_POSTCOPY);
    assert_int_equal(stats.postcopy_requests, 1);
    assert_int_equal(move_count(&rig.guest.hand_overs), 1);
    assert_int_equal(move_count(&rig.guest.resumes), 0);
    rig_clear(&rig);
    assert_int_equal(rig.peer.asked_pages, 1);
}

/* ---- what goes well -------------------------------------------------------------------------------------- */

static void source_moved_memory_is_there(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    g_autofree uint8_t *copy = g_malloc0(RAM_BYTES);
    SnapMigrationStats stats;
    SeqReport report;
    Rig rig;
    rig_init(&rig);
    rig.peer.copy = copy;
    rig_pair(&rig, take_it);
    SnapOutgoingOptions options = options_of(&rig);
    rig_begin(&rig, &options);
    snap_outgoing_wait(rig.outgoing, PATIENCE_MS, &error);
    fail_on(error);
    snap_outgoing_get_stats(rig.outgoing, &stats);
    assert_int_equal(stats.phase, SNAP_MIGRATION_COMPLETED);
    assert_int_equal(stats.total_bytes, RAM_BYTES);
    assert_int_equal(stats.remaining_bytes, 0);
    assert_true(stats.downtime_ns > 0 && stats.downtime_ns < stats.total_ns);
    assert_true(stats.sent_bytes > RAM_BYTES);
    assert_true(stats.pages_normal >= RAM_BYTES / 4096);
    assert_int_equal(move_count(&rig.guest.hand_overs), 1);
    assert_int_equal(move_count(&rig.guest.resumes), 0);
    assert_true(seq_check(copy, RAM_BYTES, &rig.guest.writers.layout, &report));
    assert_int_equal(report.n, move_written(&rig.guest));
    rig_clear(&rig);
}

/* A guest that takes its time to be stopped is no silence. */
static void source_busy_with_its_guest_says_that_it_lives(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    Rig rig;
    rig_init(&rig);
    rig.guest.slow_ms = 2 * SILENCE_MS;
    rig_pair(&rig, take_it);
    SnapOutgoingOptions options = options_of(&rig);
    rig_begin(&rig, &options);
    snap_outgoing_wait(rig.outgoing, PATIENCE_MS, &error);
    fail_on(error);
    rig_clear(&rig);
    assert_true(rig.peer.n_records[SNAP_WIRE_ALIVE] >= 4);
}

static void source_of_a_sparse_guest_sends_what_is_there(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    MoveGuest sparse;
    Rig rig;
    rig_init(&rig);
    assert_true(move_guest_init_empty(&sparse, "anon", RAM_BYTES, 0));
    madvise(sparse.backing.arena, RAM_BYTES, MADV_NOHUGEPAGE);
    memset((uint8_t *)sparse.backing.arena + RAM_BYTES / 2, 1, 3 * 4096);
    sparse.lives = true;
    rig_pair(&rig, take_it);
    SnapOutgoingOptions options = options_of(&rig);
    rig.outgoing = snap_outgoing_start(sparse.guest, &options, NULL, NULL, &error);
    fail_on(error);
    snap_outgoing_wait(rig.outgoing, PATIENCE_MS, &error);
    fail_on(error);
    rig_clear(&rig);
    assert_true(rig.peer.n_pages >= 3 && rig.peer.n_pages <= 512); /* what one page table maps */
    move_guest_clear(&sparse);
}

static void source_to_a_file_leaves_it_complete(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    MoveGuest guest;
    assert_true(move_guest_init(&guest, "anon", RAM_BYTES, PERIOD_NS));
    SnapOutgoingOptions options = {.uri = "file:outgoing.stream"};
    SnapOutgoing *outgoing = snap_outgoing_start(guest.guest, &options, NULL, NULL, &error);
    fail_on(error);
    snap_outgoing_wait(outgoing, PATIENCE_MS, &error);
    fail_on(error);
    snap_outgoing_free(outgoing);
    assert_int_equal(move_count(&guest.hand_overs), 1);
    assert_int_equal(access("outgoing.stream", R_OK), 0);
    assert_int_equal(unlink("outgoing.stream"), 0);
    move_guest_clear(&guest);
}

/* ---- what is asked of it --------------------------------------------------------------------------------- */

static void source_waits_before_switchover_until_told(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    Rig rig;
    rig_init(&rig);
    rig_pair(&rig, take_it);
    SnapOutgoingOptions options = options_of(&rig);
    options.pause_before_switchover = TRUE;
    rig_begin(&rig, &options);
    assert_false(snap_outgoing_continue(rig.outgoing, NULL));
    await_phase(&rig, SNAP_MIGRATION_PRE_SWITCHOVER);
    move_guest_check_stands(&rig.guest);
    snap_outgoing_continue(rig.outgoing, &error);
    fail_on(error);
    snap_outgoing_wait(rig.outgoing, PATIENCE_MS, &error);
    fail_on(error);
    assert_int_equal(move_count(&rig.guest.hand_overs), 1);
    rig_clear(&rig);
}

static void source_cancelled_before_switchover_guest_runs(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig);
    rig_pair(&rig, follow);
    SnapOutgoingOptions options = options_of(&rig);
    options.pause_before_switchover = TRUE;
    rig_begin(&rig, &options);
    await_phase(&rig, SNAP_MIGRATION_PRE_SWITCHOVER);
    assert_true(snap_outgoing_cancel(rig.outgoing, NULL));
    expect_end(&rig, SNAP_ERROR_CANCELLED, NULL);
    assert_int_equal(phase_of(&rig), SNAP_MIGRATION_CANCELLED);
    move_guest_check_runs(&rig.guest);
    rig_clear(&rig);
    assert_int_equal(rig.peer.n_records[SNAP_WIRE_FAILED], 1);
}

typedef struct {
    const char *name;
    Script script;
    SnapMigrationPhase when;
} Moment;

static const Moment moments[] = {
    {"greeting", silent_in_greeting, SNAP_MIGRATION_SETUP},
    {"a stalled connection", stall_in_memory, SNAP_MIGRATION_ACTIVE},
    {"waiting for READY", never_ready_alive, SNAP_MIGRATION_DEVICE},
};

static void source_cancelled_ends_at_once(void **state) {
    (void)state;
    for (size_t i = 0; i < G_N_ELEMENTS(moments); i++) {
        Rig rig;
        rig_init(&rig);
        print_message("  %s\n", moments[i].name);
        rig_pair(&rig, moments[i].script);
        SnapOutgoingOptions options = options_of(&rig);
        options.silence_ms = PATIENCE_MS;
        rig_begin(&rig, &options);
        await_phase(&rig, moments[i].when);
        g_usleep(50000);
        int64_t start_us = g_get_monotonic_time();
        assert_true(snap_outgoing_cancel(rig.outgoing, NULL));
        expect_end(&rig, SNAP_ERROR_CANCELLED, NULL);
        assert_true(g_get_monotonic_time() - start_us < PATIENCE_MS * 1000 / 4);
        assert_int_equal(phase_of(&rig), SNAP_MIGRATION_CANCELLED);
        move_guest_check_runs(&rig.guest);
        rig_clear(&rig);
    }
}

static void source_freed_while_under_way_guest_runs(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig);
    rig_pair(&rig, stall_in_memory);
    SnapOutgoingOptions options = options_of(&rig);
    options.silence_ms = PATIENCE_MS;
    rig_begin(&rig, &options);
    await_phase(&rig, SNAP_MIGRATION_ACTIVE);
    snap_outgoing_free(g_steal_pointer(&rig.outgoing));
    move_guest_check_runs(&rig.guest);
    rig_clear(&rig);
}

static void source_second_at_once_is_refused(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    Rig rig;
    rig_init(&rig);
    rig_pair(&rig, follow);
    SnapOutgoingOptions options = options_of(&rig);
    rig_begin(&rig, &options);
    options.uri = "unix:elsewhere";
    assert_null(snap_outgoing_start(rig.guest.guest, &options, NULL, NULL, &error));
    assert_true(g_error_matches(error, SNAP_ERROR, SNAP_ERROR_REFUSED));
    rig_clear(&rig);
}

static void source_wrong_options_are_refused(void **state) {
    (void)state;
    static const struct {
        SnapOutgoingOptions options;
        SnapErrorCode code;
    } wrong[] = {
        {{.uri = NULL}, SNAP_ERROR_USAGE},
        {{.uri = "pigeon:1"}, SNAP_ERROR_USAGE},
        {{.uri = "unix:x", .n_channels = 9}, SNAP_ERROR_USAGE},
        {{.uri = "file:x", .n_channels = 2}, SNAP_ERROR_USAGE},
        {{.uri = "exec:cat", .may_postcopy = TRUE}, SNAP_ERROR_USAGE},
        {{.uri = "unix:x", .compress_level = 20}, SNAP_ERROR_USAGE},
        {{.uri = "unix:x", .throttle_max = 100}, SNAP_ERROR_USAGE},
        {{.uri = "unix:x", .silence_ms = UINT64_C(1) << 31}, SNAP_ERROR_USAGE},
        {{.uri = "unix:x", .epoch_ms = UINT64_C(1) << 32}, SNAP_ERROR_USAGE},
        {{.uri = "unix:x", .may_postcopy = TRUE, .epoch_ms = 5}, SNAP_ERROR_USAGE},
    };
    MoveGuest guest;
    assert_true(move_guest_init(&guest, "anon", RAM_BYTES, PERIOD_NS));
    for (size_t i = 0; i < G_N_ELEMENTS(wrong); i++) {
        g_autoptr(GError) error = NULL;
        assert_null(snap_outgoing_start(guest.guest, &wrong[i].options, NULL, NULL, &error));
        assert_true(g_error_matches(error, SNAP_ERROR, (gint)wrong[i].code));
    }
    static const SnapOutgoingOptions right = {.uri = "unix:nobody-listens-here", .auto_converge = TRUE};
    static const SnapMoveOps none = {0};
    g_autoptr(GError) error = NULL;
    snap_guest_set_move_ops(guest.guest, &none);
    assert_null(snap_outgoing_start(guest.guest, &right, NULL, NULL, &error));
    assert_true(g_error_matches(error, SNAP_ERROR, SNAP_ERROR_REFUSED));
    move_guest_clear(&guest);
}

/* ---- guests that do not converge ------------------------------------------------------------------------- */

static void source_that_does_not_converge_fails_with_figures(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig);
    rig_pair(&rig, follow);
    SnapOutgoingOptions options = options_of(&rig);
    options.limits = (SnapMigrationLimits){.max_bandwidth_bytes = 20 << 20, .downtime_limit_ms = 1};
    options.max_useless_rounds = 2;
    rig_begin(&rig, &options);
    expect_end(&rig, SNAP_ERROR_FAILED, "does not converge");
    assert_int_equal(move_count(&rig.guest.pauses), 0);
    rig_clear(&rig);
}

static void source_auto_converge_throttles_and_lets_go(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig);
    rig_pair(&rig, follow);
    SnapOutgoingOptions options = options_of(&rig);
    options.limits = (SnapMigrationLimits){.max_bandwidth_bytes = 40 << 20, .downtime_limit_ms = 1};
    options.max_useless_rounds = 1;
    options.auto_converge = TRUE;
    options.throttle_initial = 30;
    options.throttle_increment = 40;
    options.throttle_max = 80;
    rig_begin(&rig, &options);
    expect_end(&rig, SNAP_ERROR_FAILED, "throttled as far as");
    assert_int_equal(rig.guest.throttle_max, 80);
    assert_true(move_count(&rig.guest.throttles) >= 4); /* 30, 70, 80, 0 */
    rig_clear(&rig);
}

/* With the limit lifted, it is over at once. */
static void source_limits_changed_hold_at_once(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    Rig rig;
    rig_init(&rig);
    rig_pair(&rig, take_it);
    SnapOutgoingOptions options = options_of(&rig);
    options.limits.max_bandwidth_bytes = 100 << 10;
    rig_begin(&rig, &options);
    await_phase(&rig, SNAP_MIGRATION_ACTIVE);
    assert_false(snap_outgoing_wait(rig.outgoing, 700, &error)); /* and it is no silence */
    assert_true(g_error_matches(error, SNAP_ERROR, SNAP_ERROR_TIMED_OUT));
    assert_int_equal(phase_of(&rig), SNAP_MIGRATION_ACTIVE);
    g_clear_error(&error);
    snap_outgoing_set_limits(rig.outgoing, &(SnapMigrationLimits){0});
    snap_outgoing_wait(rig.outgoing, PATIENCE_MS, &error);
    fail_on(error);
    rig_clear(&rig);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(source_fails_before_it_is_too_late_guest_runs_on),
        cmocka_unit_test(source_fails_other_side_is_told),
        cmocka_unit_test(source_guest_cannot_be_stopped_fails),
        cmocka_unit_test(source_lost_after_go_guest_stands_here),
        cmocka_unit_test(source_lost_after_go_is_taken_back_by_its_owner),
        cmocka_unit_test(source_resumed_hands_over),
        cmocka_unit_test(source_resumed_nobody_there_is_unconnected_again),
        cmocka_unit_test(source_asked_for_nonsense_is_unconnected),
        cmocka_unit_test(source_moved_memory_is_there),
        cmocka_unit_test(source_busy_with_its_guest_says_that_it_lives),
        cmocka_unit_test(source_of_a_sparse_guest_sends_what_is_there),
        cmocka_unit_test(source_to_a_file_leaves_it_complete),
        cmocka_unit_test(source_waits_before_switchover_until_told),
        cmocka_unit_test(source_cancelled_before_switchover_guest_runs),
        cmocka_unit_test(source_cancelled_ends_at_once),
        cmocka_unit_test(source_freed_while_under_way_guest_runs),
        cmocka_unit_test(source_second_at_once_is_refused),
        cmocka_unit_test(source_wrong_options_are_refused),
        cmocka_unit_test(source_that_does_not_converge_fails_with_figures),
        cmocka_unit_test(source_auto_converge_throttles_and_lets_go),
        cmocka_unit_test(source_limits_changed_hold_at_once),
    };
    if (!move_can_run()) {
        return 77;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
