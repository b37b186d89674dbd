/*
 * One client of a QMP server.
 *
 *     bytes ─> stream ─> requests, in order ─> dispatch ─> answers ─> out
 *                    └─> out of band ───────────┘   events ──────────┘
 *
 * As QEMU: a client that has not negotiated oob has one command under way, and nothing more is read before that is
 * answered. With oob up to eight wait, and what is out of band overtakes them; at eight nothing more is read.
 *
 * Failure modes: the client goes: commands that wait are forgotten, what is being done is done, and its answer
 * dropped. It does not read: answers wait, and no further command is begun (OUT_FULL); when events have filled
 * OUT_MAX, the client is closed. It floods: what is not taken stays in the kernel's socket.
 */
#pragma once

#include "server.h"

/**
 * qapi_session_new: greet the client at @in_fd, @out_fd (take). In the context's thread.
 * Return: (out) qapi_session_unref() it.
 */
QapiSession *qapi_session_new(QapiServer *server, int in_fd, int out_fd, void (*on_end)(void *opaque),
                              void *opaque);
/** qapi_session_close: no more of it. In the context's thread. */
void qapi_session_close(QapiSession *session);
QapiSession *qapi_session_ref(QapiSession *session);
void qapi_session_unref(QapiSession *session);

/** qapi_session_work: do what waits. In a thread of the pool, one at a time for each session. */
void qapi_session_work(QapiSession *session);

/** qapi_session_event: send an event, if the client has negotiated. @text: (borrow) one line. Any thread. */
void qapi_session_event(QapiSession *session, const GString *text);
