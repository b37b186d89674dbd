/*
 * The QMP client.
 *
 * Happy path: bytes are read into a buffer that holds the rest of an unfinished message; the tokener cuts one JSON
 * value after the other off it. An event is noted, an answer is returned, anything else is a protocol error.
 *
 * Failure modes: nobody listens; somebody listens and never speaks; what comes is no JSON; a message that never
 * ends. Each wait has a deadline, and a message a greatest length. After a time-out or a protocol error the
 * connection is `broken`: an answer may still be under way, and would be taken for that to the next command.
 * Commands may still be sent (a `cont` must be, whatever happened), answers are no longer asked for.
 *
 * Invariant: answers come in the order of the commands, since no command is sent out of band.
 */
#include "qmp.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdarg.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define LONGEST_MESSAGE_BYTES (32u << 20)

struct Qmp {
    int fd;
    char *label; /* what to call the other side in messages */
    char *version;
    GByteArray *input; /* read and not yet parsed */
    json_tokener *tokener;
    size_t message_bytes; /* read since the last message was complete */
    gboolean in_message;  /* the tokener has seen a part of one */
    GHashTable *events;   /* name → int64_t *, µs */
    QmpEventFunc event_func;
    void *event_opaque;
    GQueue commands;      /* names of those sent and not answered, owned */
    GString *output;      /* queued, not yet sent */
    char *begun;          /* (nullable) the command that lacks its last byte */
    json_object *refusal; /* (nullable) QEMU's error in the last answer */
    int64_t spin_us;
    gboolean broken;
};

static int64_t deadline_of(int timeout_ms) {
    return g_get_monotonic_time() + (int64_t)timeout_ms * 1000;
}

static int left_ms(int64_t deadline) {
    int64_t left = deadline - g_get_monotonic_time();
    return left <= 0 ? 0 : (int)((left + 999) / 1000);
}

/* ---- members of answers ---- */

json_object *qmp_get(json_object *object, const char *name) {
    json_object *value = NULL;
    if (!json_object_is_type(object, json_type_object) || !json_object_object_get_ex(object, name, &value))
        return NULL;
    return value;
}

const char *qmp_get_string(json_object *object, const char *name) {
    json_object *value = qmp_get(object, name);
    return json_object_is_type(value, json_type_string) ? json_object_get_string(value) : "";
}

gboolean qmp_get_bool(json_object *object, const char *name) {
    json_object *value = qmp_get(object, name);
    return json_object_is_type(value, json_type_boolean) && json_object_get_boolean(value);
}

json_object *qmp_args(const char *key, ...) {
    json_object *object = json_object_new_object();
    va_list args;
    va_start(args, key);
    for (; key; key = va_arg(args, const char *))
        json_object_object_add(object, key, json_object_new_string(va_arg(args, const char *)));
    va_end(args);
    return object;
}

/* ---- reading ---- */

static gboolean fail_protocol(Qmp *qmp, GError **error) {
    qmp->broken = TRUE;
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_PROTOCOL, "%s does not speak QMP: is it the QMP socket of a QEMU?",
                qmp->label);
    return FALSE;
}

/* Wait until there is something to read. As poll(2). */
static int wait_readable(Qmp *qmp, int64_t deadline) {
    struct pollfd ready = {.fd = qmp->fd, .events = POLLIN};
    int64_t spin_end = qmp->spin_us > 0 ? g_get_monotonic_time() + qmp->spin_us : 0;
    while (qmp->spin_us > 0 && g_get_monotonic_time() < spin_end) {
        int n = poll(&ready, 1, 0);
        if (n != 0)
            return n;
        sched_yield();
    }
    return poll(&ready, 1, left_ms(deadline));
}

static gboolean fail_in_time(Qmp *qmp, GError **error) {
    qmp->broken = TRUE;
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_TIMED_OUT, "%s does not answer", qmp->label);
    return FALSE;
}

