/* Command family image: see image.h. */
#include "image.h"

#include "call.h"
#include "schema-handlers.h"

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
static void add_head(json_object *object, const SnapImageInfo *info, const char *parent_dir) {
    qapi_json_add_string(object, "id", info->id);
    qapi_json_add_string(object, "parent-id", info->parent_id);
    qapi_json_add_string(object, "parent-dir", parent_dir);
    qapi_json_add_uint(object, "parents", info->n_parents);
    qapi_json_add_uint(object, "pages-held", info->pages_held);
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
    add_head(result, info, info->parent_dir);
    qapi_json_add_uint(result, "page-bytes", info->page_bytes);
    qapi_json_add_uint(result, "length-bytes", image_length_bytes(image));
    qapi_json_add_uint(result, "data-bytes", data_bytes);
    qapi_json_add(result, "regions", regions);
    qapi_json_add(result, "states", states);
    qapi_json_add(result, "statistics", statistics_to_json(image));
    return result;
}

/* ---- list ------------------------------------------------------------------------------------------------ */

static json_object *listed(const SnapImageEntry *entry) {
    json_object *object = json_object_new_object();
    qapi_json_add_string(object, "dir", entry->dir);
    qapi_json_add_bool(object, "complete", !entry->problem);
    if (entry->info.id) {
        add_head(object, &entry->info, entry->parent_dir);
        qapi_json_add_uint(object, "regions", entry->info.n_regions);
        qapi_json_add_uint(object, "length-bytes", entry->length_bytes);
    }
    if (entry->problem)
        qapi_json_add_string(object, "problem", entry->problem->message);
    return object;
}

json_object *qapi_image_list(const char *const *dirs, GError **error) {
    g_autoptr(json_object) result = json_object_new_object();
    json_object *images = json_object_new_array();
    qapi_json_add(result, "images", images);
    for (; *dirs; dirs++) {
        g_autoptr(GPtrArray) entries = snap_image_list(*dirs, error);
        if (!entries)
            return NULL;
        for (guint i = 0; i < entries->len; i++)
            json_object_array_add(images, listed(entries->pdata[i]));
    }
    return g_steal_pointer(&result);
}

/* ---- verify, merge, delete ------------------------------------------------------------------------------- */

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

json_object *qapi_image_merge(const char *dir, const char *out, SnapProgressFunc progress, void *opaque,
                              GError **error) {
    g_autoptr(SnapImage) image = snap_image_open(dir, error);
    if (!image || !snap_image_merge(image, out, progress, opaque, error))
        return NULL;
    json_object *result = json_object_new_object();
    qapi_json_add_string(result, "dir", dir);
    qapi_json_add_string(result, "out", out);
    qapi_json_add_string(result, "id", snap_image_info(image)->id);
    qapi_json_add_uint(result, "merged", snap_image_info(image)->n_parents + 1);
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

/* ---- commands -------------------------------------------------------------------------------------------- */

json_object *qmp_query_snapshot(QapiCall *call, GError **error) {
    g_autofree char *path = qapi_call_path(call, "path");
    return qapi_image_info(path, error);
}

json_object *qmp_query_snapshots(QapiCall *call, GError **error) {
    json_object *paths = qapi_argument(call, "paths");
    g_autoptr(GStrvBuilder) builder = g_strv_builder_new();
    for (gsize i = 0; paths && i < json_object_array_length(paths); i++) {
        g_autofree char *path =
            qapi_path(call->helper, json_object_get_string(json_object_array_get_idx(paths, i)));
        g_strv_builder_add(builder, path);
    }
    if (!paths)
        g_strv_builder_add(builder, call->helper->snapshot_dir);
    g_auto(GStrv) dirs = g_strv_builder_end(builder);
    g_autoptr(json_object) result = qapi_image_list((const char *const *)dirs, error);
    json_object *images = NULL;
    return result && json_object_object_get_ex(result, "images", &images) ? json_object_get(images) : NULL;
}
