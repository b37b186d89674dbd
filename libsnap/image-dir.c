/*
 * Making, publishing and removing the directory of an image. See image-dir.h.
 *
 * The order that makes a crash harmless: every file and every directory entry is on disk before the manifest is
 * renamed to its name, and an error after the rename takes the manifest away again.
 */
#include "image-dir.h"

#include "image-file.h"
#include "sink.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

void snap_image_dir_fail(const SnapImageDir *dir, const char *path, int errnum, GError **error) {
    const char *slash = path[0] ? "/" : "";
    if (errnum == ENOSPC || errnum == EDQUOT)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NO_SPACE,
                    "%s%s%s: no space left, %" G_GUINT64_FORMAT
                    " bytes were written; free some room or save elsewhere",
                    dir->path, slash, path, (guint64)dir->bytes_written);
    else if (errnum == EFBIG)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED,
                    "%s%s%s: longer than a file may be there; raise ulimit -f or save to another file system",
                    dir->path, slash, path);
    else
        snap_set_errno(error, errnum, "%s%s%s", dir->path, slash, path);
}

static gboolean fail(const SnapImageDir *dir, const char *path, GError **error) {
    snap_image_dir_fail(dir, path, errno, error);
    return FALSE;
}

static gboolean exists(const SnapImageDir *dir, const char *what, GError **error) {
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_EXISTS, "%s: %s; choose another name or remove it", dir->path, what);
    return FALSE;
}

/* 1 when empty, 0 when not, -1 with errno set. */
static int is_empty(int fd) {
    int own = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *stream = own < 0 ? NULL : fdopendir(own);
    if (!stream) {
        if (own >= 0)
            close(own);
        return -1;
    }
    int n_entries = 0;
    while (n_entries < 3 && readdir(stream))
        n_entries++;
    closedir(stream);
    return n_entries <= 2; /* "." and ".." */
}

static gboolean make_sub(SnapImageDir *dir, const char *name, gboolean *ret_made, int *ret_fd, GError **error) {
    if (mkdirat(dir->fd, name, 0700) != 0)
        return errno == EEXIST ? exists(dir, "it is in use", error) : fail(dir, name, error);
    *ret_made = TRUE;
    *ret_fd = openat(dir->fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    return *ret_fd >= 0 || fail(dir, name, error);
}

static gboolean make(SnapImageDir *dir, GError **error) {
    dir->made = mkdir(dir->path, 0700) == 0;
    if (!dir->made && errno != EEXIST)
        return fail(dir, "", error);
    dir->fd = open(dir->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir->fd < 0)
        return errno == ENOTDIR ? exists(dir, "it is not a directory", error) : fail(dir, "", error);
    int empty = dir->made ? 1 : is_empty(dir->fd);
    if (empty <= 0)
        return empty == 0 ? exists(dir, "the directory is not empty", error) : fail(dir, "", error);
    return make_sub(dir, SNAP_DIR_RAM, &dir->made_ram, &dir->ram_fd, error) &&
           make_sub(dir, SNAP_DIR_STATE, &dir->made_state, &dir->state_fd, error);
}

gboolean snap_image_dir_make(SnapImageDir *dir, const char *path, GError **error) {
    *dir = (SnapImageDir){.fd = -1, .ram_fd = -1, .state_fd = -1};
    dir->path = g_canonicalize_filename(path, NULL);
    dir->made_files = g_ptr_array_new_with_free_func(g_free);
    if (make(dir, error))
        return TRUE;
    snap_image_dir_remove(dir);
    snap_image_dir_clear(dir);
    return FALSE;
}

static int open_file(SnapImageDir *dir, const char *path, gboolean direct, int flags, GError **error) {
    int fd = 0;
    if (direct)
        fd = snap_sink_open(dir->fd, path, flags);
    else if ((fd = openat(dir->fd, path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | flags, 0600)) < 0)
        fd = -errno;
    if (fd >= 0)
        return fd;
    snap_image_dir_fail(dir, path, -fd, error);
    return -1;
}

int snap_image_dir_create_file(SnapImageDir *dir, const char *path, gboolean direct, GError **error) {
    int fd = open_file(dir, path, direct, O_CREAT | O_EXCL, error);
    if (fd >= 0)
        g_ptr_array_add(dir->made_files, g_strdup(path));
    return fd;
}

int snap_image_dir_open_file(SnapImageDir *dir, const char *path, gboolean direct, GError **error) {
    return open_file(dir, path, direct, 0, error);
}

gboolean snap_image_dir_link_file(SnapImageDir *dir, const char *from, const char *path, GError **error) {
    if (linkat(AT_FDCWD, from, dir->fd, path, 0) != 0) {
        if (errno != EPERM && errno != EOPNOTSUPP && errno != EMLINK)
            return fail(dir, path, error);
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED,
                    "%s: images cannot be merged in place here, the file system takes no hard links", from);
        return FALSE;
    }
    g_ptr_array_add(dir->made_files, g_strdup(path));
    return TRUE;
}

