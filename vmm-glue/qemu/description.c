/* qemu.json, written and read; see description.h for the form. */
#include "description.h"

#include "qmp.h"

#include <string.h>

void description_free(QemuDescription *description) {
    if (!description)
        return;
    g_free(description->machine);
    g_free(description->version);
    g_free(description->accel);
    g_clear_pointer(&description->blocks, g_ptr_array_unref);
    g_free(description);
}

static void add_number(json_object *object, const char *name, uint64_t value) {
    json_object_object_add(object, name, json_object_new_uint64(value));
}

static json_object *encode_block(const RamBlock *block) {
    json_object *object = json_object_new_object();
    json_object_object_add(object, "name", json_object_new_string(block->name));
    add_number(object, "used-bytes", block->used_bytes);
    add_number(object, "max-bytes", block->max_bytes);
    add_number(object, "page-bytes", block->page_bytes);
    add_number(object, "host-address", block->host_address);
    if (block->guest_address != SNAP_NO_ADDRESS)
        add_number(object, "guest-address", block->guest_address);
    json_object_object_add(object, "shared", json_object_new_boolean(block->shared));
    if (block->backend)
        json_object_object_add(object, "backend", json_object_new_string(block->backend));
    return object;
}

GBytes *description_encode(const QemuDescription *description) {
    g_autoptr(json_object) object = json_object_new_object();
    json_object *blocks = json_object_new_array();
    json_object_object_add(object, "machine", json_object_new_string(description->machine));
    json_object_object_add(object, "version", json_object_new_string(description->version));
    json_object_object_add(object, "accel", json_object_new_string(description->accel));
    json_object_object_add(object, "running", json_object_new_boolean(description->running));
    json_object_object_add(object, "blocks", blocks);
    for (guint i = 0; i < description->blocks->len; i++)
        json_object_array_add(blocks, encode_block(g_ptr_array_index(description->blocks, i)));
    const char *text =
        json_object_to_json_string_ext(object, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_NOSLASHESCAPE);
    g_autofree char *line = g_strconcat(text, "\n", NULL);
    size_t length = strlen(line);
    return g_bytes_new_take(g_steal_pointer(&line), length);
}

static uint64_t get_number(json_object *object, const char *name, uint64_t otherwise) {
    json_object *value = qmp_get(object, name);
    return json_object_is_type(value, json_type_int) ? json_object_get_uint64(value) : otherwise;
}

static RamBlock *decode_block(json_object *object) {
    RamBlock *block = g_new0(RamBlock, 1);
    const char *backend = qmp_get_string(object, "backend");
    block->name = g_strdup(qmp_get_string(object, "name"));
    block->backend = *backend ? g_strdup(backend) : NULL;
    block->used_bytes = get_number(object, "used-bytes", 0);
    block->max_bytes = get_number(object, "max-bytes", 0);
    block->page_bytes = get_number(object, "page-bytes", 0);
    block->host_address = get_number(object, "host-address", 0);
    block->guest_address = get_number(object, "guest-address", SNAP_NO_ADDRESS);
    block->shared = qmp_get_bool(object, "shared");
    block->migratable = TRUE;
    return block;
}

/* A name goes into the stream behind one byte of length. */
static gboolean name_fits(const char *name) {
    size_t length = strlen(name);
    return length > 0 && length <= UINT8_MAX;
}

static gboolean decode_blocks(json_object *list, GPtrArray *blocks) {
    size_t n = json_object_is_type(list, json_type_array) ? json_object_array_length(list) : 0;
    for (size_t i = 0; i < n; i++) {
        RamBlock *block = decode_block(json_object_array_get_idx(list, i));
        g_ptr_array_add(blocks, block);
        if (!name_fits(block->name) || block->used_bytes == 0 || block->page_bytes == 0)
            return FALSE;
    }
    return n > 0;
}

QemuDescription *description_decode(GBytes *json, GError **error) {
    size_t length;
    const char *text = g_bytes_get_data(json, &length);
    g_autofree char *copy = g_strndup(text, length);
    g_autoptr(json_object) object = json_tokener_parse(copy);
    g_autoptr(QemuDescription) description = g_new0(QemuDescription, 1);
    description->machine = g_strdup(qmp_get_string(object, "machine"));
    description->version = g_strdup(qmp_get_string(object, "version"));
    description->accel = g_strdup(qmp_get_string(object, "accel"));
    description->running = qmp_get_bool(object, "running");
    description->blocks = g_ptr_array_new_with_free_func((GDestroyNotify)ramblock_free);
    if (!name_fits(description->machine) || !decode_blocks(qmp_get(object, "blocks"), description->blocks)) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_CORRUPT,
                    "state blob %s: the machine or its RAM blocks are missing", QEMU_STATE_DESCRIPTION);
        return NULL;
    }
    return g_steal_pointer(&description);
}

static gboolean has_state(const SnapImage *image, const char *name) {
    for (guint i = 0; i < snap_image_info(image)->n_states; i++)
        if (g_strcmp0(snap_image_state_name(image, i), name) == 0)
            return TRUE;
    return FALSE;
}

QemuDescription *description_of_image(const SnapImage *image, GError **error) {
    const SnapImageInfo *info = snap_image_info(image);
    if (!has_state(image, QEMU_STATE_DESCRIPTION) || !has_state(image, QEMU_STATE_DEVICES)) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED, "image %s is of a %s guest, not of a QEMU",
                    info->dir, info->driver);
        return NULL;
    }
    g_autoptr(GBytes) json = snap_image_state(image, QEMU_STATE_DESCRIPTION, error);
    return json ? description_decode(json, error) : NULL;
}
