/*
 * Opening an image: the manifest and every file it lists. See "images" in libsnap.h.
 *
 * Happy path: read and decode the manifest → each file is there, regular, of its length, and the small ones have
 * their checksums → every index says what the manifest says, and its records make sense. After that, reading
 * relies on all of it except page data. Then the same for each parent (chain.c).
 *
 * The directory is locked (flock, shared) until that of its parent is, the last one of a chain for as long as the
 * image is open: that is the one which merging changes (image-fold.c), and whoever merges waits for readers, or
 * gives up. A lock that came too late, after the directory at this path had been exchanged, is taken again.
 *
 * Failure modes: INCOMPLETE without a manifest; with one, whatever is missing or wrong is CORRUPT, by file name.
 */
#include "image-open.h"

#include "chain.h"
#include "image-file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_TRIES 8 /* so often a directory may be exchanged under our hands */

/* ---- opening --------------------------------------------------------------------------------------------- */

/* TRUE when @fd is still what is found at @path. */
static gboolean is_at(int fd, const char *path) {
    struct stat held, found;
    return fstat(fd, &held) == 0 && stat(path, &found) == 0 && held.st_dev == found.st_dev &&
           held.st_ino == found.st_ino;
}

/* The directory, locked where its file system can do that; -1 with errno set. */
static int open_locked(const char *path) {
    for (int i = 0;; i++) {
        int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd < 0)
            return -1;
        while (flock(fd, LOCK_SH) != 0 && errno == EINTR)
            ;
        if (is_at(fd, path) || i == MAX_TRIES)
            return fd;
        close(fd);
    }
}

static gboolean open_directory(SnapImage *image, const char *dir, GError **error) {
    g_autofree char *absolute = realpath(dir, NULL);
    if (absolute)
        image->fd = open_locked(absolute);
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

static SnapManifest *read_manifest(const SnapImage *image, GError **error) {
    struct stat status = {0};
    int fd = snap_image_open_file(image, SNAP_FILE_MANIFEST, &status);
    if (fd == -ENOENT)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_INCOMPLETE,
                    "%s: the image is incomplete, it has no " SNAP_FILE_MANIFEST
                    "; it was not saved to the end and can only be deleted",
                    image->dir);
    else if (fd < 0)
        snap_image_fail(image, SNAP_FILE_MANIFEST, -fd, error);
    if (fd < 0)
        return NULL;
    int result = 0;
    uint64_t length_bytes = MIN((uint64_t)status.st_size, (uint64_t)SNAP_MANIFEST_MAX_BYTES + 1);
    g_autofree char *text = read_whole(fd, length_bytes, &result);
    close(fd);
    if (!text) {
        snap_image_fail(image, SNAP_FILE_MANIFEST, -result, error);
        return NULL;
    }
    SnapManifest *manifest = snap_manifest_decode(text, (size_t)length_bytes, error);
    if (!manifest)
        g_prefix_error(error, "%s/", image->dir);
    return manifest;
}

SnapManifest *snap_image_read_manifest(const char *dir, GError **error) {
    const SnapImage image = {.fd = -1, .dir = (char *)dir};
    return read_manifest(&image, error);
}

static void set_region(const SnapImage *image, SnapOpenRegion *region, const SnapManifestRegion *entry) {
    region->image = image;
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
        .raw_path = image->manifest->parent_id ? NULL : region->raw_path,
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
        .guest = manifest->guest,
        .created = manifest->created,
        .page_bytes = manifest->page_bytes,
        .n_regions = manifest->regions->len,
        .n_states = manifest->states->len,
    };
    image->regions = g_new0(SnapOpenRegion, manifest->regions->len);
    image->by_name = g_hash_table_new(g_str_hash, g_str_equal);
    image->files = g_hash_table_new(g_str_hash, g_str_equal);
    for (guint i = 0; i < manifest->files->len; i++) {
        SnapManifestFile *file = manifest->files->pdata[i];
        g_hash_table_insert(image->files, file->path, file);
    }
    for (guint i = 0; i < manifest->regions->len; i++) {
        set_region(image, &image->regions[i], manifest->regions->pdata[i]);
        g_hash_table_insert(image->by_name, (char *)image->regions[i].public.name, GUINT_TO_POINTER(i + 1));
    }
}

