/*
 * A chain of snapshots: see series.h.
 *
 * Happy path: look what the folder has; attach once; then again and again: save with the newest image as parent
 * and the log kept, merge the oldest image into the one behind it while there are too many, wait for the next
 * period.
 *
 * Failure modes: a save that fails ends the series, and its image is removed; what a killed save left is removed
 * by the next run, and a merge that was cut off is finished or undone by it (snap_image_fold_recover()). A chain
 * that is damaged is not gone on with, and stays as it is. Names are given once: a number is never used again.
 */
#include "series.h"

#include <errno.h>

#define NAME_FORMAT "%06u"
#define LOOK_US 50000 /* at the progress function, while waiting */

typedef struct {
    const QapiSaveOptions *options;
    const QapiSeriesOptions *series;
    QapiSaveProgressFunc progress;
    void *opaque;
    SnapGuest *guest;
    GArray *numbers; /* of guint: images, oldest first */
    gboolean stop;
} Series;

static char *path_of(const Series *series, guint number) {
    return g_strdup_printf("%s/" NAME_FORMAT, series->options->save.dir, number);
}

/* ---- what is there --------------------------------------------------------------------------------------- */

static gint by_number(gconstpointer a, gconstpointer b) {
    guint x = *(const guint *)a, y = *(const guint *)b;
    return x < y ? -1 : x > y;
}

/* FALSE when @name is not one of ours. */
static gboolean parse_name(const char *name, guint *ret_number) {
    guint64 number = 0;
    if (!g_ascii_string_to_unsigned(name, 10, 1, G_MAXUINT - 1, &number, NULL))
        return FALSE;
    g_autofree char *ours = g_strdup_printf(NAME_FORMAT, (guint)number);
    *ret_number = (guint)number;
    return g_str_equal(ours, name);
}

/* The numbers of what is in the folder, complete or not. */
static gboolean read_numbers(const char *dir, GArray *numbers, GError **error) {
    g_autoptr(GDir) entries = g_dir_open(dir, 0, error);
    const char *name;
    guint number;
    while (entries && (name = g_dir_read_name(entries))) {
        if (!parse_name(name, &number)) {
            g_set_error(error, SNAP_ERROR, SNAP_ERROR_REFUSED,
                        "%s/%s: not an image of a chain; choose another folder, or move it away", dir, name);
            return FALSE;
        }
        g_array_append_val(numbers, number);
    }
    g_array_sort(numbers, by_number);
    return entries != NULL;
}

/* What a killed run left: it has no manifest, or does not even look like an image yet. @listed: (nullable). */
static gboolean is_left_over(const SnapImageEntry *listed) {
    return !listed || (!listed->info.id && g_error_matches(listed->problem, SNAP_ERROR, SNAP_ERROR_INCOMPLETE));
}

/* Number → SnapImageEntry, of the images that are in the folder. */
static GHashTable *by_numbers(const GPtrArray *images) {
    GHashTable *table = g_hash_table_new(NULL, NULL);
    for (guint i = 0; i < images->len; i++) {
        SnapImageEntry *listed = images->pdata[i];
        g_autofree char *name = g_path_get_basename(listed->dir);
        guint number;
        if (parse_name(name, &number))
            g_hash_table_insert(table, GUINT_TO_POINTER(number), listed);
    }
    return table;
}

/* Divide @numbers. An image that cannot be read, or whose parents cannot, is an error. */
static gboolean divide(Series *series, const GArray *numbers, GArray *left_over, GError **error) {
    g_autoptr(GPtrArray) images = snap_image_list(series->options->save.dir, error);
    if (!images)
        return FALSE;
    g_autoptr(GHashTable) table = by_numbers(images);
    for (guint i = 0; i < numbers->len; i++) {
        guint number = g_array_index(numbers, guint, i);
        const SnapImageEntry *listed = g_hash_table_lookup(table, GUINT_TO_POINTER(number));
        gboolean old = is_left_over(listed);
        if (!old && listed->problem) {
            g_propagate_error(error, g_error_copy(listed->problem));
            return FALSE;
        }
        g_array_append_val(old ? left_over : series->numbers, number);
    }
    return TRUE;
}

