/*
 * Merging the oldest image of a chain into its child, in place. See snap_image_fold() in libsnap.h.
 *
 * The parent's data files become the child's, by hard links, and only the child's pages are written. Directories
 * are made ready beside the images and exchanged with them, which is one step for whoever looks (RENAME_EXCHANGE):
 *
 *     make     two directories, complete and on disk: the parent without the pages that the child holds, marked as
 *              being merged into it; and the child with all pages and no parent
 *     A        exchange the parent                  from here on only the child and its children can be read
 *     write    the child's pages into the parent's data files, and fsync
 *     B        exchange the child                   it is complete by itself
 *     remove   what the parent has become, and what both have been
 *
 * After every step, and in the middle of every step, the child reads the same: until B by way of its parent, whose
 * checksums do not cover the pages that are being written, then by itself. Every step is on disk before the next.
 *
 * Failure modes: an error or a kill before A leaves directories that mean nothing, with names that start with a
 * dot; they are removed by the next merge. Between A and B the marked parent tells that the rest is to be done
 * (again from the start: writing the pages twice does no harm). After B it is removed. Damaged pages are found
 * while the indexes are made, before A.
 *
 * Others: readers hold a shared lock on the oldest image of their chain, and on each other one until they have
 * that of its parent (image-open.c); A needs an exclusive one on the oldest, B on both. A data file that somebody
 * has open (a guest that was restored by mapping it) or that has another name (a copy made of hard links) is left
 * alone.
 */
#include "image-fold.h"

#include "chain.h"
#include "fold-merge.h"
#include "image-file.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <unistd.h>

#define LOCK_WAIT_MS 500 /* images are opened in less */
#define LOCK_POLL_MS 5

static void fold_clear(SnapFold *fold) {
    g_clear_pointer(&fold->folder, g_free);
    g_clear_pointer(&fold->parent, snap_image_free);
    g_clear_pointer(&fold->child, snap_image_free);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(SnapFold, fold_clear)

static gboolean refuse(const char *dir, const char *why, GError **error) {
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_REFUSED, "%s: it cannot be merged into its child: %s", dir, why);
    return FALSE;
}

static gboolean in_use(const char *dir, GError **error) {
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_TIMED_OUT,
                "%s: somebody uses the image; it can be merged when nobody does", dir);
    return FALSE;
}

/* ---- locks ----------------------------------------------------------------------------------------------- */

static gboolean lock_exclusively(int fd, const char *dir, GError **error) {
    for (int waited_ms = 0; flock(fd, LOCK_EX | LOCK_NB) != 0; waited_ms += LOCK_POLL_MS) {
        if (errno != EWOULDBLOCK && errno != EINTR)
            return TRUE; /* a file system without locks: nobody else can have one */
        if (waited_ms >= LOCK_WAIT_MS)
            return in_use(dir, error);
        g_usleep(LOCK_POLL_MS * 1000);
    }
    return TRUE;
}

/* A folder in which nobody else is merging; -1 on error. */
static int open_folder(const char *folder, GError **error) {
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        snap_set_errno(error, errno, "%s", folder);
        return -1;
    }
    if (lock_exclusively(fd, folder, error))
        return fd;
    close(fd);
    return -1;
}

/*
 * TRUE when nobody else has the file open or mapped: then, and only then, the kernel grants a lease for writing.
 * The signal that tells of somebody who opens it in this moment is one that nobody minds.
 */
static gboolean is_unused(int fd) {
    fcntl(fd, F_SETSIG, SIGURG);
    gboolean unused = fcntl(fd, F_SETLEASE, F_WRLCK) == 0 || errno != EAGAIN;
    fcntl(fd, F_SETLEASE, F_UNLCK);
    return unused;
}

typedef gboolean (*CheckFunc)(const SnapOpenRegion *region, GError **error);

static gboolean check_links(const SnapOpenRegion *region, GError **error) {
    struct stat status;
    if (stat(region->raw_path, &status) != 0)
        return snap_image_fail(region->image, region->data_path, errno, error);
    return status.st_nlink == 1 ||
           refuse(region->raw_path, "it has another name too, a hard link, whose content would change", error);
}

static gboolean check_use(const SnapOpenRegion *region, GError **error) {
    struct stat status;
    int fd = snap_image_open_file(region->image, region->data_path, &status);
    if (fd < 0)
        return snap_image_fail(region->image, region->data_path, -fd, error);
    gboolean unused = is_unused(fd);
    close(fd);
    return unused || in_use(region->raw_path, error);
}

/* Hold every data file that will be written against @check. */
static gboolean check_data_files(const SnapFold *fold, CheckFunc check, GError **error) {
    for (guint i = 0; i < fold->child->info.n_regions; i++) {
        const SnapOpenRegion *parent = snap_fold_parent_region(fold, i);
        if (parent && snap_fold_changes(fold, i) && !check(parent, error))
            return FALSE;
    }
    return TRUE;
}

