/*
 * Without a guest: epochs become images, each the child of the one before.
 *
 * Happy path: the pages of a CHUNK are checked and written to a file that has no name, chunk by chunk as they
 * come, each at a place of its own; what comes again goes to the same place. At END they are read back, in order,
 * and put into an image; READY says that it is on disk. Failure modes: a full disk, or whatever the image writer
 * fails with: the image is removed, the migration ends, those before it stay.
 *
 * The guest may have other regions from one epoch to the next. What comes for those that are kept goes on where it
 * was; one that is new hides what the image before has under its name.
 *
 * Not straight into an image: a chunk is put there once, and the first copy has many rounds. Not kept in memory:
 * it may be as large as the guest.
 *
 * Lock: a leaf. Data channels look their chunks up; each then has its chunks for itself.
 */
#include "incoming.h"

#include "image-file.h"
#include "image-write.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

/* FOLDS_MOST: merged after an epoch. More than one, so that what was held off is made up for. */
enum { BUFFERS = 16, NO_PLACE = -1, FOLDS_MOST = 2 };

/* A chunk that has come. */
typedef struct {
    uint64_t chunk;
    uint64_t present;
    uint64_t zero;
    int64_t place; /* in the file, in chunks; NO_PLACE: nothing of it is there */
} Arrived;

struct SnapIncomingImage {
    /* set before start */
    int fd;               /* of the file without a name */
    uint64_t chunk_bytes; /* of the largest pages */

    /* under lock */
    SnapLock lock;
    GHashTable **chunks; /* a table a region, of Arrived by number */
    int64_t n_places;

    /* snap-incoming only */
    unsigned n_images; /* ever made: the number of the last one */
    unsigned n_folded; /* the oldest of them, which are no more */
    char *last;        /* (nullable) the directory of the image before */
};

/* ---- the folder ------------------------------------------------------------------------------------------ */

static bool is_image_name(const char *name) {
    return strlen(name) == 6 && strspn(name, "0123456789") == 6;
}

gboolean snap_incoming_image_prepare(const char *dir, bool *ret_made, GError **error) {
    g_autoptr(GDir) folder = NULL;
    *ret_made = mkdir(dir, 0700) == 0;
    if (!*ret_made && errno != EEXIST) {
        snap_set_errno(error, errno, "%s", dir);
        return FALSE;
    }
    folder = g_dir_open(dir, 0, NULL);
    if (!folder) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_IO, "%s: it cannot be read as a folder", dir);
        return FALSE;
    }
    for (const char *name; (name = g_dir_read_name(folder));) {
        if (is_image_name(name)) {
            g_set_error(error, SNAP_ERROR, SNAP_ERROR_EXISTS, "%s: there are images in it, %s first", dir, name);
            return FALSE;
        }
    }
    return TRUE;
}

/* Some file systems have no O_TMPFILE. */
static int open_nameless(const char *dir) {
    int fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR && errno != ENOENT))
        return fd;
    g_autofree char *path = g_build_filename(dir, ".incoming-XXXXXX", NULL);
    fd = mkostemp(path, O_CLOEXEC);
    if (fd >= 0)
        unlink(path);
    return fd;
}

/* ---- life ------------------------------------------------------------------------------------------------ */

static void free_tables(GHashTable **chunks) {
    for (guint i = 0; chunks[i]; i++)
        g_hash_table_unref(chunks[i]);
    g_free(chunks);
}

static GHashTable *chunks_new(void) {
    return g_hash_table_new_full(g_int64_hash, g_int64_equal, NULL, g_free);
}

static uint64_t largest_page(const SnapIncoming *incoming) {
    uint64_t bytes = incoming->hello.page_bytes;
    for (guint i = 0; i < incoming->regions->len; i++) {
        const SnapIncomingRegion *region = g_ptr_array_index(incoming->regions, i);
        bytes = MAX(bytes, region->region->page_bytes);
    }
    return bytes;
}

SnapIncomingImage *snap_incoming_image_new(SnapIncoming *incoming, GError **error) {
    int fd = open_nameless(incoming->image_dir);
    if (fd < 0) {
        snap_set_errno(error, errno, "%s: a temporary file", incoming->image_dir);
        return NULL;
    }
    SnapIncomingImage *image = g_new0(SnapIncomingImage, 1);
    snap_lock_init(&image->lock);
    image->fd = fd;
    image->chunk_bytes = largest_page(incoming) * SNAP_CHUNK_PAGES;
    image->chunks = g_new0(GHashTable *, incoming->regions->len + 1); /* NULL at its end */
    for (guint i = 0; i < incoming->regions->len; i++)
        image->chunks[i] = chunks_new();
    return image;
}