/* Wait for bytes and append them to the buffer. */
static gboolean read_some(Qmp *qmp, int64_t deadline, GError **error) {
    int n = wait_readable(qmp, deadline);
    if (n < 0 && errno == EINTR)
        return TRUE;
    if (n == 0)
        return fail_in_time(qmp, error);
    uint8_t bytes[16384];
    ssize_t got = recv(qmp->fd, bytes, sizeof(bytes), MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return TRUE;
    if (got <= 0) {
        qmp->broken = TRUE;
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_GUEST_GONE, "%s closed the connection", qmp->label);
        return FALSE;
    }
    qmp->message_bytes += (size_t)got;
    if (qmp->message_bytes > LONGEST_MESSAGE_BYTES)
        return fail_protocol(qmp, error);
    g_byte_array_append(qmp->input, bytes, (guint)got);
    return TRUE;
}

static gboolean only_space(const GByteArray *input) {
    for (guint i = 0; i < input->len; i++)
        if (!g_ascii_isspace(input->data[i]))
            return FALSE;
    return TRUE;
}

/* The next message in the buffer. *ret_message stays NULL while it is incomplete. */
static gboolean parse_one(Qmp *qmp, json_object **ret_message, GError **error) {
    if (qmp->input->len == 0 || (!qmp->in_message && only_space(qmp->input))) {
        g_byte_array_set_size(qmp->input, 0);
        return TRUE;
    }
    json_object *message =
        json_tokener_parse_ex(qmp->tokener, (const char *)qmp->input->data, (int)qmp->input->len);
    enum json_tokener_error state = json_tokener_get_error(qmp->tokener);
    if (!message && state == json_tokener_continue) {
        g_byte_array_set_size(qmp->input, 0); /* the tokener keeps what it has seen */
        qmp->in_message = TRUE;
        return TRUE;
    }
    if (!json_object_is_type(message, json_type_object)) {
        json_object_put(message);
        return fail_protocol(qmp, error);
    }
    g_byte_array_remove_range(qmp->input, 0, (guint)json_tokener_get_parse_end(qmp->tokener));
    json_tokener_reset(qmp->tokener);
    qmp->message_bytes = qmp->input->len;
    qmp->in_message = FALSE;
    *ret_message = message;
    return TRUE;
}

static gboolean note_event(Qmp *qmp, json_object *message) {
    const char *name = qmp_get_string(message, "event");
    if (!*name)
        return FALSE;
    json_object *stamp = qmp_get(message, "timestamp");
    int64_t *us = g_new(int64_t, 1);
    *us = json_object_get_int64(qmp_get(stamp, "seconds")) * G_USEC_PER_SEC +
          json_object_get_int64(qmp_get(stamp, "microseconds"));
    if (qmp->event_func)
        qmp->event_func(name, qmp_get(message, "data"), *us, qmp->event_opaque);
    g_hash_table_replace(qmp->events, g_strdup(name), us);
    return TRUE;
}

/* The next message that is no event. */
static gboolean next_message(Qmp *qmp, int64_t deadline, json_object **ret_message, GError **error) {
    for (;;) {
        g_autoptr(json_object) message = NULL;
        if (!parse_one(qmp, &message, error))
            return FALSE;
        if (message && !note_event(qmp, message)) {
            *ret_message = g_steal_pointer(&message);
            return TRUE;
        }
        /* Events alone are no answer, however many come. */
        if (message && left_ms(deadline) == 0)
            return fail_in_time(qmp, error);
        if (!message && !read_some(qmp, deadline, error))
            return FALSE;
    }
}

void qmp_set_event_func(Qmp *qmp, QmpEventFunc func, void *opaque) {
    qmp->event_func = func;
    qmp->event_opaque = opaque;
}

gboolean qmp_read_events(Qmp *qmp, GError **error) {
    struct pollfd ready = {.fd = qmp->fd, .events = POLLIN};
    if (qmp->broken || !g_queue_is_empty(&qmp->commands))
        return fail_protocol(qmp, error);
    for (;;) {
        g_autoptr(json_object) message = NULL;
        if (!parse_one(qmp, &message, error))
            return FALSE;
        if (message && !note_event(qmp, message))
            return fail_protocol(qmp, error);
        if (!message && qmp->input->len == 0) {
            if (poll(&ready, 1, 0) <= 0)
                return TRUE;
            if (!read_some(qmp, deadline_of(0), error))
                return FALSE;
        }
    }
}

int64_t qmp_event_us(const Qmp *qmp, const char *event) {
    const int64_t *us = g_hash_table_lookup(qmp->events, event);
    return us ? *us : 0;
}

/* ---- commands ---- */

