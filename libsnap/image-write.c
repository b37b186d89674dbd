/*
 * The image writer: staging buffers in, a complete image directory out. See image-write.h.
 *
 * Happy path of a chunk: get takes a buffer from the free list; put looks for zero pages, hashes the rest, adds
 * the chunk's record to its region's index and hands one write a run of non-zero pages to the sink; when the last
 * of them has been reaped, the buffer is free again. The free list is last in first out, so that no more buffers
 * are touched than the sink's speed asks for.
 *
 * Failure modes: the first error is kept and returned by every call after it; nothing is written any more, but
 * what is under way is waited for, since the kernel reads from our buffers. Without a commit, free removes what
 * was made.
 *
 * Invariants: a region's files are open while it has requests in the sink; at most MAX_OPEN regions are open.
 */
#include "image-writer.h"

#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAX_OPEN 192u /* two descriptors each: well within the usual limit of 1024 */

typedef struct {
    uint64_t start;
    uint64_t end;
} HostRange;

/* ---- errors ---------------------------------------------------------------------------------------------- */

void snap_image_writer_keep(SnapImageWriter *writer, GError *failure) {
    if (writer->failure)
        g_error_free(failure);
    else
        writer->failure = failure;
}

gboolean snap_image_writer_refuse(const SnapImageWriter *writer, GError **error) {
    g_propagate_error(error, g_error_copy(writer->failure));
    return FALSE;
}

/* ---- the sink -------------------------------------------------------------------------------------------- */

static void recycle(SnapImageWriter *writer, SnapChunk *chunk) {
    chunk->next = writer->free;
    writer->free = chunk;
    writer->n_free++;
}

SnapChunk *snap_image_writer_take(SnapImageWriter *writer) {
    SnapChunk *chunk = writer->free;
    writer->free = chunk->next;
    writer->n_free--;
    chunk->next = NULL;
    return chunk;
}

void snap_image_writer_written(SnapImageWriter *writer, SnapBuffer *buffer) {
    if (--buffer->chunk.writes_in_flight == 0)
        recycle(writer, &buffer->chunk);
}

static void finish_request(SnapImageWriter *writer, SnapSinkRequest *request) {
    const char *path = NULL;
    writer->n_under_way--;
    if (request->op == SNAP_SINK_FSYNC) {
        SnapFsync *sync = request->opaque;
        path = sync->path;
        if (sync->files)
            sync->files->busy--;
        else
            close(request->fd);
    } else {
        SnapRegionFiles *files = ((SnapWrite *)request)->files;
        path = files->data_path;
        files->busy--;
        snap_image_writer_written(writer, request->opaque);
    }
    if (request->result < 0) {
        GError *failure = NULL;
        snap_image_dir_fail(&writer->dir, path, -request->result, &failure);
        snap_image_writer_keep(writer, failure);
    }
}

/* Take one finished request. FALSE: none within the time. */
static gboolean reap(SnapImageWriter *writer, int timeout_ms) {
    if (timeout_ms != 0)
        snap_image_pack_close(writer);
    SnapSinkRequest *request = snap_sink_reap(writer->sink, timeout_ms);
    if (request)
        finish_request(writer, request);
    return request != NULL;
}

static void reap_finished(SnapImageWriter *writer) {
    while (reap(writer, 0))
        ;
}

gboolean snap_image_writer_drain(SnapImageWriter *writer, GError **error) {
    while (writer->n_under_way > 0 && reap(writer, -1))
        ;
    g_assert(writer->n_under_way == 0);
    return !writer->failure || snap_image_writer_refuse(writer, error);
}

/* ---- open regions ---------------------------------------------------------------------------------------- */

static SnapRegionFiles *find_idle(SnapImageWriter *writer) {
    for (GList *link = writer->open.tail; link; link = link->prev) {
        SnapRegionFiles *files = link->data;
        if (files->busy == 0)
            return files;
    }
    return NULL;
}

static gboolean make_room(SnapImageWriter *writer, GError **error) {
    while (writer->open.length >= MAX_OPEN) {
        SnapRegionFiles *idle = find_idle(writer);
        if (!idle) {
            if (!reap(writer, -1))
                return TRUE; /* cannot be: busy without a request */
            continue;
        }
        g_queue_unlink(&writer->open, &idle->link);
        if (!snap_region_files_close(idle, &writer->dir, error))
            return FALSE;
    }
    return TRUE;
}