static gboolean check_files(SnapImage *image, GError **error) {
    g_autofree uint64_t *held = g_new0(uint64_t, image->info.n_regions + 1);
    if (!snap_image_check_files(image, held, error))
        return FALSE;
    for (guint i = 0; i < image->info.n_regions; i++) {
        image->regions[i].held = held[i];
        image->info.pages_held += held[i];
    }
    return TRUE;
}

SnapImage *snap_image_open_alone(const char *dir, GError **error) {
    g_autoptr(SnapImage) image = g_new0(SnapImage, 1);
    image->fd = -1;
    image->kept = g_new0(SnapKept, 1);
    snap_lock_init(&image->kept->lock);
    if (!open_directory(image, dir, error) || !(image->manifest = read_manifest(image, error)))
        return NULL;
    set_info(image);
    return check_files(image, error) ? g_steal_pointer(&image) : NULL;
}

gboolean snap_image_refuse_folding(const SnapImage *image, GError **error) {
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_INCOMPLETE,
                "%s: it is being merged into its child, image %s, and is no image by itself any more", image->dir,
                image->manifest->folding_into);
    return FALSE;
}

SnapImage *snap_image_open(const char *dir, GError **error) {
    g_autoptr(SnapImage) image = snap_image_open_alone(dir, error);
    if (!image || (image->manifest->folding_into && !snap_image_refuse_folding(image, error)))
        return NULL;
    return snap_chain_complete(image, error) ? g_steal_pointer(&image) : NULL;
}

static void free_kept(SnapKept *kept) {
    snap_lock_clear(&kept->lock);
    g_free(kept);
}

void snap_image_share_kept(SnapImage *image, const SnapImage *head) {
    free_kept(image->kept);
    image->kept = head->kept;
}

/* One image of a chain, without what it has in common with the others. */
static void free_alone(SnapImage *image) {
    for (guint i = 0; i < image->info.n_regions; i++) {
        SnapOpenRegion *region = &image->regions[i];
        snap_image_drop_files(region);
        g_free(region->flat);
        g_free(region->checked);
        g_free(region->data_path);
        g_free(region->index_path);
        g_free(region->raw_path);
    }
    g_free(image->regions);
    g_clear_pointer(&image->by_name, g_hash_table_unref);
    g_clear_pointer(&image->files, g_hash_table_unref);
    snap_manifest_free(image->manifest);
    if (image->fd >= 0)
        close(image->fd);
    g_free(image->dir);
    g_free(image);
}

void snap_image_free(SnapImage *image) {
    if (!image)
        return;
    free_kept(image->kept);
    while (image) {
        SnapImage *parent = image->parent;
        free_alone(image);
        image = parent;
    }
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

const SnapManifestFile *snap_image_find_file(const SnapImage *image, const char *path) {
    const SnapManifestFile *file = g_hash_table_lookup(image->files, path);
    g_assert(file); /* decoding has checked that it is listed */
    return file;
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
    int fd = snap_image_open_file(image, path, &status);
    if (fd < 0) {
        snap_image_fail(image, path, -fd, error);
        return NULL;
    }
    gboolean good =
        snap_image_check_content(image, snap_image_find_file(image, path), fd, (uint64_t)status.st_size, error);
    g_autofree char *data = good ? read_whole(fd, state->length_bytes, &result) : NULL;
    close(fd);
    if (good && !data)
        snap_image_fail(image, path, -result, error);
    return data ? g_bytes_new_take(g_steal_pointer(&data), state->length_bytes) : NULL;
}
