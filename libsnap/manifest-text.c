/*
 * Manifest text <-> struct. The only file of the library that knows json-c.
 *
 * The text is a JSON object, one member a line, whose last member is the checksum of every byte before its line;
 * that line is taken off before anything else is looked at, in every version of the format, so a flipped bit or
 * a cut is found whatever it hits. Members that this version does not know are skipped.
 *
 * Failure modes: any text may come in. What is decoded is checked twice: for its type where it is read, and for
 * its sense (snap_manifest_check()) before it is returned.
 */
#include "manifest.h"

#include "chunk.h"
#include "hash.h"
#include "image-file.h"

#include <json.h>
#include <string.h>

#define FORMAT "libsnap-image"
#define MAX_DEPTH 8
#define CHECKSUM_HEAD "  \"checksum\": \""
#define CHECKSUM_TAIL "\"\n}\n"
#define CHECKSUM_LINE_BYTES (sizeof CHECKSUM_HEAD - 1 + 16 + sizeof CHECKSUM_TAIL - 1)

typedef struct json_object Json;
static void json_clear(Json *json) {
    json_object_put(json);
}
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Json, json_clear)

/* ---- encode ---------------------------------------------------------------------------------------------- */

static void put_text(Json *object, const char *key, const char *value) {
    json_object_object_add(object, key, value ? json_object_new_string(value) : NULL);
}

/* A member that is there or not. */
static void put_optional(Json *object, const char *key, const char *value) {
    if (value)
        put_text(object, key, value);
}

static void put_number(Json *object, const char *key, uint64_t value) {
    json_object_object_add(object, key, json_object_new_uint64(value));
}

static Json *put_array(Json *object, const char *key) {
    Json *array = json_object_new_array();
    json_object_object_add(object, key, array);
    return array;
}

static Json *put_item(Json *array) {
    Json *item = json_object_new_object();
    json_object_array_add(array, item);
    return item;
}

static void put_region(Json *object, const SnapManifestRegion *region) {
    put_text(object, "name", region->name);
    put_text(object, "file", region->file);
    put_text(object, "memory", snap_memory_name(region->memory));
    if (region->guest_address == SNAP_NO_ADDRESS)
        put_text(object, "guest-address", NULL);
    else
        put_number(object, "guest-address", region->guest_address);
    put_number(object, "host-address", region->host_address);
    put_number(object, "length", region->length_bytes);
    put_number(object, "page-size", region->page_bytes);
    put_number(object, "granule", region->granule_bytes);
    put_text(object, "codec", "raw");
}

static void put_file(Json *object, const SnapManifestFile *file) {
    put_text(object, "path", file->path);
    put_number(object, "length", file->length_bytes);
    if (file->has_xxh3) {
        g_autofree char *hex = g_strdup_printf("%016" G_GINT64_MODIFIER "x", (guint64)file->xxh3);
        put_text(object, "xxh3-64", hex);
    }
}

static void put_head(Json *root, const SnapManifest *manifest) {
    put_text(root, "format", FORMAT);
    put_number(root, "format-version", SNAP_MANIFEST_VERSION);
    put_text(root, "id", manifest->id);
    put_text(root, "parent-id", manifest->parent_id);
    put_optional(root, "parent-path", manifest->parent_path);
    put_optional(root, "folding-into", manifest->folding_into);
    put_text(root, "driver", manifest->driver);
    put_optional(root, "guest", manifest->guest);
    put_text(root, "created", manifest->created);
    put_number(root, "page-size", manifest->page_bytes);
    put_number(root, "chunk-pages", SNAP_CHUNK_PAGES);
}

