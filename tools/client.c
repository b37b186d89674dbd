/*
 * Where commands go: see client.h.
 *
 * Happy path: a command is sent and its answer awaited. A job is started, asked what it is at about ten times a
 * second, and dismissed when it has ended; an event tells of that end, so that it is not noticed late.
 *
 * Failure modes: there is nobody at the socket, or somebody else; the helper ends, which is told as what it is; it
 * hangs, which Ctrl-C need not wait for. When a client is killed, its job goes on in the helper.
 *
 * Invariant: either `qmp` or `helper` is there.
 */
#include "client.h"

#include "interrupt.h"
#include "libsnap.h"
#include "qapi/dispatch.h"
#include "qapi/qmp-error.h"
#include "qemu/qmp.h"

#include <poll.h>
#include <unistd.h>

#define ANSWER_TIMEOUT_S 60
#define LAST_ANSWER_TIMEOUT_S 5 /* after Ctrl-C */
#define LOOK_MS 100             /* at Ctrl-C, and at a job */

struct Client {
    char *socket; /* (nullable) absolute */
    Qmp *qmp;
    gboolean lost; /* answers cannot be had any more */
    QapiHelper *helper;

    GMutex lock;
    GCond changed;
    gboolean news; /* under lock: something has ended */
};

/* ---- news ------------------------------------------------------------------------------------------------ */

/* Whether it is worth a look: the other states of a job are passed on the way. */
static gboolean tells_of_an_end(const char *event, json_object *data) {
    json_object *status = NULL;
    if (g_str_equal(event, "TARGET_GONE"))
        return TRUE;
    return g_str_equal(event, "JOB_STATUS_CHANGE") && json_object_object_get_ex(data, "status", &status) &&
           g_str_equal(json_object_get_string(status), "concluded");
}

static void note(Client *client, const char *event, json_object *data) {
    if (!tells_of_an_end(event, data))
        return;
    g_mutex_lock(&client->lock);
    client->news = TRUE;
    g_cond_signal(&client->changed);
    g_mutex_unlock(&client->lock);
}

static void on_remote_event(const char *event, json_object *data, int64_t time_us, void *client) {
    (void)time_us;
    note(client, event, data);
}

/* In any thread, with the helper's lock held. */
static void on_own_event(json_object *event, void *client) {
    note(client, qmp_get_string(event, "event"), qmp_get(event, "data"));
}

/* A socket that was closed is readable at once, and the next command finds out. */
static gboolean wait_for_socket(Client *client, int timeout_ms) {
    struct pollfd ready = {.fd = qmp_fd(client->qmp), .events = POLLIN};
    gint64 end_us = g_get_monotonic_time() + (gint64)timeout_ms * 1000, left_us;
    while (!client->news && (left_us = end_us - g_get_monotonic_time()) > 0)
        if (poll(&ready, 1, (int)((left_us + 999) / 1000)) <= 0 || !qmp_read_events(client->qmp, NULL))
            break;
    gboolean news = client->news;
    client->news = FALSE;
    return news;
}

gboolean client_wait(Client *client, int timeout_ms) {
    if (client->qmp)
        return wait_for_socket(client, timeout_ms);
    gint64 end_us = g_get_monotonic_time() + (gint64)timeout_ms * 1000;
    g_mutex_lock(&client->lock);
    while (!client->news && g_cond_wait_until(&client->changed, &client->lock, end_us))
        ;
    gboolean news = client->news;
    client->news = FALSE;
    g_mutex_unlock(&client->lock);
    return news;
}

/* ---- commands over the socket ---------------------------------------------------------------------------- */

static void set_refusal(const Client *client, const char *command, json_object *refusal, GError **error) {
    const char *name = qmp_get_string(refusal, "class"), *text = qmp_get_string(refusal, "desc");
    if (g_str_equal(name, "CommandNotFound"))
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED,
                    "the helper at %s does not know the command %s: is it of another version?", client->socket,
                    command);
    else
        g_set_error_literal(error, SNAP_ERROR,
                            g_str_equal(name, "DeviceNotFound") ? SNAP_ERROR_NOT_FOUND : SNAP_ERROR_FAILED, text);
}