static gboolean send_bytes(Qmp *qmp, const char *bytes, size_t length, int fd, GError **error) {
    char control[CMSG_SPACE(sizeof(int))] = {0};
    while (length > 0) {
        struct iovec iov = {.iov_base = (char *)bytes, .iov_len = length};
        struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
        if (fd >= 0) {
            message.msg_control = control;
            message.msg_controllen = sizeof(control);
            struct cmsghdr *head = CMSG_FIRSTHDR(&message);
            head->cmsg_level = SOL_SOCKET;
            head->cmsg_type = SCM_RIGHTS;
            head->cmsg_len = CMSG_LEN(sizeof(int));
            memcpy(CMSG_DATA(head), &fd, sizeof(int));
        }
        ssize_t sent = sendmsg(qmp->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0 && errno == EAGAIN) {
            struct pollfd ready = {.fd = qmp->fd, .events = POLLOUT};
            if (poll(&ready, 1, QMP_TIMEOUT_MS) > 0)
                continue;
            qmp->broken = TRUE;
            g_set_error(error, SNAP_ERROR, SNAP_ERROR_TIMED_OUT, "%s takes no commands", qmp->label);
            return FALSE;
        }
        if (sent < 0) {
            int code = errno;
            qmp->broken = TRUE;
            if (code == EPIPE || code == ECONNRESET)
                g_set_error(error, SNAP_ERROR, SNAP_ERROR_GUEST_GONE, "%s closed the connection", qmp->label);
            else
                snap_set_errno(error, code, "%s", qmp->label);
            return FALSE;
        }
        fd = -1;
        bytes += sent;
        length -= (size_t)sent;
    }
    return TRUE;
}

static void forget_refusal(Qmp *qmp) {
    g_clear_pointer(&qmp->refusal, json_object_put);
}

void qmp_queue(Qmp *qmp, const char *command, json_object *arguments) {
    g_autoptr(json_object) request = json_object_new_object();
    g_assert(!qmp->begun);
    forget_refusal(qmp);
    json_object_object_add(request, "execute", json_object_new_string(command));
    if (arguments)
        json_object_object_add(request, "arguments", arguments);
    const int form = JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE;
    g_string_append_printf(qmp->output, "%s\n", json_object_to_json_string_ext(request, form));
    g_queue_push_tail(&qmp->commands, g_strdup(command));
}

static gboolean flush_output(Qmp *qmp, int fd, GError **error) {
    gboolean ok = send_bytes(qmp, qmp->output->str, qmp->output->len, fd, error);
    g_string_truncate(qmp->output, 0);
    return ok;
}

gboolean qmp_send(Qmp *qmp, const char *command, json_object *arguments, int fd, GError **error) {
    qmp_queue(qmp, command, arguments);
    return flush_output(qmp, fd, error);
}

gboolean qmp_flush(Qmp *qmp, GError **error) {
    return flush_output(qmp, -1, error);
}

void qmp_begin(Qmp *qmp, const char *command) {
    g_assert(!qmp->begun);
    g_string_append_printf(qmp->output, "{\"execute\":\"%s\"", command);
    qmp->begun = g_strdup(command);
}

gboolean qmp_has_begun(const Qmp *qmp) {
    return qmp->begun != NULL;
}

gboolean qmp_finish(Qmp *qmp, GError **error) {
    g_string_append_c(qmp->output, '}');
    g_queue_push_tail(&qmp->commands, g_steal_pointer(&qmp->begun));
    return flush_output(qmp, -1, error);
}

gboolean qmp_drop(Qmp *qmp, GError **error) {
    /* This byte is in no JSON: the parser gives up what it has and begins anew. It answers with an error. */
    g_string_append_c(qmp->output, '\1');
    g_queue_push_tail(&qmp->commands, g_steal_pointer(&qmp->begun));
    g_autoptr(GError) expected = NULL;
    if (!flush_output(qmp, -1, error))
        return FALSE;
    if (qmp_receive(qmp, QMP_TIMEOUT_MS, NULL, &expected) ||
        !g_error_matches(expected, SNAP_ERROR, SNAP_ERROR_FAILED))
        return fail_protocol(qmp, error);
    return TRUE;
}

void qmp_spin(Qmp *qmp, int64_t spin_us) {
    qmp->spin_us = g_get_num_processors() > 1 ? spin_us : 0;
}

