/*
 * Transport: how the two sides of a migration come to be connected, by URI.
 *
 *     unix:PATH   tcp:HOST:PORT   fd:N   exec:COMMAND   file:PATH
 *
 * A source connects, a destination listens (or, for fd:, exec: and file:, just opens). tcp: without a host: a
 * destination listens at all addresses, a source connects to this machine. fd:N is a socket of this process, which
 * is taken (what is no socket is not). exec: runs /bin/sh in a process group of its own with one end of a socket
 * pair as standard input and output; it is killed when the transport is freed. file: is one-way: written by a
 * source, which makes it under another name and renames it when snap_transport_keep() is called for the first
 * time; read by a destination.
 *
 * Threads: one at a time, but snap_transport_stop().
 */
#pragma once

#include "libsnap.h"

#include <stdbool.h>

typedef struct SnapTransport SnapTransport;

/** snap_transport_check: whether @uri is one of those above. Errors: USAGE, what is wrong with it. Thread: any. */
gboolean snap_transport_check(const char *uri, GError **error);

/**
 * snap_transport_new_source: nothing is connected yet. Errors: as in check; NOT_FOUND, there is no such
 * descriptor. Return: (out) free with snap_transport_free().
 */
SnapTransport *snap_transport_new_source(const char *uri, GError **error);

/**
 * snap_transport_new_destination: listens, from now on. unix: sockets are made with mode 0600, a stale one is
 * replaced, and removed in free. tcp: with port 0 chooses one; its name is looked up here, which may take a while.
 * Errors: as in check; EXISTS, somebody listens there; NOT_FOUND, PERMISSION: the descriptor or file; TIMED_OUT,
 * the look-up; IO.
 */
SnapTransport *snap_transport_new_destination(const char *uri, GError **error);

/**
 * snap_transport_prepare_destination: the same, but for a name, which is merely begun to be looked up: to listen
 * is for snap_transport_listen(). Never waits.
 */
SnapTransport *snap_transport_prepare_destination(const char *uri, GError **error);
/** snap_transport_listen: the rest of it; of a transport that listens nothing. @timeout_ms: -1: 30 s. Errors:
 * CANCELLED; EXISTS; IO; TIMED_OUT: it may be called again. */
gboolean snap_transport_listen(SnapTransport *transport, int timeout_ms, GError **error);

/** snap_transport_discard: there will be no transport: close what one would have taken, the descriptor of fd:. */
void snap_transport_discard(const char *uri);

/** snap_transport_free: close what was not handed out. NULL is allowed. */
void snap_transport_free(SnapTransport *transport);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SnapTransport, snap_transport_free)

/** snap_transport_stop: end every wait on it, now and later. Thread: any. */
void snap_transport_stop(SnapTransport *transport);

/** snap_transport_uri: as given; of tcp: that listens with the port it has. (borrow) until listen. */
const char *snap_transport_uri(const SnapTransport *transport);
/** snap_transport_is_one_way, snap_transport_can_have_several: of its kind. */
bool snap_transport_is_one_way(const SnapTransport *transport);
bool snap_transport_can_have_several(const SnapTransport *transport);

/**
 * snap_transport_connect: the source's next connection; for fd:, exec: and file: there is one.
 * @ret_in, @ret_out: (out) descriptors, which are the caller's; they may be the same. Of file: @ret_in is -1.
 * Errors: CANCELLED; TIMED_OUT, @timeout_ms are over; IO, nobody listens there, or refuses.
 */
gboolean snap_transport_connect(SnapTransport *transport, int timeout_ms, int *ret_in, int *ret_out,
                                GError **error);

/** snap_transport_accept: the destination's next connection; -1: without limit. Of file: @ret_out is -1. Errors:
 * as above. */
gboolean snap_transport_accept(SnapTransport *transport, int timeout_ms, int *ret_in, int *ret_out,
                               GError **error);

/** snap_transport_keep: file: what was written is complete: fsync, and let it have its name; again, and what was
 * added is on the disk as well. Others: nothing. Errors: IO. */
gboolean snap_transport_keep(SnapTransport *transport, GError **error);
