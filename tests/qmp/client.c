/* See client.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "client.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { ANSWER_MS = 10000 };

/* ---- bytes and messages ---------------------------------------------------------------------------------- */

int client_connect(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    g_strlcpy(address.sun_path, path, sizeof(address.sun_path));
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    return fd;
}

void client_send(const Client *client, const char *text) {
    for (size_t at = 0, length = strlen(text); at < length;) {
        ssize_t n = send(client->fd, text + at, length - at, MSG_NOSIGNAL);
        assert_true(n > 0);
        at += (size_t)n;
    }
}

/* Return: whether anything came. */
static bool read_more(Client *client) {
    char data[4096];
    struct pollfd ready = {.fd = client->fd, .events = POLLIN};
    if (poll(&ready, 1, ANSWER_MS) != 1)
        return false;
    ssize_t n = recv(client->fd, data, sizeof(data), 0);
    if (n > 0)
        g_string_append_len(client->in, data, n);
    return n > 0;
}

json_object *client_read(Client *client) {
    const char *end;
    while (!(end = strstr(client->in->str, "\r\n")))
        if (!read_more(client))
            return NULL;
    g_autofree char *line = g_strndup(client->in->str, (gsize)(end - client->in->str));
    g_string_erase(client->in, 0, end - client->in->str + 2);
    json_object *message = json_tokener_parse(line);
    if (!message)
        fail_msg("no JSON: %s", line);
    return message;
}

bool client_is_closed(Client *client) {
    char byte;
    struct pollfd ready = {.fd = client->fd, .events = POLLIN};
    return poll(&ready, 1, ANSWER_MS) == 1 && recv(client->fd, &byte, 1, 0) <= 0;
}

/* ---- values ---------------------------------------------------------------------------------------------- */

json_object *client_member(json_object *value, const char *path) {
    g_auto(GStrv) names = g_strsplit(path, ".", -1);
    for (char **name = names; value && *name; name++) {
        if (json_object_is_type(value, json_type_array))
            value = json_object_array_get_idx(value, strtoul(*name, NULL, 10));
        else if (!json_object_object_get_ex(value, *name, &value))
            return NULL;
    }
    return value;
}

const char *client_text(json_object *value, const char *path) {
    json_object *member = client_member(value, path);
    return member ? json_object_get_string(member) : "";
}

int64_t client_number(json_object *value, const char *path) {
    json_object *member = client_member(value, path);
    if (!json_object_is_type(member, json_type_int))
        fail_msg("%s is no number in %s", path, json_object_to_json_string(value));
    return json_object_get_int64(member);
}

/* ---- commands -------------------------------------------------------------------------------------------- */

/* Return: (out) the answer that has the number of the command sent last. */
static json_object *read_answer(Client *client) {
    for (;;) {
        json_object *message = client_read(client);
        if (!message)
            fail_msg("no answer to command %u", client->number);
        if (!client_member(message, "event")) {
            assert_int_equal(client_number(message, "id"), client->number);
            return message;
        }
        g_queue_push_tail(&client->events, message);
    }
}

static json_object *ask(Client *client, const char *format, va_list args) G_GNUC_PRINTF(2, 0);
static json_object *ask(Client *client, const char *format, va_list args) {
    g_autofree char *text = g_strdup_vprintf(format, args);
    g_strdelimit(text, "'", '"');
    json_object *request = json_tokener_parse(text);
    assert_non_null(request);
    client->number++;
    json_object_object_add(request, "id", json_object_new_int64(client->number));
    client_send(client, json_object_to_json_string(request));
    json_object_put(request);
    return read_answer(client);
}

static json_object *ask_for_return(Client *client, const char *format, va_list args) G_GNUC_PRINTF(2, 0);
static json_object *ask_for_return(Client *client, const char *format, va_list args) {
    g_autoptr(json_object) answer = ask(client, format, args);
    json_object *result = client_member(answer, "return");
    if (!result)
        fail_msg("command %u: %s", client->number, json_object_to_json_string(answer));
    return json_object_get(result);
}

json_object *client_call(Client *client, const char *format, ...) {
    va_list args;
    va_start(args, format);
    json_object *result = ask_for_return(client, format, args);
    va_end(args);
    return result;
}

void client_ask(Client *client, const char *format, ...) {
    va_list args;
    va_start(args, format);
    json_object_put(ask_for_return(client, format, args));
    va_end(args);
}

void client_run(Client *client, const char *format, ...) {
    va_list args;
    va_start(args, format);
    g_autoptr(json_object) result = ask_for_return(client, format, args);
    va_end(args);
    assert_string_equal(json_object_to_json_string(result), "{ }");
}

char *client_fail(Client *client, const char *format, ...) {
    va_list args;
    va_start(args, format);
    g_autoptr(json_object) answer = ask(client, format, args);
    va_end(args);
    if (!client_member(answer, "error"))
        fail_msg("command %u does not fail: %s", client->number, json_object_to_json_string(answer));
    return g_strdup_printf("%s: %s", client_text(answer, "error.class"), client_text(answer, "error.desc"));
}

/* ---- events ---------------------------------------------------------------------------------------------- */

static json_object *next_event(Client *client) {
    json_object *event = g_queue_pop_head(&client->events);
    if (!event)
        event = client_read(client);
    if (!event || !client_member(event, "event") || !client_member(event, "timestamp.seconds"))
        fail_msg("no event: %s", event ? json_object_to_json_string(event) : "nothing");
    return event;
}

char *client_event(Client *client) {
    g_autoptr(json_object) event = next_event(client);
    json_object *data = client_member(event, "data");
    return data ? g_strdup_printf("%s %s", client_text(event, "event"),
                                  json_object_to_json_string_ext(data, JSON_C_TO_STRING_PLAIN))
                : g_strdup(client_text(event, "event"));
}

void client_await(Client *client, const char *event) {
    for (;;) {
        g_autofree char *next = client_event(client);
        if (g_str_equal(next, event))
            return;
    }
}

char *client_follow(Client *client, const char *job) {
    g_autoptr(GString) states = g_string_new(NULL);
    while (!g_str_has_suffix(states->str, "concluded") && !g_str_has_suffix(states->str, "null")) {
        g_autoptr(json_object) event = next_event(client);
        if (g_str_equal(client_text(event, "event"), "JOB_STATUS_CHANGE") &&
            g_str_equal(client_text(event, "data.id"), job))
            g_string_append_printf(states, "%s%s", states->len ? " " : "", client_text(event, "data.status"));
    }
    return g_string_free(g_steal_pointer(&states), FALSE);
}

/* ---- life ------------------------------------------------------------------------------------------------ */

void client_open_fd(Client *client, int fd) {
    *client = (Client){.fd = fd, .in = g_string_new(NULL)};
    g_queue_init(&client->events);
    g_autoptr(json_object) greeting = client_read(client);
    assert_string_equal(client_text(greeting, "QMP.capabilities.0"), "oob");
    client_run(client, "{'execute': 'qmp_capabilities'}");
}

void client_open(Client *client, const char *path) {
    client_open_fd(client, client_connect(path));
}

static void put(gpointer event) {
    json_object_put(event);
}

void client_close(Client *client) {
    close(client->fd);
    g_string_free(client->in, TRUE);
    g_queue_clear_full(&client->events, put);
}