/* ---- steps ----------------------------------------------------------------------------------------------- */

static gboolean sync_folder(const char *folder, int fd, GError **error) {
    if (fsync(fd) == 0)
        return TRUE;
    snap_set_errno(error, errno, "%s", folder);
    return FALSE;
}

/* The image at @dir and the directory @name beside it change places, for good. */
static gboolean exchange(const SnapFold *fold, int folder_fd, const char *dir, const char *name, GError **error) {
    g_autofree char *base = g_path_get_basename(dir);
    if (renameat2(folder_fd, base, folder_fd, name, RENAME_EXCHANGE) == 0)
        return sync_folder(fold->folder, folder_fd, error);
    if (errno == EINVAL || errno == ENOSYS)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED,
                    "%s: images cannot be merged in place here, the file system cannot exchange two directories",
                    dir);
    else
        snap_set_errno(error, errno, "%s", dir);
    return FALSE;
}

static gboolean remove_beside(const char *folder, int folder_fd, const char *name, GError **error) {
    g_autofree char *path = g_build_filename(folder, name, NULL);
    return faccessat(folder_fd, name, F_OK, AT_SYMLINK_NOFOLLOW) != 0 || snap_image_remove(path, error);
}

/* What a merge leaves beside the images, whether it came to its end or not. */
static gboolean clean(const char *folder, int folder_fd, GError **error) {
    return remove_beside(folder, folder_fd, SNAP_FOLD_PARENT, error) &&
           remove_beside(folder, folder_fd, SNAP_FOLD_CHILD, error) &&
           remove_beside(folder, folder_fd, SNAP_FOLD_DONE, error);
}

/* Remove what a parent had become. By another name first: without its mark it would look like any image. */
static gboolean remove_marked(const char *folder, int folder_fd, const char *dir, GError **error) {
    g_autofree char *base = g_path_get_basename(dir);
    if (renameat(folder_fd, base, folder_fd, SNAP_FOLD_DONE) != 0) {
        snap_set_errno(error, errno, "%s", dir);
        return FALSE;
    }
    return sync_folder(folder, folder_fd, error) && clean(folder, folder_fd, error);
}

/* Make and A; after it fold->parent is what it has become. */
static gboolean exchange_parent(SnapFold *fold, int folder_fd, GError **error) {
    g_autofree char *dir = g_strdup(fold->parent->dir);
    if (!check_data_files(fold, check_links, error) || !snap_fold_make_dirs(fold, error) ||
        !lock_exclusively(fold->parent->fd, dir, error) || !check_data_files(fold, check_use, error) ||
        !exchange(fold, folder_fd, dir, SNAP_FOLD_PARENT, error))
        return FALSE;
    g_clear_pointer(&fold->parent, snap_image_free);
    fold->parent = snap_image_open_alone(dir, error);
    return fold->parent != NULL;
}

