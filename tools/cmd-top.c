/*
 * vmsnap top: what a helper's guests and jobs are at, again and again.
 *
 * On a terminal it is redrawn in place until q or Ctrl-C; elsewhere each round is a block of lines, or an object
 * with --json. It only looks: no log is started, none is collected.
 */
#include "command.h"
#include "interrupt.h"
#include "screen.h"
#include "top-view.h"

#include <stdio.h>

#define INTERVAL_DEFAULT_MS 1000u

typedef struct {
    const Invocation *invocation;
    Client *client;
    Screen *screen; /* (nullable) */
    guint interval_ms;
    guint n_rounds; /* 0: without end */
} Top;

/* ---- a round --------------------------------------------------------------------------------------------- */

/* Return: (out) {round, targets, jobs}. */
static json_object *ask(const Top *top, guint number, GError **error) {
    g_autoptr(json_object) targets = client_command(top->client, "query-targets", NULL, error);
    g_autoptr(json_object) jobs =
        targets ? client_command(top->client, "query-job-statistics", NULL, error) : NULL;
    if (!jobs)
        return NULL;
    json_object *round = json_object_new_object();
    qapi_json_add_uint(round, "round", number);
    qapi_json_add(round, "targets", g_steal_pointer(&targets));
    qapi_json_add(round, "jobs", g_steal_pointer(&jobs));
    return round;
}

static char **lines_of(const Top *top, json_object *round) {
    return top_view_lines(top->invocation->connect, result_object(round, "targets"), result_object(round, "jobs"));
}

/* Return: an exit status. */
static int print(const Top *top, json_object *round) {
    if (!top->invocation->json) {
        g_auto(GStrv) lines = lines_of(top, round);
        for (char **line = lines; *line; line++)
            puts(*line);
        puts("");
    }
    return invocation_finish(top->invocation, round, NULL);
}

/* FALSE: nobody wants to see more. */
static gboolean show(const Top *top, json_object *round, gint64 end_us) {
    g_auto(GStrv) lines = lines_of(top, round);
    ScreenEvent event;
    do {
        if (!screen_draw(top->screen, lines))
            return FALSE;
        event = screen_wait(top->screen, end_us);
    } while (event == SCREEN_SIZE);
    return event == SCREEN_TIME;
}

/* The same without a screen. */
static gboolean wait_until(gint64 end_us) {
    gint64 left_us;
    while (!interrupt_seen() && (left_us = end_us - g_get_monotonic_time()) > 0)
        g_usleep((gulong)MIN(left_us, 100000));
    return !interrupt_seen();
}

/* ---- round after round ----------------------------------------------------------------------------------- */

/* @ret_status: of what was printed. */
static gboolean run_rounds(const Top *top, int *ret_status, GError **error) {
    gint64 due_us = g_get_monotonic_time();
    gboolean go_on = !interrupt_seen();
    for (guint n = 1; go_on; n++) {
        g_autoptr(json_object) round = ask(top, n, error);
        if (!round)
            return FALSE;
        due_us = MAX(due_us + (gint64)top->interval_ms * 1000, g_get_monotonic_time());
        gboolean last = n == top->n_rounds;
        if (top->screen) {
            go_on = show(top, round, due_us) && !last;
        } else {
            *ret_status = print(top, round);
            go_on = *ret_status == STATUS_DONE && !last && wait_until(due_us);
        }
    }
    return TRUE;
}

static int run_top(Top *top) {
    g_autoptr(GError) error = NULL;
    int status = STATUS_DONE;
    interrupt_catch();
    top->screen = top->invocation->json ? NULL : screen_open();
    gboolean ok = run_rounds(top, &status, &error);
    g_clear_pointer(&top->screen, screen_close);
    return ok ? status : invocation_fail(top->invocation, error);
}

static int run(Invocation *invocation) {
    int status = STATUS_DONE;
    Top top = {.invocation = invocation, .interval_ms = INTERVAL_DEFAULT_MS};
    g_autofree char *interval = NULL, *rounds = NULL;
    const GOptionEntry entries[] = {
        {"interval", 0, 0, G_OPTION_ARG_FILENAME, &interval, "Milliseconds from round to round (1000)", "MS"},
        {"rounds", 0, 0, G_OPTION_ARG_FILENAME, &rounds, "End after N rounds", "N"},
        G_OPTION_ENTRY_NULL,
    };
    if (!invocation_parse(invocation, entries, 0, 0, &status) ||
        !invocation_parse_count(invocation, "--interval", interval, &top.interval_ms, &status) ||
        !invocation_parse_count(invocation, "--rounds", rounds, &top.n_rounds, &status))
        return status;
    if (!invocation->connect)
        return invocation_usage(invocation,
                                "--connect SOCKET is missing: what it shows is a helper's; vmsnapd --qmp "
                                "unix:SOCKET is one");
    g_autoptr(Client) client = invocation_connect(invocation, &status);
    top.client = client;
    return client ? run_top(&top) : status;
}

const Command command_top = {
    .name = "top",
    .operands = "--connect SOCKET",
    .summary = "Watch a helper's guests and jobs, live; q ends.",
    .description =
        "A line a guest: what it writes is shown where its dirty log is on. A line a job, and more about a save:\n"
        "pages by the sweep and by fault, how long the guest waited for a page, buffers. Where standard output "
        "is\n"
        "no terminal each round is printed; with --json it is an object with round, targets and jobs.\n\n"
        "Examples:\n"
        "  vmsnap --connect /run/vmsnap.sock top\n"
        "  vmsnap --connect /run/vmsnap.sock top --json --rounds 1 | jq .jobs",
    .run = run,
};
