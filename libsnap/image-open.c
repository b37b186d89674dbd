/*
 * Opening an image: the manifest and every file it lists. See "images" in libsnap.h.
 *
 * Happy path: read and decode the manifest → each file is there, regular, of its length, and the small ones have
 * their checksums → every index says what the manifest says, and its records make sense. After that, reading
 * relies on all of it except page data.
 *
 * Failure modes: INCOMPLETE without a manifest; with one, whatever is missing or wrong is CORRUPT, by file name.
 *
 * Descriptors of regions are kept from first use on, up to MAX_KEPT regions; beyond that a read opens and closes
 * its own.
 */
#include "image-open.h"

#include "image-file.h"
#include "index-read.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
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

/* A regular file of the image, or -errno. */
static int open_file(const SnapImage *image, const char *path, struct stat *ret_stat) {
    /* O_NONBLOCK: a FIFO in the place of a file must not hang us. */
    int fd = openat(image->fd, path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0)
        return -errno;
    int result = fstat(fd, ret_stat) != 0 ? -errno : S_ISREG(ret_stat->st_mode) ? 0 : -ELOOP;
    if (result == 0)
        return fd;
    close(fd);
    return result;
}

static gboolean check_content(const SnapImage *image, const SnapManifestFile *file, int fd, uint64_t length_bytes,
                              GError **error) {
    uint64_t xxh3 = 0;
    if (length_bytes != file->length_bytes)
        return corrupt(image, file->path,
                       length_bytes < file->length_bytes ? "the file is cut short" : "the file is too long",
                       error);
    int result = file->has_xxh3 ? snap_file_hash(fd, &xxh3, &length_bytes) : 0;
    if (result < 0)
        return snap_image_fail(image, file->path, -result, error);
    return !file->has_xxh3 || xxh3 == file->xxh3 || corrupt(image, file->path, "its checksum is wrong", error);
}

static gboolean check_file(const SnapImage *image, const SnapManifestFile *file, GError **error) {
    struct stat status;
    int fd = open_file(image, file->path, &status);
    if (fd < 0)
        return snap_image_fail(image, file->path, -fd, error);
    gboolean good = check_content(image, file, fd, (uint64_t)status.st_size, error);
    close(fd);
    return good;
}

static gboolean check_index(const SnapImage *image, const SnapOpenRegion *region, GError **error) {
    struct stat status;
    int64_t chunk = -1;
    const char *wrong = NULL;
    int fd = open_file(image, region->index_path, &status);
    if (fd < 0)
        return snap_image_fail(image, region->index_path, -fd, error);
    int result = snap_index_check(fd, &region->header, &chunk, &wrong);
    close(fd);
    if (result < 0)
        return snap_image_fail(image, region->index_path, -result, error);
    if (wrong && chunk >= 0)
        return snap_image_corrupt_chunk(image, region->index_path, (uint64_t)chunk, wrong, error);
    return !wrong || corrupt(image, region->index_path, wrong, error);
}

