/*
 * Raw export: guest memory as plain bytes.
 *
 * Happy path: the range is turned into spans, each a part of one region; every run of data in a span is read,
 * checked by the reader, and written at its place in the output. What lies between is zeros: a hole in a regular
 * file, written bytes in a pipe.
 *
 * Failure modes: a range with a gap between regions is refused before a byte is written; a checksum that does
 * not hold, a full disk and a cancel end it, and the caller drops the output.
 *
 * Invariants: spans are in the order of the output and without gaps; output positions only grow.
 */
#include "export-raw.h"

#include <errno.h>
#include <unistd.h>

#define COPY_PAGES 256u

/* A part of one region, in bytes from its start. */
typedef struct {
    guint region;
    uint64_t start;
    uint64_t end;
} Span;

typedef struct {
    const SnapImage *image;
    QapiOutput *output;
    uint64_t position; /* in the output: everything before it is written, or a hole */
    uint64_t total;
    SnapProgressFunc progress;
    void *opaque;
    uint8_t *buffer; /* buffer_bytes of it */
    size_t buffer_bytes;
} Copy;

/* ---- what to export -------------------------------------------------------------------------------------- */

static gboolean add_span(GArray *spans, guint region, uint64_t start, uint64_t end) {
    Span span = {.region = region, .start = start, .end = end};
    g_array_append_val(spans, span);
    return TRUE;
}

static gboolean add_whole_region(const SnapImage *image, guint region, GArray *spans) {
    return add_span(spans, region, 0, snap_image_region(image, region)->length_bytes);
}

static gboolean find_only(const SnapImage *image, GArray *spans, GError **error) {
    guint n = snap_image_info(image)->n_regions;
    if (n == 1)
        return add_whole_region(image, 0, spans);
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_USAGE,
                "%s has %u regions: choose one with --region, or a range with --address and --length",
                snap_image_info(image)->dir, n);
    return FALSE;
}

static gboolean find_by_name(const SnapImage *image, const char *name, GArray *spans, GError **error) {
    int exact = snap_image_find_region(image, name);
    if (exact >= 0)
        return add_whole_region(image, (guint)exact, spans);

    g_autoptr(GPatternSpec) pattern = g_pattern_spec_new(name);
    guint n_matches = 0, match = 0;
    for (guint i = snap_image_info(image)->n_regions; i-- > 0;) {
        if (g_pattern_spec_match_string(pattern, snap_image_region(image, i)->name)) {
            n_matches++;
            match = i;
        }
    }
    if (n_matches == 1)
        return add_whole_region(image, match, spans);
    if (n_matches == 0)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_FOUND, "%s has no region '%s': see vmsnap info",
                    snap_image_info(image)->dir, name);
    else
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_REFUSED, "%u regions match '%s', '%s' is the first: name one",
                    n_matches, name, snap_image_region(image, match)->name);
    return FALSE;
}

/* The region that holds a host address, or -1. */
static int region_at(const SnapImage *image, uint64_t address) {
    for (guint i = 0; i < snap_image_info(image)->n_regions; i++) {
        const SnapImageRegion *region = snap_image_region(image, i);
        if (address >= region->host_address && address - region->host_address < region->length_bytes)
            return (int)i;
    }
    return -1;
}

static gboolean find_by_address(const SnapImage *image, const QapiRange *range, GArray *spans, GError **error) {
    uint64_t address = range->address, left = range->length_bytes;
    if (left == 0 || address > UINT64_MAX - left) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_USAGE, "a range of %" PRIu64 " bytes at %#" PRIx64 ": %s", left,
                    address, left ? "too long" : "nothing to export");
        return FALSE;
    }
    while (left > 0) {
        int i = region_at(image, address);
        if (i < 0) {
            g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_FOUND,
                        "%s has no memory at address %#" PRIx64 ": vmsnap info lists its regions",
                        snap_image_info(image)->dir, address);
            return FALSE;
        }
        const SnapImageRegion *region = snap_image_region(image, (guint)i);
        uint64_t start = address - region->host_address;
        uint64_t length = MIN(left, region->length_bytes - start);
        add_span(spans, (guint)i, start, start + length);
        address += length;
        left -= length;
    }
    return TRUE;
}

