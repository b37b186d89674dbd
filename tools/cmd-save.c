/* vmsnap save: one snapshot of one running guest. */
#include "command.h"
#include "interrupt.h"
#include "libsnap.h"
#include "progress.h"
#include "qapi/save.h"
#include "units.h"

#include <inttypes.h>
#include <stdio.h>

typedef struct {
    char *pid;
    char *qemu;
    char *libvirt;
    char *region;
    char *buffer;
    char *at_cap;
    char *max_bandwidth;
    char *disks;
    /* Known, so that they can be refused by name. */
    char *parent;
    char *compress;
    char *every;
} Options;

static void options_clear(Options *options) {
    g_free(options->pid);
    g_free(options->qemu);
    g_free(options->libvirt);
    g_free(options->region);
    g_free(options->buffer);
    g_free(options->at_cap);
    g_free(options->max_bandwidth);
    g_free(options->disks);
    g_free(options->parent);
    g_free(options->compress);
    g_free(options->every);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Options, options_clear)

/* ---- options --------------------------------------------------------------------------------------------- */

static gboolean refuse(const Invocation *invocation, int *ret_status, const char *what) {
    *ret_status = invocation_usage(invocation, "%s", what);
    return FALSE;
}

static gboolean refuse_later_work(const Invocation *invocation, const Options *options, int *ret_status) {
    if (options->libvirt)
        return refuse(invocation, ret_status, "--libvirt: not built yet; --qemu with the domain's QMP socket is");
    if (options->parent)
        return refuse(invocation, ret_status, "--parent: incremental images are not built yet; leave it out");
    if (options->compress)
        return refuse(invocation, ret_status, "--compress: not built yet; leave it out");
    if (options->every)
        return refuse(invocation, ret_status, "--every: not built yet; call vmsnap save again");
    return TRUE;
}

static gboolean parse_target(const Invocation *invocation, const Options *options, QapiTarget *target,
                             int *ret_status) {
    if (!options->pid == !options->qemu)
        return refuse(invocation, ret_status, "one target, please: --pid PID or --qemu QMP-SOCKET");
    if (options->disks && !options->qemu)
        return refuse(invocation, ret_status, "--disks: only a --qemu guest has disks");
    if (options->qemu) {
        *target = (QapiTarget){.kind = QAPI_TARGET_QEMU, .qemu = {.qmp_path = options->qemu}};
        if (!options->disks || g_str_equal(options->disks, "ignore")) {
            target->qemu.ignore_disks = options->disks != NULL;
            return TRUE;
        }
        return refuse(invocation, ret_status,
                      g_str_equal(options->disks, "external") ? "--disks external: not built yet; ignore is"
                                                              : "--disks: ignore is what there is");
    }
    guint64 pid = 0;
    if (!g_ascii_string_to_unsigned(options->pid, 10, 1, G_MAXINT, &pid, NULL))
        return refuse(invocation, ret_status, "--pid: not a process id; a number from ps or pidof");
    *target = (QapiTarget){.kind = QAPI_TARGET_PID, .process = {.pid = (int)pid}};
    return TRUE;
}

/* A size that is not given stays 0, which means the default. */
static gboolean parse_size(const Invocation *invocation, const char *name, const char *text, uint64_t *ret_bytes,
                           int *ret_status) {
    uint64_t bytes = 0;
    if (text && (!units_parse_size(text, &bytes) || bytes == 0)) {
        *ret_status = invocation_usage(invocation, "%s %s: not a size; such as 64M", name, text);
        return FALSE;
    }
    *ret_bytes = bytes;
    return TRUE;
}

static gboolean parse_tuning(const Invocation *invocation, const Options *options, SnapSaveOptions *save,
                             int *ret_status) {
    save->region_glob = options->region;
    if (options->at_cap && g_str_equal(options->at_cap, "abort"))
        save->at_cap = SNAP_AT_CAP_ABORT;
    else if (!options->at_cap || g_str_equal(options->at_cap, "block"))
        save->at_cap = SNAP_AT_CAP_BLOCK;
    else
        return refuse(invocation, ret_status, "--at-cap: block or abort");
    return parse_size(invocation, "--buffer", options->buffer, &save->buffer_bytes, ret_status) &&
           parse_size(invocation, "--max-bandwidth", options->max_bandwidth, &save->max_bandwidth_bytes,
                      ret_status);
}