static void put_lists(Json *root, const SnapManifest *manifest) {
    Json *regions = put_array(root, "regions");
    for (guint i = 0; i < manifest->regions->len; i++)
        put_region(put_item(regions), manifest->regions->pdata[i]);
    Json *states = put_array(root, "state");
    for (guint i = 0; i < manifest->states->len; i++) {
        const SnapManifestState *state = manifest->states->pdata[i];
        Json *item = put_item(states);
        put_text(item, "name", state->name);
        put_text(item, "file", state->file);
        put_number(item, "length", state->length_bytes);
    }
    Json *statistics = json_object_new_object();
    json_object_object_add(root, "statistics", statistics);
    for (guint i = 0; i < manifest->statistics->len; i++) {
        const SnapManifestStatistic *statistic = manifest->statistics->pdata[i];
        put_number(statistics, statistic->name, statistic->value);
    }
    Json *files = put_array(root, "files");
    for (guint i = 0; i < manifest->files->len; i++)
        put_file(put_item(files), manifest->files->pdata[i]);
}

char *snap_manifest_encode(const SnapManifest *manifest, size_t *ret_length_bytes) {
    g_autoptr(Json) root = json_object_new_object();
    put_head(root, manifest);
    put_lists(root, manifest);
    const char *json = json_object_to_json_string_ext(root, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_SPACED |
                                                                JSON_C_TO_STRING_NOSLASHESCAPE);
    g_assert(g_str_has_suffix(json, "\n}"));
    GString *text = g_string_new_len(json, (gssize)strlen(json) - 2);
    g_string_append(text, ",\n");
    guint64 xxh3 = XXH3_64bits(text->str, text->len);
    g_string_append_printf(text, CHECKSUM_HEAD "%016" G_GINT64_MODIFIER "x" CHECKSUM_TAIL, xxh3);
    *ret_length_bytes = text->len;
    return g_string_free(text, FALSE);
}

/* ---- decode ---------------------------------------------------------------------------------------------- */

/* Exactly 16 lower-case hexadecimal digits. */
static gboolean parse_hex(const char *text, uint64_t *ret_value) {
    uint64_t value = 0;
    for (int i = 0; i < 16; i++) {
        if (!g_ascii_isxdigit(text[i]) || g_ascii_isupper(text[i]))
            return FALSE;
        value = value << 4 | (uint64_t)g_ascii_xdigit_value(text[i]);
    }
    *ret_value = value;
    return TRUE;
}

static gboolean check_text(const char *text, size_t length_bytes, GError **error) {
    if (length_bytes < CHECKSUM_LINE_BYTES)
        return snap_manifest_corrupt(error, "it is cut short");
    size_t body = length_bytes - CHECKSUM_LINE_BYTES;
    const char *head = text + body, *digits = head + sizeof CHECKSUM_HEAD - 1, *tail = digits + 16;
    uint64_t xxh3 = 0;
    if (memcmp(head, CHECKSUM_HEAD, sizeof CHECKSUM_HEAD - 1) != 0 ||
        memcmp(tail, CHECKSUM_TAIL, sizeof CHECKSUM_TAIL - 1) != 0 || !parse_hex(digits, &xxh3))
        return snap_manifest_corrupt(error, "it does not end in a checksum; it is cut short or was edited");
    if (xxh3 != XXH3_64bits(text, body))
        return snap_manifest_corrupt(error, "its checksum is wrong");
    return TRUE;
}

/* A decoder's place: the object it reads and what to call it; the first error stops all further reading. */
typedef struct {
    Json *object;
    const char *what;
    guint i;
    GError **error;
    gboolean failed;
} Reader;

static Json *get(Reader *reader, const char *key, json_type type) {
    Json *value = NULL;
    if (reader->failed)
        return NULL;
    if (!json_object_object_get_ex(reader->object, key, &value) || !json_object_is_type(value, type)) {
        reader->failed = TRUE;
        snap_manifest_corrupt(reader->error, "%s %u: \"%s\" is missing or of the wrong type", reader->what,
                              reader->i, key);
        return NULL;
    }
    return value;
}

