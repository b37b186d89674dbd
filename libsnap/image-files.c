/*
 * The files of an open image: their checks, their descriptors, and what is said when something is wrong with one.
 * See image-open.h.
 *
 * Files are opened by their path, not relative to a descriptor of the directory: a directory that has been
 * exchanged for one that reads the same (image-fold.c) is as good as the one that was opened.
 *
 * Descriptors of regions are kept from first use on, up to MAX_KEPT regions of a chain; beyond that a read opens
 * and closes its own.
 *
 * Failure modes: with a manifest there, whatever is missing or wrong is CORRUPT, by file name.
 */
#include "image-open.h"

#include "image-file.h"
#include "index-read.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#define MAX_KEPT 192u /* two descriptors each */

/* ---- errors ---------------------------------------------------------------------------------------------- */

gboolean snap_image_fail(const SnapImage *image, const char *path, int errnum, GError **error) {
    const char *damage = errnum == ENOENT    ? "the file is missing"
                         : errnum == ENODATA ? "the file is cut short"
                         : errnum == ELOOP   ? "it is not a regular file"
                                             : NULL;
    if (damage)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_CORRUPT, "%s/%s: %s", image->dir, path, damage);
    else
        snap_set_errno(error, errnum, "%s/%s", image->dir, path);
    return FALSE;
}

gboolean snap_image_corrupt_chunk(const SnapImage *image, const char *path, uint64_t chunk, const char *what,
                                  GError **error) {
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_CORRUPT, "%s/%s: chunk %" G_GUINT64_FORMAT ": %s", image->dir, path,
                (guint64)chunk, what);
    return FALSE;
}

static gboolean corrupt(const SnapImage *image, const char *path, const char *what, GError **error) {
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_CORRUPT, "%s/%s: %s", image->dir, path, what);
    return FALSE;
}

/* ---- files ----------------------------------------------------------------------------------------------- */

int snap_image_open_file(const SnapImage *image, const char *path, struct stat *ret_stat) {
    /* O_NONBLOCK: a FIFO in the place of a file must not hang us. */
    g_autofree char *absolute = g_strconcat(image->dir, "/", path, NULL);
    int fd = openat(AT_FDCWD, absolute, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0)
        return -errno;
    int result = fstat(fd, ret_stat) != 0 ? -errno : S_ISREG(ret_stat->st_mode) ? 0 : -ELOOP;
    if (result == 0)
        return fd;
    close(fd);
    return result;
}

gboolean snap_image_check_content(const SnapImage *image, const SnapManifestFile *file, int fd,
                                  uint64_t length_bytes, GError **error) {
    uint64_t xxh3 = 0;
    /* While an image is merged into its child, its data files may have become as long as the child's regions. */
    gboolean any_length = image->manifest->folding_into && !file->has_xxh3;
    if (length_bytes != file->length_bytes && !any_length)
        return corrupt(image, file->path,
                       length_bytes < file->length_bytes ? "the file is cut short" : "the file is too long",
                       error);
    int result = file->has_xxh3 ? snap_file_hash(fd, &xxh3, &length_bytes) : 0;
    if (result < 0)
        return snap_image_fail(image, file->path, -result, error);
    return !file->has_xxh3 || xxh3 == file->xxh3 || corrupt(image, file->path, "its checksum is wrong", error);
}

static gboolean check_file(const SnapImage *image, const SnapManifestFile *file, GError **error) {
    struct stat status = {0};
    int fd = snap_image_open_file(image, file->path, &status);
    if (fd < 0)
        return snap_image_fail(image, file->path, -fd, error);
    gboolean good = snap_image_check_content(image, file, fd, (uint64_t)status.st_size, error);
    close(fd);
    return good;
}

/* *@held goes up by the pages that the region holds. */
static gboolean check_index(const SnapImage *image, const SnapOpenRegion *region, uint64_t *held, GError **error) {
    struct stat status = {0};
    int64_t chunk = -1;
    const char *wrong = NULL;
    int fd = snap_image_open_file(image, region->index_path, &status);
    if (fd < 0)
        return snap_image_fail(image, region->index_path, -fd, error);
    int result = snap_index_check(fd, &region->header, held, &chunk, &wrong);
    close(fd);
    if (result < 0)
        return snap_image_fail(image, region->index_path, -result, error);
    if (wrong && chunk >= 0)
        return snap_image_corrupt_chunk(image, region->index_path, (uint64_t)chunk, wrong, error);
    return !wrong || corrupt(image, region->index_path, wrong, error);
}

gboolean snap_image_check_files(const SnapImage *image, uint64_t *ret_held, GError **error) {
    const GPtrArray *files = image->manifest->files;
    for (guint i = 0; i < files->len; i++) {
        if (!check_file(image, files->pdata[i], error))
            return FALSE;
    }
    for (guint i = 0; i < image->info.n_regions; i++) {
        uint64_t held = 0;
        if (!check_index(image, &image->regions[i], &held, error))
            return FALSE;
        if (ret_held)
            ret_held[i] = held;
    }
    return TRUE;
}

static void close_files(int *data_fd, int *index_fd) {
    if (*data_fd >= 0)
        close(*data_fd);
    if (*index_fd >= 0)
        close(*index_fd);
    *data_fd = *index_fd = -1;
}

static gboolean open_files(const SnapImage *image, const SnapOpenRegion *region, SnapOpenFiles *ret_files,
                           GError **error) {
    struct stat status = {0};
    int data_fd = snap_image_open_file(image, region->data_path, &status);
    if (data_fd < 0)
        return snap_image_fail(image, region->data_path, -data_fd, error);
    int index_fd = snap_image_open_file(image, region->index_path, &status);
    if (index_fd < 0) {
        close(data_fd);
        return snap_image_fail(image, region->index_path, -index_fd, error);
    }
    *ret_files = (SnapOpenFiles){data_fd, index_fd, FALSE};
    return TRUE;
}

static gboolean take_files_locked(const SnapImage *image, SnapOpenRegion *region, SnapOpenFiles *ret_files,
                                  GError **error) SNAP_REQUIRES(image->kept->lock) {
    if (region->data_fd >= 0) {
        *ret_files = (SnapOpenFiles){region->data_fd, region->index_fd, FALSE};
        return TRUE;
    }
    if (!open_files(image, region, ret_files, error))
        return FALSE;
    ret_files->own = image->kept->n_regions >= MAX_KEPT;
    if (!ret_files->own) {
        region->data_fd = ret_files->data_fd;
        region->index_fd = ret_files->index_fd;
        image->kept->n_regions++;
    }
    return TRUE;
}

gboolean snap_image_take_files(const SnapImage *image, SnapOpenRegion *region, SnapOpenFiles *ret_files,
                               GError **error) {
    snap_lock(&image->kept->lock);
    gboolean good = take_files_locked(image, region, ret_files, error);
    snap_unlock(&image->kept->lock);
    return good;
}

void snap_image_drop_files(SnapOpenRegion *region) {
    close_files(&region->data_fd, &region->index_fd);
}

void snap_image_forget_files(SnapOpenRegion *region) {
    SnapKept *kept = region->image->kept;
    snap_lock(&kept->lock);
    kept->n_regions -= region->data_fd >= 0 ? 1 : 0;
    close_files(&region->data_fd, &region->index_fd);
    snap_unlock(&kept->lock);
}

void snap_image_release_files(SnapOpenFiles *files) {
    if (files->own)
        close_files(&files->data_fd, &files->index_fd);
}