static gboolean look(Series *series, GError **error) {
    const char *dir = series->options->save.dir;
    g_autoptr(GArray) numbers = g_array_new(FALSE, FALSE, sizeof(guint));
    g_autoptr(GArray) left_over = g_array_new(FALSE, FALSE, sizeof(guint));
    if (g_mkdir_with_parents(dir, 0700) < 0) {
        snap_set_errno(error, errno, "%s", dir);
        return FALSE;
    }
    gboolean ok = snap_image_fold_recover(dir, error) && read_numbers(dir, numbers, error) &&
                  divide(series, numbers, left_over, error);
    for (guint i = 0; ok && i < left_over->len; i++) {
        g_autofree char *path = path_of(series, g_array_index(left_over, guint, i));
        ok = snap_image_delete(path, error);
    }
    return ok;
}

/* ---- one period ------------------------------------------------------------------------------------------ */

static guint newest(const Series *series) {
    return series->numbers->len ? g_array_index(series->numbers, guint, series->numbers->len - 1) : 0;
}

static gboolean on_progress(const SnapSaveStats *stats, void *opaque) {
    Series *series = opaque;
    series->stop = series->stop || (series->progress && !series->progress(stats, series->opaque));
    return !series->stop;
}

static json_object *save_next(Series *series, GError **error) {
    guint number = newest(series) + 1;
    g_autofree char *dir = path_of(series, number);
    g_autofree char *parent = number > 1 ? path_of(series, newest(series)) : NULL;
    SnapSaveOptions save = series->options->save;
    save.dir = dir;
    save.parent_dir = parent;
    save.keep_log = TRUE;
    json_object *saved = qapi_save_guest(series->guest, &save, on_progress, series, error);
    if (saved)
        g_array_append_val(series->numbers, number);
    return saved;
}

static gboolean fold_old(Series *series, GError **error) {
    guint keep = series->series->keep;
    while (keep > 0 && series->numbers->len > keep) {
        g_autofree char *oldest = path_of(series, g_array_index(series->numbers, guint, 0));
        g_autofree char *next = path_of(series, g_array_index(series->numbers, guint, 1));
        GError *failure = NULL;
        if (!snap_image_fold(oldest, next, &failure)) {
            gboolean busy = g_error_matches(failure, SNAP_ERROR, SNAP_ERROR_TIMED_OUT);
            if (busy) /* somebody reads it: there is one more image until the next period */
                g_error_free(failure);
            else
                g_propagate_error(error, failure);
            return busy;
        }
        g_array_remove_index(series->numbers, 0);
    }
    return TRUE;
}

static void wait_until(Series *series, gint64 due_us) {
    static const SnapSaveStats idle = {.phase = SNAP_SAVE_DONE};
    gint64 left_us;
    while (on_progress(&idle, series) && (left_us = due_us - g_get_monotonic_time()) > 0)
        g_usleep((gulong)MIN(left_us, LOOK_US));
}

static gboolean run(Series *series, QapiSeriesFunc saved, GError **error) {
    gint64 due_us = g_get_monotonic_time();
    for (guint n = 0; !series->stop && (series->series->count == 0 || n < series->series->count); n++) {
        GError *failure = NULL;
        g_autoptr(json_object) result = save_next(series, &failure);
        if (!result && series->stop && g_error_matches(failure, SNAP_ERROR, SNAP_ERROR_CANCELLED)) {
            g_error_free(failure);
            break;
        }
        if (!result) {
            g_propagate_error(error, failure);
            return FALSE;
        }
        saved(result, series->opaque);
        if (!fold_old(series, error))
            return FALSE;
        due_us = MAX(due_us + (gint64)series->series->every_us, g_get_monotonic_time());
        if (n + 1 != series->series->count)
            wait_until(series, due_us);
    }
    return TRUE;
}

gboolean qapi_save_series(const QapiSaveOptions *options, const QapiSeriesOptions *series_options,
                          QapiSeriesFunc saved, QapiSaveProgressFunc progress, void *opaque, GError **error) {
    Series series = {.options = options,
                     .series = series_options,
                     .progress = progress,
                     .opaque = opaque,
                     .numbers = g_array_new(FALSE, FALSE, sizeof(guint))};
    gboolean ok = look(&series, error);
    series.guest = ok ? qapi_open_guest(&options->target, error) : NULL;
    ok = series.guest && run(&series, saved, error);
    snap_guest_free(series.guest);
    g_array_unref(series.numbers);
    return ok;
}
