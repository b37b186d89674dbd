/*
 * One full image of a chain. See snap_image_merge() in libsnap.h.
 *
 * Happy path: the image writer is given every chunk that the chain has data in, as it is read through the chain,
 * and all other pages as zeros; state blobs and statistics are the image's own, and so are its id and time: an id
 * names a content, so that the children of the image accept the copy as their parent.
 *
 * Failure modes: whatever fails, the writer takes away what it made.
 */
#include "image-open.h"
#include "image-write.h"
#include "image-writer.h"

#define N_BUFFERS 32u /* chunks that the disk may be behind */

typedef struct {
    const SnapImage *image;
    SnapImageWriter *writer;
    SnapProgressFunc progress;
    void *opaque;
    uint64_t done_bytes;
    uint64_t total_bytes;
} Merge;

static gboolean report(Merge *merge, uint64_t region_bytes, GError **error) {
    if (!merge->progress || merge->progress(merge->done_bytes + region_bytes, merge->total_bytes, merge->opaque))
        return TRUE;
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_CANCELLED, "%s: merging was cancelled", merge->image->dir);
    return FALSE;
}

/* The whole of chunk @index, which has data. */
static gboolean copy_chunk(Merge *merge, guint region, uint64_t index, GError **error) {
    const SnapIndexHeader *header = &merge->image->regions[region].header;
    SnapChunk *chunk = snap_image_writer_get(merge->writer, -1, error);
    if (!chunk)
        return FALSE;
    uint64_t pages = snap_chunk_pages(header->region_bytes, header->page_bytes, index);
    gboolean good =
        snap_image_read(merge->image, region, index * SNAP_CHUNK_PAGES * header->page_bytes, chunk->data,
                        (size_t)((uint64_t)__builtin_popcountll(pages) * header->page_bytes), error);
    chunk->region = region;
    chunk->index = index;
    chunk->present = good ? pages : 0;
    return snap_image_writer_put(merge->writer, chunk, good ? error : NULL) && good;
}

static gboolean copy_region(Merge *merge, guint region, GError **error) {
    const SnapIndexHeader *header = &merge->image->regions[region].header;
    const uint64_t chunk_bytes = SNAP_CHUNK_PAGES * header->page_bytes;
    uint64_t chunk = 0, start = 0, end = 0;
    while (snap_image_next_data(merge->image, region, chunk * chunk_bytes, &start, &end)) {
        uint64_t behind = (end - 1) / chunk_bytes + 1;
        for (chunk = start / chunk_bytes; chunk < behind; chunk++) {
            if (!copy_chunk(merge, region, chunk, error) ||
                !report(merge, MIN((chunk + 1) * chunk_bytes, header->region_bytes), error))
                return FALSE;
        }
    }
    merge->done_bytes += header->region_bytes;
    return report(merge, 0, error);
}

static gboolean add_regions(Merge *merge, GError **error) {
    for (guint i = 0; i < merge->image->info.n_regions; i++) {
        const SnapManifestRegion *entry = merge->image->regions[i].entry;
        const SnapRegion region = {
            .name = entry->name,
            .memory = entry->memory,
            .guest_address = entry->guest_address,
            .host_address = entry->host_address,
            .length_bytes = entry->length_bytes,
            .page_bytes = entry->page_bytes,
            .granule_bytes = entry->granule_bytes,
            .fd = -1,
        };
        merge->total_bytes += entry->length_bytes;
        if (!snap_image_writer_add_region(merge->writer, &region, error))
            return FALSE;
    }
    return TRUE;
}

static gboolean copy_states(Merge *merge, GError **error) {
    for (guint i = 0; i < merge->image->info.n_states; i++) {
        const char *name = snap_image_state_name(merge->image, i);
        GBytes *data = snap_image_state(merge->image, name, error);
        g_autoptr(SnapState) state = data ? snap_state_new(name, data) : NULL;
        if (!state || !snap_image_writer_add_state(merge->writer, state, error))
            return FALSE;
    }
    return TRUE;
}

static gboolean commit(Merge *merge, GError **error) {
    const GPtrArray *statistics = merge->image->manifest->statistics;
    g_autoptr(GArray) copied = g_array_new(FALSE, FALSE, sizeof(SnapStatistic));
    for (guint i = 0; i < statistics->len; i++) {
        const SnapManifestStatistic *statistic = statistics->pdata[i];
        SnapStatistic copy = {statistic->name, statistic->value};
        g_array_append_val(copied, copy);
    }
    return snap_image_writer_commit(merge->writer, 0, (const SnapStatistic *)(const void *)copied->data,
                                    copied->len, error);
}

static gboolean copy_all(Merge *merge, GError **error) {
    if (!add_regions(merge, error))
        return FALSE;
    for (guint i = 0; i < merge->image->info.n_regions; i++) {
        if (!copy_region(merge, i, error))
            return FALSE;
    }
    return copy_states(merge, error) && commit(merge, error);
}

gboolean snap_image_merge(const SnapImage *image, const char *out, SnapProgressFunc progress, void *opaque,
                          GError **error) {
    g_autoptr(SnapImageWriter) writer =
        snap_image_writer_new(out, image->info.driver, image->info.page_bytes, N_BUFFERS, error);
    if (!writer)
        return FALSE;
    snap_image_writer_set_identity(writer, image->manifest);
    Merge merge = {.image = image, .writer = writer, .progress = progress, .opaque = opaque};
    return copy_all(&merge, error);
}