static gboolean parse(Invocation *invocation, Options *options, QapiSaveOptions *ret_save, int *ret_status) {
    const GOptionEntry entries[] = {
        {"pid", 0, 0, G_OPTION_ARG_FILENAME, &options->pid, "The guest is this process", "PID"},
        {"qemu", 0, 0, G_OPTION_ARG_FILENAME, &options->qemu, "The guest is the QEMU behind this QMP socket",
         "QMP-SOCKET"},
        {"region", 0, 0, G_OPTION_ARG_FILENAME, &options->region,
         "Only regions whose name matches; * and ? as in a shell", "GLOB"},
        {"buffer", 0, 0, G_OPTION_ARG_FILENAME, &options->buffer, "At most this much memory for buffers (64M)",
         "SIZE"},
        {"at-cap", 0, 0, G_OPTION_ARG_FILENAME, &options->at_cap,
         "When the buffers are full: block lets the guest wait (default), abort gives up", "block|abort"},
        {"max-bandwidth", 0, 0, G_OPTION_ARG_FILENAME, &options->max_bandwidth, "Write at most this much a second",
         "SIZE"},
        {"disks", 0, 0, G_OPTION_ARG_FILENAME, &options->disks,
         "--qemu: ignore saves a guest with writable disks, without their content", "ignore"},
        {"libvirt", 0, G_OPTION_FLAG_HIDDEN, G_OPTION_ARG_FILENAME, &options->libvirt, NULL, NULL},
        {"parent", 0, G_OPTION_FLAG_HIDDEN, G_OPTION_ARG_FILENAME, &options->parent, NULL, NULL},
        {"compress", 0, G_OPTION_FLAG_HIDDEN, G_OPTION_ARG_FILENAME, &options->compress, NULL, NULL},
        {"every", 0, G_OPTION_FLAG_HIDDEN, G_OPTION_ARG_FILENAME, &options->every, NULL, NULL},
        G_OPTION_ENTRY_NULL,
    };
    if (!invocation_parse(invocation, entries, 0, 1, ret_status))
        return FALSE;
    QapiSaveOptions save = {0};
    if (!refuse_later_work(invocation, options, ret_status) ||
        !parse_target(invocation, options, &save.target, ret_status) ||
        !parse_tuning(invocation, options, &save.save, ret_status))
        return FALSE;
    if (!invocation->argv[0])
        return refuse(invocation, ret_status, "DIR is missing: where the image goes");
    save.save.dir = invocation->argv[0];
    *ret_save = save;
    return TRUE;
}

/* ---- the summary ----------------------------------------------------------------------------------------- */

static void print_faults(json_object *result) {
    json_object *latency = result_object(result, "fault-latency-us");
    uint64_t faults = result_uint(result, "faults");
    if (faults == 0) {
        puts("  faults   none");
        return;
    }
    g_autofree char *p50 = units_format_us(result_double(latency, "p50"));
    g_autofree char *p99 = units_format_us(result_double(latency, "p99"));
    g_autofree char *p999 = units_format_us(result_double(latency, "p999"));
    g_autofree char *max = units_format_us(result_double(latency, "max"));
    printf("  faults   %" PRIu64 ": half within %s, 99 %% %s, 99.9 %% %s, longest %s\n", faults, p50, p99, p999,
           max);
}

static void print_saved(json_object *result) {
    json_object *pages = result_object(result, "pages");
    double prepare_ms = result_double(result, "prepare-ms"), total_ms = result_double(result, "total-ms");
    uint64_t written = result_uint(result, "bytes-written");
    g_autofree char *pause = units_format_us(result_double(result, "pause-us"));
    g_autofree char *prepare = units_format_us(prepare_ms * 1e3);
    g_autofree char *total = units_format_us(total_ms * 1e3);
    g_autofree char *bytes = units_format_size(written);
    g_autofree char *rate =
        units_format_size((uint64_t)((double)written / MAX(total_ms - prepare_ms, 1e-3) * 1e3));
    g_autofree char *peak = units_format_size(result_uint(result, "peak-buffer-bytes"));

    printf("%s: saved\n", result_string(result, "image"));
    printf("  pause    %s\n", pause);
    printf("  time     %s, of which %s to prepare\n", total, prepare);
    printf("  pages    %" PRIu64 ": %" PRIu64 " zero, %" PRIu64 " by the sweep, %" PRIu64 " by fault\n",
           result_uint(pages, "total"), result_uint(pages, "zero"), result_uint(pages, "by-sweep"),
           result_uint(pages, "by-fault"));
    printf("  written  %s, %s/s\n", bytes, rate);
    print_faults(result);
    printf("  buffers  %s at most\n", peak);
    if (result_uint(result, "attempts") > 1)
        printf("  attempts %" PRIu64 ": the guest dropped memory before it was saved\n",
               result_uint(result, "attempts"));
}

/* What to do about it, where that is an option of ours. */
static void add_advice(GError *error) {
    if (!g_error_matches(error, SNAP_ERROR, SNAP_ERROR_BUFFER_FULL))
        return;
    char *message =
        g_strdup_printf("%s; give it a larger --buffer, or let it wait: --at-cap block", error->message);
    g_free(error->message);
    error->message = message;
}

static int run(Invocation *invocation) {
    int status = STATUS_DONE;
    g_auto(Options) options = {0};
    QapiSaveOptions save;
    if (!parse(invocation, &options, &save, &status))
        return status;
    interrupt_catch();
    Progress progress;
    progress_init(&progress, "saving");
    g_autoptr(GError) error = NULL;
    g_autoptr(json_object) result = qapi_save(&save, progress_save, &progress, &error);
    progress_clear(&progress);
    if (result)
        return invocation_finish(invocation, result, print_saved);
    add_advice(error);
    return invocation_fail(invocation, error);
}

const Command command_save = {
    .name = "save",
    .operands = "--pid PID | --qemu QMP-SOCKET  DIR",
    .summary = "Take a snapshot of a running guest into the new directory DIR.",
    .description =
        "The guest is stopped for about a millisecond and runs on while its memory is written out. Ctrl-C\n"
        "gives up: the guest runs on, and DIR is removed. Sizes take a suffix K, M, G or T (binary).\n\n"
        "Examples:\n"
        "  vmsnap save --pid $(pidof redis-server) /var/tmp/redis\n"
        "  vmsnap save --qemu /run/guest.qmp /var/tmp/guest --disks ignore\n"
        "A process needs ptrace rights: be root, or its user with CAP_SYS_PTRACE (vmsnap probe tells).",
    .run = run,
};
