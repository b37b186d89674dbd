/*
 * The two files of one region while an image is written: ram/BASE.img and ram/BASE.idx.
 *
 * They are made at the first record and may be closed and opened again in between, so that a guest of thousands
 * of regions needs few descriptors. Page data goes to data_fd by way of the sink; records are gathered while
 * they follow each other and written in one go. The index is never in memory as a whole.
 *
 *     init → (open → record… → close)… → open → finish → close → clear
 */
#pragma once

#include "chunk.h"
#include "image-dir.h"
#include "index-write.h"
#include "manifest.h"

typedef struct {
    SnapIndexHeader header;
    char *data_path;
    char *index_path;
    gboolean made;
    guint busy;  /* requests that use a descriptor: not to be closed meanwhile */
    int data_fd; /* -1 while closed, as is index_fd */
    int index_fd;
    SnapRecordBatch *batch; /* while open */
    uint8_t *recorded;      /* a bit for each chunk: a second record would undo the first */
    GList link;             /* the writer's: in its list of open regions */
} SnapRegionFiles;

void snap_region_files_init(SnapRegionFiles *files, const SnapManifestRegion *region);
/* Closes without writing what is gathered. */
void snap_region_files_clear(SnapRegionFiles *files);

gboolean snap_region_files_is_open(const SnapRegionFiles *files);
gboolean snap_region_files_open(SnapRegionFiles *files, SnapImageDir *dir, GError **error);
/* Write what is gathered, and make sure that no write error gets lost with the descriptors. */
gboolean snap_region_files_close(SnapRegionFiles *files, SnapImageDir *dir, GError **error);

/* Open only; a chunk once only. */
gboolean snap_region_files_record(SnapRegionFiles *files, SnapImageDir *dir, uint64_t index,
                                  const SnapChunkRecord *record, GError **error);
/* Open only: write what is gathered, and list both files, with the checksum of the index, in @manifest. */
gboolean snap_region_files_finish(SnapRegionFiles *files, SnapImageDir *dir, SnapManifest *manifest,
                                  GError **error);
