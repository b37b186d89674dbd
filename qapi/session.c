/* One client of a QMP server: see session.h. */
#include "session.h"

#include "descriptors.h"
#include "dispatch.h"
#include "stream.h"

#include <errno.h>
#include <glib-unix.h>
#include <limits.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    REQUESTS_MAX = 8, /* that wait, with oob: as QEMU's */
    READ_BYTES = 64 << 10,
    OUT_FULL = 1 << 20, /* no further command is begun while more than this waits to be read */
    OUT_MAX = 16 << 20,
    DESCRIPTORS_A_MESSAGE = 16,
};

/* A request to be answered in its turn, or what came instead of one. */
typedef struct {
    json_object *value;
    GError *error; /* (nullable) */
} Request;

struct QapiSession {
    /* set before start */
    gatomicrefcount refs;
    QapiServer *server;
    QapiDescriptors *descriptors;
    gboolean in_is_socket;
    gboolean out_is_socket;
    void (*on_end)(void *opaque);
    void *end_opaque;

    /* the context's thread only */
    int in_fd;
    QapiStream *stream;
    GSource *reader; /* (nullable) */
    gboolean eof;
    gboolean held; /* the stream holds back what it has: somebody has to continue it */

    GMutex lock;

    /* under lock */
    int out_fd; /* -1: closed */
    gboolean negotiated;
    gboolean oob;
    gboolean working;   /* a thread of the pool is on it, or will be */
    gboolean stalled;   /* … when the client has read something */
    gboolean suspended; /* nothing more is read until there is room */
    GQueue requests;    /* of Request */
    GString *out;
    gsize out_at;    /* so much of it has been sent */
    GSource *writer; /* (nullable) */
    gboolean broken; /* the client is not worth another byte */
};

static void settle(QapiSession *session);

/* ---- out ------------------------------------------------------------------------------------------------- */

static gboolean run_settle(gpointer session) {
    settle(session);
    return G_SOURCE_REMOVE;
}

static void unref(gpointer session) {
    qapi_session_unref(session);
}

/* Have the context's thread look after it. */
static void poke(QapiSession *session) {
    g_autoptr(GSource) source = g_idle_source_new();
    g_source_set_priority(source, G_PRIORITY_DEFAULT);
    g_source_set_callback(source, run_settle, qapi_session_ref(session), unref);
    g_source_attach(source, qapi_server_context(session->server));
}

/* As much as goes without waiting; a pipe that is ready takes PIPE_BUF bytes. */
static ssize_t write_some(const QapiSession *session, const char *data, gsize length) {
    if (session->out_is_socket)
        return send(session->out_fd, data, length, MSG_DONTWAIT | MSG_NOSIGNAL);
    struct pollfd ready = {.fd = session->out_fd, .events = POLLOUT};
    if (poll(&ready, 1, 0) == 1)
        return write(session->out_fd, data, MIN(length, PIPE_BUF));
    errno = EAGAIN;
    return -1;
}

static gboolean on_writable(gint fd, GIOCondition condition, gpointer session);

static void wait_for_reader_locked(QapiSession *session) {
    if (session->writer)
        return;
    session->writer = g_unix_fd_source_new(session->out_fd, G_IO_OUT);
    g_source_set_callback(session->writer, G_SOURCE_FUNC(on_writable), qapi_session_ref(session), unref);
    g_source_attach(session->writer, qapi_server_context(session->server));
}

static void flush_locked(QapiSession *session) {
    while (session->out_fd >= 0 && !session->broken && session->out_at < session->out->len) {
        ssize_t n = write_some(session, session->out->str + session->out_at, session->out->len - session->out_at);
        if (n >= 0) {
            session->out_at += (gsize)n;
        } else if (errno == EAGAIN) {
            wait_for_reader_locked(session);
            return;
        } else if (errno != EINTR) {
            session->broken = TRUE;
            poke(session);
        }
    }
    g_string_truncate(session->out, 0);
    session->out_at = 0;
}

static gsize out_bytes_locked(const QapiSession *session) {
    return session->out->len - session->out_at;
}

static void put_locked(QapiSession *session, const GString *text) {
    if (session->out_fd < 0 || session->broken)
        return;
    if (out_bytes_locked(session) + text->len > OUT_MAX) {
        session->broken = TRUE;
        poke(session);
        return;
    }
    g_string_append_len(session->out, text->str, (gssize)text->len);
    if (!session->writer)
        flush_locked(session);
}

