/*
 * Merging one region. See fold-merge.h.
 *
 * Happy path of the indexes: chunk by chunk, what neither image has is jumped over, what only the parent has keeps
 * its record; where the child has pages too, the chunk is read from both, checked, and hashed in its two new
 * forms. Of the pages: chunk by chunk through the child, runs of stored pages are written, zeros are punched out.
 *
 * Failure modes: a wrong checksum is found while the indexes are made, before anything has been changed.
 *
 * Bounds: two chunks of memory, WINDOW chunks read ahead; SYNC_BYTES of written pages that are not on disk yet.
 */
#include "fold-merge.h"

#include "image-file.h"
#include "index-read.h"
#include "index-write.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define SYNC_BYTES (32u << 20)
#define WINDOW 64u /* chunks that are read ahead */

/* ---- indexes --------------------------------------------------------------------------------------------- */

/* One of the two regions while its index is read. */
typedef struct {
    SnapOpenRegion *region;
    SnapOpenFiles files;
    SnapIndexCursor cursor;
    SnapChunkRecord record; /* of the chunk at hand; empty beyond the end */
    uint8_t *data;          /* a chunk */
} Side;

typedef struct {
    Side parent;
    Side child;
    int parent_fd; /* -1: not wanted */
    int child_fd;
    SnapRecordBatch parent_batch;
    SnapRecordBatch child_batch;
} Merge;

static uint64_t stored_of(const SnapChunkRecord *record) {
    return record->present & ~record->zero;
}

static gboolean fail_index(const Side *side, int result, GError **error) {
    return snap_image_fail(side->region->image, side->region->index_path, -result, error);
}

/* *@found becomes the next chunk from @chunk on that this side may have a record of, if that is before it. */
static gboolean find_next(Side *side, uint64_t chunk, uint64_t *found, GError **error) {
    if (chunk >= side->region->header.n_chunks)
        return TRUE;
    int result = snap_index_cursor_skip(&side->cursor, &chunk);
    if (result < 0)
        return fail_index(side, result, error);
    if (chunk < side->region->header.n_chunks)
        *found = MIN(*found, chunk);
    return TRUE;
}

static gboolean get_record(Side *side, uint64_t chunk, GError **error) {
    side->record = (SnapChunkRecord){0};
    if (chunk >= side->region->header.n_chunks)
        return TRUE;
    int result = snap_index_cursor_get(&side->cursor, chunk, &side->record);
    const char *wrong = result == 0 ? snap_chunk_record_check(&side->record, &side->region->header, chunk) : NULL;
    if (wrong)
        return snap_image_corrupt_chunk(side->region->image, side->region->index_path, chunk, wrong, error);
    return result == 0 || fail_index(side, result, error);
}

static gboolean read_data(Side *side, uint64_t chunk, GError **error) {
    return snap_image_read_stored(side->region, &side->files, chunk, &side->record, side->data, error);
}

/* What the parent keeps of a chunk. Its data has been read unless it keeps all or nothing of it. */
static SnapChunkRecord keep_of_parent(const Merge *merge, uint64_t chunk, uint64_t keep) {
    const SnapChunkRecord *record = &merge->parent.record;
    uint64_t page_bytes = merge->child.region->header.page_bytes;
    if (keep == record->present)
        return *record;
    uint64_t zero = record->zero & keep;
    return snap_chunk_record_make(chunk, page_bytes, keep, zero,
                                  snap_chunk_hash(merge->parent.data, page_bytes, keep & ~zero));
}

/* Both images' pages of a chunk. The data of both has been read if both have some. */
static SnapChunkRecord lay_over(const Merge *merge, uint64_t chunk, const SnapChunkRecord *kept) {
    const SnapChunkRecord *record = &merge->child.record;
    uint64_t page_bytes = merge->child.region->header.page_bytes;
    uint64_t below = stored_of(kept), above = stored_of(record), runs = above, xxh3 = 0;
    unsigned first = 0, count = 0;
    if (below != 0 && above != 0) {
        while (snap_chunk_take_run(&runs, &first, &count))
            memcpy(merge->parent.data + first * page_bytes, merge->child.data + first * page_bytes,
                   count * page_bytes);
        xxh3 = snap_chunk_hash(merge->parent.data, page_bytes, below | above);
    } else {
        xxh3 = above != 0 || kept->present == 0 ? record->xxh3 : kept->xxh3;
    }
    return snap_chunk_record_make(chunk, page_bytes, kept->present | record->present, kept->zero | record->zero,
                                  xxh3);
}

static int put(int fd, SnapRecordBatch *batch, uint64_t chunk, const SnapChunkRecord *record) {
    return fd >= 0 && record->present != 0 ? snap_index_put(fd, batch, chunk, record) : 0;
}

/* What is to be done about a chunk. */
typedef struct {
    uint64_t keep; /* pages of the parent */
    gboolean read_parent;
    gboolean read_child;
} Plan;

