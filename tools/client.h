/*
 * Where commands go: to a helper behind a unix socket (--connect), or to command handlers in this process, which
 * are the same ones.
 *
 *     client_open → client_command, client_run_job … → client_close
 *
 * One command at a time, in one thread.
 */
#pragma once

#include "qapi/json.h"

typedef struct Client Client;

/**
 * client_open: get ready.
 * @socket: (borrow) (nullable) a helper's; NULL: this process does it.
 * Errors: NOT_FOUND, nobody listens there; PROTOCOL, it is another program's socket; of qmp_connect().
 * Return: (out) free with client_close().
 */
Client *client_open(const char *socket, GError **error);

/** client_close: let go of it. In this process what still runs is cancelled. NULL is allowed. */
void client_close(Client *client);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Client, client_close)

/** client_is_remote: commands go to a helper. */
gboolean client_is_remote(const Client *client);

/** client_path: a path as the other side has to be told it: a helper is in another folder. Return: (out). */
char *client_path(const Client *client, const char *path);
/** client_add_path: the same, as member @name of @arguments. */
void client_add_path(const Client *client, json_object *arguments, const char *name, const char *path);

/**
 * client_command: have a command carried out.
 * @arguments: (take) (nullable) an object.
 * Errors: of the command: in this process the handler's, behind a socket NOT_FOUND or FAILED by their class;
 * GUEST_GONE, the helper has ended; TIMED_OUT.
 * Return: (out) what it returned.
 */
json_object *client_command(Client *client, const char *name, json_object *arguments, GError **error);

/* What a job is at: a JobStatistics of the schema, (borrow). In the caller's thread, about ten times a second. */
typedef void (*ClientProgressFunc)(json_object *statistics, void *opaque);

/**
 * client_run_job: a command that is a job, from its start to its end. After Ctrl-C the job is cancelled.
 * @arguments: (take) an object, without the job's id. @progress: (nullable).
 * Errors: as above; the job's, with their code.
 * Return: (out) the job's result.
 */
json_object *client_run_job(Client *client, const char *command, json_object *arguments,
                            ClientProgressFunc progress, void *opaque, GError **error);

/** client_wait: for @timeout_ms at most. Return: TRUE, and at once, when a job or a guest may have ended. */
gboolean client_wait(Client *client, int timeout_ms);

/** client_name: a name for what this command makes, a job or a target. Return: (out) CLIENT_NAME_PREFIX…. */
char *client_name(void);
#define CLIENT_NAME_PREFIX "vmsnap-"
