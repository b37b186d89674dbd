/*
 * Inside an open image: what image-open.c (opening), image-files.c (its files and their checks), chain.c (its
 * parents), image-read.c, image-flat.c (which pages are data) and image-verify.c share.
 */
#pragma once

#include "chunk.h"
#include "libsnap.h"
#include "lock.h"
#include "manifest.h"

#include <sys/stat.h>

#define SNAP_FLAT_CHUNKS 256u

/* Which pages of a window of chunks are data, all images of the chain taken together. */
typedef struct {
    uint64_t first;
    uint64_t n; /* chunks; 0: nothing is known */
    uint64_t data[SNAP_FLAT_CHUNKS];
} SnapFlat;

typedef struct SnapOpenRegion {
    SnapImageRegion public;
    const SnapImage *image;          /* that it is of */
    struct SnapOpenRegion *below;    /* (nullable) the parent's region of the same name */
    const SnapManifestRegion *entry; /* in the manifest */
    uint64_t held;                   /* pages in this image */
    SnapIndexHeader header;
    char *raw_path;
    char *data_path; /* relative to the image, as index_path */
    char *index_path;
    /* under kept->lock; -1 while closed */
    int data_fd;
    int index_fd;
    /* under kept->lock; the window that was asked for last, NULL before */
    SnapFlat *flat;
    /* atomic, no order needed: a bit is a hint that saves work, and is set after the check it stands for */
    guint *checked; /* a bit a chunk: its checksum was right once */
} SnapOpenRegion;

/* What reading changes in an image. The images of a chain have one in common. */
typedef struct {
    SnapLock lock;
    guint n_regions; /* under lock: whose descriptors are kept */
} SnapKept;

struct SnapImage {
    /* set before the image is handed out */
    int fd; /* the directory, locked (shared) against being merged away; -1 in an image that has a parent */
    SnapManifest *manifest;
    SnapImageInfo info;
    char *dir;
    SnapOpenRegion *regions; /* info.n_regions */
    GHashTable *by_name;     /* name → index + 1 */
    GHashTable *files;       /* path → SnapManifestFile */
    SnapImage *parent;       /* (nullable) owned */
    SnapKept *kept; /* apart, since reading changes it and takes a const image; owned by the chain's head */
};

/* ---- image-open.c ---------------------------------------------------------------------------------------- */

/* Open an image without looking for its parents: pages that it does not hold read as zeros. */
SnapImage *snap_image_open_alone(const char *dir, GError **error);
/* @image, just opened alone, has its SnapKept in common with @head from now on. */
void snap_image_share_kept(SnapImage *image, const SnapImage *head);
/* The manifest's entry of a file that a region or state blob consists of. */
const SnapManifestFile *snap_image_find_file(const SnapImage *image, const char *path);
/* The manifest of the image at @dir; nothing else of it is looked at. */
SnapManifest *snap_image_read_manifest(const char *dir, GError **error);
/* INCOMPLETE: @image is being merged into its child, and is none by itself. FALSE. */
gboolean snap_image_refuse_folding(const SnapImage *image, GError **error);

/* ---- image-files.c: thread: any -------------------------------------------------------------------------- */

/* A regular file of the image, or -errno. */
int snap_image_open_file(const SnapImage *image, const char *path, struct stat *ret_stat);
/* Length and checksum as the manifest says. */
gboolean snap_image_check_content(const SnapImage *image, const SnapManifestFile *file, int fd,
                                  uint64_t length_bytes, GError **error);
/*
 * Everything that opening checks of the image alone. @ret_held: (out) (nullable) pages in each region.
 * @error as of snap_image_open().
 */
gboolean snap_image_check_files(const SnapImage *image, uint64_t *ret_held, GError **error);

/* The descriptors of a region for as long as they are needed. */
typedef struct {
    int data_fd;
    int index_fd;
    gboolean own; /* to be closed afterwards */
} SnapOpenFiles;

gboolean snap_image_take_files(const SnapImage *image, SnapOpenRegion *region, SnapOpenFiles *ret_files,
                               GError **error);
void snap_image_release_files(SnapOpenFiles *files);
/* Close what is kept: nobody is reading this region, or will soon. */
void snap_image_forget_files(SnapOpenRegion *region);
/* The same for an image that is freed. */
void snap_image_drop_files(SnapOpenRegion *region);

/* All stored pages of a chunk of this image, checked; page i goes to @ret_data + i * page size. image-read.c. */
gboolean snap_image_read_stored(SnapOpenRegion *region, const SnapOpenFiles *files, uint64_t chunk,
                                const SnapChunkRecord *record, uint8_t *ret_data, GError **error);

/* Set @error for a failed read of file @path; what only damage explains is CORRUPT. FALSE. */
gboolean snap_image_fail(const SnapImage *image, const char *path, int errnum, GError **error);
/* CORRUPT: file @path, chunk @chunk, @what. FALSE. */
gboolean snap_image_corrupt_chunk(const SnapImage *image, const char *path, uint64_t chunk, const char *what,
                                  GError **error);