static Plan plan_chunk(const Merge *merge, uint64_t chunk) {
    const SnapIndexHeader *header = &merge->child.region->header;
    const SnapChunkRecord *parent = &merge->parent.record, *child = &merge->child.record;
    uint64_t inside = snap_chunk_pages(header->region_bytes, header->page_bytes, chunk);
    uint64_t keep = parent->present & ~child->present & inside;
    gboolean hashed_again = keep != parent->present || stored_of(child) != 0;
    return (Plan){
        .keep = keep,
        .read_parent = (keep & stored_of(parent)) != 0 && hashed_again,
        .read_child = stored_of(child) != 0,
    };
}

static gboolean merge_chunk(Merge *merge, uint64_t chunk, GError **error) {
    Plan plan = plan_chunk(merge, chunk);
    if ((plan.read_child && !read_data(&merge->child, chunk, error)) ||
        (plan.read_parent && !read_data(&merge->parent, chunk, error)))
        return FALSE;
    SnapChunkRecord kept = keep_of_parent(merge, chunk, plan.keep);
    SnapChunkRecord merged = merge->child.record.present != 0 ? lay_over(merge, chunk, &kept) : kept;
    int result = put(merge->parent_fd, &merge->parent_batch, chunk, &kept);
    if (result == 0)
        result = put(merge->child_fd, &merge->child_batch, chunk, &merged);
    if (result < 0)
        snap_set_errno(error, -result, "%s: the merged index", merge->child.region->image->dir);
    return result == 0;
}

/* Have the kernel read what will be read: the disk then has more than one thing to do. */
static void prefetch(const Side *side, uint64_t chunk) {
    uint64_t page_bytes = side->region->header.page_bytes, stored = stored_of(&side->record);
    unsigned first = 0, count = 0;
    while (snap_chunk_take_run(&stored, &first, &count))
        posix_fadvise(side->files.data_fd, (off_t)((chunk * SNAP_CHUNK_PAGES + first) * page_bytes),
                      (off_t)(count * page_bytes), POSIX_FADV_WILLNEED);
}

static gboolean get_both(Merge *merge, uint64_t chunk, GError **error) {
    return get_record(&merge->parent, chunk, error) && get_record(&merge->child, chunk, error);
}

static gboolean merge_window(Merge *merge, uint64_t start, uint64_t end, GError **error) {
    for (uint64_t chunk = start; chunk < end; chunk++) {
        if (!get_both(merge, chunk, error))
            return FALSE;
        Plan plan = plan_chunk(merge, chunk);
        if (plan.read_child)
            prefetch(&merge->child, chunk);
        if (plan.read_parent)
            prefetch(&merge->parent, chunk);
    }
    for (uint64_t chunk = start; chunk < end; chunk++) {
        if (!get_both(merge, chunk, error) || !merge_chunk(merge, chunk, error))
            return FALSE;
    }
    return TRUE;
}

/* Window by window, over what neither image has a record of. */
static gboolean merge_chunks(Merge *merge, GError **error) {
    const uint64_t n_chunks = merge->child.region->header.n_chunks;
    for (uint64_t chunk = 0; chunk < n_chunks;) {
        uint64_t start = n_chunks;
        if (!find_next(&merge->parent, chunk, &start, error) || !find_next(&merge->child, chunk, &start, error))
            return FALSE;
        chunk = MIN(start + WINDOW, n_chunks);
        if (!merge_window(merge, start, chunk, error))
            return FALSE;
    }
    return TRUE;
}

static gboolean begin_side(Side *side, GError **error) {
    if (!snap_image_take_files(side->region->image, side->region, &side->files, error))
        return FALSE;
    snap_index_cursor_init(&side->cursor, side->files.index_fd, &side->region->header);
    side->data = g_malloc(SNAP_CHUNK_PAGES * side->region->header.page_bytes);
    return TRUE;
}

static void end_side(Side *side) {
    if (!side->data)
        return;
    snap_image_release_files(&side->files);
    snap_image_forget_files(side->region);
    g_free(side->data);
}

static gboolean begin_index(int fd, const Side *side, GError **error) {
    int result = fd >= 0 ? snap_index_begin(fd, &side->region->header) : 0;
    if (result < 0)
        snap_set_errno(error, -result, "%s: the merged index", side->region->image->dir);
    return result == 0;
}

static gboolean end_indexes(Merge *merge, GError **error) {
    int result = merge->parent_fd >= 0 ? snap_index_flush(merge->parent_fd, &merge->parent_batch) : 0;
    if (result == 0)
        result = snap_index_flush(merge->child_fd, &merge->child_batch);
    if (result < 0)
        snap_set_errno(error, -result, "%s: the merged index", merge->child.region->image->dir);
    return result == 0;
}

