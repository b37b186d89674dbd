/*
 * Inside the image writer: what its two files share, image-write.c (buffers, chunks, regions) and image-commit.c
 * (state blobs, the end).
 */
#pragma once

#include "chunk.h"
#include "image-dir.h"
#include "image-write.h"
#include "manifest.h"
#include "region-files.h"
#include "sink.h"

#define SNAP_MAX_RUNS (SNAP_CHUNK_PAGES / 2) /* every other page */

/* A staging buffer with its writes. */
typedef struct {
    SnapChunk chunk; /* first: a SnapChunk * is a SnapBuffer * */
    SnapSinkRequest writes[SNAP_MAX_RUNS];
} SnapBuffer;

/* An fsync under way. */
typedef struct {
    SnapSinkRequest request;
    const char *path;
    SnapRegionFiles *files; /* (nullable) whose descriptor it is; otherwise it is closed afterwards */
} SnapSync;

/* The job's thread only. */
struct SnapImageWriter {
    SnapImageDir dir;
    gboolean committed;
    SnapManifest *manifest;
    GError *failure; /* the first error */
    SnapSink *sink;
    SnapSinkArea area;
    SnapBuffer *buffers;
    SnapChunk *free; /* linked by ->next */
    guint n_free;
    guint n_under_way;       /* requests in the sink */
    GPtrArray *regions;      /* of SnapRegionFiles, in the manifest's order */
    GQueue open;             /* of SnapRegionFiles by their link, last used first */
    GHashTable *names;       /* of regions; borrowed from the manifest */
    GHashTable *state_names; /* the same */
    GArray *ranges;          /* of the regions' host addresses, sorted */
    uint64_t zero_pages;
};

/* The same as snap_image_writer_new(), with a sink of the caller's (take). */
SnapImageWriter *snap_image_writer_new_with_sink(const char *dir, const char *driver, uint64_t page_bytes,
                                                 guint n_buffers, SnapSink *sink, GError **error);

/* Keep the first error (take). */
void snap_image_writer_keep(SnapImageWriter *writer, GError *failure);
/* FALSE, with a copy of the first error. */
gboolean snap_image_writer_refuse(const SnapImageWriter *writer, GError **error);
/* Open a region's files, if they are not; closes others when too many are. */
gboolean snap_image_writer_use(SnapImageWriter *writer, SnapRegionFiles *files, GError **error);
/* Wait for everything under way. */
gboolean snap_image_writer_drain(SnapImageWriter *writer, GError **error);
