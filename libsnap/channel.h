/*
 * Channel: one connection of a migration, record by record.
 *
 * Happy path: init on a connected descriptor; send and receive records; clear. One thread sends and one receives
 * at a time; they may be two. Numbers of records are kept here.
 *
 * A channel waits for the other side with poll(), and stops waiting when
 * - snap_channel_stop() was called, by any thread: CANCELLED, for good;
 * - the other side has not taken, or not sent, a single byte for silence_ms, or it is until_us: TIMED_OUT;
 * - the connection is closed or broken: IO, "the connection was closed".
 * What does not fit the protocol is PROTOCOL, with the record's number and type. After any error the channel is
 * good for snap_channel_clear() only (sending may fail while receiving still works: a FAILED may be there to be
 * read).
 *
 * Invariant: nothing is read beyond the record that is asked for, and a record is written as a whole or the
 * channel is broken; so a bulk goes from and to the memory it belongs to without a copy.
 */
#pragma once

#include "wire.h"

#include <stdbool.h>
#include <sys/uio.h>

typedef enum { SNAP_CHANNEL_OPEN, SNAP_CHANNEL_CUT, SNAP_CHANNEL_STOPPED } SnapChannelEnd;

typedef struct {
    /* set before use */
    int in; /* owned; the same as out for a socket */
    int out;
    int stop_fd; /* eventfd: readable once it is stopped or cut */
    SnapWireSender self;
    bool live; /* it was initialised */
    bool in_is_socket;
    bool out_is_socket;
    bool never_silent;   /* waiting has no limit; init sets it for a regular file */
    uint64_t silence_ms; /* both directions */
    int64_t until_us;    /* no wait goes beyond this time, g_get_monotonic_time(); 0: no such limit */

    /* the sending thread */
    uint64_t n_sent; /* records */
    bool out_broken; /* a record went out in part: nothing may follow it */
    /* the receiving thread */
    uint64_t n_received;
    uint32_t bulk_due_bytes; /* of the record received last, not yet taken */

    /* atomic, relaxed: the waking is by stop_fd */
    int ended; /* SnapChannelEnd */

    /* atomic, relaxed: counts for people, and for who measures */
    uint64_t sent_bytes;
    uint64_t received_bytes;
    int64_t sent_us; /* when bytes were last taken by the system; g_get_monotonic_time() */
    int64_t received_us;
} SnapChannel;

/**
 * snap_channel_init: @in, @out: (take) descriptors, which are made non-blocking; they may be the same, and one may
 * be -1. A socket of TCP gets TCP_NODELAY, one of unix a larger buffer.
 * Errors: IO, no descriptors are left; @in and @out are closed then.
 */
bool snap_channel_init(SnapChannel *channel, SnapWireSender self, int in, int out, uint64_t silence_ms,
                       GError **error);
/** snap_channel_clear: close. Of one that was never initialised but zeroed: nothing. */
void snap_channel_clear(SnapChannel *channel);

/** snap_channel_stop: end every wait on it, now and later. Thread: any, and a signal handler. */
void snap_channel_stop(SnapChannel *channel);
/** snap_channel_shutdown: cut the connection, both ways: who waits on either side gets an error, IO; over pipes
 * the other side when this one is cleared. Thread: any. */
void snap_channel_shutdown(SnapChannel *channel);

/**
 * snap_channel_send: one record.
 * @body: (borrow) @body_bytes of it. @bulk: (borrow) parts, at most IOV_MAX - 2, of
 * SNAP_WIRE_MAX_BULK_BYTES together, and only of CHUNK.
 * Errors: CANCELLED, TIMED_OUT, IO.
 */
bool snap_channel_send(SnapChannel *channel, SnapWireType type, uint16_t flags, const void *body,
                       uint32_t body_bytes, const struct iovec *bulk, int n_bulk, GError **error);

/**
 * snap_channel_receive: the head and body of the next record; its bulk, if any, is what has to be read next.
 * @ret_body: room for SNAP_WIRE_MAX_BODY_BYTES.
 * @timeout_ms: give up, with TIMED_OUT, after so long without a first byte; -1: silence_ms. A record that has
 * begun has silence_ms from byte to byte. Errors: CANCELLED; TIMED_OUT; IO; PROTOCOL. FAILED is a record like
 * others.
 */
bool snap_channel_receive(SnapChannel *channel, int timeout_ms, SnapWireHead *ret_head, uint8_t *ret_body,
                          GError **error);

/** snap_channel_receive_bulk: the bulk of the record received last, into @parts, whose sum is its length. */
bool snap_channel_receive_bulk(SnapChannel *channel, const struct iovec *parts, int n_parts, GError **error);

/** snap_channel_has_input: whether there is something to receive, at once; also the end of the connection. */
bool snap_channel_has_input(const SnapChannel *channel);

/**
 * snap_channel_wait: until there is something to receive on it (TRUE), or @timeout_ms (-1: no limit) are over, or
 * it was stopped or cut, or @other_fd (-1: none) is readable (FALSE). Thread: the receiving one.
 */
bool snap_channel_wait(SnapChannel *channel, int other_fd, int timeout_ms);

/** snap_channel_fail_as_told: FAILED was received: REFUSED, "the other side: " and its words. Return: FALSE. */
bool snap_channel_fail_as_told(const SnapWireHead *head, const uint8_t *body, GError **error);

/**
 * snap_channel_expect: receive a record, which is to be @type; FAILED is an error as above, ALIVE is passed over,
 * anything else PROTOCOL. @timeout_ms: for all of it, however alive the other side is; -1: silence_ms for each.
 */
bool snap_channel_expect(SnapChannel *channel, SnapWireType type, int timeout_ms, SnapWireHead *ret_head,
                         uint8_t *ret_body, GError **error);

/**
 * snap_channel_send_failed: tell the other side why; what fails in doing so is passed over. The last record:
 * nothing is sent after it. Waits a second at most for room; of a channel that was stopped not at all. Nothing
 * goes out where a record went out in part.
 */
void snap_channel_send_failed(SnapChannel *channel, const char *text);
