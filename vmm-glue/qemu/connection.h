/*
 * Connection: the QMP connection of one QEMU, and whose turn it is to use it.
 *
 * A snapshot job, commands from outside and a main loop that reads events share it. One at a time has the turn,
 * for a command and its answer, or as long as one thing must not come between others: so a `cont` from outside
 * never falls into the pause of a snapshot. A connection that was lost is made anew for the next who has the turn.
 *
 * Thread: any, but for connection_free().
 */
#pragma once

#include "qmp.h"

typedef struct Connection Connection;

/**
 * connection_new: connect, and find the process behind the socket.
 * @path: (borrow) of the socket.
 * Errors: of qmp_connect() and peer_find_pid().
 * Return: (out) free with connection_free().
 */
Connection *connection_new(const char *path, GError **error);
/** connection_free: nobody has the turn, or waits for it. NULL is allowed. */
void connection_free(Connection *connection);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Connection, connection_free)

/** connection_pid: the QEMU, the same for the life of the connection. */
int connection_pid(const Connection *connection);

/**
 * connection_take: wait for the turn, at most @timeout_ms; -1: without limit.
 * Errors: TIMED_OUT, somebody else has it.
 */
gboolean connection_take(Connection *connection, int timeout_ms, GError **error);
/** connection_give: give the turn back. */
void connection_give(Connection *connection);

/**
 * connection_qmp: the client, for who has the turn; connects where that is lost.
 * Errors: GUEST_GONE, the QEMU has ended, or it is another one that answers; of qmp_connect().
 * Return: (borrow) until the turn is given back; NULL on error.
 */
Qmp *connection_qmp(Connection *connection, GError **error);

/**
 * connection_fd: readable when connection_read_events() has something to do; (borrow), the same for the life of
 * the connection, whatever becomes of the socket. For poll(2) and its like; nothing else.
 */
int connection_fd(const Connection *connection);

/**
 * connection_read_events: read what has come, without waiting. Where somebody has the turn, nothing: that one
 *   reads, or leaves it for when the turn is given back.
 * Errors: GUEST_GONE, PROTOCOL: the connection is lost; told once.
 */
gboolean connection_read_events(Connection *connection, GError **error);

/**
 * connection_set_event_func: @func is called for every event, in whatever thread reads it; NULL: no more. When
 * this returns, the one before is not running any more.
 */
void connection_set_event_func(Connection *connection, QmpEventFunc func, void *opaque);