/* @why: (take) of the QMP client, which takes the other side for a QEMU. */
static void set_failure(Client *client, GError *why, GError **error) {
    g_autoptr(GError) failure = why;
    client->lost = TRUE;
    if (g_error_matches(failure, SNAP_ERROR, SNAP_ERROR_GUEST_GONE))
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_GUEST_GONE,
                    "the helper at %s has ended; guests run on, what it was writing may be incomplete",
                    client->socket);
    else if (g_error_matches(failure, SNAP_ERROR, SNAP_ERROR_TIMED_OUT))
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_TIMED_OUT,
                    "%s: there is no answer; is it a helper's socket, and does the helper hang?", client->socket);
    else if (g_error_matches(failure, SNAP_ERROR, SNAP_ERROR_NOT_FOUND))
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_FOUND,
                    "there is no helper at %s; vmsnapd --qmp unix:%s is one", client->socket, client->socket);
    else if (g_error_matches(failure, SNAP_ERROR, SNAP_ERROR_PROTOCOL))
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_PROTOCOL, "%s is no helper's socket: it does not speak QMP",
                    client->socket);
    else
        g_propagate_error(error, g_steal_pointer(&failure));
}

/* As qmp_receive(), but who has pressed Ctrl-C is not kept waiting. */
static gboolean await_answer(Client *client, json_object **ret, GError **error) {
    gint64 start_us = g_get_monotonic_time();
    for (;;) {
        if (!qmp_poll(client->qmp, LOOK_MS, ret, error))
            return FALSE;
        if (*ret)
            return TRUE;
        gint64 limit_s = interrupt_seen() ? LAST_ANSWER_TIMEOUT_S : ANSWER_TIMEOUT_S;
        if (g_get_monotonic_time() - start_us > limit_s * G_USEC_PER_SEC) {
            g_set_error(error, SNAP_ERROR, SNAP_ERROR_TIMED_OUT, "no answer");
            return FALSE;
        }
    }
}

/* @arguments: (take) (nullable). */
static json_object *ask_helper(Client *client, const char *name, json_object *arguments, GError **error) {
    GError *why = NULL;
    json_object *result = NULL;
    if (client->lost) {
        json_object_put(arguments);
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_GUEST_GONE, "the helper at %s does not answer", client->socket);
        return NULL;
    }
    if (arguments && !g_utf8_validate(json_object_to_json_string(arguments), -1, NULL)) {
        json_object_put(arguments);
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED,
                    "a name that is not UTF-8 cannot be told to a helper; without --connect it can be used");
        return NULL;
    }
    if (qmp_send(client->qmp, name, arguments, -1, &why) && await_answer(client, &result, &why))
        return result;
    if (qmp_refusal(client->qmp)) {
        g_error_free(why);
        set_refusal(client, name, qmp_refusal(client->qmp), error);
    } else {
        set_failure(client, why, error);
    }
    return NULL;
}

json_object *client_command(Client *client, const char *name, json_object *arguments, GError **error) {
    if (client->qmp)
        return ask_helper(client, name, arguments, error);
    json_object *result = qapi_execute(client->helper, name, arguments, error);
    json_object_put(arguments);
    return result;
}

/* ---- jobs ------------------------------------------------------------------------------------------------ */

char *client_name(void) {
    return g_strdup_printf(CLIENT_NAME_PREFIX "%d-%04x", getpid(), g_random_int() & 0xffff);
}

static json_object *ask_about(Client *client, const char *command, const char *id, GError **error) {
    return client_command(client, command, qmp_args("id", id, NULL), error);
}