/* What @message says to the oldest command. */
static gboolean take_answer(Qmp *qmp, json_object *message, json_object **ret, GError **error) {
    g_autofree char *command = g_queue_pop_head(&qmp->commands);
    forget_refusal(qmp);
    json_object *failure = qmp_get(message, "error");
    if (!command)
        return fail_protocol(qmp, error);
    if (failure) {
        qmp->refusal = json_object_get(failure);
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "%s: QEMU says: %s", command,
                    qmp_get_string(failure, "desc"));
        return FALSE;
    }
    if (!json_object_object_get_ex(message, "return", NULL))
        return fail_protocol(qmp, error);
    if (ret)
        *ret = json_object_get(qmp_get(message, "return"));
    return TRUE;
}

static gboolean fail_broken(Qmp *qmp, GError **error) {
    g_free(g_queue_pop_head(&qmp->commands));
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_PROTOCOL, "%s: the connection is out of step", qmp->label);
    return FALSE;
}

gboolean qmp_receive(Qmp *qmp, int timeout_ms, json_object **ret, GError **error) {
    g_autoptr(json_object) message = NULL;
    g_assert(!g_queue_is_empty(&qmp->commands));
    if (qmp->broken)
        return fail_broken(qmp, error);
    if (next_message(qmp, deadline_of(timeout_ms), &message, error))
        return take_answer(qmp, message, ret, error);
    g_autofree char *command = g_queue_pop_head(&qmp->commands);
    g_prefix_error(error, "%s: ", command);
    return FALSE;
}

gboolean qmp_poll(Qmp *qmp, int timeout_ms, json_object **ret, GError **error) {
    struct pollfd ready = {.fd = qmp->fd, .events = POLLIN};
    *ret = NULL;
    if (qmp->broken)
        return fail_broken(qmp, error);
    if (poll(&ready, 1, timeout_ms) > 0 && !read_some(qmp, deadline_of(0), error))
        return FALSE;
    for (;;) {
        g_autoptr(json_object) message = NULL;
        if (!parse_one(qmp, &message, error))
            return FALSE;
        if (!message)
            return TRUE;
        if (!note_event(qmp, message))
            return take_answer(qmp, message, ret, error);
    }
}

gboolean qmp_receive_rest(Qmp *qmp, int timeout_ms, GError **error) {
    while (g_queue_get_length(&qmp->commands) > 1)
        qmp_receive(qmp, timeout_ms, NULL, NULL);
    return qmp_receive(qmp, timeout_ms, NULL, error);
}

json_object *qmp_refusal(const Qmp *qmp) {
    return qmp->refusal;
}

gboolean qmp_is_broken(const Qmp *qmp) {
    return qmp->broken;
}

gboolean qmp_command(Qmp *qmp, const char *command, json_object *arguments, int timeout_ms, json_object **ret,
                     GError **error) {
    return qmp_send(qmp, command, arguments, -1, error) && qmp_receive(qmp, timeout_ms, ret, error);
}

char *qmp_hmp(Qmp *qmp, const char *line, GError **error) {
    g_autoptr(json_object) answer = NULL;
    if (!qmp_command(qmp, "human-monitor-command", qmp_args("command-line", line, NULL), QMP_TIMEOUT_MS, &answer,
                     error))
        return NULL;
    const char *text = json_object_is_type(answer, json_type_string) ? json_object_get_string(answer) : "";
    return g_strdup(text);
}

/* ---- the connection ---- */

/* A full backlog makes a non-blocking connect fail with EAGAIN: try again until the deadline. */
static int connect_until(const char *path, int64_t deadline, GError **error) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof(address.sun_path)) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_USAGE,
                    "QMP socket %s: the path is longer than a socket's may be", path);
        return -1;
    }
    memcpy(address.sun_path, path, strlen(path) + 1);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        snap_set_errno(error, errno, "QMP socket %s", path);
        return -1;
    }
    while (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        int code = errno;
        if ((code == EAGAIN || code == EINTR) && left_ms(deadline) > 0) {
            g_usleep(10000);
            continue;
        }
        close(fd);
        if (code == ECONNREFUSED)
            g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_FOUND, "QMP socket %s: nobody listens there", path);
        else if (code == EAGAIN)
            g_set_error(error, SNAP_ERROR, SNAP_ERROR_TIMED_OUT, "QMP socket %s: accepts no connections", path);
        else
            snap_set_errno(error, code, "QMP socket %s", path);
        return -1;
    }
    return fd;
}