static gboolean on_writable(gint fd, GIOCondition condition, gpointer opaque) {
    (void)fd, (void)condition;
    QapiSession *session = opaque;
    g_mutex_lock(&session->lock);
    g_clear_pointer(&session->writer, g_source_unref);
    flush_locked(session);
    gboolean go_on = session->stalled && out_bytes_locked(session) <= OUT_FULL;
    if (go_on)
        session->stalled = FALSE;
    g_mutex_unlock(&session->lock);
    if (go_on)
        qapi_server_run(session->server, session);
    settle(session);
    return G_SOURCE_REMOVE;
}

static void send_value(QapiSession *session, json_object *value) {
    g_autoptr(GString) text = g_string_new(NULL);
    qapi_json_write(value, text);
    g_string_append(text, "\r\n");
    g_mutex_lock(&session->lock);
    put_locked(session, text);
    g_mutex_unlock(&session->lock);
}

void qapi_session_event(QapiSession *session, const GString *text) {
    g_mutex_lock(&session->lock);
    if (session->negotiated)
        put_locked(session, text);
    g_mutex_unlock(&session->lock);
}

/* ---- requests -------------------------------------------------------------------------------------------- */

static void request_free(gpointer data) {
    Request *request = data;
    json_object_put(request->value);
    g_clear_error(&request->error);
    g_free(request);
}

static gboolean enables_oob(json_object *request) {
    json_object *arguments = NULL, *enable = NULL;
    json_object_object_get_ex(request, "arguments", &arguments);
    json_object_object_get_ex(arguments, "enable", &enable);
    return enable && json_object_array_length(enable) > 0; /* there is no other capability */
}

/* The negotiation is over when it has succeeded, before its answer is out: the client may send the next at once.
 */
static void note_negotiation(QapiSession *session, json_object *request, json_object *answer) {
    g_mutex_lock(&session->lock);
    if (!session->negotiated && json_object_object_get_ex(answer, "return", NULL)) {
        session->negotiated = TRUE;
        session->oob = enables_oob(request);
    }
    g_mutex_unlock(&session->lock);
}

static void answer(QapiSession *session, json_object *value) {
    g_mutex_lock(&session->lock);
    QapiMay may = session->negotiated ? QAPI_MAY_ALL : QAPI_MAY_NEGOTIATE;
    gboolean oob = session->oob;
    g_mutex_unlock(&session->lock);
    g_autoptr(json_object) result =
        qapi_dispatch(qapi_server_helper(session->server), value, may, oob, session->descriptors);
    if (may == QAPI_MAY_NEGOTIATE)
        note_negotiation(session, value, result);
    if (result)
        send_value(session, result);
}

static void answer_request(QapiSession *session, const Request *request) {
    if (request->error) {
        g_autoptr(json_object) result = qapi_error_answer(request->error);
        send_value(session, result);
    } else {
        answer(session, request->value);
    }
}

/* What waits for nothing need not go through the pool, which costs waking up a thread. */
static gboolean is_quick(json_object *value) {
    static const char *const quick[] = {"qmp_capabilities",
                                        "query-version",
                                        "query-commands",
                                        "query-jobs",
                                        "query-migrate",
                                        "query-fdsets",
                                        NULL};
    const QapiCommand *command = qapi_request_command(value);
    return command && (command->allow_oob || g_strv_contains(quick, command->name));
}

static gboolean on_message(json_object *value, GError *error, void *opaque) {
    QapiSession *session = opaque;
    if (!error && qapi_request_is_oob(value)) {
        answer(session, value);
        json_object_put(value);
        return TRUE;
    }
    g_mutex_lock(&session->lock);
    if (!session->working && !error && is_quick(value) && out_bytes_locked(session) <= OUT_FULL) {
        g_mutex_unlock(&session->lock);
        answer(session, value);
        json_object_put(value);
        return TRUE;
    }
    Request *request = g_new(Request, 1);
    *request = (Request){.value = value, .error = error};
    g_queue_push_tail(&session->requests, request);
    gboolean start = !session->working;
    session->working = TRUE;
    session->suspended = !session->oob || session->requests.length == REQUESTS_MAX;
    session->held = session->suspended;
    g_mutex_unlock(&session->lock);
    if (start)
        qapi_server_run(session->server, session);
    return !session->held;
}