void snap_incoming_image_free(SnapIncomingImage *image) {
    if (!image)
        return;
    free_tables(image->chunks);
    g_free(image->last);
    close(image->fd);
    snap_lock_clear(&image->lock);
    g_free(image);
}

static void begin_anew(SnapIncoming *incoming) {
    SnapIncomingImage *image = incoming->image;
    for (guint i = 0; image->chunks[i]; i++)
        g_hash_table_remove_all(image->chunks[i]);
    for (guint i = 0; i < incoming->regions->len; i++)
        ((SnapIncomingRegion *)g_ptr_array_index(incoming->regions, i))->anew = false;
    image->n_places = 0;
    if (ftruncate(image->fd, 0) < 0)
        return; /* what is there is written over */
}

/* ---- another layout -------------------------------------------------------------------------------------- */

/* Regions by their names, which are theirs: numbers, from 1 on. */
static GHashTable *index_names(const GPtrArray *regions) {
    GHashTable *names = g_hash_table_new(g_str_hash, g_str_equal);
    for (guint i = 0; i < regions->len; i++) {
        const SnapIncomingRegion *region = g_ptr_array_index(regions, i);
        g_hash_table_insert(names, region->region->name, GUINT_TO_POINTER(i + 1));
    }
    return names;
}

/* What has come for @region, which was there before; NULL: it cannot have been. */
static GHashTable *take_over(const SnapIncoming *incoming, GHashTable *names, SnapIncomingRegion *region) {
    guint number = GPOINTER_TO_UINT(g_hash_table_lookup(names, region->region->name));
    const SnapIncomingRegion *before = number ? g_ptr_array_index(incoming->regions, number - 1) : NULL;
    if (!before || before->region->length_bytes != region->region->length_bytes ||
        before->region->page_bytes != region->region->page_bytes)
        return NULL;
    region->anew = before->anew;
    GHashTable *chunks = incoming->image->chunks[number - 1];
    return chunks ? g_hash_table_ref(chunks) : NULL;
}

const char *snap_incoming_image_change(SnapIncoming *incoming, GPtrArray *layout) {
    SnapIncomingImage *image = incoming->image;
    g_autoptr(GHashTable) names = index_names(incoming->regions), new_names = index_names(layout);
    GHashTable **chunks = g_new0(GHashTable *, layout->len + 1); /* NULL at its end */
    const char *wrong = g_hash_table_size(new_names) < layout->len ? "two regions have one name" : NULL;
    for (guint i = 0; i < layout->len && !wrong; i++) {
        SnapIncomingRegion *region = g_ptr_array_index(layout, i);
        if (region->region->page_bytes * SNAP_CHUNK_PAGES > image->chunk_bytes)
            wrong = "its pages are larger than any before";
        else if (!(chunks[i] = region->anew ? chunks_new() : take_over(incoming, names, region)))
            wrong = "there was no such region before";
    }
    if (wrong) {
        free_tables(chunks);
        return wrong;
    }
    free_tables(image->chunks);
    image->chunks = chunks;
    return NULL;
}

/* ---- chunks ---------------------------------------------------------------------------------------------- */

/* The chunk's entry; with a place in the file where @stored. */
static Arrived *look_up(SnapIncomingImage *image, unsigned region, uint64_t chunk, bool stored) {
    snap_lock(&image->lock);
    Arrived *arrived = g_hash_table_lookup(image->chunks[region], &chunk);
    if (!arrived) {
        arrived = g_new(Arrived, 1);
        *arrived = (Arrived){.chunk = chunk, .place = NO_PLACE};
        g_hash_table_insert(image->chunks[region], &arrived->chunk, arrived);
    }
    if (stored && arrived->place == NO_PLACE)
        arrived->place = image->n_places++;
    snap_unlock(&image->lock);
    return arrived;
}

