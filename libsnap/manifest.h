/*
 * The manifest: what an image is, as JSON text and as a struct. Pure: text in, text out; no files.
 *
 * A decoded manifest has been checked: every name, path, length and number in it may be relied upon.
 */
#pragma once

#include "libsnap.h"

#define SNAP_MANIFEST_VERSION 1
#define SNAP_MANIFEST_MAX_BYTES (256u << 20) /* far above what 65530 mappings of a process need */

typedef struct {
    char *name;
    char *file; /* base name in ram/, no suffix */
    SnapMemory memory;
    uint64_t guest_address; /* or SNAP_NO_ADDRESS */
    uint64_t host_address;
    uint64_t length_bytes;
    uint64_t page_bytes;
    uint64_t granule_bytes;
} SnapManifestRegion;

typedef struct {
    char *name;
    char *file; /* base name in state/ */
    uint64_t length_bytes;
} SnapManifestState;

typedef struct {
    char *name;
    uint64_t value;
} SnapManifestStatistic;

typedef struct {
    char *path; /* relative to the image directory */
    uint64_t length_bytes;
    gboolean has_xxh3; /* data files have none: their chunks have */
    uint64_t xxh3;
} SnapManifestFile;

typedef struct {
    char *id;
    char *parent_id;    /* (nullable) */
    char *parent_path;  /* (nullable) a hint: where the parent is, from the image's directory */
    char *folding_into; /* (nullable) id of the child that this image is being merged into */
    char *driver;
    char *guest;   /* (nullable) which guest it was, opaque */
    char *created; /* ISO 8601, UTC, microseconds */
    uint64_t page_bytes;
    GPtrArray *regions;    /* of SnapManifestRegion */
    GPtrArray *states;     /* of SnapManifestState */
    GPtrArray *statistics; /* of SnapManifestStatistic */
    GPtrArray *files;      /* of SnapManifestFile */
} SnapManifest;

SnapManifest *snap_manifest_new(void);
void snap_manifest_free(SnapManifest *manifest); /* NULL is allowed */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SnapManifest, snap_manifest_free)

/* Append; the strings are copied. The result is the manifest's. */
SnapManifestRegion *snap_manifest_add_region(SnapManifest *manifest, const SnapRegion *region);
SnapManifestState *snap_manifest_add_state(SnapManifest *manifest, const char *name, uint64_t length_bytes);
void snap_manifest_add_statistic(SnapManifest *manifest, const char *name, uint64_t value);
/* @xxh3: (nullable). */
void snap_manifest_add_file(SnapManifest *manifest, const char *path, uint64_t length_bytes, const uint64_t *xxh3);

/* "2024-05-06T07:08:09.123456Z". */
char *snap_manifest_format_time(int64_t since_epoch_us);

/* What cannot be a region of an image, for people; NULL when it can. */
const char *snap_manifest_region_check(const SnapManifestRegion *region);

/* FALSE, with CORRUPT: "manifest.json: ", and @format. */
gboolean snap_manifest_corrupt(GError **error, const char *format, ...) G_GNUC_PRINTF(2, 3);
/* Everything that a reader relies on. Errors: CORRUPT. */
gboolean snap_manifest_check(const SnapManifest *manifest, GError **error);

/* The text of a complete manifest. */
char *snap_manifest_encode(const SnapManifest *manifest, size_t *ret_length_bytes);

/*
 * Errors: CORRUPT, what is wrong with the text; NOT_SUPPORTED, a newer format. NULL then.
 */
SnapManifest *snap_manifest_decode(const char *text, size_t length_bytes, GError **error);