/* Return: (out) the next request, or NULL when there is none to be done now. */
static Request *next_request(QapiSession *session, gboolean *ret_resume) {
    g_mutex_lock(&session->lock);
    Request *request = NULL;
    if (session->broken) /* nobody is there any more who wants it done */
        g_queue_clear_full(&session->requests, request_free);
    else if (out_bytes_locked(session) > OUT_FULL)
        session->stalled = TRUE;
    else
        request = g_queue_pop_head(&session->requests);
    if (!request && !session->stalled)
        session->working = FALSE;
    *ret_resume = request && session->suspended && session->oob;
    if (*ret_resume)
        session->suspended = FALSE;
    g_mutex_unlock(&session->lock);
    return request;
}

/* A client without oob sends on after the answer. */
static void resume(QapiSession *session) {
    g_mutex_lock(&session->lock);
    gboolean resume = session->suspended && g_queue_is_empty(&session->requests);
    if (resume)
        session->suspended = FALSE;
    g_mutex_unlock(&session->lock);
    if (resume)
        poke(session);
}

void qapi_session_work(QapiSession *session) {
    Request *request;
    gboolean has_room = FALSE;
    while ((request = next_request(session, &has_room))) {
        if (has_room)
            poke(session);
        answer_request(session, request);
        request_free(request);
        resume(session);
    }
    poke(session);
}

/* ---- in -------------------------------------------------------------------------------------------------- */

/* As QEMU: of a message the first, which takes the place of one that came before and was not used. */
static void take_descriptor(QapiSession *session, int fd, gboolean is_first) {
    g_mutex_lock(&session->lock);
    gboolean idle = !session->oob || (!session->working && g_queue_is_empty(&session->requests));
    g_mutex_unlock(&session->lock);
    if (!is_first) {
        close(fd);
        return;
    }
    if (idle)
        qapi_descriptors_forget_arrived(session->descriptors);
    qapi_descriptors_arrived(session->descriptors, fd);
}

static void take_descriptors(QapiSession *session, struct msghdr *message) {
    gboolean is_first = TRUE;
    for (struct cmsghdr *head = CMSG_FIRSTHDR(message); head; head = CMSG_NXTHDR(message, head)) {
        if (head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS)
            continue;
        for (gsize at = 0; at + sizeof(int) <= head->cmsg_len - CMSG_LEN(0); at += sizeof(int)) {
            int fd;
            memcpy(&fd, CMSG_DATA(head) + at, sizeof(fd));
            take_descriptor(session, fd, is_first);
            is_first = FALSE;
        }
    }
}

static ssize_t read_some(QapiSession *session, char *data, gsize length) {
    if (!session->in_is_socket)
        return read(session->in_fd, data, length);
    union {
        struct cmsghdr head; /* for its alignment */
        char bytes[CMSG_SPACE(DESCRIPTORS_A_MESSAGE * sizeof(int))];
    } control;
    struct iovec part = {data, length};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof(control.bytes)};
    ssize_t n = recvmsg(session->in_fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n >= 0)
        take_descriptors(session, &message);
    return n;
}

static void stop_reading(QapiSession *session) {
    if (!session->reader)
        return;
    g_source_destroy(session->reader);
    g_clear_pointer(&session->reader, g_source_unref);
}

static gboolean on_readable(gint fd, GIOCondition condition, gpointer opaque) {
    (void)fd, (void)condition;
    QapiSession *session = opaque;
    g_autofree char *data = g_malloc(READ_BYTES);
    ssize_t n = read_some(session, data, READ_BYTES);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return G_SOURCE_CONTINUE;
    if (n <= 0)
        session->eof = TRUE;
    else
        qapi_stream_feed(session->stream, data, (gsize)n);
    settle(session);
    return session->reader ? G_SOURCE_CONTINUE : G_SOURCE_REMOVE;
}

static void start_reading(QapiSession *session) {
    if (session->reader)
        return;
    session->reader = g_unix_fd_source_new(session->in_fd, G_IO_IN);
    g_source_set_callback(session->reader, G_SOURCE_FUNC(on_readable), qapi_session_ref(session), unref);
    g_source_attach(session->reader, qapi_server_context(session->server));
}