gboolean snap_incoming_image_take(SnapIncomingLane *lane, SnapIncomingRegion *region, const SnapWireChunk *chunk,
                                  GError **error) {
    SnapIncomingImage *image = lane->incoming->image;
    uint64_t stored = chunk->record.present & ~chunk->record.zero, page_bytes = region->region->page_bytes;
    const uint8_t *pages = lane->pages;
    unsigned first = 0, count = 0;
    if (!snap_incoming_read_pages(lane, region, chunk, lane->pages, error))
        return FALSE;
    Arrived *arrived = look_up(image, chunk->region, chunk->chunk, stored != 0);
    for (uint64_t left = stored; snap_chunk_take_run(&left, &first, &count); pages += count * page_bytes) {
        uint64_t offset = (uint64_t)arrived->place * image->chunk_bytes + first * page_bytes;
        int rc = snap_file_write(image->fd, pages, count * page_bytes, offset);
        if (rc < 0) {
            snap_set_errno(error, -rc, "%s: what has come of an epoch", lane->incoming->image_dir);
            return FALSE;
        }
    }
    arrived->present |= chunk->record.present;
    arrived->zero = (arrived->zero & ~stored) | chunk->record.zero;
    return TRUE;
}

/* ---- the image ------------------------------------------------------------------------------------------- */

/* Pages of zeros are part of it: the parent may have something else there. */
static gboolean put_chunk(SnapIncomingImage *image, SnapImageWriter *writer, unsigned region, uint64_t page_bytes,
                          const Arrived *arrived, GError **error) {
    uint64_t stored = arrived->present & ~arrived->zero;
    unsigned first = 0, count = 0;
    if (stored == 0)
        return snap_image_writer_put_zero(writer, region, arrived->chunk, arrived->present, error);
    SnapChunk *chunk = snap_image_writer_get(writer, -1, error);
    if (!chunk)
        return FALSE;
    chunk->region = region;
    chunk->index = arrived->chunk;
    chunk->present = arrived->present;
    for (uint64_t left = arrived->zero; snap_chunk_take_run(&left, &first, &count);)
        memset(chunk->data + first * page_bytes, 0, count * page_bytes);
    for (uint64_t left = stored; snap_chunk_take_run(&left, &first, &count);) {
        uint64_t offset = (uint64_t)arrived->place * image->chunk_bytes + first * page_bytes;
        int rc = snap_file_read(image->fd, chunk->data + first * page_bytes, count * page_bytes, offset);
        if (rc < 0) {
            snap_set_errno(error, -rc, "what has come of an epoch cannot be read back");
            return FALSE;
        }
    }
    return snap_image_writer_put(writer, chunk, error);
}

/* Pages [page, end) of a region: those that have not come are zeros. */
static void hide_pages(SnapIncomingImage *image, unsigned region, uint64_t page, uint64_t end) {
    while (page < end) {
        uint64_t chunk = page / SNAP_CHUNK_PAGES, first = page % SNAP_CHUNK_PAGES;
        uint64_t n = MIN(end - page, SNAP_CHUNK_PAGES - first);
        uint64_t mask = (n == SNAP_CHUNK_PAGES ? UINT64_MAX : (UINT64_C(1) << n) - 1) << first;
        Arrived *arrived = look_up(image, region, chunk, false);
        arrived->zero |= mask & ~arrived->present;
        arrived->present |= mask;
        page += n;
    }
}

/* What @parent has under the name of @region is of another mapping. */
static void hide_parent(SnapIncomingImage *image, const SnapImage *parent, const SnapIncomingRegion *region,
                        unsigned number) {
    int there = snap_image_find_region(parent, region->region->name);
    uint64_t page_bytes = region->region->page_bytes, from = 0, to = 0;
    while (there >= 0 && snap_image_next_data(parent, (guint)there, from, &from, &to) &&
           from < region->region->length_bytes) {
        to = MIN(to, region->region->length_bytes);
        hide_pages(image, number, from / page_bytes, to / page_bytes);
        from = to;
    }
}

static int by_number(const void *a, const void *b) {
    const Arrived *x = *(Arrived *const *)a, *y = *(Arrived *const *)b;
    return x->chunk < y->chunk ? -1 : x->chunk > y->chunk;
}