gboolean snap_fold_merge_indexes(SnapOpenRegion *parent, SnapOpenRegion *child, int parent_fd, int child_fd,
                                 GError **error) {
    g_autofree Merge *merge = g_new0(Merge, 1); /* two cursors: much for a stack */
    merge->parent.region = parent;
    merge->child.region = child;
    merge->parent_fd = parent_fd;
    merge->child_fd = child_fd;
    gboolean good = begin_side(&merge->parent, error) && begin_side(&merge->child, error) &&
                    begin_index(parent_fd, &merge->child, error) && begin_index(child_fd, &merge->child, error) &&
                    merge_chunks(merge, error) && end_indexes(merge, error);
    end_side(&merge->parent);
    end_side(&merge->child);
    return good;
}

/* ---- pages ----------------------------------------------------------------------------------------------- */

/* A data file that is written, and the run of zeros that has been gathered for it. */
typedef struct {
    int fd;
    const char *path;
    uint64_t zero_start;
    uint64_t zero_end; /* equal: none */
    uint64_t unsynced_bytes;
} Target;

static gboolean fail_target(const Target *target, int errnum, GError **error) {
    snap_set_errno(error, errnum, "%s", target->path);
    return FALSE;
}

static int write_zeros(const Target *target, uint64_t start, uint64_t end) {
    static const uint8_t zeros[64 * 1024];
    int result = 0;
    for (; result == 0 && start < end; start += MIN(end - start, sizeof zeros))
        result = snap_file_write(target->fd, zeros, (size_t)MIN(end - start, sizeof zeros), start);
    return result;
}

/* The gathered run of zeros: a hole where there is data. */
static gboolean flush_zeros(Target *target, GError **error) {
    uint64_t start = target->zero_start, end = target->zero_end, data = end;
    target->zero_start = target->zero_end = 0;
    if (start == end)
        return TRUE;
    int result = snap_file_seek_data(target->fd, start, &data);
    if (result == -ENXIO || (result == 0 && data >= end))
        return TRUE;
    if (result < 0)
        return fail_target(target, -result, error);
    if (fallocate(target->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)start, (off_t)(end - start)) == 0)
        return TRUE;
    if (errno != EOPNOTSUPP && errno != ENOSYS)
        return fail_target(target, errno, error);
    result = write_zeros(target, start, end);
    return result == 0 || fail_target(target, -result, error);
}

static gboolean add_zeros(Target *target, uint64_t start, uint64_t end, GError **error) {
    if (target->zero_end != start || target->zero_start == target->zero_end) {
        if (!flush_zeros(target, error))
            return FALSE;
        target->zero_start = start;
    }
    target->zero_end = end;
    return TRUE;
}

/* What is dirty has a bound, also for a child that holds everything. */
static gboolean count_written(Target *target, uint64_t length_bytes, GError **error) {
    target->unsynced_bytes += length_bytes;
    if (target->unsynced_bytes < SYNC_BYTES)
        return TRUE;
    target->unsynced_bytes = 0;
    return fdatasync(target->fd) == 0 || fail_target(target, errno, error);
}

static gboolean write_chunk(Target *target, Side *child, uint64_t chunk, GError **error) {
    uint64_t page_bytes = child->region->header.page_bytes, base = chunk * SNAP_CHUNK_PAGES;
    uint64_t stored = stored_of(&child->record), zero = child->record.zero;
    unsigned first = 0, count = 0;
    if (stored != 0 && !read_data(child, chunk, error))
        return FALSE;
    while (snap_chunk_take_run(&stored, &first, &count)) {
        int result = snap_file_write(target->fd, child->data + first * page_bytes, count * page_bytes,
                                     (base + first) * page_bytes);
        if (result < 0)
            return fail_target(target, -result, error);
        if (!count_written(target, count * page_bytes, error))
            return FALSE;
    }
    while (snap_chunk_take_run(&zero, &first, &count)) {
        if (!add_zeros(target, (base + first) * page_bytes, (base + first + count) * page_bytes, error))
            return FALSE;
    }
    return TRUE;
}

static gboolean write_chunks(Target *target, Side *child, GError **error) {
    const SnapIndexHeader *header = &child->region->header;
    if (ftruncate(target->fd, (off_t)header->region_bytes) != 0)
        return fail_target(target, errno, error);
    for (uint64_t chunk = 0; chunk < header->n_chunks; chunk++) {
        uint64_t next = header->n_chunks;
        if (!find_next(child, chunk, &next, error))
            return FALSE;
        chunk = next;
        if (chunk < header->n_chunks &&
            (!get_record(child, chunk, error) || !write_chunk(target, child, chunk, error)))
            return FALSE;
    }
    return flush_zeros(target, error);
}

gboolean snap_fold_write_pages(SnapOpenRegion *child, int fd, const char *path, GError **error) {
    Target target = {.fd = fd, .path = path};
    g_autofree Side *side = g_new0(Side, 1);
    side->region = child;
    gboolean good = begin_side(side, error) && write_chunks(&target, side, error);
    end_side(side);
    return good;
}
