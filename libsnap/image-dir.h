/*
 * The directory of an image that is being written: made, filled, and either published or removed again.
 *
 *     make → create_file… → sync → publish → clear
 *     make → create_file… → remove → clear                 whatever went wrong
 *
 * All paths are relative to the directory. Only what was made here is ever removed.
 */
#pragma once

#include "libsnap.h"

typedef struct {
    char *path; /* absolute */
    int fd;
    int ram_fd;
    int state_fd;
    gboolean made; /* the directory itself, and not only what is in it */
    gboolean made_ram;
    gboolean made_state;
    GPtrArray *made_files;  /* of char *, in the order they were made */
    uint64_t bytes_written; /* page data, for messages */
} SnapImageDir;

/* Errors: EXISTS, there is something at @path that is not an empty directory; and snap_image_dir_fail()'s. */
gboolean snap_image_dir_make(SnapImageDir *dir, const char *path, GError **error);

/*
 * A new file, for writing. @direct: with O_DIRECT where the file system allows it; otherwise for reading too.
 * Returns a descriptor, or -1 with *error set.
 */
int snap_image_dir_create_file(SnapImageDir *dir, const char *path, gboolean direct, GError **error);
/* A file that was made before. */
int snap_image_dir_open_file(SnapImageDir *dir, const char *path, gboolean direct, GError **error);

/* A file that is another's too: a hard link of @from, an absolute path. */
gboolean snap_image_dir_link_file(SnapImageDir *dir, const char *from, const char *path, GError **error);

/* fsync the directories that hold the files. */
gboolean snap_image_dir_sync(SnapImageDir *dir, GError **error);

/* Make it an image: the manifest, whole and lasting, or none at all. */
gboolean snap_image_dir_publish(SnapImageDir *dir, const char *manifest, size_t length_bytes, GError **error);

/* Remove everything made here; what cannot be removed stays, without a manifest. */
void snap_image_dir_remove(SnapImageDir *dir);

void snap_image_dir_clear(SnapImageDir *dir);

/* Set @error for a file of the image. Errors: NO_SPACE, NOT_SUPPORTED (EFBIG), else snap_error_from_errno()'s. */
void snap_image_dir_fail(const SnapImageDir *dir, const char *path, int errnum, GError **error);
