/* vmsnap track: what a running guest writes, round by round. */
#include "command.h"
#include "interrupt.h"
#include "libsnap.h"
#include "qapi/track.h"
#include "target.h"
#include "track-remote.h"
#include "units.h"

#include <inttypes.h>
#include <stdio.h>

#define INTERVAL_DEFAULT_MS 1000u

typedef struct {
    TargetOptions target;
    char *region;
    char *interval;
    char *rounds;
    char *log;
    gboolean ranges;
} Options;

static void options_clear(Options *options) {
    target_options_clear(&options->target);
    g_free(options->region);
    g_free(options->interval);
    g_free(options->rounds);
    g_free(options->log);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Options, options_clear)

/* ---- options --------------------------------------------------------------------------------------------- */

static gboolean parse_log(const Invocation *invocation, const char *text, QapiTrackLog *ret_log, int *ret_status) {
    static const char *const names[] = {
        [QAPI_TRACK_LOG_AUTO] = "auto",
        [QAPI_TRACK_LOG_ASYNC] = "async",
        [QAPI_TRACK_LOG_SYNC] = "sync",
    };
    for (guint i = 0; i < G_N_ELEMENTS(names); i++) {
        if (g_str_equal(text, names[i])) {
            *ret_log = (QapiTrackLog)i;
            return TRUE;
        }
    }
    *ret_status = invocation_usage(invocation, "--log %s: auto, async or sync", text);
    return FALSE;
}

static gboolean parse(Invocation *invocation, Options *options, QapiTrackOptions *ret_track, int *ret_status) {
    const GOptionEntry entries[] = {
        {"pid", 0, 0, G_OPTION_ARG_FILENAME, &options->target.pid, "The guest is this process", "PID"},
        {"qemu", 0, 0, G_OPTION_ARG_FILENAME, &options->target.qemu,
         "The guest is the QEMU behind this QMP socket", "QMP-SOCKET"},
        {"interval", 0, 0, G_OPTION_ARG_FILENAME, &options->interval, "Milliseconds from round to round (1000)",
         "MS"},
        {"rounds", 0, 0, G_OPTION_ARG_FILENAME, &options->rounds, "End after N rounds", "N"},
        {"region", 0, 0, G_OPTION_ARG_FILENAME, &options->region,
         "Only regions whose name matches; * and ? as in a shell", "GLOB"},
        {"ranges", 0, 0, G_OPTION_ARG_NONE, &options->ranges, "List what was written, under each round", NULL},
        {"log", 0, 0, G_OPTION_ARG_FILENAME, &options->log,
         "Who logs: the kernel, or a thread that first writes wait for (auto)", "auto|async|sync"},
        {"libvirt", 0, G_OPTION_FLAG_HIDDEN, G_OPTION_ARG_FILENAME, &options->target.libvirt, NULL, NULL},
        G_OPTION_ENTRY_NULL,
    };
    if (!invocation_parse(invocation, entries, 0, 0, ret_status))
        return FALSE;
    guint interval_ms = INTERVAL_DEFAULT_MS;
    QapiTrackOptions track = {.region_glob = options->region};
    if (!target_parse(invocation, &options->target, &track.target, ret_status) ||
        !invocation_parse_count(invocation, "--interval", options->interval, &interval_ms, ret_status) ||
        !invocation_parse_count(invocation, "--rounds", options->rounds, &track.rounds, ret_status) ||
        !parse_log(invocation, options->log ? options->log : "auto", &track.log, ret_status))
        return FALSE;
    track.interval_us = (uint64_t)interval_ms * 1000;
    if (track.target.kind == QAPI_GUEST_QEMU)
        track.target.qemu.ignore_disks = TRUE; /* memory is all that is looked at */
    *ret_track = track;
    return TRUE;
}

/* ---- rounds ---------------------------------------------------------------------------------------------- */

typedef struct {
    const Invocation *invocation;
    gboolean ranges;
    int status; /* as of invocation_finish() */
} View;

/* The sync log costs the guest more: who did not ask for it is told. */
static void on_started(SnapTrackMode log, const char *why_not_async, void *opaque) {
    (void)opaque;
    if (!why_not_async)
        return;
    g_autofree char *why = units_format_text(why_not_async);
    fprintf(stderr, "vmsnap track: the log is %s: %s\n", snap_track_mode_name(log), why);
}

static void print_ranges(const QapiTrackRound *round) {
    for (guint i = 0; i < round->ranges->len; i++) {
        const QapiTrackRange *range = &g_array_index(round->ranges, QapiTrackRange, i);
        g_autofree char *name = units_format_text(range->region);
        g_autofree char *size = units_format_size(range->length_bytes);
        printf("  0x%" PRIx64 "-0x%" PRIx64 "  %s  %s + 0x%" PRIx64 "\n", range->address,
               range->address + range->length_bytes, size, name, range->offset_bytes);
    }
}

static void print_round(const QapiTrackRound *round) {
    g_autofree char *size = units_format_size(round->dirty_bytes);
    g_autofree char *scan = units_format_us((double)round->stats.scan_ns / 1e3);
    printf("round %u: %" PRIu64 " pages dirty (%s), %.0f/s, in %u range%s, scan %s\n", round->number,
           round->stats.n_pages, size, round->pages_per_second, round->ranges->len,
           round->ranges->len == 1 ? "" : "s", scan);
}

static gboolean on_round(const QapiTrackRound *round, void *opaque) {
    View *view = opaque;
    g_autoptr(json_object) object = NULL;
    if (view->invocation->json) {
        object = qapi_track_round_to_json(round);
    } else {
        print_round(round);
        if (view->ranges)
            print_ranges(round);
    }
    view->status = invocation_finish(view->invocation, object, NULL);
    return view->status == STATUS_DONE;
}

static gboolean go_on(void *opaque) {
    (void)opaque;
    return !interrupt_seen();
}

static int run(Invocation *invocation) {
    static const QapiTrackFuncs funcs = {.started = on_started, .round = on_round, .go_on = go_on};
    int status = STATUS_DONE;
    g_auto(Options) options = {0};
    QapiTrackOptions track;
    if (!parse(invocation, &options, &track, &status))
        return status;
    interrupt_catch();
    View view = {.invocation = invocation, .ranges = options.ranges, .status = STATUS_DONE};
    g_autoptr(GError) error = NULL;
    g_autoptr(Client) client = invocation->connect ? invocation_connect(invocation, &status) : NULL;
    if (invocation->connect && !client)
        return status;
    gboolean ok =
        client ? track_remote(client, &track, &funcs, &view, &error) : qapi_track(&track, &funcs, &view, &error);
    return ok ? view.status : invocation_fail(invocation, error);
}

const Command command_track = {
    .name = "track",
    .operands = "--pid PID | --qemu QMP-SOCKET",
    .summary = "Log what a running guest writes, a line a round.",
    .description =
        "Each round tells which pages were written since the round before, exact to the page (of hugetlb: to the\n"
        "huge page). The guest runs on; Ctrl-C ends the log and leaves nothing in it. Not seen is what does not\n"
        "write through the guest's own mappings: pwrite(2), other mappings of the same file, devices.\n\n"
        "Examples:\n"
        "  vmsnap track --pid $(pidof redis-server)\n"
        "  vmsnap track --qemu /run/guest.qmp --interval 100 --rounds 50 --json\n"
        "  vmsnap track --pid $(pidof redis-server) --region '*heap*' --ranges\n"
        "A process needs ptrace rights: be root, or its user with CAP_SYS_PTRACE (vmsnap probe tells).",
    .run = run,
};
