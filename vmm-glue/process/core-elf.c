/*
 * Writing an image as an ELF core file; its layout is core-plan.c's.
 *
 * A regular file is written at offsets, and what is zero is never written, so the core is as sparse as the image.
 * A pipe gets the zeros.
 *
 * Failure modes: a file that was begun and cannot be finished is removed. One that existed has been truncated by
 * then.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core-plan.h"
#include "process.h"

enum { PIECE_BYTES = 1 << 20 };

typedef struct {
    const char *path;
    int fd;
    gboolean sparse; /* a regular file: may be written at offsets */
    uint64_t at;     /* how far a pipe has got */
} CoreOutput;

typedef struct {
    const SnapImage *image;
    const CorePlan *plan;
    CoreOutput *output;
    SnapProgressFunc progress;
    void *opaque;
    uint64_t total_bytes; /* of the segments, holes included */
    uint64_t done_bytes;
    uint8_t *buffer; /* PIECE_BYTES */
} CoreWriter;

/* ---- output ------------------------------------------------------------------------------------------------ */

static gboolean write_all(CoreOutput *output, const uint8_t *data, size_t length, uint64_t offset,
                          GError **error) {
    while (length > 0) {
        ssize_t n =
            output->sparse ? pwrite(output->fd, data, length, (off_t)offset) : write(output->fd, data, length);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            snap_set_errno(error, errno, "cannot write %s", output->path);
            return FALSE;
        }
        data += n;
        length -= (size_t)n;
        offset += (uint64_t)n;
        output->at = offset;
    }
    return TRUE;
}

/* A pipe cannot skip. */
static gboolean write_zeros_to(CoreOutput *output, uint64_t offset, GError **error) {
    static const uint8_t zeros[1 << 16];
    while (!output->sparse && output->at < offset) {
        if (!write_all(output, zeros, (size_t)MIN(offset - output->at, sizeof(zeros)), output->at, error)) {
            return FALSE;
        }
    }
    return TRUE;
}

static gboolean write_at(CoreOutput *output, uint64_t offset, const void *data, size_t length, GError **error) {
    return write_zeros_to(output, offset, error) &&
           write_all(output, (const uint8_t *)data, length, offset, error);
}

static gboolean end_at(CoreOutput *output, uint64_t total_bytes, GError **error) {
    if (output->sparse && ftruncate(output->fd, (off_t)total_bytes) < 0) {
        snap_set_errno(error, errno, "cannot set the length of %s", output->path);
        return FALSE;
    }
    return write_zeros_to(output, total_bytes, error);
}

static gboolean open_output(const char *path, CoreOutput *ret_output, GError **error) {
    *ret_output = (CoreOutput){.path = path, .fd = STDOUT_FILENO};
    if (strcmp(path, "-") == 0) {
        ret_output->path = "standard output";
        return TRUE;
    }
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, S_IRUSR | S_IWUSR);
    struct stat info;
    if (fd < 0 || fstat(fd, &info) < 0) {
        snap_set_errno(error, errno, "cannot create %s", path);
        return FALSE;
    }
    ret_output->fd = fd;
    ret_output->sparse = S_ISREG(info.st_mode);
    return TRUE;
}

static gboolean close_output(CoreOutput *output, gboolean ok, GError **error) {
    if (output->fd == STDOUT_FILENO) {
        return ok;
    }
    if (close(output->fd) < 0 && ok) {
        snap_set_errno(error, errno, "cannot write %s", output->path);
        ok = FALSE;
    }
    if (!ok && output->sparse) {
        (void)unlink(output->path);
    }
    return ok;
}

/* ---- content ----------------------------------------------------------------------------------------------- */

static uint64_t content_bytes(const CorePlan *plan) {
    uint64_t total = 0;
    for (guint i = 0; i < plan->segments->len; i++) {
        total += g_array_index(plan->segments, CoreSegment, i).file_bytes;
    }
    return total;
}

static gboolean report(CoreWriter *writer, uint64_t in_segment, GError **error) {
    if (writer->progress &&
        !writer->progress(writer->done_bytes + in_segment, writer->total_bytes, writer->opaque)) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_CANCELLED, "the export was cancelled");
        return FALSE;
    }
    return TRUE;
}

/* One run of pages that are not zero. @start, @end: in the region. */
static gboolean write_run(CoreWriter *writer, const CoreSegment *segment, uint64_t start, uint64_t end,
                          GError **error) {
    while (start < end) {
        size_t length = (size_t)MIN(end - start, (uint64_t)PIECE_BYTES);
        uint64_t in_segment = start - segment->region_offset;
        if (!snap_image_read(writer->image, segment->region, start, writer->buffer, length, error) ||
            !write_at(writer->output, segment->file_offset + in_segment, writer->buffer, length, error) ||
            !report(writer, in_segment + length, error)) {
            return FALSE;
        }
        start += length;
    }
    return TRUE;
}

static gboolean write_segment(CoreWriter *writer, const CoreSegment *segment, GError **error) {
    uint64_t at = segment->region_offset, end = segment->region_offset + segment->file_bytes;
    uint64_t run_start = 0, run_end = 0;
    while (at < end && snap_image_next_data(writer->image, segment->region, at, &run_start, &run_end) &&
           run_start < end) {
        if (!write_run(writer, segment, MAX(run_start, at), MIN(run_end, end), error)) {
            return FALSE;
        }
        at = run_end;
    }
    writer->done_bytes += segment->file_bytes;
    return report(writer, 0, error);
}

static gboolean write_core(CoreWriter *writer, GError **error) {
    const CorePlan *plan = writer->plan;
    g_autoptr(GBytes) headers = core_plan_headers(plan, snap_image_info(writer->image)->page_bytes);
    gsize length = 0;
    gconstpointer data = g_bytes_get_data(headers, &length);
    if (!write_at(writer->output, 0, data, length, error)) {
        return FALSE;
    }
    if (plan->notes) {
        data = g_bytes_get_data(plan->notes, &length);
        if (!write_at(writer->output, plan->notes_offset, data, length, error)) {
            return FALSE;
        }
    }
    for (guint i = 0; i < plan->segments->len; i++) {
        const CoreSegment *segment = &g_array_index(plan->segments, CoreSegment, i);
        if (segment->file_bytes && !write_segment(writer, segment, error)) {
            return FALSE;
        }
    }
    return end_at(writer->output, plan->total_bytes, error);
}

gboolean process_export_core(const SnapImage *image, const char *out_path, SnapProgressFunc progress, void *opaque,
                             GError **error) {
    g_autoptr(CorePlan) plan = core_plan_new(image, error);
    CoreOutput output;
    if (!plan || !open_output(out_path, &output, error)) {
        return FALSE;
    }
    g_autofree uint8_t *buffer = g_malloc(PIECE_BYTES);
    CoreWriter writer = {.image = image,
                         .plan = plan,
                         .output = &output,
                         .progress = progress,
                         .opaque = opaque,
                         .total_bytes = content_bytes(plan),
                         .buffer = buffer};
    return close_output(&output, write_core(&writer, error), error);
}
