/*
 * vmsnap: the command line.
 *
 * Finds COMMAND among the arguments and hands the rest to it; each command parses its own options, calls its
 * handler in qapi/ and prints what that returns. --json, --connect and --help may stand before COMMAND too.
 */
#include "command.h"

#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

static const Command *const commands[] = {
    &command_probe, &command_save,   &command_track,  &command_info,    &command_verify, &command_list,
    &command_merge, &command_export, &command_delete, &command_restore, &command_top,
};

static const Command *find_command(const char *name) {
    for (guint i = 0; i < G_N_ELEMENTS(commands); i++)
        if (g_str_equal(commands[i]->name, name))
            return commands[i];
    return NULL;
}

static char *describe_commands(void) {
    g_autoptr(GString) text = g_string_new("Commands:\n");
    for (guint i = 0; i < G_N_ELEMENTS(commands); i++)
        g_string_append_printf(text, "  %-8s  %s\n", commands[i]->name, commands[i]->summary);
    g_string_append(text, "\nvmsnap COMMAND --help tells more. A first walk:\n"
                          "  vmsnap probe                         can this machine do it?\n"
                          "  vmsnap save --pid PID snap           copy the memory of a running process\n"
                          "  vmsnap info snap                     look at it\n"
                          "  vmsnap verify snap                   check every byte\n"
                          "  vmsnap export snap --format elf -o core   and open it in gdb\n"
                          "  vmsnap delete snap\n\n"
                          "Exit status: 0 done, 1 failed (one line on standard error says why), 2 wrong usage.");
    return g_string_free(g_steal_pointer(&text), FALSE);
}

static int print_help(GOptionContext *context) {
    g_autofree char *commands_text = describe_commands();
    g_option_context_set_description(context, commands_text);
    g_autofree char *help = g_option_context_get_help(context, TRUE, NULL);
    fputs(help, stdout);
    return fflush(stdout) == 0 ? STATUS_DONE : STATUS_FAILED;
}

/* What follows "--" is a command line of its own, which no option parser of ours may look into. */
static void split_program(Invocation *invocation) {
    for (guint i = 0; invocation->argv[i]; i++) {
        if (g_str_equal(invocation->argv[i], "--")) {
            invocation->program = g_strdupv(invocation->argv + i + 1);
            for (; invocation->argv[i]; i++)
                g_clear_pointer(&invocation->argv[i], g_free);
            return;
        }
    }
}

static int run_command(Invocation *invocation, char **arguments) {
    const Command *command = find_command(arguments[0]);
    if (!command)
        return invocation_usage(invocation, "there is no command '%s'", arguments[0]);
    invocation->command = command;
    invocation->argv = g_strdupv(arguments + 1);
    if (command->takes_program)
        split_program(invocation);
    return command->run(invocation);
}

/* Options up to COMMAND; strict POSIX order stops there. */
static int run(Invocation *invocation, char **arguments) {
    gboolean version = FALSE;
    const GOptionEntry entries[] = {
        {"version", 0, 0, G_OPTION_ARG_NONE, &version, "Show the version", NULL},
        G_OPTION_ENTRY_NULL,
    };
    g_autoptr(GOptionContext) context = g_option_context_new("COMMAND …");
    g_option_context_set_help_enabled(context, FALSE);
    g_option_context_set_strict_posix(context, TRUE);
    g_option_context_set_summary(context, "Point-in-time copies of running guests: QEMU, or any process.");
    g_option_context_set_main_group(context, invocation_global_options(invocation));
    g_option_context_add_main_entries(context, entries, NULL);

    g_auto(GStrv) argv = g_strdupv(arguments);
    g_autoptr(GError) error = NULL;
    if (!g_option_context_parse_strv(context, &argv, &error))
        return invocation_usage(invocation, "%s", error->message);
    char **rest = argv[0] ? argv + 1 : argv;
    if (*rest && g_str_equal(*rest, "--"))
        rest++;
    if (version)
        return puts("vmsnap " VMSNAP_VERSION) < 0 || fflush(stdout) ? STATUS_FAILED : STATUS_DONE;
    if (*rest)
        return run_command(invocation, rest);
    if (invocation->help)
        return print_help(context);
    return invocation_usage(invocation, "COMMAND is missing");
}

/* A guest has a descriptor for each shared region: the soft limit of 1024 is for programs that use select(). */
static void raise_descriptor_limit(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

int main(int argc, char **argv) {
    (void)argc;
    raise_descriptor_limit();
    /* A reader that goes away and a file that may not grow are errors like others, with a guest to be released. */
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    g_set_prgname("vmsnap");
    Invocation invocation = {0};
    int status = run(&invocation, argv);
    g_strfreev(invocation.argv);
    g_strfreev(invocation.program);
    g_free(invocation.connect);
    return status;
}
