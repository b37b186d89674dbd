/* What the commands of vmsnap have in common: see command.h. */
#include "command.h"

#include "interrupt.h"
#include "libsnap.h"
#include "progress.h"
#include "units.h"

#include <stdio.h>
#include <string.h>

GOptionGroup *invocation_global_options(Invocation *invocation) {
    const GOptionEntry entries[] = {
        {"json", 0, 0, G_OPTION_ARG_NONE, &invocation->json, "Print the result as one JSON object", NULL},
        {"connect", 0, 0, G_OPTION_ARG_FILENAME, &invocation->connect, "Have the helper (vmsnapd) at SOCKET do it",
         "SOCKET"},
        {"help", 'h', 0, G_OPTION_ARG_NONE, &invocation->help, "Show this help", NULL},
        G_OPTION_ENTRY_NULL,
    };
    GOptionGroup *group = g_option_group_new("common", "", "", NULL, NULL);
    g_option_group_add_entries(group, entries);
    return group;
}

/*
 * The command line as GOption wants it: a program name in front, which it takes for the usage line too. It
 * leaves a "--" among the operands only where one of them looks like an option.
 */
static gboolean parse_strv(Invocation *invocation, GOptionContext *context, GError **error) {
    g_autofree char *name = g_strdup_printf("vmsnap %s", invocation->command->name);
    g_set_prgname(name);
    g_autoptr(GStrvBuilder) builder = g_strv_builder_new();
    g_strv_builder_add(builder, name);
    g_strv_builder_addv(builder, (const char **)invocation->argv);
    g_auto(GStrv) argv = g_strv_builder_end(builder);
    if (!g_option_context_parse_strv(context, &argv, error))
        return FALSE;

    g_autoptr(GStrvBuilder) operands = g_strv_builder_new();
    gboolean separator_seen = FALSE;
    for (guint i = 1; argv[i]; i++) {
        if (!separator_seen && g_str_equal(argv[i], "--"))
            separator_seen = TRUE;
        else
            g_strv_builder_add(operands, argv[i]);
    }
    g_strfreev(invocation->argv);
    invocation->argv = g_strv_builder_end(operands);
    return TRUE;
}

static int print_help(GOptionContext *context) {
    g_autofree char *help = g_option_context_get_help(context, TRUE, NULL);
    fputs(help, stdout);
    return fflush(stdout) == 0 ? STATUS_DONE : STATUS_FAILED;
}

static gboolean count_operands(const Invocation *invocation, int min, int max, int *ret_status) {
    int n = (int)g_strv_length(invocation->argv);
    if (n < min)
        *ret_status = invocation_usage(invocation, "%s is missing", invocation->command->operands);
    else if (max >= 0 && n > max)
        *ret_status = invocation_usage(invocation, "what is '%s' for?", invocation->argv[max]);
    return n >= min && (max < 0 || n <= max);
}

gboolean invocation_parse(Invocation *invocation, const GOptionEntry *entries, int min_operands, int max_operands,
                          int *ret_status) {
    const Command *command = invocation->command;
    g_autoptr(GOptionContext) context = g_option_context_new(command->operands);
    g_option_context_set_help_enabled(context, FALSE);
    g_option_context_set_summary(context, command->summary);
    g_option_context_set_description(context, command->description);
    g_option_context_set_main_group(context, invocation_global_options(invocation));
    if (entries)
        g_option_context_add_main_entries(context, entries, NULL);

    g_autoptr(GError) error = NULL;
    if (!parse_strv(invocation, context, &error)) {
        *ret_status = invocation_usage(invocation, "%s", error->message);
        return FALSE;
    }
    if (invocation->help) {
        *ret_status = print_help(context);
        return FALSE;
    }
    return count_operands(invocation, min_operands, max_operands, ret_status);
}

