/*
 * Deleting an image directory, complete or not. See snap_image_delete() in libsnap.h.
 *
 * First everything is looked at: anything that could not be a file of an image refuses the whole, before a byte
 * is gone; and so does an image beside it that has it as its parent. Then the manifest goes, for good (fsync),
 * then the rest. What appears meanwhile keeps its directory from being removed.
 */
#include "chain.h"
#include "image-file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct {
    const char *dir;
    int fd;
    GPtrArray *files; /* of char *, relative; without the manifest */
    GPtrArray *dirs;  /* the same */
} Delete;

static gboolean fail(const Delete *delete, const char *path, GError **error) {
    snap_set_errno(error, errno, "%s/%s", delete->dir, path);
    return FALSE;
}

static gboolean refuse(const Delete *delete, const char *path, GError **error) {
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_REFUSED, "%s/%s: not part of an image; nothing was removed",
                delete->dir, path);
    return FALSE;
}

/* What may lie in ram/: BASE.SUFFIX. */
static gboolean ram_name_ok(const char *name) {
    static const char *const suffixes[] = {SNAP_SUFFIX_DATA, SNAP_SUFFIX_INDEX, ".zst"};
    for (guint i = 0; i < G_N_ELEMENTS(suffixes); i++) {
        if (!g_str_has_suffix(name, suffixes[i]))
            continue;
        g_autofree char *base = g_strndup(name, strlen(name) - strlen(suffixes[i]));
        return snap_file_base_name_ok(base);
    }
    return FALSE;
}

static gboolean name_ok(const char *sub, const char *name, mode_t type) {
    if (strcmp(sub, SNAP_DIR_RAM) == 0)
        return type == S_IFREG && ram_name_ok(name);
    if (strcmp(sub, SNAP_DIR_STATE) == 0)
        return type == S_IFREG && snap_file_base_name_ok(name);
    if (strcmp(name, SNAP_DIR_RAM) == 0 || strcmp(name, SNAP_DIR_STATE) == 0)
        return type == S_IFDIR;
    return type == S_IFREG && (strcmp(name, SNAP_FILE_MANIFEST) == 0 || strcmp(name, SNAP_FILE_MANIFEST_NEW) == 0);
}

static gboolean look_at(Delete *delete, const char *sub, const char *name, GError **error) {
    struct stat status;
    g_autofree char *path = sub[0] ? g_strconcat(sub, "/", name, NULL) : g_strdup(name);
    if (fstatat(delete->fd, path, &status, AT_SYMLINK_NOFOLLOW) != 0)
        return fail(delete, path, error);
    if (!name_ok(sub, name, status.st_mode & S_IFMT))
        return refuse(delete, path, error);
    if (S_ISDIR(status.st_mode))
        g_ptr_array_add(delete->dirs, g_steal_pointer(&path));
    else if (strcmp(path, SNAP_FILE_MANIFEST) != 0)
        g_ptr_array_add(delete->files, g_steal_pointer(&path));
    return TRUE;
}

static DIR *open_stream(const Delete *delete, const char *sub) {
    int fd = openat(delete->fd, sub[0] ? sub : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    DIR *stream = fd < 0 ? NULL : fdopendir(fd);
    if (!stream && fd >= 0)
        close(fd);
    return stream;
}

/* Look at everything in directory @sub, "" being the image's own. */
static gboolean scan(Delete *delete, const char *sub, GError **error) {
    DIR *stream = open_stream(delete, sub);
    if (!stream)
        return fail(delete, sub, error);
    gboolean good = TRUE;
    for (struct dirent *entry; good && (entry = readdir(stream));) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            good = look_at(delete, sub, entry->d_name, error);
    }
    closedir(stream);
    return good;
}

static gboolean remove_manifest(Delete *delete, GError **error) {
    if (unlinkat(delete->fd, SNAP_FILE_MANIFEST, 0) == 0)
        return fsync(delete->fd) == 0 || fail(delete, "", error);
    return errno == ENOENT || fail(delete, SNAP_FILE_MANIFEST, error);
}

static gboolean remove_all(Delete *delete, const GPtrArray *paths, int flags, GError **error) {
    for (guint i = 0; i < paths->len; i++) {
        if (unlinkat(delete->fd, paths->pdata[i], flags) != 0 && errno != ENOENT)
            return fail(delete, paths->pdata[i], error);
    }
    return TRUE;
}

static gboolean run(Delete *delete, GError **error) {
    if (!scan(delete, "", error))
        return FALSE;
    guint n_dirs = delete->dirs->len;
    for (guint i = 0; i < n_dirs; i++) {
        if (!scan(delete, delete->dirs->pdata[i], error))
            return FALSE;
    }
    if (!remove_manifest(delete, error) || !remove_all(delete, delete->files, 0, error) ||
        !remove_all(delete, delete->dirs, AT_REMOVEDIR, error))
        return FALSE;
    return rmdir(delete->dir) == 0 || fail(delete, "", error);
}

gboolean snap_image_remove(const char *dir, GError **error) {
    g_autofree char *absolute = realpath(dir, NULL);
    int fd = absolute ? open(absolute, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (fd < 0) {
        if (errno == ENOTDIR || errno == ENOENT)
            g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_FOUND, "%s: no such image directory", dir);
        else
            snap_set_errno(error, errno, "%s", dir);
        return FALSE;
    }
    Delete delete = {absolute, fd, g_ptr_array_new_with_free_func(g_free), g_ptr_array_new_with_free_func(g_free)};
    gboolean good = run(&delete, error);
    g_ptr_array_unref(delete.files);
    g_ptr_array_unref(delete.dirs);
    close(fd);
    return good;
}

/* TRUE when another image beside has the same content, and can be the parent in its place. */
static gboolean is_there_twice(const GPtrArray *found, const char *id) {
    for (guint i = 0; i < found->len; i++) {
        const SnapListed *other = found->pdata[i];
        if (!g_str_equal(other->manifest->id, id))
            continue;
        g_autoptr(SnapImage) image = snap_image_open(other->dir, NULL);
        if (image)
            return TRUE;
    }
    return FALSE;
}

/* Nothing beside @dir needs it. */
static gboolean check_children(const char *dir, GError **error) {
    g_autoptr(GError) problem = NULL;
    g_autoptr(SnapManifest) manifest = snap_image_read_manifest(dir, &problem);
    if (!manifest && problem->code == SNAP_ERROR_IO) {
        g_propagate_error(error, g_steal_pointer(&problem));
        return FALSE;
    }
    if (!manifest)
        return TRUE; /* incomplete or damaged: nobody's parent */
    g_autofree char *folder = g_path_get_dirname(dir);
    g_autoptr(GPtrArray) found = snap_chain_list_folder(folder, dir);
    for (guint i = 0; i < found->len; i++) {
        const SnapListed *other = found->pdata[i];
        if (g_strcmp0(other->manifest->parent_id, manifest->id) != 0)
            continue;
        if (is_there_twice(found, manifest->id))
            return TRUE;
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_REFUSED,
                    "%s: %s is its child and needs it; delete that first, or merge it into an image of its own",
                    dir, other->dir);
        return FALSE;
    }
    return TRUE;
}

gboolean snap_image_delete(const char *dir, GError **error) {
    g_autofree char *absolute = realpath(dir, NULL);
    gboolean is_dir = absolute && g_file_test(absolute, G_FILE_TEST_IS_DIR);
    return (!is_dir || check_children(absolute, error)) && snap_image_remove(dir, error);
}