gboolean snap_image_check_files(const SnapImage *image, GError **error) {
    const GPtrArray *files = image->manifest->files;
    for (guint i = 0; i < files->len; i++) {
        if (!check_file(image, files->pdata[i], error))
            return FALSE;
    }
    for (guint i = 0; i < image->info.n_regions; i++) {
        if (!check_index(image, &image->regions[i], error))
            return FALSE;
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
    struct stat status;
    int data_fd = open_file(image, region->data_path, &status);
    if (data_fd < 0)
        return snap_image_fail(image, region->data_path, -data_fd, error);
    int index_fd = open_file(image, region->index_path, &status);
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

void snap_image_release_files(SnapOpenFiles *files) {
    if (files->own)
        close_files(&files->data_fd, &files->index_fd);
}

/* ---- opening --------------------------------------------------------------------------------------------- */

static gboolean open_directory(SnapImage *image, const char *dir, GError **error) {
    g_autofree char *absolute = realpath(dir, NULL);
    if (absolute)
        image->fd = open(absolute, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (image->fd >= 0) {
        image->dir = g_strdup(absolute);
        return TRUE;
    }
    if (errno == ENOTDIR || errno == ENOENT)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_FOUND, "%s: no such image directory", dir);
    else
        snap_set_errno(error, errno, "%s", dir);
    return FALSE;
}

static char *read_whole(int fd, uint64_t length_bytes, int *ret_result) {
    g_autofree char *text = g_try_malloc(length_bytes + 1);
    *ret_result = text ? snap_file_read(fd, text, (size_t)length_bytes, 0) : -ENOMEM;
    return *ret_result == 0 ? g_steal_pointer(&text) : NULL;
}

static gboolean read_manifest(SnapImage *image, GError **error) {
    struct stat status;
    int fd = open_file(image, SNAP_FILE_MANIFEST, &status);
    if (fd == -ENOENT) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_INCOMPLETE,
                    "%s: the image is incomplete, it has no " SNAP_FILE_MANIFEST
                    "; it was not saved to the end and can only be deleted",
                    image->dir);
        return FALSE;
    }
    if (fd < 0)
        return snap_image_fail(image, SNAP_FILE_MANIFEST, -fd, error);
    int result = 0;
    uint64_t length_bytes = MIN((uint64_t)status.st_size, (uint64_t)SNAP_MANIFEST_MAX_BYTES + 1);
    g_autofree char *text = read_whole(fd, length_bytes, &result);
    close(fd);
    if (!text)
        return snap_image_fail(image, SNAP_FILE_MANIFEST, -result, error);
    image->manifest = snap_manifest_decode(text, (size_t)length_bytes, error);
    if (!image->manifest)
        g_prefix_error(error, "%s/", image->dir);
    return image->manifest != NULL;
}

static void set_region(const SnapImage *image, SnapOpenRegion *region, const SnapManifestRegion *entry) {
    region->entry = entry;
    region->data_fd = region->index_fd = -1;
    region->header.page_bytes = entry->page_bytes;
    region->header.region_bytes = entry->length_bytes;
    region->header.n_chunks = snap_chunk_count(entry->length_bytes, entry->page_bytes);
    region->checked = g_new0(guint, region->header.n_chunks / 32 + 1);
    region->data_path = g_strconcat(SNAP_DIR_RAM "/", entry->file, SNAP_SUFFIX_DATA, NULL);
    region->index_path = g_strconcat(SNAP_DIR_RAM "/", entry->file, SNAP_SUFFIX_INDEX, NULL);
    region->raw_path = g_strconcat(image->dir, "/", region->data_path, NULL);
    region->public = (SnapImageRegion){
        .name = entry->name,
        .raw_path = region->raw_path,
        .memory = snap_memory_name(entry->memory),
        .guest_address = entry->guest_address,
        .host_address = entry->host_address,
        .length_bytes = entry->length_bytes,
        .page_bytes = entry->page_bytes,
        .granule_bytes = entry->granule_bytes,
    };
}

static void set_info(SnapImage *image) {
    const SnapManifest *manifest = image->manifest;
    image->info = (SnapImageInfo){
        .dir = image->dir,
        .id = manifest->id,
        .parent_id = manifest->parent_id,
        .driver = manifest->driver,
        .created = manifest->created,
        .page_bytes = manifest->page_bytes,
        .n_regions = manifest->regions->len,
        .n_states = manifest->states->len,
    };
    image->regions = g_new0(SnapOpenRegion, manifest->regions->len);
    image->by_name = g_hash_table_new(g_str_hash, g_str_equal);
    for (guint i = 0; i < manifest->regions->len; i++) {
        set_region(image, &image->regions[i], manifest->regions->pdata[i]);
        g_hash_table_insert(image->by_name, (char *)image->regions[i].public.name, GUINT_TO_POINTER(i + 1));
    }
}

