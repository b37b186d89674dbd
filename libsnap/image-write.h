/*
 * Image writer: chunks in, a complete image directory out.
 *
 * Used by one thread, the job's. Buffers belong to the writer: get one, fill it, put it; the write goes on in the
 * background and the buffer comes back by itself. What is on disk is an image only after commit.
 *
 *     new → [set_parent, set_guest] → add_region… → (get → fill → put)… → add_state… → commit
 *
 * or, at any point, → free.
 */
#pragma once

#include "libsnap.h"

typedef struct SnapImageWriter SnapImageWriter;

/* A staging buffer: one chunk on its way to the sink. */
typedef struct SnapChunk {
    uint8_t *data;    /* chunk bytes of the largest page size in use, aligned for O_DIRECT; page i of the chunk at
                         i * page_bytes */
    guint region;     /* filled in by the caller, as are index and present */
    uint64_t index;   /* chunk number in the region */
    uint64_t present; /* bit i: page i is in data */
    /* The writer's own from here on. */
    uint64_t zero;
    guint writes_in_flight;
    struct SnapChunk *next;
} SnapChunk;

#define SNAP_CHUNK_PAGES 64u /* bits in a mask word: part of the format */

/*
 * @dir must not exist or be empty. @n_buffers staging buffers of SNAP_CHUNK_PAGES * @page_bytes are allocated.
 * Errors: EXISTS, NO_SPACE, IO, PERMISSION.
 */
SnapImageWriter *snap_image_writer_new(const char *dir, const char *driver, uint64_t page_bytes, guint n_buffers,
                                       GError **error);

/*
 * Make it the child of @parent (borrow; only during the call): pages that are not put are the parent's. Before the
 * first put, at most once. Pages that the child must hide, though the parent has them, are put_zero().
 * Errors: REFUSED, the parent is of another guest; USAGE, a region of the same name has pages of another size.
 */
gboolean snap_image_writer_set_parent(SnapImageWriter *writer, const SnapImage *parent, GError **error);

/*
 * Which guest it is: an opaque text that is the same for every image of one guest as long as it lives, and for no
 * other (borrow). Before the first put, at most once. Errors: USAGE, not UTF-8; REFUSED, the parent has another.
 */
gboolean snap_image_writer_set_guest(SnapImageWriter *writer, const char *identity, GError **error);

/* Regions are numbered from 0 in this order. (borrow) only its name, kind, addresses and sizes are used. */
gboolean snap_image_writer_add_region(SnapImageWriter *writer, const SnapRegion *region, GError **error);

/* How many buffers are free now, after reaping finished writes without waiting. */
guint snap_image_writer_free_buffers(SnapImageWriter *writer);

/*
 * A free buffer; waits at most @timeout_ms for one (-1: without limit, 0: not at all). Reaps finished writes.
 * NULL without an error when there is none in time; NULL with *error when a write failed.
 */
SnapChunk *snap_image_writer_get(SnapImageWriter *writer, int timeout_ms, GError **error);

/*
 * Zero-check, checksum and start writing @chunk (take). A chunk is put once; of a region that was added before.
 * Does not wait for the disk. Errors: of this or of an earlier write.
 */
gboolean snap_image_writer_put(SnapImageWriter *writer, SnapChunk *chunk, GError **error);

/*
 * Record @mask pages of chunk @index as present and zero, without data. For holes of the guest's memory; a chunk
 * that is put or recorded may not be recorded again.
 */
gboolean snap_image_writer_put_zero(SnapImageWriter *writer, guint region, uint64_t index, uint64_t mask,
                                    GError **error);

gboolean snap_image_writer_add_state(SnapImageWriter *writer, const SnapState *state, GError **error);

/* The id of the image, (borrow) for the life of the writer. */
const char *snap_image_writer_id(const SnapImageWriter *writer);
uint64_t snap_image_writer_bytes_written(const SnapImageWriter *writer);
uint64_t snap_image_writer_zero_pages(const SnapImageWriter *writer);

/* Name/value pairs for the manifest's statistics. */
typedef struct {
    const char *name;
    uint64_t value;
} SnapStatistic;

/*
 * Wait for all writes, fsync everything, write the manifest by fsync + rename, fsync the directories.
 * @created_us: the point in time, µs since the epoch; an image is never older than its parent, even if the clock
 * was set back in between. @statistics: (borrow).
 * After it, only snap_image_writer_free() may be called.
 */
gboolean snap_image_writer_commit(SnapImageWriter *writer, int64_t created_us, const SnapStatistic *statistics,
                                  guint n_statistics, GError **error);

/* Free; without a commit before, everything this writer made is removed first. NULL is allowed. */
void snap_image_writer_free(SnapImageWriter *writer);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SnapImageWriter, snap_image_writer_free)
