/* vmsnap save: one snapshot of one running guest, or a chain of them. */
#include "command.h"
#include "interrupt.h"
#include "libsnap.h"
#include "progress.h"
#include "qapi/save.h"
#include "qapi/series.h"
#include "target.h"
#include "units.h"

#include <inttypes.h>
#include <stdio.h>

typedef struct {
    TargetOptions target;
    char *region;
    char *buffer;
    char *at_cap;
    char *max_bandwidth;
    char *disks;
    char *parent;
    char *every;
    char *keep;
    char *count;
    char *compress; /* known, so that it can be refused by name */
} Options;

static void options_clear(Options *options) {
    target_options_clear(&options->target);
    g_free(options->region);
    g_free(options->buffer);
    g_free(options->at_cap);
    g_free(options->max_bandwidth);
    g_free(options->disks);
    g_free(options->parent);
    g_free(options->compress);
    g_free(options->every);
    g_free(options->keep);
    g_free(options->count);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Options, options_clear)

/* ---- options --------------------------------------------------------------------------------------------- */

static gboolean refuse(const Invocation *invocation, int *ret_status, const char *what) {
    *ret_status = invocation_usage(invocation, "%s", what);
    return FALSE;
}

static gboolean refuse_later_work(const Invocation *invocation, const Options *options, int *ret_status) {
    if (options->compress)
        return refuse(invocation, ret_status, "--compress: not built yet; leave it out");
    return TRUE;
}

