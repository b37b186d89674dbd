/*
 * Command family image: see image.h.
 *
 * What counts as an image when a folder is listed: a directory that has a manifest, or that has a ram folder, as
 * an image has from its first moment. Everything else in the folder is passed over in silence.
 */
#include "image.h"

#include <errno.h>

static uint64_t region_data_bytes(const SnapImage *image, guint i) {
    uint64_t total = 0, start = 0, end = 0;
    for (uint64_t from = 0; snap_image_next_data(image, i, from, &start, &end); from = end)
        total += end - start;
    return total;
}

static json_object *region_to_json(const SnapImage *image, guint i) {
    const SnapImageRegion *region = snap_image_region(image, i);
    json_object *object = json_object_new_object();
    qapi_json_add_string(object, "name", region->name);
    qapi_json_add_string(object, "memory", region->memory);
    if (region->guest_address != SNAP_NO_ADDRESS)
        qapi_json_add_uint(object, "guest-address", region->guest_address);
    qapi_json_add_uint(object, "host-address", region->host_address);
    qapi_json_add_uint(object, "length-bytes", region->length_bytes);
    qapi_json_add_uint(object, "data-bytes", region_data_bytes(image, i));
    qapi_json_add_uint(object, "page-bytes", region->page_bytes);
    qapi_json_add_uint(object, "granule-bytes", region->granule_bytes);
    qapi_json_add_string(object, "raw-path", region->raw_path);
    return object;
}

static uint64_t image_length_bytes(const SnapImage *image) {
    uint64_t total = 0;
    for (guint i = 0; i < snap_image_info(image)->n_regions; i++)
        total += snap_image_region(image, i)->length_bytes;
    return total;
}

/* The members that info and list have in common. */
static void add_head(json_object *object, const SnapImage *image) {
    const SnapImageInfo *info = snap_image_info(image);
    qapi_json_add_string(object, "id", info->id);
    qapi_json_add_string(object, "parent-id", info->parent_id);
    qapi_json_add_string(object, "driver", info->driver);
    qapi_json_add_string(object, "created", info->created);
}

static json_object *statistics_to_json(const SnapImage *image) {
    static const char *const names[] = {
        "pause-us",      "prepare-ms", "pages-total",  "pages-zero",   "pages-by-sweep", "pages-by-fault",
        "bytes-written", "faults",     "fault-p50-us", "fault-p99-us", "fault-max-us",   "peak-buffer-bytes",
    };
    json_object *object = json_object_new_object();
    for (guint i = 0; i < G_N_ELEMENTS(names); i++)
        qapi_json_add_uint(object, names[i], snap_image_statistic(image, names[i]));
    return object;
}

json_object *qapi_image_info(const char *dir, GError **error) {
    g_autoptr(SnapImage) image = snap_image_open(dir, error);
    if (!image)
        return NULL;
    const SnapImageInfo *info = snap_image_info(image);
    uint64_t data_bytes = 0;
    json_object *regions = json_object_new_array();
    for (guint i = 0; i < info->n_regions; i++) {
        json_object_array_add(regions, region_to_json(image, i));
        data_bytes += region_data_bytes(image, i);
    }
    json_object *states = json_object_new_array();
    for (guint i = 0; i < info->n_states; i++)
        json_object_array_add(states, json_object_new_string(snap_image_state_name(image, i)));

    json_object *result = json_object_new_object();
    qapi_json_add_string(result, "dir", dir);
    add_head(result, image);
    qapi_json_add_uint(result, "page-bytes", info->page_bytes);
    qapi_json_add_uint(result, "length-bytes", image_length_bytes(image));
    qapi_json_add_uint(result, "data-bytes", data_bytes);
    qapi_json_add(result, "regions", regions);
    qapi_json_add(result, "states", states);
    qapi_json_add(result, "statistics", statistics_to_json(image));
    return result;
}

/* ---- list ------------------------------------------------------------------------------------------------ */

static json_object *listed(const char *dir) {
    json_object *object = json_object_new_object();
    qapi_json_add_string(object, "dir", dir);
    g_autoptr(GError) problem = NULL;
    g_autoptr(SnapImage) image = snap_image_open(dir, &problem);
    qapi_json_add_bool(object, "complete", image != NULL);
    if (!image) {
        qapi_json_add_string(object, "problem", problem->message);
        return object;
    }
    add_head(object, image);
    qapi_json_add_uint(object, "regions", snap_image_info(image)->n_regions);
    qapi_json_add_uint(object, "length-bytes", image_length_bytes(image));
    return object;
}

static gboolean looks_like_image(const char *dir) {
    g_autofree char *manifest = g_build_filename(dir, "manifest.json", NULL);
    g_autofree char *ram = g_build_filename(dir, "ram", NULL);
    return g_file_test(manifest, G_FILE_TEST_EXISTS) || g_file_test(ram, G_FILE_TEST_IS_DIR);
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

/* The images of one folder, by name. */
static gboolean list_folder(const char *folder, json_object *images, GError **error) {
    g_autoptr(GError) why = NULL;
    g_autoptr(GDir) dir = g_dir_open(folder, 0, &why);
    if (!dir) {
        snap_set_errno(error, errno_of_file_error(why), "%s", folder);
        return FALSE;
    }
    g_autoptr(GPtrArray) names = g_ptr_array_new_with_free_func(g_free);
    for (const char *name = g_dir_read_name(dir); name; name = g_dir_read_name(dir))
        g_ptr_array_add(names, g_build_filename(folder, name, NULL));
    g_ptr_array_sort(names, compare_names);
    for (guint i = 0; i < names->len; i++)
        if (looks_like_image(names->pdata[i]))
            json_object_array_add(images, listed(names->pdata[i]));
    return TRUE;
}

json_object *qapi_image_list(const char *const *dirs, GError **error) {
    g_autoptr(json_object) result = json_object_new_object();
    json_object *images = json_object_new_array();
    qapi_json_add(result, "images", images);
    for (; *dirs; dirs++) {
        if (looks_like_image(*dirs))
            json_object_array_add(images, listed(*dirs));
        else if (!list_folder(*dirs, images, error))
            return NULL;
    }
    return g_steal_pointer(&result);
}

/* ---- verify, delete -------------------------------------------------------------------------------------- */

json_object *qapi_image_verify(const char *dir, SnapProgressFunc progress, void *opaque, GError **error) {
    g_autoptr(SnapImage) image = snap_image_open(dir, error);
    if (!image || !snap_image_verify(image, progress, opaque, error))
        return NULL;
    json_object *result = json_object_new_object();
    qapi_json_add_string(result, "dir", dir);
    qapi_json_add_string(result, "id", snap_image_info(image)->id);
    qapi_json_add_uint(result, "regions", snap_image_info(image)->n_regions);
    qapi_json_add_uint(result, "length-bytes", image_length_bytes(image));
    return result;
}

json_object *qapi_image_delete(const char *dir, GError **error) {
    if (!snap_image_delete(dir, error))
        return NULL;
    json_object *result = json_object_new_object();
    qapi_json_add_string(result, "dir", dir);
    return result;
}
