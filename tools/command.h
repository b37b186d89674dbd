/*
 * What the commands of vmsnap have in common: a table of them, parsing, printing, the exit status.
 *
 *     main → command.run(invocation) → invocation_parse → client_open → a command → invocation_finish or _fail
 */
#pragma once

#include "client.h"
#include "qapi/json.h"

#include <glib.h>

/* Exit status, the same for every command. */
enum {
    STATUS_DONE = 0,
    STATUS_FAILED = 1,
    STATUS_USAGE = 2,
};

typedef struct Command Command;

/* One call of vmsnap, from main() to its end. */
typedef struct {
    const Command *command;
    gboolean json;  /* --json */
    char *connect;  /* --connect SOCKET */
    gboolean help;  /* --help */
    char **argv;    /* what follows COMMAND; what stays after parsing are the operands */
    char **program; /* (nullable) what follows "--", where the command takes a program */
} Invocation;

struct Command {
    const char *name;
    const char *operands;    /* for the usage line */
    const char *summary;     /* one line */
    const char *description; /* what a newcomer needs, with examples */
    gboolean takes_program;  /* everything after "--" is a command line of its own */
    int (*run)(Invocation *invocation);
};

extern const Command command_probe, command_save, command_info, command_verify, command_list, command_merge,
    command_delete, command_export, command_restore, command_track, command_top;

/* The options that stand before COMMAND as well as after it: --json, --connect, --help. */
GOptionGroup *invocation_global_options(Invocation *invocation);

/**
 * invocation_parse: take the options out of invocation->argv and count the operands.
 * @entries: (nullable) the command's own, ended by G_OPTION_ENTRY_NULL.
 * @min_operands, @max_operands: how many; -1 for any number.
 * Return: FALSE when there is nothing left to do, with the exit status in @ret_status: --help, or wrong usage.
 */
gboolean invocation_parse(Invocation *invocation, const GOptionEntry *entries, int min_operands, int max_operands,
                          int *ret_status);

/**
 * invocation_parse_count: the number behind an option, from 1 on.
 * @name: the option's, for the complaint. @text: (nullable) what was given; @ret_count is untouched without.
 * Return: FALSE when it is not such a number, with the exit status in @ret_status.
 */
gboolean invocation_parse_count(const Invocation *invocation, const char *name, const char *text, guint *ret_count,
                                int *ret_status);

/* One line "vmsnap COMMAND: …" on stderr with a hint at --help. Return: STATUS_USAGE. */
int invocation_usage(const Invocation *invocation, const char *format, ...) G_GNUC_PRINTF(2, 3);

/* One line on stderr. Return: STATUS_USAGE for SNAP_ERROR_USAGE, else STATUS_FAILED. */
int invocation_fail(const Invocation *invocation, const GError *error);

/**
 * invocation_finish: print a result, as JSON or by @print, and flush it.
 * @result: (borrow). @print: (nullable) writes it for people, to stdout.
 * Return: STATUS_DONE, or STATUS_FAILED when stdout does not take it.
 */
int invocation_finish(const Invocation *invocation, json_object *result, void (*print)(json_object *result));

/**
 * invocation_connect: to the helper of --connect, or to the handlers of this process.
 * Return: (out); NULL after a line on stderr, with the exit status in @ret_status.
 */
Client *invocation_connect(const Invocation *invocation, int *ret_status);

/**
 * invocation_run: one command, and print what it returns.
 * @client: (borrow). @arguments: (take) (nullable). @print: as above. Return: the exit status.
 */
int invocation_run(const Invocation *invocation, Client *client, const char *command, json_object *arguments,
                   void (*print)(json_object *result));

/**
 * invocation_run_job: the same with a job; shows how far it is, and can be interrupted.
 * @doing: what the progress bar calls it. @arguments: (take).
 */
int invocation_run_job(const Invocation *invocation, Client *client, const char *doing, const char *command,
                       json_object *arguments, void (*print)(json_object *result));

/* Members of a result, for printing; NULL or 0 where they are not there. */
const char *result_string(json_object *object, const char *name);
uint64_t result_uint(json_object *object, const char *name);
double result_double(json_object *object, const char *name);
gboolean result_bool(json_object *object, const char *name);
json_object *result_object(json_object *object, const char *name);