static char *get_text(Reader *reader, const char *key) {
    Json *value = get(reader, key, json_type_string);
    if (value && strlen(json_object_get_string(value)) != (size_t)json_object_get_string_len(value)) {
        reader->failed = TRUE;
        snap_manifest_corrupt(reader->error, "%s %u: \"%s\" has a NUL in it", reader->what, reader->i, key);
    }
    return reader->failed ? NULL : g_strdup(json_object_get_string(value));
}

static uint64_t get_number(Reader *reader, const char *key) {
    Json *value = get(reader, key, json_type_int);
    if (!value)
        return 0;
    if (json_object_get_int64(value) < 0) {
        reader->failed = TRUE;
        snap_manifest_corrupt(reader->error, "%s %u: \"%s\" is negative", reader->what, reader->i, key);
        return 0;
    }
    return json_object_get_uint64(value);
}

static gboolean is_null(Reader *reader, const char *key) {
    Json *value = NULL;
    return json_object_object_get_ex(reader->object, key, &value) && value == NULL;
}

/* NULL where it is not there, or null. */
static char *get_optional(Reader *reader, const char *key) {
    Json *value = NULL;
    return json_object_object_get_ex(reader->object, key, &value) && value ? get_text(reader, key) : NULL;
}

static SnapMemory get_memory(Reader *reader) {
    g_autofree char *name = get_text(reader, "memory");
    for (int memory = 0; name && memory < SNAP_MEMORY_MAX; memory++) {
        if (strcmp(name, snap_memory_name((SnapMemory)memory)) == 0)
            return (SnapMemory)memory;
    }
    if (!reader->failed)
        snap_manifest_corrupt(reader->error, "region %u: unknown \"memory\"", reader->i);
    reader->failed = TRUE;
    return SNAP_MEMORY_MAX;
}

static void read_region(SnapManifest *manifest, Reader *reader) {
    SnapManifestRegion *region = g_new0(SnapManifestRegion, 1);
    g_ptr_array_add(manifest->regions, region);
    region->name = get_text(reader, "name");
    region->file = get_text(reader, "file");
    region->memory = get_memory(reader);
    region->guest_address =
        is_null(reader, "guest-address") ? SNAP_NO_ADDRESS : get_number(reader, "guest-address");
    region->host_address = get_number(reader, "host-address");
    region->length_bytes = get_number(reader, "length");
    region->page_bytes = get_number(reader, "page-size");
    region->granule_bytes = get_number(reader, "granule");
    g_autofree char *codec = get_text(reader, "codec");
    if (codec && strcmp(codec, "raw") != 0) {
        reader->failed = TRUE;
        snap_manifest_corrupt(reader->error, "region %u: unknown \"codec\"", reader->i);
    }
}

static void read_state(SnapManifest *manifest, Reader *reader) {
    SnapManifestState *state = g_new0(SnapManifestState, 1);
    g_ptr_array_add(manifest->states, state);
    state->name = get_text(reader, "name");
    state->file = get_text(reader, "file");
    state->length_bytes = get_number(reader, "length");
}

static void read_file(SnapManifest *manifest, Reader *reader) {
    SnapManifestFile *file = g_new0(SnapManifestFile, 1);
    g_ptr_array_add(manifest->files, file);
    file->path = get_text(reader, "path");
    file->length_bytes = get_number(reader, "length");
    if (!json_object_object_get_ex(reader->object, "xxh3-64", NULL))
        return;
    g_autofree char *hex = get_text(reader, "xxh3-64");
    file->has_xxh3 = TRUE;
    if (hex && (strlen(hex) != 16 || !parse_hex(hex, &file->xxh3))) {
        reader->failed = TRUE;
        snap_manifest_corrupt(reader->error, "file %u: \"xxh3-64\" is not 16 hexadecimal digits", reader->i);
    }
}

static void read_statistics(SnapManifest *manifest, Reader *head) {
    Reader reader = {get(head, "statistics", json_type_object), "statistics", 0, head->error, head->failed};
    if (!reader.object)
        return;
    json_object_object_foreach(reader.object, key, value) {
        (void)value;
        snap_manifest_add_statistic(manifest, key, get_number(&reader, key));
    }
    head->failed = reader.failed;
}