/* The child's pages of one region, into the data file that will be its. */
static gboolean write_region(SnapOpenRegion *parent, SnapOpenRegion *child, SnapSyncs *syncs, GError **error) {
    int fd = openat(AT_FDCWD, parent->raw_path, O_WRONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return snap_image_fail(parent->image, parent->data_path, errno, error);
    if (snap_fold_write_pages(child, fd, parent->raw_path, error))
        return snap_syncs_add(syncs, fd, parent->raw_path, error);
    close(fd);
    return FALSE;
}

static gboolean write_all(const SnapFold *fold, GError **error) {
    g_autoptr(SnapSyncs) syncs = snap_syncs_new();
    for (guint i = 0; i < fold->child->info.n_regions; i++) {
        SnapOpenRegion *parent = snap_fold_parent_region(fold, i);
        if (parent && snap_fold_changes(fold, i) && !write_region(parent, &fold->child->regions[i], syncs, error))
            return FALSE;
    }
    return snap_syncs_finish(syncs, error);
}

/* Write, B and remove. */
static gboolean finish(const SnapFold *fold, int folder_fd, GError **error) {
    /* The child first, as readers do it. */
    return write_all(fold, error) && lock_exclusively(fold->child->fd, fold->child->dir, error) &&
           lock_exclusively(fold->parent->fd, fold->parent->dir, error) &&
           exchange(fold, folder_fd, fold->child->dir, SNAP_FOLD_CHILD, error) &&
           remove_marked(fold->folder, folder_fd, fold->parent->dir, error);
}

/* ---- one merge ------------------------------------------------------------------------------------------- */

static gboolean check_only_child(const SnapFold *fold, GError **error) {
    g_autoptr(GPtrArray) found = snap_chain_list_folder(fold->folder, fold->child->dir);
    for (guint i = 0; i < found->len; i++) {
        const SnapListed *other = found->pdata[i];
        if (g_strcmp0(other->manifest->parent_id, fold->parent->manifest->id) != 0)
            continue;
        g_autofree char *why = g_strdup_printf("%s is its child too", other->dir);
        return refuse(fold->parent->dir, why, error);
    }
    return TRUE;
}

static gboolean check(const SnapFold *fold, GError **error) {
    g_autofree char *folder = g_path_get_dirname(fold->parent->dir);
    if (g_strcmp0(fold->child->manifest->parent_id, fold->parent->manifest->id) != 0) {
        g_autofree char *why = g_strdup_printf("%s is not its child", fold->child->dir);
        return refuse(fold->parent->dir, why, error);
    }
    if (fold->parent->manifest->parent_id)
        return refuse(fold->parent->dir, "it has a parent itself; merge that first", error);
    if (!g_str_equal(folder, fold->folder))
        return refuse(fold->parent->dir, "that is in another folder", error);
    return snap_chain_check_pair(fold->child, fold->parent, error) && check_only_child(fold, error);
}

/* From whatever step an earlier attempt has come to. */
static gboolean run(SnapFold *fold, int folder_fd, GError **error) {
    const SnapManifest *parent = fold->parent->manifest, *child = fold->child->manifest;
    if (!child->parent_id && g_strcmp0(parent->folding_into, child->id) == 0)
        return lock_exclusively(fold->parent->fd, fold->parent->dir, error) &&
               remove_marked(fold->folder, folder_fd, fold->parent->dir, error);
    if (!check(fold, error))
        return FALSE;
    gboolean ready =
        parent->folding_into ? snap_fold_make_dirs(fold, error) : exchange_parent(fold, folder_fd, error);
    return ready && finish(fold, folder_fd, error);
}

static gboolean fold_in(const char *folder, int folder_fd, const char *parent_dir, const char *child_dir,
                        GError **error) {
    g_auto(SnapFold) fold = {.folder = g_strdup(folder)};
    if (!clean(folder, folder_fd, error))
        return FALSE;
    fold.parent = snap_image_open_alone(parent_dir, error);
    fold.child = fold.parent ? snap_image_open_alone(child_dir, error) : NULL;
    if (!fold.child)
        return FALSE;
    if (run(&fold, folder_fd, error))
        return TRUE;
    clean(folder, folder_fd, NULL);
    return FALSE;
}

gboolean snap_image_fold(const char *parent_dir, const char *child_dir, GError **error) {
    g_autofree char *child = realpath(child_dir, NULL);
    if (!child) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_FOUND, "%s: no such image directory", child_dir);
        return FALSE;
    }
    g_autofree char *folder = g_path_get_dirname(child);
    int folder_fd = open_folder(folder, error);
    gboolean good = folder_fd >= 0 && fold_in(folder, folder_fd, parent_dir, child, error);
    if (folder_fd >= 0)
        close(folder_fd);
    return good;
}

/* ---- what was interrupted -------------------------------------------------------------------------------- */

/* The image that a marked one is being merged into: its child still, or without a parent already. */
static const SnapListed *find_child(const GPtrArray *found, const SnapManifest *marked) {
    const SnapListed *whole = NULL;
    for (guint i = 0; i < found->len; i++) {
        const SnapListed *other = found->pdata[i];
        if (!g_str_equal(other->manifest->id, marked->folding_into))
            continue;
        if (g_strcmp0(other->manifest->parent_id, marked->id) == 0)
            return other;
        if (!other->manifest->parent_id)
            whole = other;
    }
    return whole;
}

static gboolean recover_in(const char *folder, int folder_fd, GError **error) {
    g_autoptr(GPtrArray) found = snap_chain_list_folder(folder, NULL);
    for (guint i = 0; i < found->len; i++) {
        const SnapListed *listed = found->pdata[i];
        const SnapListed *child = listed->manifest->folding_into ? find_child(found, listed->manifest) : NULL;
        /* Without its child it is nobody's parent: of no use, and nobody's but the user's to delete. */
        if (child && !fold_in(folder, folder_fd, listed->dir, child->dir, error))
            return FALSE;
    }
    return clean(folder, folder_fd, error);
}

gboolean snap_image_fold_recover(const char *dir, GError **error) {
    g_autofree char *folder = realpath(dir, NULL);
    if (!folder) {
        snap_set_errno(error, errno, "%s", dir);
        return FALSE;
    }
    int folder_fd = open_folder(folder, error);
    gboolean good = folder_fd >= 0 && recover_in(folder, folder_fd, error);
    if (folder_fd >= 0)
        close(folder_fd);
    return good;
}
