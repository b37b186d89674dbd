/* Progress bar: see progress.h. */
#include "progress.h"

#include "command.h"
#include "interrupt.h"
#include "units.h"

#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define REDRAW_INTERVAL_US 100000
#define BAR_CELLS 20

void progress_init(Progress *progress, const char *verb) {
    *progress = (Progress){
        .on = isatty(STDERR_FILENO) == 1,
        .verb = verb,
        .start_us = g_get_monotonic_time(),
    };
}

static gboolean is_due(Progress *progress) {
    gint64 now = g_get_monotonic_time();
    if (!progress->on || now - MAX(progress->start_us, progress->drawn_us) < REDRAW_INTERVAL_US)
        return FALSE;
    progress->drawn_us = now;
    return TRUE;
}

static double elapsed_s(const Progress *progress) {
    return (double)(g_get_monotonic_time() - progress->start_us) / 1e6;
}

/* Never wider than the terminal: a wrapped line cannot be redrawn in place. All that is drawn is ASCII. */
static void draw_line(const char *line) {
    struct winsize size = {0};
    int columns = ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 1 ? size.ws_col - 1 : 79;
    fprintf(stderr, "\r%.*s\033[K", columns, line);
    fflush(stderr);
}

static char *format_bar(double fraction) {
    char cells[BAR_CELLS + 1] = {0};
    int full = (int)(CLAMP(fraction, 0.0, 1.0) * BAR_CELLS);
    for (int i = 0; i < BAR_CELLS; i++)
        cells[i] = i < full ? '#' : '.';
    return g_strdup_printf("[%s] %3.0f%%", cells, CLAMP(fraction, 0.0, 1.0) * 100);
}

/* From what is done in which time, as if it went on like this; empty while that says nothing. */
static char *format_left(double fraction, double elapsed) {
    if (fraction < 0.01 || fraction >= 1 || elapsed < 0.2)
        return g_strdup("");
    return g_strdup_printf(", %.0f s left", elapsed * (1 - fraction) / fraction + 0.5);
}

static void draw_bytes(Progress *progress, uint64_t done_bytes, uint64_t total_bytes) {
    if (total_bytes == 0 || !is_due(progress))
        return;
    double fraction = (double)done_bytes / (double)total_bytes;
    double elapsed = elapsed_s(progress);
    g_autofree char *bar = format_bar(fraction);
    g_autofree char *done = units_format_size(done_bytes);
    g_autofree char *total = units_format_size(total_bytes);
    g_autofree char *rate = units_format_size((uint64_t)((double)done_bytes / MAX(elapsed, 1e-3)));
    g_autofree char *left = format_left(fraction, elapsed);
    g_autofree char *line =
        g_strdup_printf("%s %s %s of %s, %s/s%s", progress->verb, bar, done, total, rate, left);
    draw_line(line);
}

gboolean progress_of_bytes(uint64_t done_bytes, uint64_t total_bytes, void *opaque) {
    draw_bytes(opaque, done_bytes, total_bytes);
    return !interrupt_seen();
}

void progress_of_job(json_object *statistics, void *opaque) {
    draw_bytes(opaque, result_uint(statistics, "current-progress"), result_uint(statistics, "total-progress"));
}

/* ---- a save ---------------------------------------------------------------------------------------------- */

/* What there is to be drawn, wherever it comes from. */
typedef struct {
    gboolean sweeping;
    gboolean finishing;
    double fraction;
    double sweeping_s;
    uint64_t bytes_written;
    uint64_t by_sweep;
    uint64_t by_fault;
} SaveView;

static double fraction_of(uint64_t part, uint64_t whole) {
    return whole ? (double)part / (double)whole : 0;
}

static char *format_sweep(const Progress *progress, const SaveView *view) {
    g_autofree char *bar = format_bar(view->fraction);
    g_autofree char *written = units_format_size(view->bytes_written);
    g_autofree char *rate =
        units_format_size((uint64_t)((double)view->bytes_written / MAX(view->sweeping_s, 1e-3)));
    g_autofree char *left = format_left(view->fraction, view->sweeping_s);
    return g_strdup_printf("%s %s %s, %s/s%s, pages: %" G_GUINT64_FORMAT " swept, %" G_GUINT64_FORMAT " by fault",
                           progress->verb, bar, written, rate, left, view->by_sweep, view->by_fault);
}

static void draw_save(Progress *progress, const SaveView *view) {
    g_autofree char *line = NULL;
    if (view->sweeping)
        line = format_sweep(progress, view);
    else if (view->finishing)
        line = g_strdup("everything is captured; waiting for the disk");
    else
        line = g_strdup("preparing; the guest runs");
    draw_line(line);
}

void progress_of_save_job(json_object *statistics, void *opaque) {
    Progress *progress = opaque;
    json_object *save = result_object(statistics, "save");
    if (!save || !is_due(progress))
        return;
    json_object *pages = result_object(save, "pages");
    const char *phase = result_string(save, "phase");
    SaveView view = {
        .sweeping = g_strcmp0(phase, "sweeping") == 0,
        .finishing = g_strcmp0(phase, "finishing") == 0,
        .fraction = fraction_of(result_uint(pages, "done"), result_uint(pages, "total")),
        .sweeping_s = (result_double(save, "total-ms") - result_double(save, "prepare-ms")) / 1e3,
        .bytes_written = result_uint(save, "bytes-written"),
        .by_sweep = result_uint(pages, "by-sweep"),
        .by_fault = result_uint(pages, "by-fault"),
    };
    draw_save(progress, &view);
}

gboolean progress_of_save(const SnapSaveStats *stats, void *opaque) {
    Progress *progress = opaque;
    SaveView view = {
        .sweeping = stats->phase == SNAP_SAVE_SWEEPING,
        .finishing = stats->phase == SNAP_SAVE_FINISHING,
        .fraction = fraction_of(stats->pages_done, stats->pages_total),
        .sweeping_s = (double)(stats->total_ns - MIN(stats->total_ns, stats->prepare_ns)) / 1e9,
        .bytes_written = stats->bytes_written,
        .by_sweep = stats->pages_by_sweep,
        .by_fault = stats->pages_by_fault,
    };
    if (is_due(progress))
        draw_save(progress, &view);
    return !interrupt_seen();
}

/* ---------------------------------------------------------------------------------------------------------- */

void progress_clear(Progress *progress) {
    if (progress->drawn_us)
        fputs("\r\033[K", stderr);
    progress->drawn_us = 0;
}