/* Call @read_item for each object of the array @key. */
static void read_list(SnapManifest *manifest, Reader *head, const char *key, const char *what,
                      void (*read_item)(SnapManifest *, Reader *)) {
    Json *array = get(head, key, json_type_array);
    size_t length = array ? json_object_array_length(array) : 0;
    for (size_t i = 0; i < length && !head->failed; i++) {
        Reader reader = {json_object_array_get_idx(array, i), what, (guint)i, head->error, FALSE};
        if (json_object_is_type(reader.object, json_type_object)) {
            read_item(manifest, &reader);
            head->failed = reader.failed;
        } else {
            head->failed = TRUE;
            snap_manifest_corrupt(head->error, "%s %zu is not an object", what, i);
        }
    }
}

static gboolean read_version(Reader *head) {
    g_autofree char *format = get_text(head, "format");
    uint64_t version = get_number(head, "format-version");
    if (head->failed)
        return FALSE;
    if (strcmp(format, FORMAT) != 0 || version == 0)
        return snap_manifest_corrupt(head->error, "it is not the manifest of an image");
    if (version > SNAP_MANIFEST_VERSION) {
        g_set_error(head->error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED,
                    SNAP_FILE_MANIFEST ": the image has format version %" G_GUINT64_FORMAT
                                       ", this program reads up to %d; use a newer one",
                    (guint64)version, SNAP_MANIFEST_VERSION);
        return FALSE;
    }
    return TRUE;
}

static void read_head(SnapManifest *manifest, Reader *head) {
    manifest->id = get_text(head, "id");
    manifest->parent_id = is_null(head, "parent-id") ? NULL : get_text(head, "parent-id");
    manifest->parent_path = get_optional(head, "parent-path");
    manifest->folding_into = get_optional(head, "folding-into");
    manifest->driver = get_text(head, "driver");
    manifest->guest = get_optional(head, "guest");
    manifest->created = get_text(head, "created");
    manifest->page_bytes = get_number(head, "page-size");
    if (get_number(head, "chunk-pages") != SNAP_CHUNK_PAGES && !head->failed) {
        head->failed = TRUE;
        snap_manifest_corrupt(head->error, "\"chunk-pages\" is not %u", SNAP_CHUNK_PAGES);
    }
}

static Json *parse(const char *text, size_t length_bytes) {
    struct json_tokener *tokener = json_tokener_new_ex(MAX_DEPTH);
    json_tokener_set_flags(tokener, JSON_TOKENER_STRICT | JSON_TOKENER_VALIDATE_UTF8);
    Json *root = json_tokener_parse_ex(tokener, text, (int)length_bytes);
    gboolean good = json_tokener_get_error(tokener) == json_tokener_success;
    json_tokener_free(tokener);
    if (!good)
        json_object_put(root);
    return good ? root : NULL;
}

SnapManifest *snap_manifest_decode(const char *text, size_t length_bytes, GError **error) {
    if (length_bytes > SNAP_MANIFEST_MAX_BYTES) {
        snap_manifest_corrupt(error, "it is too long");
        return NULL;
    }
    if (!check_text(text, length_bytes, error))
        return NULL;
    g_autoptr(Json) root = parse(text, length_bytes);
    if (!json_object_is_type(root, json_type_object)) {
        snap_manifest_corrupt(error, "it is not a JSON object");
        return NULL;
    }
    Reader head = {root, "image", 0, error, FALSE};
    if (!read_version(&head))
        return NULL;
    g_autoptr(SnapManifest) manifest = snap_manifest_new();
    read_head(manifest, &head);
    read_list(manifest, &head, "regions", "region", read_region);
    read_list(manifest, &head, "state", "state", read_state);
    read_statistics(manifest, &head);
    read_list(manifest, &head, "files", "file", read_file);
    if (head.failed || !snap_manifest_check(manifest, error))
        return NULL;
    return g_steal_pointer(&manifest);
}
