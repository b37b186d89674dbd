/*
 * Inside the image writer: what its files share, image-write.c (buffers, chunks, regions), image-pack.c (chunks
 * with little to write), image-parent.c (being the child of another image) and image-commit.c (state blobs, the
 * end).
 */
#pragma once

#include "chunk.h"
#include "image-dir.h"
#include "image-write.h"
#include "manifest.h"
#include "region-files.h"
#include "sink.h"

#define SNAP_MAX_WRITES SNAP_CHUNK_PAGES /* of a buffer: a chunk has half as many at most */

/* A write of page data. */
typedef struct {
    SnapSinkRequest request; /* first; ->opaque is the buffer */
    SnapRegionFiles *files;
} SnapWrite;

/* A staging buffer with its writes: those of one chunk, or of several that have little to write. */
typedef struct {
    SnapChunk chunk; /* first: a SnapChunk * is a SnapBuffer * */
    guint n_writes;
    guint n_submitted; /* of them: linked and handed to the sink */
    size_t used_bytes; /* of a buffer that is shared */
    SnapWrite writes[SNAP_MAX_WRITES];
} SnapBuffer;

/* An fsync under way. */
typedef struct {
    SnapSinkRequest request;
    const char *path;
    SnapRegionFiles *files; /* (nullable) whose descriptor it is; otherwise it is closed afterwards */
} SnapFsync;

/* The job's thread only. */
struct SnapImageWriter {
    SnapImageDir dir;
    gboolean committed;
    SnapManifest *manifest;
    GError *failure; /* the first error */
    SnapSink *sink;
    SnapSinkArea area;
    SnapBuffer *buffers;
    SnapChunk *free;  /* linked by ->next */
    SnapBuffer *pack; /* (nullable) the one that is being shared: image-pack.c */
    guint n_free;
    guint n_under_way;        /* requests in the sink, and in ->pack on their way there */
    GPtrArray *regions;       /* of SnapRegionFiles, in the manifest's order */
    GQueue open;              /* of SnapRegionFiles by their link, last used first */
    GHashTable *names;        /* of regions; borrowed from the manifest */
    GHashTable *state_names;  /* the same */
    GHashTable *parent_pages; /* (nullable) the parent's regions: name → page size, both owned */
    char *parent_created;     /* (nullable) as the parent's manifest says, as is the next */
    char *parent_guest;
    GArray *ranges; /* of the regions' host addresses, sorted */
    uint64_t zero_pages;
};

/* The same as snap_image_writer_new(), with a sink of the caller's (take). */
SnapImageWriter *snap_image_writer_new_with_sink(const char *dir, const char *driver, uint64_t page_bytes,
                                                 guint n_buffers, SnapSink *sink, GError **error);

/* Make it the same image as the one of @manifest (borrow): its id, its guest, its time, whatever commit says. */
void snap_image_writer_set_identity(SnapImageWriter *writer, const SnapManifest *manifest);
/* Keep the first error (take). */
void snap_image_writer_keep(SnapImageWriter *writer, GError *failure);
/* FALSE, with a copy of the first error. */
gboolean snap_image_writer_refuse(const SnapImageWriter *writer, GError **error);
/* Open a region's files, if they are not; closes others when too many are. */
gboolean snap_image_writer_use(SnapImageWriter *writer, SnapRegionFiles *files, GError **error);
/* What about a region does not fit the parent's of the same name, for people, or NULL. image-parent.c. */
const char *snap_image_writer_check_parent(const SnapImageWriter *writer, const SnapManifestRegion *region);
/* A buffer of the free list, of which there is one. */
SnapChunk *snap_image_writer_take(SnapImageWriter *writer);
/* Add a write to @buffer, linked to the one before. */
void snap_image_writer_add_write(SnapImageWriter *writer, SnapBuffer *buffer, SnapRegionFiles *files,
                                 const uint8_t *data, uint64_t offset, size_t length_bytes);
/* One write of @buffer is over; after the last one it is free. */
void snap_image_writer_written(SnapImageWriter *writer, SnapBuffer *buffer);
/* Write the @stored pages of @chunk by way of a shared buffer; FALSE: they are too many, or there is no room. */
gboolean snap_image_pack_put(SnapImageWriter *writer, SnapRegionFiles *files, const SnapChunk *chunk,
                             uint64_t stored);
/* Hand what is in the shared buffer to the sink; the next chunk gets another. */
void snap_image_pack_close(SnapImageWriter *writer);
/* Wait for everything under way. */
gboolean snap_image_writer_drain(SnapImageWriter *writer, GError **error);