gboolean snap_image_dir_sync(SnapImageDir *dir, GError **error) {
    if (fsync(dir->ram_fd) != 0)
        return fail(dir, SNAP_DIR_RAM, error);
    return fsync(dir->state_fd) == 0 || fail(dir, SNAP_DIR_STATE, error);
}

/* The directory's own entry in its parent. */
static gboolean sync_parent(SnapImageDir *dir, GError **error) {
    if (!dir->made)
        return TRUE;
    int parent = openat(dir->fd, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (parent < 0) /* one that may not be read cannot be synced, and that is no reason to fail */
        return errno == EACCES || errno == EPERM || fail(dir, "..", error);
    int result = fsync(parent);
    int errnum = errno;
    close(parent);
    errno = errnum;
    return result == 0 || fail(dir, "..", error);
}

static gboolean write_new_manifest(SnapImageDir *dir, const char *text, size_t length_bytes, GError **error) {
    int fd = snap_image_dir_create_file(dir, SNAP_FILE_MANIFEST_NEW, FALSE, error);
    if (fd < 0)
        return FALSE;
    int result = snap_file_write(fd, text, length_bytes, 0);
    if (result == 0 && fsync(fd) != 0)
        result = -errno;
    if (close(fd) != 0 && result == 0)
        result = -errno;
    if (result < 0)
        snap_image_dir_fail(dir, SNAP_FILE_MANIFEST, -result, error);
    return result == 0;
}

gboolean snap_image_dir_publish(SnapImageDir *dir, const char *manifest, size_t length_bytes, GError **error) {
    if (!write_new_manifest(dir, manifest, length_bytes, error))
        return FALSE;
    if (renameat(dir->fd, SNAP_FILE_MANIFEST_NEW, dir->fd, SNAP_FILE_MANIFEST) != 0)
        return fail(dir, SNAP_FILE_MANIFEST, error);
    if ((fsync(dir->fd) == 0 || fail(dir, "", error)) && sync_parent(dir, error))
        return TRUE;
    unlinkat(dir->fd, SNAP_FILE_MANIFEST, 0);
    return FALSE;
}

void snap_image_dir_remove(SnapImageDir *dir) {
    for (guint i = dir->made_files->len; i > 0; i--)
        unlinkat(dir->fd, dir->made_files->pdata[i - 1], 0);
    if (dir->made_ram)
        unlinkat(dir->fd, SNAP_DIR_RAM, AT_REMOVEDIR);
    if (dir->made_state)
        unlinkat(dir->fd, SNAP_DIR_STATE, AT_REMOVEDIR);
    if (dir->made)
        rmdir(dir->path);
}

void snap_image_dir_clear(SnapImageDir *dir) {
    int *const fds[] = {&dir->fd, &dir->ram_fd, &dir->state_fd};
    for (guint i = 0; i < G_N_ELEMENTS(fds); i++) {
        if (*fds[i] >= 0)
            close(*fds[i]);
        *fds[i] = -1;
    }
    g_clear_pointer(&dir->made_files, g_ptr_array_unref);
    g_clear_pointer(&dir->path, g_free);
}
