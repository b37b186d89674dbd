/*
 * A small QMP client: one connection, one command at a time, every wait bounded.
 *
 *     qmp_connect → qmp_command… → qmp_free
 *
 * For the pause, commands are also sent without waiting, several by one write (qmp_queue, qmp_send), and their
 * answers are taken in the same order (qmp_receive). QEMU reads its monitor byte by byte, four system calls for
 * each (measured: 3-5 us), which is why the length of a command matters there, and why a command may be sent but
 * for its last byte (qmp_begin, qmp_finish).
 *
 * Events are not queued: of each kind the time of the last one is kept, which is what a pause is measured by, and
 * a function may be called with each. Thread: one at a time.
 */
#pragma once

#include "libsnap.h"

#include <json-c/json.h>

#define QMP_TIMEOUT_MS 4000 /* of a handshake, or of a command that has nothing to wait for */

typedef struct Qmp Qmp;

/**
 * qmp_connect: connect to a QMP server at a unix socket, read its greeting and negotiate.
 * @path: (borrow) of the socket.
 * @timeout_ms: for all of it together.
 * Errors: NOT_FOUND, no such socket, or nobody listens; PERMISSION; TIMED_OUT, it accepts but does not speak, as
 *   QEMU does while another client is connected; PROTOCOL, it speaks something else.
 * Return: (out) free with qmp_free().
 */
Qmp *qmp_connect(const char *path, int timeout_ms, GError **error);

/** qmp_new: as qmp_connect() with a connected socket. @fd: (take), closed on error as well. @label: for messages.
 */
Qmp *qmp_new(int fd, const char *label, int timeout_ms, GError **error);

/** qmp_free: close the connection; NULL is allowed. */
void qmp_free(Qmp *qmp);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Qmp, qmp_free)

/** qmp_fd: the socket, (borrow), for those who must write to it when this process is no more. */
int qmp_fd(const Qmp *qmp);

/** qmp_version: QEMU's version from the greeting, "7.2.22"; (borrow). */
const char *qmp_version(const Qmp *qmp);

/**
 * qmp_send: send a command without waiting for its answer.
 * @arguments: (take) (nullable) an object.
 * @fd: passed along by SCM_RIGHTS (borrow), or -1.
 */
gboolean qmp_send(Qmp *qmp, const char *command, json_object *arguments, int fd, GError **error);

/** qmp_queue: as qmp_send(), but it goes out together with the next command sent. @arguments: (take) (nullable).
 */
void qmp_queue(Qmp *qmp, const char *command, json_object *arguments);
/** qmp_flush: send what is queued now. */
gboolean qmp_flush(Qmp *qmp, GError **error);

/**
 * qmp_begin: queue a command without arguments, but for its last byte. Nothing else may be sent before
 *   qmp_finish(), which makes it a command whose answer is to be received, or qmp_drop(), which does away with it.
 */
void qmp_begin(Qmp *qmp, const char *command);
gboolean qmp_finish(Qmp *qmp, GError **error);
gboolean qmp_drop(Qmp *qmp, GError **error);
/** qmp_has_begun: between qmp_begin() and the end of it. */
gboolean qmp_has_begun(const Qmp *qmp);

/**
 * qmp_spin: from now on, look for answers without sleeping for up to @spin_us before waiting for them. Being woken
 *   up takes tens of µs, which count in a pause. 0: sleep at once.
 */
void qmp_spin(Qmp *qmp, int64_t spin_us);

/**
 * qmp_receive: the answer to the oldest command sent that has not been answered.
 * @ret: (out) (nullable) what it returned; json_object_put() it.
 * Errors: FAILED, QEMU's own error text; TIMED_OUT; GUEST_GONE, the connection was closed; PROTOCOL.
 */
gboolean qmp_receive(Qmp *qmp, int timeout_ms, json_object **ret, GError **error);

/** qmp_command: qmp_send() and qmp_receive(); the error names the command. */
gboolean qmp_command(Qmp *qmp, const char *command, json_object *arguments, int timeout_ms, json_object **ret,
                     GError **error);

/**
 * qmp_receive_rest: take the answers to all commands sent, whatever they are, and tell about the last one.
 *   For after a failure, when it is not known which answers are still to come.
 */
gboolean qmp_receive_rest(Qmp *qmp, int timeout_ms, GError **error);

/**
 * qmp_refusal: QEMU's own error, {class, desc}, in the answer to the last command; NULL when it succeeded, or was
 * not answered. (borrow) until the next command.
 */
json_object *qmp_refusal(const Qmp *qmp);

/** qmp_is_broken: no answers can be had any more: it is closed, out of time, or out of step. */
gboolean qmp_is_broken(const Qmp *qmp);

/** qmp_hmp: what the human monitor prints for @line. Return: (out) g_free() it; NULL on error. */
char *qmp_hmp(Qmp *qmp, const char *line, GError **error);

/**
 * qmp_event_us: when the last event of this kind happened by QEMU's clock, µs since the epoch; 0 if none was read.
 * Events are read while answers are waited for.
 */
int64_t qmp_event_us(const Qmp *qmp, const char *event);

/* @data: (borrow) (nullable). @time_us: by QEMU's clock, µs since the epoch. */
typedef void (*QmpEventFunc)(const char *event, json_object *data, int64_t time_us, void *opaque);

/** qmp_set_event_func: @func is called with every event that is read from now on. */
void qmp_set_event_func(Qmp *qmp, QmpEventFunc func, void *opaque);

/**
 * qmp_read_events: read all that is there, without waiting. No answer is outstanding. Errors: GUEST_GONE,
 * PROTOCOL.
 */
gboolean qmp_read_events(Qmp *qmp, GError **error);

/**
 * qmp_poll: the answer to the oldest command, if it is there within @timeout_ms. Events are noted in passing.
 * @ret: (out) the answer, or NULL while there is none. A command that failed is an error as in qmp_receive().
 */
gboolean qmp_poll(Qmp *qmp, int timeout_ms, json_object **ret, GError **error);

/* Members of answers, tolerant of what is missing: NULL, "" or FALSE. (borrow) from @object. */
json_object *qmp_get(json_object *object, const char *name);
const char *qmp_get_string(json_object *object, const char *name);
gboolean qmp_get_bool(json_object *object, const char *name);

/** qmp_args: {key: value, …} of strings, closed by NULL. Return: (out) as qmp_send() takes. */
json_object *qmp_args(const char *key, ...) G_GNUC_NULL_TERMINATED;

#ifndef JSON_OBJECT_AUTOPTR /* qapi/json.h has it too */
#define JSON_OBJECT_AUTOPTR
G_DEFINE_AUTOPTR_CLEANUP_FUNC(json_object, json_object_put)
#endif