gboolean snap_image_writer_use(SnapImageWriter *writer, SnapRegionFiles *files, GError **error) {
    if (snap_region_files_is_open(files)) {
        g_queue_unlink(&writer->open, &files->link);
    } else if (!make_room(writer, error) || !snap_region_files_open(files, &writer->dir, error)) {
        return FALSE;
    }
    g_queue_push_head_link(&writer->open, &files->link);
    return TRUE;
}

/* ---- new, free ------------------------------------------------------------------------------------------- */

static gboolean map_buffers(SnapImageWriter *writer, uint64_t page_bytes, guint n_buffers, GError **error) {
    writer->area.buffer_bytes = (size_t)(SNAP_CHUNK_PAGES * page_bytes);
    writer->area.n_buffers = n_buffers;
    void *data = mmap(NULL, writer->area.buffer_bytes * n_buffers, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) {
        snap_set_errno(error, errno, "%u staging buffers", n_buffers);
        return FALSE;
    }
    writer->area.data = data;
    writer->buffers = g_new0(SnapBuffer, n_buffers);
    for (guint i = n_buffers; i > 0; i--) {
        SnapChunk *chunk = &writer->buffers[i - 1].chunk;
        chunk->data = writer->area.data + (i - 1) * writer->area.buffer_bytes;
        recycle(writer, chunk);
    }
    return TRUE;
}

static void free_region(void *opaque) {
    snap_region_files_clear(opaque);
    g_free(opaque);
}

/* A writer whose directory is made; the rest can hardly fail. */
static SnapImageWriter *new_in(SnapImageDir *dir, const char *driver, uint64_t page_bytes) {
    SnapImageWriter *writer = g_new0(SnapImageWriter, 1);
    writer->dir = *dir;
    writer->regions = g_ptr_array_new_with_free_func(free_region);
    writer->names = g_hash_table_new(g_str_hash, g_str_equal);
    writer->state_names = g_hash_table_new(g_str_hash, g_str_equal);
    writer->ranges = g_array_new(FALSE, FALSE, sizeof(HostRange));
    writer->manifest = snap_manifest_new();
    writer->manifest->id = g_uuid_string_random();
    writer->manifest->driver = g_strdup(driver);
    writer->manifest->page_bytes = page_bytes;
    return writer;
}

SnapImageWriter *snap_image_writer_new_with_sink(const char *dir, const char *driver, uint64_t page_bytes,
                                                 guint n_buffers, SnapSink *sink, GError **error) {
    g_autoptr(SnapSink) given = sink;
    SnapImageDir made;
    g_assert(snap_page_bytes_ok(page_bytes) && n_buffers > 0);
    if (!snap_image_dir_make(&made, dir, error))
        return NULL;
    g_autoptr(SnapImageWriter) writer = new_in(&made, driver, page_bytes);
    if (!map_buffers(writer, page_bytes, n_buffers, error))
        return NULL;
    writer->sink = given ? g_steal_pointer(&given) : snap_sink_new(&writer->area);
    return g_steal_pointer(&writer);
}

SnapImageWriter *snap_image_writer_new(const char *dir, const char *driver, uint64_t page_bytes, guint n_buffers,
                                       GError **error) {
    return snap_image_writer_new_with_sink(dir, driver, page_bytes, n_buffers, NULL, error);
}

void snap_image_writer_free(SnapImageWriter *writer) {
    if (!writer)
        return;
    snap_sink_free(writer->sink); /* first: it reads the buffers and writes the files */
    if (!writer->committed)
        snap_image_dir_remove(&writer->dir);
    g_ptr_array_unref(writer->regions);
    g_hash_table_unref(writer->names);
    g_hash_table_unref(writer->state_names);
    g_array_unref(writer->ranges);
    g_clear_pointer(&writer->parent_pages, g_hash_table_unref);
    g_free(writer->parent_created);
    g_free(writer->parent_guest);
    if (writer->area.data)
        munmap(writer->area.data, writer->area.buffer_bytes * writer->area.n_buffers);
    g_free(writer->buffers);
    snap_manifest_free(writer->manifest);
    g_clear_error(&writer->failure);
    snap_image_dir_clear(&writer->dir);
    g_free(writer);
}

