/* An image that is only a step to something else: see scratch-image.h. */
#include "scratch-image.h"

#include "save.h"
#include "targets.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#define PREFIX ".vmsnap-"

typedef struct {
    SnapProgressFunc func;
    void *opaque;
} Progress;

static gboolean go_on(const SnapSaveStats *stats, void *opaque) {
    const Progress *progress = opaque;
    return progress->func(0, stats->pages_total * (uint64_t)sysconf(_SC_PAGESIZE), progress->opaque);
}

static void add_region(QapiScratchImage *scratch, guint i) {
    uint64_t start = 0, end = 0;
    scratch->length_bytes += snap_image_region(scratch->image, i)->length_bytes;
    for (uint64_t from = 0; snap_image_next_data(scratch->image, i, from, &start, &end); from = end)
        scratch->data_bytes += end - start;
}

static gboolean open_image(QapiScratchImage *scratch, GError **error) {
    scratch->image = snap_image_open(scratch->dir, error);
    if (!scratch->image)
        return FALSE;
    for (guint i = 0; i < snap_image_info(scratch->image)->n_regions; i++)
        add_region(scratch, i);
    return TRUE;
}

QapiScratchImage *qapi_scratch_image_take(QapiTarget *target, uint64_t max_bandwidth_bytes,
                                          SnapProgressFunc progress, void *opaque, GError **error) {
    Progress go_on_with = {progress, opaque};
    g_autoptr(QapiScratchImage) scratch = g_new0(QapiScratchImage, 1);
    g_autofree char *name = g_strdup_printf(PREFIX "%d-XXXXXX", getpid());
    scratch->dir = g_build_filename(qapi_target_helper(target)->snapshot_dir, name, NULL);
    if (!g_mkdtemp_full(scratch->dir, 0700)) {
        snap_set_errno(error, errno, "%s", scratch->dir);
        g_clear_pointer(&scratch->dir, g_free);
        return NULL;
    }
    SnapSaveOptions options = {.dir = scratch->dir, .max_bandwidth_bytes = max_bandwidth_bytes};
    g_autoptr(SnapSave) save = snap_save_start(qapi_target_guest(target), &options, error);
    if (!save || !qapi_save_wait(save, go_on, &go_on_with, error))
        return NULL;
    SnapSaveStats stats;
    snap_save_get_stats(save, &stats);
    scratch->pause_ns = stats.pause_ns;
    return open_image(scratch, error) ? g_steal_pointer(&scratch) : NULL;
}

void qapi_scratch_image_free(QapiScratchImage *scratch) {
    if (!scratch)
        return;
    snap_image_free(scratch->image);
    if (scratch->dir && !snap_image_delete(scratch->dir, NULL))
        g_rmdir(scratch->dir); /* where the save has not got as far as to make it an image */
    g_free(scratch->dir);
    g_free(scratch);
}

static gboolean is_left_over(const char *name) {
    guint64 pid = 0;
    if (!g_str_has_prefix(name, PREFIX))
        return FALSE;
    g_auto(GStrv) parts = g_strsplit(name + strlen(PREFIX), "-", 2);
    return parts[0] && g_ascii_string_to_unsigned(parts[0], 10, 1, G_MAXINT, &pid, NULL) &&
           kill((pid_t)pid, 0) < 0 && errno == ESRCH;
}

void qapi_scratch_clean(const QapiHelper *helper) {
    g_autoptr(GDir) entries = g_dir_open(helper->snapshot_dir, 0, NULL);
    const char *name;
    while (entries && (name = g_dir_read_name(entries))) {
        g_autofree char *path = g_build_filename(helper->snapshot_dir, name, NULL);
        if (is_left_over(name) && !snap_image_delete(path, NULL))
            g_rmdir(path);
    }
}