gboolean invocation_parse_count(const Invocation *invocation, const char *name, const char *text, guint *ret_count,
                                int *ret_status) {
    guint64 count = 0;
    if (!text)
        return TRUE;
    if (!g_ascii_string_to_unsigned(text, 10, 1, G_MAXINT, &count, NULL)) {
        *ret_status = invocation_usage(invocation, "%s %s: not a number from 1 on", name, text);
        return FALSE;
    }
    *ret_count = (guint)count;
    return TRUE;
}

/* ---- the end --------------------------------------------------------------------------------------------- */

/* One line, whatever the message holds. */
static void print_error_line(const Invocation *invocation, const char *message) {
    g_autofree char *one_line = g_strdelimit(g_strdup(message), "\t\r\n", ' ');
    g_autofree char *line = units_format_text(g_strstrip(one_line));
    if (invocation->command)
        fprintf(stderr, "vmsnap %s: %s\n", invocation->command->name, line);
    else
        fprintf(stderr, "vmsnap: %s\n", line);
}

int invocation_usage(const Invocation *invocation, const char *format, ...) {
    va_list args;
    va_start(args, format);
    g_autofree char *what = g_strdup_vprintf(format, args);
    va_end(args);
    const char *command = invocation->command ? invocation->command->name : NULL;
    g_autofree char *message =
        g_strdup_printf("%s (see vmsnap %s%s--help)", what, command ? command : "", command ? " " : "");
    print_error_line(invocation, message);
    return STATUS_USAGE;
}

int invocation_fail(const Invocation *invocation, const GError *error) {
    print_error_line(invocation, error->message);
    return g_error_matches(error, SNAP_ERROR, SNAP_ERROR_USAGE) ? STATUS_USAGE : STATUS_FAILED;
}

int invocation_finish(const Invocation *invocation, json_object *result, void (*print)(json_object *result)) {
    if (invocation->json)
        puts(json_object_to_json_string_ext(result, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE));
    else if (print)
        print(result);
    if (fflush(stdout) == 0 && !ferror(stdout))
        return STATUS_DONE;
    print_error_line(invocation, "cannot write to standard output: where does it go?");
    return STATUS_FAILED;
}

/* ---- what most of them do -------------------------------------------------------------------------------- */

Client *invocation_connect(const Invocation *invocation, int *ret_status) {
    g_autoptr(GError) error = NULL;
    Client *client = client_open(invocation->connect, &error);
    if (!client)
        *ret_status = invocation_fail(invocation, error);
    return client;
}

int invocation_run(const Invocation *invocation, Client *client, const char *command, json_object *arguments,
                   void (*print)(json_object *result)) {
    g_autoptr(GError) error = NULL;
    g_autoptr(json_object) result = client_command(client, command, arguments, &error);
    return result ? invocation_finish(invocation, result, print) : invocation_fail(invocation, error);
}

int invocation_run_job(const Invocation *invocation, Client *client, const char *doing, const char *command,
                       json_object *arguments, void (*print)(json_object *result)) {
    Progress progress;
    g_autoptr(GError) error = NULL;
    interrupt_catch();
    progress_init(&progress, doing);
    g_autoptr(json_object) result = client_run_job(client, command, arguments, progress_of_job, &progress, &error);
    progress_clear(&progress);
    return result ? invocation_finish(invocation, result, print) : invocation_fail(invocation, error);
}

/* ---- members of a result --------------------------------------------------------------------------------- */

json_object *result_object(json_object *object, const char *name) {
    json_object *member = NULL;
    json_object_object_get_ex(object, name, &member);
    return member;
}

const char *result_string(json_object *object, const char *name) {
    return json_object_get_string(result_object(object, name));
}

uint64_t result_uint(json_object *object, const char *name) {
    return json_object_get_uint64(result_object(object, name));
}

double result_double(json_object *object, const char *name) {
    return json_object_get_double(result_object(object, name));
}

gboolean result_bool(json_object *object, const char *name) {
    return json_object_get_boolean(result_object(object, name));
}