/* Until it has ended. Return: (out) its last JobStatistics. */
static json_object *follow(Client *client, const char *id, ClientProgressFunc progress, void *opaque,
                           GError **error) {
    gboolean cancelled = FALSE;
    for (;;) {
        g_autoptr(json_object) list = ask_about(client, "query-job-statistics", id, error);
        if (!list)
            return NULL;
        json_object *job = json_object_array_get_idx(list, 0);
        if (g_str_equal(qmp_get_string(job, "status"), "concluded"))
            return json_object_get(job);
        if (interrupt_seen() && !cancelled) {
            cancelled = TRUE; /* refused where there is nothing to be cancelled any more */
            json_object_put(ask_about(client, "job-cancel", id, NULL));
            continue;
        }
        if (progress)
            progress(job, opaque);
        client_wait(client, LOOK_MS);
    }
}

json_object *client_run_job(Client *client, const char *command, json_object *arguments,
                            ClientProgressFunc progress, void *opaque, GError **error) {
    g_autofree char *id = client_name();
    qapi_json_add_string(arguments, "job-id", id);
    g_autoptr(json_object) started = client_command(client, command, arguments, error);
    g_autoptr(json_object) job = started ? follow(client, id, progress, opaque, error) : NULL;
    if (!job)
        return NULL;
    json_object_put(ask_about(client, "job-dismiss", id, NULL));
    json_object *failure = qmp_get(job, "error");
    if (!failure)
        return json_object_get(qmp_get(job, "result"));
    g_set_error_literal(error, SNAP_ERROR, (gint)qapi_error_code(qmp_get_string(job, "code")),
                        json_object_get_string(failure));
    return NULL;
}

/* ---- paths ----------------------------------------------------------------------------------------------- */

gboolean client_is_remote(const Client *client) {
    return client->qmp != NULL;
}

char *client_path(const Client *client, const char *path) {
    return client->qmp ? g_canonicalize_filename(path, NULL) : g_strdup(path);
}

void client_add_path(const Client *client, json_object *arguments, const char *name, const char *path) {
    g_autofree char *theirs = client_path(client, path);
    qapi_json_add_string(arguments, name, theirs);
}

/* ---- life ------------------------------------------------------------------------------------------------ */

/* QEMU speaks QMP too, and has commands of the same names that do something else. */
static gboolean connect_to(Client *client, GError **error) {
    GError *why = NULL;
    client->qmp = qmp_connect(client->socket, QMP_TIMEOUT_MS, &why);
    if (!client->qmp) {
        set_failure(client, why, error);
        return FALSE;
    }
    qmp_set_event_func(client->qmp, on_remote_event, client);
    g_autoptr(json_object) targets = client_command(client, "query-targets", NULL, &why);
    if (targets)
        return TRUE;
    gboolean other = g_error_matches(why, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED);
    if (!other)
        g_propagate_error(error, g_steal_pointer(&why));
    else
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_PROTOCOL,
                    "%s is no helper's socket: it does not know query-targets; a QEMU is named by --qemu",
                    client->socket);
    g_clear_error(&why);
    return FALSE;
}

static const QapiListener listener = {.event = on_own_event};

Client *client_open(const char *socket, GError **error) {
    g_autoptr(Client) client = g_new0(Client, 1);
    g_mutex_init(&client->lock);
    g_cond_init(&client->changed);
    if (socket) {
        client->socket = g_strdup(socket);
        /* What was sent as 8033.338 is printed so, and not with all the digits of a double. */
        json_c_set_serialization_double_format("%.15g", JSON_C_OPTION_GLOBAL);
        return connect_to(client, error) ? g_steal_pointer(&client) : NULL;
    }
    client->helper = qapi_helper_new(NULL);
    qapi_helper_listen(client->helper, &listener, client);
    return g_steal_pointer(&client);
}

void client_close(Client *client) {
    if (!client)
        return;
    qmp_free(client->qmp);
    qapi_helper_free(client->helper);
    g_mutex_clear(&client->lock);
    g_cond_clear(&client->changed);
    g_free(client->socket);
    g_free(client);
}
