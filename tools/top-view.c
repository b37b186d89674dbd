/*
 * What vmsnap top shows: see top-view.h.
 *
 * A head; a line a guest; a line a job, with more lines under a save. What matters most stands on the left, as a
 * narrow terminal cuts off the rest. Names may be anybody's, and are shown without what a terminal would obey.
 */
#include "top-view.h"

#include "command.h"
#include "units.h"

#include <inttypes.h>

static void add(GStrvBuilder *lines, const char *format, ...) G_GNUC_PRINTF(2, 3);
static void add(GStrvBuilder *lines, const char *format, ...) {
    va_list args;
    va_start(args, format);
    g_autofree char *line = g_strdup_vprintf(format, args);
    va_end(args);
    g_autofree char *valid = g_utf8_make_valid(line, -1);
    g_autofree char *safe = units_format_text(valid);
    g_strv_builder_add(lines, g_strchomp(safe));
}

static const char *or_dash(const char *text) {
    return text ? text : "-";
}

/* ---- guests ---------------------------------------------------------------------------------------------- */

static char *format_dirty(json_object *target) {
    if (!result_bool(target, "dirty-log"))
        return g_strdup("-");
    if (!result_object(target, "dirty-pages-per-second"))
        return g_strdup("on");
    return g_strdup_printf("%" PRIu64, result_uint(target, "dirty-pages-per-second"));
}

static void add_targets(GStrvBuilder *lines, json_object *targets) {
    add(lines, "%-20s %-9s %8s  %-9s %14s", "GUEST", "DRIVER", "PID", "STATE", "DIRTY PAGES/S");
    for (gsize i = 0; i < json_object_array_length(targets); i++) {
        json_object *target = json_object_array_get_idx(targets, i);
        g_autofree char *dirty = format_dirty(target);
        add(lines, "%-20s %-9s %8" PRIu64 "  %-9s %14s", result_string(target, "id"),
            result_string(target, "driver"), result_uint(target, "pid"), result_string(target, "state"), dirty);
    }
}

/* ---- jobs ------------------------------------------------------------------------------------------------ */

static char *format_done(uint64_t done, uint64_t total) {
    return total ? g_strdup_printf("%.0f%%", 100.0 * (double)MIN(done, total) / (double)total) : g_strdup("-");
}

static char *format_rate(double bytes_per_second) {
    g_autofree char *size = units_format_size((uint64_t)bytes_per_second);
    return g_strconcat(size, "/s", NULL);
}

static void add_save(GStrvBuilder *lines, json_object *save) {
    json_object *pages = result_object(save, "pages"), *latency = result_object(save, "fault-latency-us");
    json_object *buffers = result_object(save, "buffers");
    g_autofree char *in_use = units_format_size(result_uint(buffers, "in-use-bytes"));
    g_autofree char *cap = units_format_size(result_uint(buffers, "cap-bytes"));
    g_autofree char *p50 = units_format_us(result_double(latency, "p50"));
    g_autofree char *p99 = units_format_us(result_double(latency, "p99"));
    g_autofree char *max = units_format_us(result_double(latency, "max"));
    add(lines, "    pages    %" PRIu64 " by the sweep, %" PRIu64 " by fault", result_uint(pages, "by-sweep"),
        result_uint(pages, "by-fault"));
    add(lines, "    faults   %" PRIu64 ": half within %s, 99 %% %s, longest %s", result_uint(save, "faults"), p50,
        p99, max);
    add(lines, "    buffers  %s of %s", in_use, cap);
}

static void add_job(GStrvBuilder *lines, json_object *job) {
    json_object *save = result_object(job, "save"), *pages = result_object(save, "pages");
    const char *type = result_string(job, "type");
    uint64_t done = result_uint(job, "current-progress");
    double elapsed_s = MAX(result_double(job, "elapsed-ms"), 1) / 1e3;
    g_autofree char *percent = save ? format_done(result_uint(pages, "done"), result_uint(pages, "total"))
                                    : format_done(done, result_uint(job, "total-progress"));
    g_autofree char *rate =
        format_rate(save ? (double)result_uint(save, "bytes-per-second") : (double)done / elapsed_s);
    add(lines, "%-20s %-9s %-7s %-10s %5s %12s  %s", result_string(job, "id"), result_string(job, "status"),
        g_str_has_prefix(type, "snapshot-") ? type + strlen("snapshot-") : type,
        or_dash(result_string(save, "phase")), percent, rate,
        or_dash(result_string(job, save ? "target" : "path")));
    if (save)
        add_save(lines, save);
    if (result_object(job, "error"))
        add(lines, "    failed   %s", result_string(job, "error"));
}

static void add_jobs(GStrvBuilder *lines, json_object *jobs) {
    add(lines, "%-20s %-9s %-7s %-10s %5s %12s  %s", "JOB", "STATUS", "TYPE", "PHASE", "DONE", "RATE", "OF");
    for (gsize i = 0; i < json_object_array_length(jobs); i++)
        add_job(lines, json_object_array_get_idx(jobs, i));
}

/* ---------------------------------------------------------------------------------------------------------- */

char **top_view_lines(const char *socket, json_object *targets, json_object *jobs) {
    gsize n_targets = json_object_array_length(targets), n_jobs = json_object_array_length(jobs);
    g_autoptr(GStrvBuilder) lines = g_strv_builder_new();
    add(lines, "%s: %zu guest%s, %zu job%s", socket, n_targets, n_targets == 1 ? "" : "s", n_jobs,
        n_jobs == 1 ? "" : "s");
    if (n_targets > 0) {
        add(lines, "%s", "");
        add_targets(lines, targets);
    }
    if (n_jobs > 0) {
        add(lines, "%s", "");
        add_jobs(lines, jobs);
    }
    return g_strv_builder_end(lines);
}