static gboolean has_string(json_object *list, const char *text) {
    size_t n = json_object_is_type(list, json_type_array) ? json_object_array_length(list) : 0;
    for (size_t i = 0; i < n; i++)
        if (g_strcmp0(json_object_get_string(json_object_array_get_idx(list, i)), text) == 0)
            return TRUE;
    return FALSE;
}

static gboolean read_greeting(Qmp *qmp, int64_t deadline, gboolean *ret_reads_ahead, GError **error) {
    g_autoptr(json_object) greeting = NULL;
    g_autoptr(GError) why = NULL;
    if (!next_message(qmp, deadline, &greeting, &why)) {
        if (g_error_matches(why, SNAP_ERROR, SNAP_ERROR_TIMED_OUT))
            g_set_error(error, SNAP_ERROR, SNAP_ERROR_TIMED_OUT,
                        "%s: no greeting: QEMU serves one client at a time, is another one connected? Give QEMU a "
                        "second -qmp socket",
                        qmp->label);
        else
            g_propagate_error(error, g_steal_pointer(&why));
        return FALSE;
    }
    json_object *head = qmp_get(greeting, "QMP");
    json_object *version = qmp_get(qmp_get(head, "version"), "qemu");
    if (!head)
        return fail_protocol(qmp, error);
    *ret_reads_ahead = has_string(qmp_get(head, "capabilities"), "oob");
    qmp->version = g_strdup_printf("%d.%d.%d", json_object_get_int(qmp_get(version, "major")),
                                   json_object_get_int(qmp_get(version, "minor")),
                                   json_object_get_int(qmp_get(version, "micro")));
    return TRUE;
}

/*
 * No command is sent out of band; but with this capability on, QEMU reads the next commands while it runs one, and
 * not only after it, which takes a third off a pause.
 */
static json_object *enable_oob(void) {
    json_object *arguments = json_object_new_object();
    json_object *list = json_object_new_array();
    json_object_array_add(list, json_object_new_string("oob"));
    json_object_object_add(arguments, "enable", list);
    return arguments;
}

static Qmp *new_until(int fd, const char *label, int64_t deadline, GError **error) {
    g_autoptr(Qmp) qmp = g_new0(Qmp, 1);
    qmp->fd = fd;
    qmp->label = g_strdup(label);
    qmp->input = g_byte_array_new();
    qmp->tokener = json_tokener_new();
    qmp->events = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
    qmp->output = g_string_new(NULL);
    g_queue_init(&qmp->commands);
    gboolean reads_ahead = FALSE;
    if (!read_greeting(qmp, deadline, &reads_ahead, error) ||
        !qmp_command(qmp, "qmp_capabilities", reads_ahead ? enable_oob() : NULL, MAX(left_ms(deadline), 1), NULL,
                     error))
        return NULL;
    return g_steal_pointer(&qmp);
}

Qmp *qmp_new(int fd, const char *label, int timeout_ms, GError **error) {
    return new_until(fd, label, deadline_of(timeout_ms), error);
}

Qmp *qmp_connect(const char *path, int timeout_ms, GError **error) {
    int64_t deadline = deadline_of(timeout_ms);
    int fd = connect_until(path, deadline, error);
    if (fd < 0)
        return NULL;
    g_autofree char *label = g_strdup_printf("QMP socket %s", path);
    return new_until(fd, label, deadline, error);
}

void qmp_free(Qmp *qmp) {
    if (!qmp)
        return;
    close(qmp->fd);
    g_free(qmp->label);
    g_free(qmp->version);
    g_byte_array_unref(qmp->input);
    json_tokener_free(qmp->tokener);
    g_hash_table_unref(qmp->events);
    g_queue_clear_full(&qmp->commands, g_free);
    g_string_free(qmp->output, TRUE);
    json_object_put(qmp->refusal);
    g_free(qmp->begun);
    g_free(qmp);
}

int qmp_fd(const Qmp *qmp) {
    return qmp->fd;
}

const char *qmp_version(const Qmp *qmp) {
    return qmp->version;
}
