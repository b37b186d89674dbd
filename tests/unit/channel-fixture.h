/*
 * Two ends of a connection of the migration protocol, over whatever carries bytes.
 */
#pragma once

#include "channel.h"
#include "expect.h"
#include "wire-fixture.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { SILENCE_MS = 100, BULK_PAGES = 64, BULK_BYTES = BULK_PAGES * FIX_PAGE_BYTES };
enum { SOON_MS = 5000 }; /* what should take no time may take so long on a machine that is busy */

/* Two ends. `raw` is the descriptor of the other side where only one is a channel. */
typedef struct {
    SnapChannel source;
    SnapChannel destination;
    int raw;
    uint8_t *body;
    uint8_t *bulk;
    SnapWireHead head;
} Rig;

static inline void rig_new(Rig *rig) {
    *rig = (Rig){.raw = -1};
    rig->body = g_malloc(SNAP_WIRE_MAX_BODY_BYTES);
    rig->bulk = g_malloc(BULK_BYTES);
}

static inline void start(SnapChannel *channel, SnapWireSender self, int in, int out) {
    GError *error = NULL;
    if (!snap_channel_init(channel, self, in, out, SILENCE_MS, &error))
        fail_msg("%s", error->message);
}

static inline void rig_clear(Rig *rig) {
    snap_channel_clear(&rig->source);
    snap_channel_clear(&rig->destination);
    if (rig->raw >= 0)
        close(rig->raw);
    g_free(rig->body);
    g_free(rig->bulk);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Rig, rig_clear)

static inline void socket_pair(int *ends) {
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
}

static inline void rig_sockets(Rig *rig) {
    int ends[2];
    rig_new(rig);
    socket_pair(ends);
    start(&rig->source, SNAP_WIRE_FROM_SOURCE, ends[0], ends[0]);
    start(&rig->destination, SNAP_WIRE_FROM_DESTINATION, ends[1], ends[1]);
}

/* Buffers as small as the system makes them. */
static inline void rig_tiny_sockets(Rig *rig) {
    int ends[2], least = 1;
    rig_new(rig);
    socket_pair(ends);
    start(&rig->source, SNAP_WIRE_FROM_SOURCE, ends[0], ends[0]);
    start(&rig->destination, SNAP_WIRE_FROM_DESTINATION, ends[1], ends[1]);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(setsockopt(ends[i], SOL_SOCKET, SO_SNDBUF, &least, sizeof least), 0);
        assert_int_equal(setsockopt(ends[i], SOL_SOCKET, SO_RCVBUF, &least, sizeof least), 0);
    }
}

static inline void rig_pipes(Rig *rig) {
    int there[2], back[2];
    rig_new(rig);
    assert_int_equal(pipe2(there, O_CLOEXEC), 0);
    assert_int_equal(pipe2(back, O_CLOEXEC), 0);
    assert_true(fcntl(there[1], F_SETPIPE_SZ, 4096) > 0);
    start(&rig->source, SNAP_WIRE_FROM_SOURCE, back[0], there[1]);
    start(&rig->destination, SNAP_WIRE_FROM_DESTINATION, there[0], back[1]);
}

/* Only the destination is a channel. */
static inline void rig_raw(Rig *rig) {
    int ends[2];
    rig_new(rig);
    socket_pair(ends);
    rig->raw = ends[0];
    start(&rig->destination, SNAP_WIRE_FROM_DESTINATION, ends[1], ends[1]);
}

static inline int64_t now_ms(void) {
    return g_get_monotonic_time() / 1000;
}

static inline bool receive(SnapChannel *channel, Rig *rig, int timeout_ms, GError **error) {
    return snap_channel_receive(channel, timeout_ms, &rig->head, rig->body, error);
}

/* More than any buffer holds. */
static inline bool send_much(SnapChannel *channel, GError **error) {
    static const uint8_t page[FIX_PAGE_BYTES];
    struct iovec parts[BULK_PAGES];
    uint8_t body[64];
    const SnapWireChunk chunk = {.record = {.present = UINT64_MAX, .length_bytes = BULK_BYTES}};
    uint32_t bytes = snap_wire_encode_chunk(&chunk, body);
    for (size_t i = 0; i < BULK_PAGES; i++)
        parts[i] = (struct iovec){(void *)(uintptr_t)page, sizeof page};
    for (int i = 0; i < 1000; i++) {
        if (!snap_channel_send(channel, SNAP_WIRE_CHUNK, 0, body, bytes, parts, BULK_PAGES, error))
            return false;
    }
    return true;
}
