/*
 * Inside an open image: what image-open.c (opening and its checks), image-read.c and image-verify.c share.
 */
#pragma once

#include "chunk.h"
#include "libsnap.h"
#include "lock.h"
#include "manifest.h"

typedef struct {
    SnapImageRegion public;
    const SnapManifestRegion *entry; /* in the manifest */
    SnapIndexHeader header;
    char *raw_path;
    char *data_path; /* relative to the image, as index_path */
    char *index_path;
    /* under kept->lock; -1 while closed */
    int data_fd;
    int index_fd;
    /* atomic, no order needed: a bit is a hint that saves work, and is set after the check it stands for */
    guint *checked; /* a bit a chunk: its checksum was right once */
} SnapOpenRegion;

/* Which descriptors stay open. */
typedef struct {
    SnapLock lock;
    guint n_regions; /* under lock: whose descriptors are kept */
} SnapKept;

struct SnapImage {
    /* set before the image is handed out */
    int fd;
    SnapManifest *manifest;
    SnapImageInfo info;
    char *dir;
    SnapOpenRegion *regions; /* info.n_regions */
    GHashTable *by_name;     /* name → index + 1 */
    SnapKept *kept;          /* apart, since reading changes it and takes a const image */
};

/* The descriptors of a region for as long as they are needed. */
typedef struct {
    int data_fd;
    int index_fd;
    gboolean own; /* to be closed afterwards */
} SnapOpenFiles;

/* Thread: any. */
gboolean snap_image_take_files(const SnapImage *image, SnapOpenRegion *region, SnapOpenFiles *ret_files,
                               GError **error);
void snap_image_release_files(SnapOpenFiles *files);

/* Everything that opening checks. @error as of snap_image_open(). */
gboolean snap_image_check_files(const SnapImage *image, GError **error);

/* Set @error for a failed read of file @path; what only damage explains is CORRUPT. FALSE. */
gboolean snap_image_fail(const SnapImage *image, const char *path, int errnum, GError **error);
/* CORRUPT: file @path, chunk @chunk, @what. FALSE. */
gboolean snap_image_corrupt_chunk(const SnapImage *image, const char *path, uint64_t chunk, const char *what,
                                  GError **error);