static gboolean find_spans(const SnapImage *image, const QapiRange *range, GArray *spans, GError **error) {
    switch (range->kind) {
    case QAPI_RANGE_ONLY:
        return find_only(image, spans, error);
    case QAPI_RANGE_REGION:
        return find_by_name(image, range->region, spans, error);
    case QAPI_RANGE_ADDRESS:
        return find_by_address(image, range, spans, error);
    }
    g_assert_not_reached();
}

/* ---- copying --------------------------------------------------------------------------------------------- */

static gboolean write_all(Copy *copy, const uint8_t *data, size_t length, GError **error) {
    while (length > 0) {
        ssize_t done = copy->output->sparse ? pwrite(copy->output->fd, data, length, (off_t)copy->position)
                                            : write(copy->output->fd, data, length);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0) {
            snap_set_errno(error, errno, "%s: write", copy->output->name);
            return FALSE;
        }
        data += done;
        length -= (size_t)done;
        copy->position += (uint64_t)done;
    }
    return TRUE;
}

static gboolean report(Copy *copy, GError **error) {
    if (!copy->progress || copy->progress(copy->position, copy->total, copy->opaque))
        return TRUE;
    g_set_error_literal(error, SNAP_ERROR, SNAP_ERROR_CANCELLED, "cancelled");
    return FALSE;
}

/* Up to @position there are only zeros. */
static gboolean skip_to(Copy *copy, uint64_t position, GError **error) {
    if (copy->output->sparse) {
        copy->position = position;
        return TRUE;
    }
    memset(copy->buffer, 0, MIN(copy->buffer_bytes, position - copy->position));
    while (copy->position < position) {
        size_t length = MIN(copy->buffer_bytes, position - copy->position);
        if (!write_all(copy, copy->buffer, length, error) || !report(copy, error))
            return FALSE;
    }
    return TRUE;
}

/* A run of data; the reader wants whole pages, the user perhaps less at either end. */
static gboolean copy_run(Copy *copy, guint region, uint64_t start, uint64_t end, GError **error) {
    uint64_t page_bytes = snap_image_region(copy->image, region)->page_bytes;
    while (start < end) {
        uint64_t from = start / page_bytes * page_bytes;
        uint64_t to = MIN(from + copy->buffer_bytes, (end + page_bytes - 1) / page_bytes * page_bytes);
        if (!snap_image_read(copy->image, region, from, copy->buffer, (size_t)(to - from), error))
            return FALSE;
        uint64_t stop = MIN(to, end);
        if (!write_all(copy, copy->buffer + (start - from), (size_t)(stop - start), error) || !report(copy, error))
            return FALSE;
        start = stop;
    }
    return TRUE;
}

static gboolean copy_span(Copy *copy, const Span *span, GError **error) {
    uint64_t base = copy->position;
    uint64_t page_bytes = snap_image_region(copy->image, span->region)->page_bytes;
    copy->buffer_bytes = COPY_PAGES * page_bytes;
    g_autofree uint8_t *buffer = g_malloc(copy->buffer_bytes);
    copy->buffer = buffer;

    uint64_t from = span->start / page_bytes * page_bytes;
    uint64_t start = 0, end = 0;
    while (from < span->end && snap_image_next_data(copy->image, span->region, from, &start, &end)) {
        start = MAX(start, span->start);
        uint64_t stop = MIN(end, span->end);
        if (start >= stop)
            break;
        if (!skip_to(copy, base + (start - span->start), error) ||
            !copy_run(copy, span->region, start, stop, error))
            return FALSE;
        from = end;
    }
    return skip_to(copy, base + (span->end - span->start), error) && report(copy, error);
}

gboolean qapi_export_raw(const SnapImage *image, const QapiRange *range, QapiOutput *output,
                         SnapProgressFunc progress, void *opaque, GError **error) {
    g_autoptr(GArray) spans = g_array_new(FALSE, FALSE, sizeof(Span));
    if (!find_spans(image, range, spans, error))
        return FALSE;
    Copy copy = {.image = image, .output = output, .progress = progress, .opaque = opaque};
    for (guint i = 0; i < spans->len; i++) {
        const Span *span = &g_array_index(spans, Span, i);
        copy.total += span->end - span->start;
    }
    if (output->sparse && ftruncate(output->fd, (off_t)copy.total) < 0) {
        snap_set_errno(error, errno, "%s: cannot make it %" PRIu64 " bytes long", output->name, copy.total);
        return FALSE;
    }
    for (guint i = 0; i < spans->len; i++)
        if (!copy_span(&copy, &g_array_index(spans, Span, i), error))
            return FALSE;
    return TRUE;
}