static gboolean parse_target(const Invocation *invocation, const Options *options, QapiGuestOptions *target,
                             int *ret_status) {
    if (!target_parse(invocation, &options->target, target, ret_status))
        return FALSE;
    if (!options->disks)
        return TRUE;
    if (target->kind != QAPI_GUEST_QEMU)
        return refuse(invocation, ret_status, "--disks: only a --qemu guest has disks");
    if (g_str_equal(options->disks, "external"))
        return refuse(invocation, ret_status, "--disks external: not built yet; ignore is");
    if (!g_str_equal(options->disks, "ignore"))
        return refuse(invocation, ret_status, "--disks: ignore is what there is");
    target->qemu.ignore_disks = TRUE;
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

static gboolean parse_series(const Invocation *invocation, const Options *options, QapiSeriesOptions *series,
                             int *ret_status) {
    if (!options->every && (options->keep || options->count))
        return refuse(invocation, ret_status, "--keep and --count go with --every");
    if (options->every && options->parent)
        return refuse(invocation, ret_status,
                      "--parent: with --every each image has the one before as its parent");
    if (options->every && !units_parse_duration(options->every, &series->every_us)) {
        *ret_status = invocation_usage(invocation, "--every %s: not a time; such as 5s or 500ms", options->every);
        return FALSE;
    }
    return invocation_parse_count(invocation, "--keep", options->keep, &series->keep, ret_status) &&
           invocation_parse_count(invocation, "--count", options->count, &series->count, ret_status);
}

static gboolean parse(Invocation *invocation, Options *options, QapiSaveOptions *ret_save,
                      QapiSeriesOptions *ret_series, int *ret_status) {
    const GOptionEntry entries[] = {
        {"pid", 0, 0, G_OPTION_ARG_FILENAME, &options->target.pid, "The guest is this process", "PID"},
        {"qemu", 0, 0, G_OPTION_ARG_FILENAME, &options->target.qemu,
         "The guest is the QEMU behind this QMP socket", "QMP-SOCKET"},
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
        {"parent", 0, 0, G_OPTION_ARG_FILENAME, &options->parent,
         "Hold only what differs from this image of the same guest", "DIR"},
        {"every", 0, 0, G_OPTION_ARG_FILENAME, &options->every,
         "Stay, and take a snapshot each time: DIR/000001, each holding what changed since the one before",
         "TIME"},
        {"keep", 0, 0, G_OPTION_ARG_FILENAME, &options->keep, "--every: merge all but the newest N images away",
         "N"},
        {"count", 0, 0, G_OPTION_ARG_FILENAME, &options->count, "--every: end after N snapshots", "N"},
        {"libvirt", 0, G_OPTION_FLAG_HIDDEN, G_OPTION_ARG_FILENAME, &options->target.libvirt, NULL, NULL},
        {"compress", 0, G_OPTION_FLAG_HIDDEN, G_OPTION_ARG_FILENAME, &options->compress, NULL, NULL},
        G_OPTION_ENTRY_NULL,
    };
    if (!invocation_parse(invocation, entries, 0, 1, ret_status))
        return FALSE;
    QapiSaveOptions save = {0};
    if (!refuse_later_work(invocation, options, ret_status) ||
        !parse_target(invocation, options, &save.target, ret_status) ||
        !parse_tuning(invocation, options, &save.save, ret_status) ||
        !parse_series(invocation, options, ret_series, ret_status))
        return FALSE;
    if (!invocation->argv[0])
        return refuse(invocation, ret_status, "DIR is missing: where the image goes");
    save.save.dir = invocation->argv[0];
    save.save.parent_dir = options->parent;
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
    printf("  pages    %" PRIu64 ": %" PRIu64 " zero, %" PRIu64 " unchanged, %" PRIu64 " by the sweep, %" PRIu64
           " by fault\n",
           result_uint(pages, "total"), result_uint(pages, "zero"), result_uint(pages, "unchanged"),
           result_uint(pages, "by-sweep"), result_uint(pages, "by-fault"));
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

/* ---- a chain --------------------------------------------------------------------------------------------- */

typedef struct {
    Progress progress; /* first: a SeriesView * is what progress_of_save() takes */
    const Invocation *invocation;
    guint n_saved;
} SeriesView;

static void print_image(json_object *saved, void *opaque) {
    SeriesView *view = opaque;
    progress_clear(&view->progress);
    view->n_saved++;
    if (view->invocation->json) {
        puts(json_object_to_json_string_ext(saved, JSON_C_TO_STRING_PLAIN));
    } else {
        g_autofree char *pause = units_format_us(result_double(saved, "pause-us"));
        g_autofree char *total = units_format_us(result_double(saved, "total-ms") * 1e3);
        g_autofree char *bytes = units_format_size(result_uint(saved, "bytes-written"));
        printf("%s: %s, pause %s, %s\n", result_string(saved, "image"), bytes, pause, total);
    }
    fflush(stdout);
    progress_init(&view->progress, "saving");
}

/* Between two snapshots there is nothing to draw. */
static gboolean series_progress(const SnapSaveStats *stats, void *opaque) {
    return stats->phase == SNAP_SAVE_DONE ? !interrupt_seen() : progress_of_save(stats, opaque);
}

static int run_series(Invocation *invocation, const QapiSaveOptions *save, const QapiSeriesOptions *series) {
    SeriesView view = {.invocation = invocation};
    progress_init(&view.progress, "saving");
    g_autoptr(GError) error = NULL;
    gboolean ok = qapi_save_series(save, series, print_image, series_progress, &view, &error);
    progress_clear(&view.progress);
    if (!ok) {
        add_advice(error);
        return invocation_fail(invocation, error);
    }
    if (!invocation->json)
        printf("%s: %u image%s saved\n", save->save.dir, view.n_saved, view.n_saved == 1 ? "" : "s");
    return fflush(stdout) == 0 ? STATUS_DONE : STATUS_FAILED;
}

/* ---- one snapshot ---------------------------------------------------------------------------------------- */

/* What is not given is left out: 0 and NULL mean the default. */
static json_object *save_arguments(const Client *client, const char *target, const SnapSaveOptions *save) {
    json_object *arguments = json_object_new_object();
    qapi_json_add_string(arguments, "target", target);
    client_add_path(client, arguments, "path", save->dir);
    if (save->parent_dir)
        client_add_path(client, arguments, "parent", save->parent_dir);
    qapi_json_add_string(arguments, "region", save->region_glob);
    if (save->buffer_bytes)
        qapi_json_add_uint(arguments, "buffer", save->buffer_bytes);
    if (save->max_bandwidth_bytes)
        qapi_json_add_uint(arguments, "max-bandwidth", save->max_bandwidth_bytes);
    qapi_json_add_string(arguments, "at-cap", save->at_cap == SNAP_AT_CAP_ABORT ? "abort" : "block");
    return arguments;
}

static json_object *save_once(Client *client, const QapiSaveOptions *save, GError **error) {
    g_autofree char *target = target_acquire(client, &save->target, error);
    if (!target)
        return NULL;
    Progress progress;
    progress_init(&progress, "saving");
    json_object *result = client_run_job(client, "snapshot-save", save_arguments(client, target, &save->save),
                                         progress_of_save_job, &progress, error);
    progress_clear(&progress);
    target_release(client, target);
    return result;
}

static int run(Invocation *invocation) {
    int status = STATUS_DONE;
    g_auto(Options) options = {0};
    QapiSaveOptions save;
    QapiSeriesOptions series = {0};
    if (!parse(invocation, &options, &save, &series, &status))
        return status;
    if (series.every_us && invocation->connect)
        return invocation_usage(invocation,
                                "--every: not over --connect; leave that out, and run it where the guest is");
    interrupt_catch();
    if (series.every_us)
        return run_series(invocation, &save, &series);
    g_autoptr(Client) client = invocation_connect(invocation, &status);
    if (!client)
        return status;
    g_autoptr(GError) error = NULL;
    g_autoptr(json_object) result = save_once(client, &save, &error);
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
        "An image with a parent holds only what differs; restore, export and verify take the rest from there.\n"
        "With --every, Ctrl-C ends the chain with the last complete image. Times take ms, s, m or h.\n\n"
        "Examples:\n"
        "  vmsnap save --pid $(pidof redis-server) /var/tmp/redis\n"
        "  vmsnap save --qemu /run/guest.qmp /var/tmp/guest --disks ignore\n"
        "  vmsnap save --pid $(pidof redis-server) /var/tmp/redis.d --every 5s --keep 10\n"
        "A process needs ptrace rights: be root, or its user with CAP_SYS_PTRACE (vmsnap probe tells).",
    .run = run,
};
