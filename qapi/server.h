/*
 * The QMP server: clients at sockets, or at a pair of pipes, and one helper behind them all.
 *
 *     listen ── accept ──> session (session.c) ── a request at a time ──> dispatch
 *
 * Threads: all input is read, and what is done out of band is done, in the thread that iterates the context. What
 * is done in band is done by a pool, one command of a client at a time, so that no client waits for another's.
 * Answers and events go out in the thread they come up in; only where a client is slow to read the context's
 * thread goes on.
 *
 * Lock order: the helper's, then `lock`, then a session's.
 */
#pragma once

#include "helper.h"

typedef struct QapiServer QapiServer;
typedef struct QapiSession QapiSession;

enum {
    QAPI_CLIENTS_MAX = 256,
};

/**
 * qapi_server_new: a server without sockets; it becomes the helper's listener.
 * @helper: (borrow) until qapi_server_free(). @context: (borrow) whose thread serves.
 * @on_quit: (nullable) a client has given the command quit, in any thread; without it that is refused.
 * Return: (out) free with qapi_server_free(), in the context's thread.
 */
QapiServer *qapi_server_new(QapiHelper *helper, GMainContext *context, void (*on_quit)(void *opaque),
                            void *opaque);

/**
 * qapi_server_free: close the helper, answer what was begun, and close everything. NULL is allowed. Blocks for as
 * long as commands do.
 */
void qapi_server_free(QapiServer *server);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(QapiServer, qapi_server_free)

/**
 * qapi_server_listen: take clients at a unix socket. One that a dead server has left is replaced.
 * @path: (borrow); it is made with mode 0600, and removed by free.
 * Errors: EXISTS, another server is there, or a file that is no socket; by errno.
 */
gboolean qapi_server_listen(QapiServer *server, const char *path, GError **error);

/** qapi_server_listen_fd: the same with a listening socket. @fd: (take). Errors: USAGE, it is none. */
gboolean qapi_server_listen_fd(QapiServer *server, int fd, GError **error);

/**
 * qapi_server_add_client: serve a client that is there.
 * @in_fd, @out_fd: (take) both sides of a socket, a pair of pipes, or a terminal.
 * @on_end: (nullable) it has gone.
 */
void qapi_server_add_client(QapiServer *server, int in_fd, int out_fd, void (*on_end)(void *opaque), void *opaque);

/* ---- for sessions ---------------------------------------------------------------------------------------- */

QapiHelper *qapi_server_helper(QapiServer *server);
GMainContext *qapi_server_context(QapiServer *server);
/** qapi_server_run: let the pool call qapi_session_work() of @session (borrow). */
void qapi_server_run(QapiServer *server, QapiSession *session);
/** qapi_server_remove: a session has ended. In the context's thread. */
void qapi_server_remove(QapiServer *server, QapiSession *session);
