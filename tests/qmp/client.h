/*
 * A QMP client over a raw socket, one thread. What it does not expect fails the test. Needs cmocka.h before it.
 *
 * Commands are written without an id; each gets the next number.
 */
#pragma once

#include "../../qapi/json.h"

typedef struct {
    int fd;
    GString *in;     /* read, and not yet taken */
    GQueue events;   /* of json_object: they came, and nobody has looked at them */
    unsigned number; /* of the last command */
} Client;

/* client_open: connect, look at the greeting, negotiate. */
void client_open(Client *client, const char *path);
/* client_open_fd: the same with a socket that is connected. @fd: (take). */
void client_open_fd(Client *client, int fd);
void client_close(Client *client);

/* client_connect: a socket, and nothing said. */
int client_connect(const char *path);

/* client_send: all of @text, as it is. */
void client_send(const Client *client, const char *text);
/* client_read: the next message. Return: (out); NULL when there is none within ten seconds, or the end. */
json_object *client_read(Client *client);
/* client_is_closed: the next that comes is the end. */
bool client_is_closed(Client *client);

/* client_call: a command, as format of printf(). Return: (out) what it returned. */
json_object *client_call(Client *client, const char *format, ...) G_GNUC_PRINTF(2, 3);
/* client_ask: the same, and whatever it returned is right. */
void client_ask(Client *client, const char *format, ...) G_GNUC_PRINTF(2, 3);
/* client_run: the same, of one that returns nothing. */
void client_run(Client *client, const char *format, ...) G_GNUC_PRINTF(2, 3);
/* client_fail: the same, of one that fails. Return: (out) "CLASS: DESC". */
char *client_fail(Client *client, const char *format, ...) G_GNUC_PRINTF(2, 3);

/* client_event: the next event. Return: (out) its name, and its data as JSON behind a blank. */
char *client_event(Client *client);
/* client_await: pass over events up to and with @event, as client_event() has it. */
void client_await(Client *client, const char *event);
/* client_follow: the events of a job up to its end. Return: (out) its states, with blanks between them. */
char *client_follow(Client *client, const char *job);

/* client_member: of an object, by a path such as "save.phase" or "0.id". Return: (borrow), NULL: it is not there.
 */
json_object *client_member(json_object *value, const char *path);
const char *client_text(json_object *value, const char *path);
int64_t client_number(json_object *value, const char *path);