typedef enum { SESSION_READ, SESSION_WAIT, SESSION_END } Next;

static Next what_next(QapiSession *session) {
    g_mutex_lock(&session->lock);
    gboolean idle = !session->working && session->requests.length == 0 && out_bytes_locked(session) == 0;
    Next next = session->suspended ? SESSION_WAIT : SESSION_READ;
    if (session->broken || (session->eof && idle && !session->held))
        next = SESSION_END;
    else if (session->eof)
        next = SESSION_WAIT;
    g_mutex_unlock(&session->lock);
    return next;
}

static gboolean may_continue(QapiSession *session) {
    g_mutex_lock(&session->lock);
    gboolean may = session->held && !session->suspended && !session->broken;
    g_mutex_unlock(&session->lock);
    return may;
}

/* In the context's thread, after anything has changed: go on with what can be gone on with. */
static void settle(QapiSession *session) {
    if (session->in_fd < 0)
        return;
    while (may_continue(session)) {
        session->held = FALSE;
        qapi_stream_continue(session->stream);
    }
    switch (what_next(session)) {
    case SESSION_READ:
        start_reading(session);
        break;
    case SESSION_WAIT:
        stop_reading(session);
        break;
    case SESSION_END:
        qapi_session_close(session);
        break;
    }
}

/* ---- life ------------------------------------------------------------------------------------------------ */

static json_object *greeting(QapiHelper *helper) {
    json_object *about = json_object_new_object(), *capabilities = json_object_new_array();
    json_object_array_add(capabilities, json_object_new_string("oob"));
    qapi_json_add(about, "version", qapi_execute(helper, "query-version", NULL, NULL));
    qapi_json_add(about, "capabilities", capabilities);
    json_object *object = json_object_new_object();
    qapi_json_add(object, "QMP", about);
    return object;
}

QapiSession *qapi_session_new(QapiServer *server, int in_fd, int out_fd, void (*on_end)(void *opaque),
                              void *opaque) {
    struct stat about;
    QapiSession *session = g_new0(QapiSession, 1);
    g_atomic_ref_count_init(&session->refs);
    session->server = server;
    session->descriptors = qapi_descriptors_new();
    session->in_is_socket = fstat(in_fd, &about) == 0 && S_ISSOCK(about.st_mode);
    session->out_is_socket = fstat(out_fd, &about) == 0 && S_ISSOCK(about.st_mode);
    session->on_end = on_end;
    session->end_opaque = opaque;
    session->in_fd = in_fd;
    session->out_fd = out_fd;
    session->stream = qapi_stream_new(on_message, session);
    session->out = g_string_new(NULL);
    g_queue_init(&session->requests);
    g_mutex_init(&session->lock);
    g_autoptr(json_object) hello = greeting(qapi_server_helper(server));
    send_value(session, hello);
    start_reading(session);
    return session;
}

QapiSession *qapi_session_ref(QapiSession *session) {
    g_atomic_ref_count_inc(&session->refs);
    return session;
}

void qapi_session_unref(QapiSession *session) {
    if (!g_atomic_ref_count_dec(&session->refs))
        return;
    qapi_stream_free(session->stream);
    qapi_descriptors_free(session->descriptors);
    g_queue_clear_full(&session->requests, request_free);
    g_string_free(session->out, TRUE);
    g_mutex_clear(&session->lock);
    g_free(session);
}

void qapi_session_close(QapiSession *session) {
    if (session->in_fd < 0)
        return;
    QapiSession *alive = qapi_session_ref(session);
    stop_reading(session);
    g_mutex_lock(&session->lock);
    int out_fd = session->out_fd;
    session->out_fd = -1;
    session->stalled = FALSE;
    if (session->writer)
        g_source_destroy(session->writer);
    g_clear_pointer(&session->writer, g_source_unref);
    g_queue_clear_full(&session->requests, request_free);
    g_mutex_unlock(&session->lock);
    if (out_fd != session->in_fd)
        close(out_fd);
    close(session->in_fd);
    session->in_fd = -1;
    qapi_server_remove(session->server, session);
    if (session->on_end)
        session->on_end(session->end_opaque);
    qapi_session_unref(alive);
}
