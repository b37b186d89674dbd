/*
 * Listing the images of a folder. See snap_image_list() in libsnap.h.
 *
 * Happy path: each directory that could be an image is opened alone, once; parents are then looked for among them,
 * so that a chain of hundreds is listed in one go and not opened hundreds of times. A parent that is elsewhere
 * makes its child be opened with all its parents.
 *
 * Failure modes: an image that cannot be opened is listed with the reason; so is one whose parent cannot.
 *
 * Invariant: an entry's parent is decided before the entry is; a walk up the parents ends at one that is decided,
 * at one that is elsewhere, or at one it has passed already.
 */
#include "chain.h"
#include "image-file.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct {
    SnapImageEntry public; /* first */
    SnapImage *image;      /* (nullable) opened alone; what public.info borrows from */
    gboolean decided;      /* public is as it will be */
    gboolean passed;       /* by the walk under way */
} Entry;

static void free_entry(void *opaque) {
    Entry *entry = opaque;
    snap_image_free(entry->image);
    g_free(entry->public.dir);
    g_free(entry->public.parent_dir);
    g_clear_error(&entry->public.problem);
    g_free(entry);
}

/* A directory that has a manifest, or that has a ram folder, as an image has from its first moment. */
static gboolean looks_like_image(const char *dir) {
    struct stat status;
    g_autofree char *manifest = g_build_filename(dir, SNAP_FILE_MANIFEST, NULL);
    g_autofree char *ram = g_build_filename(dir, SNAP_DIR_RAM, NULL);
    return lstat(manifest, &status) == 0 || (stat(ram, &status) == 0 && S_ISDIR(status.st_mode));
}

static Entry *new_entry(const char *dir) {
    Entry *entry = g_new0(Entry, 1);
    entry->public.dir = g_strdup(dir);
    entry->image = snap_image_open_alone(dir, &entry->public.problem);
    if (!entry->image) {
        entry->decided = TRUE;
        return entry;
    }
    close(entry->image->fd); /* there may be more of them than descriptors */
    entry->image->fd = -1;
    entry->public.info = entry->image->info;
    for (guint i = 0; i < entry->image->info.n_regions; i++)
        entry->public.length_bytes += entry->image->regions[i].header.region_bytes;
    return entry;
}

static void set_problem(Entry *entry, GError *problem) {
    entry->public.problem = problem;
    entry->decided = TRUE;
}

/* One whose parent is not in the folder, or that has none. */
static void decide_alone(Entry *entry) {
    GError *problem = NULL;
    if (!entry->image->manifest->parent_id && !entry->image->manifest->folding_into) {
        entry->decided = TRUE;
        return;
    }
    g_autoptr(SnapImage) image = snap_image_open(entry->public.dir, &problem);
    if (image) {
        entry->public.parent_dir = g_strdup(image->info.parent_dir);
        entry->public.info.n_parents = image->info.n_parents;
    }
    set_problem(entry, problem);
}

/* What its parent's problem is, is its own too; unless that is only that it is being merged into this one. */
static void decide_by_parent(Entry *entry, const Entry *parent) {
    GError *problem = NULL;
    entry->public.parent_dir = g_strdup(parent->public.dir);
    if (!parent->image || (parent->public.problem && !parent->image->manifest->folding_into))
        problem = g_error_copy(parent->public.problem);
    else
        snap_chain_check_pair(entry->image, parent->image, &problem);
    entry->public.info.n_parents = parent->public.info.n_parents + 1;
    set_problem(entry, problem);
}

static Entry *parent_of(const Entry *entry, GHashTable *by_id) {
    const char *id = entry->image ? entry->image->manifest->parent_id : NULL;
    return id ? g_hash_table_lookup(by_id, id) : NULL;
}

/* @entry and, before it, all its parents. */
static void decide(Entry *entry, GHashTable *by_id) {
    g_autoptr(GPtrArray) passed = g_ptr_array_new();
    for (Entry *at = entry; at && !at->decided && !at->passed; at = parent_of(at, by_id)) {
        at->passed = TRUE;
        g_ptr_array_add(passed, at);
    }
    for (guint i = passed->len; i > 0; i--) {
        Entry *at = passed->pdata[i - 1], *parent = parent_of(at, by_id);
        if (parent && parent->decided)
            decide_by_parent(at, parent);
        else
            decide_alone(at); /* which also finds a circle */
    }
}

/* Of two with the same content rather the one that needs no other. */
static void add_id(GHashTable *by_id, Entry *entry) {
    const SnapManifest *manifest = entry->image ? entry->image->manifest : NULL;
    if (manifest && (!manifest->parent_id || !g_hash_table_contains(by_id, manifest->id)))
        g_hash_table_insert(by_id, manifest->id, entry);
}

/* Oldest first, a parent before its child; what is none, or damaged, at the end. */
static int compare(const void *a, const void *b) {
    const Entry *x = *(Entry *const *)a, *y = *(Entry *const *)b;
    if (!x->image != !y->image)
        return x->image ? -1 : 1;
    int order = x->image ? strcmp(x->public.info.created, y->public.info.created) : 0;
    if (order == 0)
        order = (x->public.info.n_parents > y->public.info.n_parents) -
                (x->public.info.n_parents < y->public.info.n_parents);
    return order != 0 ? order : strcmp(x->public.dir, y->public.dir);
}

static int compare_names(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* GLib's text for these names the folder in the middle, and its code hides the errno. */
static int errno_of_file_error(const GError *error) {
    switch (error->code) {
    case G_FILE_ERROR_NOENT:
        return ENOENT;
    case G_FILE_ERROR_ACCES:
        return EACCES;
    case G_FILE_ERROR_NOTDIR:
        return ENOTDIR;
    default:
        return EIO;
    }
}

/* Paths of what is in a folder, hidden things aside. */
static GPtrArray *read_folder(const char *folder, GError **error) {
    g_autoptr(GError) why = NULL;
    g_autoptr(GDir) dir = g_dir_open(folder, 0, &why);
    if (!dir) {
        snap_set_errno(error, errno_of_file_error(why), "%s", folder);
        return NULL;
    }
    GPtrArray *paths = g_ptr_array_new_with_free_func(g_free);
    for (const char *name; (name = g_dir_read_name(dir));) {
        if (name[0] != '.')
            g_ptr_array_add(paths, g_build_filename(folder, name, NULL));
    }
    g_ptr_array_sort(paths, compare_names);
    return paths;
}

GPtrArray *snap_image_list(const char *dir, GError **error) {
    g_autoptr(GPtrArray) paths = NULL;
    g_autoptr(GHashTable) by_id = g_hash_table_new(g_str_hash, g_str_equal);
    gboolean is_image = looks_like_image(dir);
    if (!is_image && !(paths = read_folder(dir, error)))
        return NULL;
    GPtrArray *entries = g_ptr_array_new_with_free_func(free_entry);
    if (is_image)
        g_ptr_array_add(entries, new_entry(dir));
    for (guint i = 0; paths && i < paths->len; i++) {
        if (looks_like_image(paths->pdata[i]))
            g_ptr_array_add(entries, new_entry(paths->pdata[i]));
    }
    for (guint i = 0; i < entries->len; i++)
        add_id(by_id, entries->pdata[i]);
    for (guint i = 0; i < entries->len; i++)
        decide(entries->pdata[i], by_id);
    g_ptr_array_sort(entries, compare);
    return entries;
}