SnapImage *snap_image_open(const char *dir, GError **error) {
    g_autoptr(SnapImage) image = g_new0(SnapImage, 1);
    image->fd = -1;
    image->kept = g_new0(SnapKept, 1);
    snap_lock_init(&image->kept->lock);
    if (!open_directory(image, dir, error) || !read_manifest(image, error))
        return NULL;
    set_info(image);
    return snap_image_check_files(image, error) ? g_steal_pointer(&image) : NULL;
}

void snap_image_free(SnapImage *image) {
    if (!image)
        return;
    for (guint i = 0; i < image->info.n_regions; i++) {
        SnapOpenRegion *region = &image->regions[i];
        close_files(&region->data_fd, &region->index_fd);
        g_free(region->checked);
        g_free(region->data_path);
        g_free(region->index_path);
        g_free(region->raw_path);
    }
    g_free(image->regions);
    g_clear_pointer(&image->by_name, g_hash_table_unref);
    snap_manifest_free(image->manifest);
    if (image->fd >= 0)
        close(image->fd);
    snap_lock_clear(&image->kept->lock);
    g_free(image->kept);
    g_free(image->dir);
    g_free(image);
}

/* ---- what is in it --------------------------------------------------------------------------------------- */

const SnapImageInfo *snap_image_info(const SnapImage *image) {
    return &image->info;
}

const SnapImageRegion *snap_image_region(const SnapImage *image, guint i) {
    g_assert(i < image->info.n_regions);
    return &image->regions[i].public;
}

int snap_image_find_region(const SnapImage *image, const char *name) {
    return (int)GPOINTER_TO_UINT(g_hash_table_lookup(image->by_name, name)) - 1;
}

const char *snap_image_state_name(const SnapImage *image, guint i) {
    g_assert(i < image->info.n_states);
    const SnapManifestState *state = image->manifest->states->pdata[i];
    return state->name;
}

uint64_t snap_image_statistic(const SnapImage *image, const char *name) {
    const GPtrArray *statistics = image->manifest->statistics;
    for (guint i = 0; i < statistics->len; i++) {
        const SnapManifestStatistic *statistic = statistics->pdata[i];
        if (g_str_equal(statistic->name, name))
            return statistic->value;
    }
    return 0;
}

static const SnapManifestState *find_state(const SnapImage *image, const char *name) {
    for (guint i = 0; i < image->manifest->states->len; i++) {
        const SnapManifestState *state = image->manifest->states->pdata[i];
        if (g_str_equal(state->name, name))
            return state;
    }
    return NULL;
}

static const SnapManifestFile *find_file(const SnapImage *image, const char *path) {
    for (guint i = 0; i < image->manifest->files->len; i++) {
        const SnapManifestFile *file = image->manifest->files->pdata[i];
        if (g_str_equal(file->path, path))
            return file;
    }
    g_assert_not_reached(); /* decoding has checked that it is listed */
}

GBytes *snap_image_state(const SnapImage *image, const char *name, GError **error) {
    const SnapManifestState *state = find_state(image, name);
    if (!state) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_FOUND, "%s: no state called \"%s\"", image->dir, name);
        return NULL;
    }
    struct stat status;
    int result = 0;
    g_autofree char *path = g_strconcat(SNAP_DIR_STATE "/", state->file, NULL);
    int fd = open_file(image, path, &status);
    if (fd < 0) {
        snap_image_fail(image, path, -fd, error);
        return NULL;
    }
    gboolean good = check_content(image, find_file(image, path), fd, (uint64_t)status.st_size, error);
    g_autofree char *data = good ? read_whole(fd, state->length_bytes, &result) : NULL;
    close(fd);
    if (good && !data)
        snap_image_fail(image, path, -result, error);
    return data ? g_bytes_new_take(g_steal_pointer(&data), state->length_bytes) : NULL;
}