static gboolean put_region(SnapIncomingImage *image, SnapImageWriter *writer, const SnapIncomingRegion *region,
                           unsigned number, GError **error) {
    g_autoptr(GPtrArray) arrived = g_ptr_array_new();
    GHashTableIter iter;
    gpointer value = NULL;
    g_hash_table_iter_init(&iter, image->chunks[number]);
    while (g_hash_table_iter_next(&iter, NULL, &value))
        g_ptr_array_add(arrived, value);
    g_ptr_array_sort(arrived, by_number);
    for (guint i = 0; i < arrived->len; i++) {
        const Arrived *at = g_ptr_array_index(arrived, i);
        if (!put_chunk(image, writer, number, region->region->page_bytes, at, error))
            return FALSE;
    }
    return TRUE;
}

/* The same for all images of one migration, and for no others. */
static char *identity(const SnapIncoming *incoming) {
    GString *text = g_string_new("migration-");
    for (unsigned i = 0; i < sizeof incoming->hello.id.bytes; i++)
        g_string_append_printf(text, "%02x", incoming->hello.id.bytes[i]);
    return g_string_free(text, FALSE);
}

/* @parent: (nullable) */
static gboolean begin_image(SnapIncoming *incoming, SnapImageWriter *writer, const SnapImage *parent,
                            GError **error) {
    g_autofree char *guest = identity(incoming);
    if ((parent && !snap_image_writer_set_parent(writer, parent, error)) ||
        !snap_image_writer_set_guest(writer, guest, error))
        return FALSE;
    for (guint i = 0; i < incoming->regions->len; i++) {
        const SnapIncomingRegion *region = g_ptr_array_index(incoming->regions, i);
        if (!snap_image_writer_add_region(writer, region->region, error))
            return FALSE;
        if (parent && region->anew)
            hide_parent(incoming->image, parent, region, i);
    }
    return TRUE;
}

static gboolean put_all(SnapIncoming *incoming, SnapImageWriter *writer, GError **error) {
    const char *last = incoming->image->last;
    g_autoptr(SnapImage) parent = last ? snap_image_open(last, error) : NULL;
    if ((last && !parent) || !begin_image(incoming, writer, parent, error))
        return FALSE;
    for (guint i = 0; i < incoming->regions->len; i++) {
        if (!put_region(incoming->image, writer, g_ptr_array_index(incoming->regions, i), i, error))
            return FALSE;
    }
    for (guint i = 0; i < incoming->next_states->len; i++) {
        if (!snap_image_writer_add_state(writer, g_ptr_array_index(incoming->next_states, i), error))
            return FALSE;
    }
    return TRUE;
}

static char *image_path(const SnapIncoming *incoming, unsigned number) {
    return g_strdup_printf("%s/%06u", incoming->image_dir, number);
}

gboolean snap_incoming_image_fold_old(SnapIncoming *incoming, GError **error) {
    SnapIncomingImage *image = incoming->image;
    for (unsigned i = 0; i < FOLDS_MOST; i++) {
        if (!incoming->image_keep || image->n_images - image->n_folded <= incoming->image_keep)
            return TRUE;
        g_autofree char *oldest = image_path(incoming, image->n_folded + 1);
        g_autofree char *next = image_path(incoming, image->n_folded + 2);
        g_autoptr(GError) failure = NULL;
        if (!snap_image_fold(oldest, next, &failure)) {
            bool busy = g_error_matches(failure, SNAP_ERROR, SNAP_ERROR_TIMED_OUT);
            if (!busy)
                g_propagate_error(error, g_steal_pointer(&failure));
            return busy;
        }
        image->n_folded++;
    }
    return TRUE;
}

gboolean snap_incoming_image_commit(SnapIncoming *incoming, GError **error) {
    SnapIncomingImage *image = incoming->image;
    g_autofree char *dir = image_path(incoming, image->n_images + 1);
    int64_t created_us = g_get_real_time();
    const SnapStatistic statistics[] = {{"epoch", incoming->epoch + 1}};
    bool replicates = incoming->hello.purpose == SNAP_WIRE_REPLICATE;
    g_autoptr(SnapImageWriter) writer =
        snap_image_writer_new(dir, incoming->driver, image->chunk_bytes / SNAP_CHUNK_PAGES, BUFFERS, error);
    if (!writer || !put_all(incoming, writer, error) ||
        !snap_image_writer_commit(writer, created_us, statistics, replicates ? 1 : 0, error)) {
        g_prefix_error(error, "image %06u: ", image->n_images + 1);
        return FALSE;
    }
    image->n_images++;
    g_free(image->last);
    image->last = g_steal_pointer(&dir);
    begin_anew(incoming);
    return TRUE;
}