/* ---- regions --------------------------------------------------------------------------------------------- */

/* Where a range that starts at @start belongs. Guests list regions in ascending order: mostly at the end. */
static guint find_place(const GArray *ranges, uint64_t start) {
    guint low = 0, high = ranges->len;
    while (low < high) {
        guint middle = low + (high - low) / 2;
        if (g_array_index(ranges, HostRange, middle).start < start)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static gboolean add_range(GArray *ranges, uint64_t start, uint64_t length_bytes) {
    HostRange range = {start, start + length_bytes};
    guint place = find_place(ranges, start);
    if (place > 0 && g_array_index(ranges, HostRange, place - 1).end > range.start)
        return FALSE;
    if (place < ranges->len && g_array_index(ranges, HostRange, place).start < range.end)
        return FALSE;
    g_array_insert_val(ranges, place, range);
    return TRUE;
}

/* What is wrong with a region, for people; NULL, and its addresses are taken, when nothing is. */
static const char *check_region(SnapImageWriter *writer, const SnapManifestRegion *region) {
    const char *wrong = snap_manifest_region_check(region);
    if (!wrong && region->page_bytes > writer->manifest->page_bytes)
        wrong = "its pages are larger than the writer's buffers";
    if (!wrong)
        wrong = snap_image_writer_check_parent(writer, region);
    if (!wrong && !add_range(writer->ranges, region->host_address, region->length_bytes))
        wrong = "it overlaps another region";
    return wrong;
}

gboolean snap_image_writer_add_region(SnapImageWriter *writer, const SnapRegion *region, GError **error) {
    GPtrArray *added = writer->manifest->regions;
    SnapManifestRegion *entry = snap_manifest_add_region(writer->manifest, region);
    gboolean twice = g_hash_table_contains(writer->names, region->name);
    const char *wrong = twice ? "there is one of that name" : check_region(writer, entry);
    if (wrong) {
        /* By file name: what a guest calls its memory may have line breaks in it. */
        g_set_error(error, SNAP_ERROR, twice ? SNAP_ERROR_EXISTS : SNAP_ERROR_USAGE, "region \"%s\": %s",
                    entry->file, wrong);
        g_ptr_array_remove_index(added, added->len - 1);
        return FALSE;
    }
    g_hash_table_add(writer->names, entry->name);
    SnapRegionFiles *files = g_new(SnapRegionFiles, 1);
    snap_region_files_init(files, entry);
    g_ptr_array_add(writer->regions, files);
    return TRUE;
}

/* ---- chunks ---------------------------------------------------------------------------------------------- */

guint snap_image_writer_free_buffers(SnapImageWriter *writer) {
    reap_finished(writer);
    return writer->n_free;
}

SnapChunk *snap_image_writer_get(SnapImageWriter *writer, int timeout_ms, GError **error) {
    gint64 deadline_us = g_get_monotonic_time() + (gint64)timeout_ms * G_TIME_SPAN_MILLISECOND;
    reap_finished(writer);
    if (!writer->free)
        snap_image_pack_close(writer);
    while (!writer->failure && !writer->free) {
        gint64 left_us = MAX(deadline_us - g_get_monotonic_time(), 0);
        int left_ms = timeout_ms < 0 ? -1 : (int)((left_us + 999) / 1000);
        if (!reap(writer, left_ms))
            return NULL;
    }
    if (writer->failure) {
        snap_image_writer_refuse(writer, error);
        return NULL;
    }
    SnapChunk *chunk = snap_image_writer_take(writer);
    chunk->present = 0;
    return chunk;
}

void snap_image_writer_add_write(SnapImageWriter *writer, SnapBuffer *buffer, SnapRegionFiles *files,
                                 const uint8_t *data, uint64_t offset, size_t length_bytes) {
    SnapWrite *write = &buffer->writes[buffer->n_writes];
    write->request = (SnapSinkRequest){
        .op = SNAP_SINK_WRITE,
        .fd = files->data_fd,
        .data = data,
        .offset = offset,
        .length_bytes = length_bytes,
        .opaque = buffer,
    };
    write->files = files;
    if (buffer->n_writes > buffer->n_submitted)
        write[-1].request.next = &write->request;
    buffer->n_writes++;
    buffer->chunk.writes_in_flight++;
    files->busy++;
    writer->n_under_way++;
    writer->dir.bytes_written += length_bytes;
}

/* One write a run of @stored pages, from the chunk's own buffer, which comes back by itself. */
static void write_runs(SnapImageWriter *writer, SnapRegionFiles *files, SnapChunk *chunk, uint64_t stored) {
    SnapBuffer *buffer = (SnapBuffer *)chunk;
    uint64_t page_bytes = files->header.page_bytes;
    unsigned first = 0, count = 0;
    buffer->n_writes = buffer->n_submitted = 0;
    chunk->writes_in_flight = 0;
    while (snap_chunk_take_run(&stored, &first, &count))
        snap_image_writer_add_write(writer, buffer, files, chunk->data + first * page_bytes,
                                    (chunk->index * SNAP_CHUNK_PAGES + first) * page_bytes, count * page_bytes);
    buffer->n_submitted = buffer->n_writes;
    snap_sink_submit(writer->sink, &buffer->writes[0].request);
}

static void write_stored(SnapImageWriter *writer, SnapRegionFiles *files, SnapChunk *chunk, uint64_t stored) {
    if (snap_image_pack_put(writer, files, chunk, stored))
        recycle(writer, chunk);
    else
        write_runs(writer, files, chunk, stored);
}

/* Add the record of a chunk. @data: (nullable) where nothing is stored. */
static gboolean record(SnapImageWriter *writer, SnapRegionFiles *files, uint64_t index, const uint8_t *data,
                       uint64_t present, uint64_t zero, GError **error) {
    uint64_t page_bytes = files->header.page_bytes, stored = present & ~zero;
    g_assert(index < files->header.n_chunks);
    g_assert((present & ~snap_chunk_pages(files->header.region_bytes, page_bytes, index)) == 0);
    if (present == 0)
        return TRUE; /* the hole that is there already */
    uint64_t xxh3 = snap_chunk_hash(data ? data : (const uint8_t *)"", page_bytes, stored);
    SnapChunkRecord made = snap_chunk_record_make(index, page_bytes, present, zero, xxh3);
    writer->zero_pages += (uint64_t)__builtin_popcountll(zero);
    return snap_image_writer_use(writer, files, error) &&
           snap_region_files_record(files, &writer->dir, index, &made, error);
}

/* record(), after which the writer has failed if it did. */
static gboolean record_or_fail(SnapImageWriter *writer, guint region, uint64_t index, const uint8_t *data,
                               uint64_t present, uint64_t zero, GError **error) {
    g_assert(region < writer->regions->len);
    GError *failure = NULL;
    if (writer->failure)
        return snap_image_writer_refuse(writer, error);
    if (record(writer, writer->regions->pdata[region], index, data, present, zero, &failure))
        return TRUE;
    snap_image_writer_keep(writer, failure);
    return snap_image_writer_refuse(writer, error);
}

gboolean snap_image_writer_put(SnapImageWriter *writer, SnapChunk *chunk, GError **error) {
    g_assert(chunk->region < writer->regions->len);
    SnapRegionFiles *files = writer->regions->pdata[chunk->region];
    reap_finished(writer);
    if (!writer->failure)
        chunk->zero = snap_chunk_find_zero(chunk->data, files->header.page_bytes, chunk->present);
    if (!record_or_fail(writer, chunk->region, chunk->index, chunk->data, chunk->present, chunk->zero, error)) {
        recycle(writer, chunk);
        return FALSE;
    }
    uint64_t stored = chunk->present & ~chunk->zero;
    if (stored != 0)
        write_stored(writer, files, chunk, stored);
    else
        recycle(writer, chunk);
    return TRUE;
}

gboolean snap_image_writer_put_zero(SnapImageWriter *writer, guint region, uint64_t index, uint64_t mask,
                                    GError **error) {
    return record_or_fail(writer, region, index, NULL, mask, mask, error);
}

const char *snap_image_writer_id(const SnapImageWriter *writer) {
    return writer->manifest->id;
}

uint64_t snap_image_writer_bytes_written(const SnapImageWriter *writer) {
    return writer->dir.bytes_written;
}

uint64_t snap_image_writer_zero_pages(const SnapImageWriter *writer) {
    return writer->zero_pages;
}
