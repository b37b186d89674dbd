/*
 * What makes an image the child of another while it is written. See image-write.h.
 *
 * Happy path: set_parent copies what the manifest says of the parent (its id, where it is, when it was taken) and
 * the page sizes of its regions; every region added, before or after, is held against those.
 *
 * Failure modes: whatever would make an image that cannot be opened later is refused here, before a page is
 * written: another driver, another guest, other page sizes.
 *
 * Invariant: nothing of the parent is borrowed after set_parent returns.
 */
#include "image-writer.h"

#include <stdlib.h>
#include <string.h>

static gboolean refuse(const SnapImage *parent, const char *why, GError **error) {
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_REFUSED, "%s cannot be the parent of this image: %s",
                snap_image_info(parent)->dir, why);
    return FALSE;
}

/* How one gets from directory @from to @to, both absolute and without links; NULL when that is not UTF-8. */
static char *relative_path(const char *from, const char *to) {
    size_t common = 0; /* behind the last slash up to which they are the same */
    for (size_t i = 0; from[i] == to[i] && from[i]; i++)
        common = from[i] == '/' ? i + 1 : common;
    GString *path = g_string_new(NULL);
    for (const char *at = from + common; at && *at; at = strchr(at, '/')) {
        at += *at == '/';
        g_string_append(path, "../");
    }
    g_string_append(path, to + common);
    char *text = g_string_free(path, FALSE);
    if (!g_utf8_validate(text, -1, NULL))
        g_clear_pointer(&text, g_free);
    return text;
}

const char *snap_image_writer_check_parent(const SnapImageWriter *writer, const SnapManifestRegion *region) {
    const uint64_t *page_bytes =
        writer->parent_pages ? g_hash_table_lookup(writer->parent_pages, region->name) : NULL;
    return page_bytes && *page_bytes != region->page_bytes ? "its pages are of another size than the parent's"
                                                           : NULL;
}

static gboolean check_regions(const SnapImageWriter *writer, GError **error) {
    const GPtrArray *regions = writer->manifest->regions;
    for (guint i = 0; i < regions->len; i++) {
        const SnapManifestRegion *region = regions->pdata[i];
        const char *wrong = snap_image_writer_check_parent(writer, region);
        if (wrong) {
            g_set_error(error, SNAP_ERROR, SNAP_ERROR_USAGE, "region \"%s\": %s", region->file, wrong);
            return FALSE;
        }
    }
    return TRUE;
}

static void copy_page_sizes(SnapImageWriter *writer, const SnapImage *parent) {
    writer->parent_pages = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
    for (guint i = 0; i < snap_image_info(parent)->n_regions; i++) {
        const SnapImageRegion *region = snap_image_region(parent, i);
        g_hash_table_insert(writer->parent_pages, g_strdup(region->name),
                            g_memdup2(&region->page_bytes, sizeof region->page_bytes));
    }
}

static gboolean same_guest(const char *one, const char *other) {
    return !one || !other || g_str_equal(one, other);
}

gboolean snap_image_writer_set_parent(SnapImageWriter *writer, const SnapImage *parent, GError **error) {
    const SnapImageInfo *info = snap_image_info(parent);
    SnapManifest *manifest = writer->manifest;
    g_assert(!manifest->parent_id);
    if (!g_str_equal(info->driver, manifest->driver))
        return refuse(parent, "it is of another kind of guest", error);
    if (!same_guest(info->guest, manifest->guest))
        return refuse(parent, "it is of another guest", error);
    copy_page_sizes(writer, parent);
    if (!check_regions(writer, error)) {
        g_clear_pointer(&writer->parent_pages, g_hash_table_unref);
        return FALSE;
    }
    g_autofree char *dir = realpath(writer->dir.path, NULL);
    manifest->parent_path = dir ? relative_path(dir, info->dir) : NULL;
    manifest->parent_id = g_strdup(info->id);
    writer->parent_created = g_strdup(info->created);
    writer->parent_guest = g_strdup(info->guest);
    return TRUE;
}

gboolean snap_image_writer_set_guest(SnapImageWriter *writer, const char *identity, GError **error) {
    g_assert(!writer->manifest->guest);
    if (!g_utf8_validate(identity, -1, NULL)) {
        g_set_error_literal(error, SNAP_ERROR, SNAP_ERROR_USAGE, "the identity of the guest is not UTF-8");
        return FALSE;
    }
    if (!same_guest(identity, writer->parent_guest)) {
        g_set_error_literal(error, SNAP_ERROR, SNAP_ERROR_REFUSED, "the parent image is of another guest");
        return FALSE;
    }
    writer->manifest->guest = g_strdup(identity);
    return TRUE;
}

void snap_image_writer_set_identity(SnapImageWriter *writer, const SnapManifest *manifest) {
    g_free(writer->manifest->id);
    writer->manifest->id = g_strdup(manifest->id);
    writer->manifest->guest = g_strdup(manifest->guest);
    writer->manifest->created = g_strdup(manifest->created);
}
