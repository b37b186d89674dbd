/*
 * The manifest as a struct: making one, and whether one makes sense. See manifest.h; manifest-text.c turns it into
 * text and back.
 *
 * Failure modes: a struct that was read from a file may hold anything that has the right types;
 * snap_manifest_check() says what is wrong with it. Names in messages are file names: what a guest calls its
 * memory may have line breaks in it.
 */
#include "manifest.h"

#include "chunk.h"
#include "image-file.h"

#include <string.h>

/* ---- the struct ------------------------------------------------------------------------------------------ */

static void region_free(void *opaque) {
    SnapManifestRegion *region = opaque;
    g_free(region->name);
    g_free(region->file);
    g_free(region);
}

static void state_free(void *opaque) {
    SnapManifestState *state = opaque;
    g_free(state->name);
    g_free(state->file);
    g_free(state);
}

static void statistic_free(void *opaque) {
    SnapManifestStatistic *statistic = opaque;
    g_free(statistic->name);
    g_free(statistic);
}

static void file_free(void *opaque) {
    SnapManifestFile *file = opaque;
    g_free(file->path);
    g_free(file);
}

SnapManifest *snap_manifest_new(void) {
    SnapManifest *manifest = g_new0(SnapManifest, 1);
    manifest->regions = g_ptr_array_new_with_free_func(region_free);
    manifest->states = g_ptr_array_new_with_free_func(state_free);
    manifest->statistics = g_ptr_array_new_with_free_func(statistic_free);
    manifest->files = g_ptr_array_new_with_free_func(file_free);
    return manifest;
}

void snap_manifest_free(SnapManifest *manifest) {
    if (!manifest)
        return;
    g_ptr_array_unref(manifest->regions);
    g_ptr_array_unref(manifest->states);
    g_ptr_array_unref(manifest->statistics);
    g_ptr_array_unref(manifest->files);
    g_free(manifest->id);
    g_free(manifest->parent_id);
    g_free(manifest->parent_path);
    g_free(manifest->folding_into);
    g_free(manifest->driver);
    g_free(manifest->guest);
    g_free(manifest->created);
    g_free(manifest);
}

SnapManifestRegion *snap_manifest_add_region(SnapManifest *manifest, const SnapRegion *region) {
    SnapManifestRegion *added = g_new0(SnapManifestRegion, 1);
    added->name = g_strdup(region->name);
    added->file = snap_file_base_name(region->name);
    added->memory = region->memory;
    added->guest_address = region->guest_address;
    added->host_address = region->host_address;
    added->length_bytes = region->length_bytes;
    added->page_bytes = region->page_bytes;
    added->granule_bytes = region->granule_bytes;
    g_ptr_array_add(manifest->regions, added);
    return added;
}

SnapManifestState *snap_manifest_add_state(SnapManifest *manifest, const char *name, uint64_t length_bytes) {
    SnapManifestState *added = g_new0(SnapManifestState, 1);
    added->name = g_strdup(name);
    added->file = snap_file_base_name(name);
    added->length_bytes = length_bytes;
    g_ptr_array_add(manifest->states, added);
    return added;
}

void snap_manifest_add_statistic(SnapManifest *manifest, const char *name, uint64_t value) {
    SnapManifestStatistic *added = g_new0(SnapManifestStatistic, 1);
    added->name = g_strdup(name);
    added->value = value;
    g_ptr_array_add(manifest->statistics, added);
}

void snap_manifest_add_file(SnapManifest *manifest, const char *path, uint64_t length_bytes,
                            const uint64_t *xxh3) {
    SnapManifestFile *added = g_new0(SnapManifestFile, 1);
    added->path = g_strdup(path);
    added->length_bytes = length_bytes;
    added->has_xxh3 = xxh3 != NULL;
    added->xxh3 = xxh3 ? *xxh3 : 0;
    g_ptr_array_add(manifest->files, added);
}

char *snap_manifest_format_time(int64_t since_epoch_us) {
    g_autoptr(GDateTime) second = g_date_time_new_from_unix_utc(since_epoch_us / G_USEC_PER_SEC);
    g_autoptr(GDateTime) time = second ? g_date_time_add(second, since_epoch_us % G_USEC_PER_SEC) : NULL;
    return time ? g_date_time_format(time, "%Y-%m-%dT%H:%M:%S.%fZ") : g_strdup("1970-01-01T00:00:00.000000Z");
}

/* ---- sense ----------------------------------------------------------------------------------------------- */

const char *snap_manifest_region_check(const SnapManifestRegion *region) {
    if (!region->name[0] || !g_utf8_validate(region->name, -1, NULL))
        return "the name is empty or not UTF-8";
    if (!snap_file_base_name_ok(region->file))
        return "the file name is not one";
    if (!snap_page_bytes_ok(region->page_bytes))
        return "the page size is not one";
    if (region->length_bytes == 0 || region->length_bytes > INT64_MAX ||
        region->length_bytes % region->page_bytes != 0)
        return "the length is not a multiple of the page size";
    if (region->granule_bytes < region->page_bytes || region->granule_bytes % region->page_bytes != 0)
        return "the granule is not a multiple of the page size";
    if (region->host_address > UINT64_MAX - region->length_bytes)
        return "it ends beyond the end of the address space";
    return NULL;
}

static const char *check_state(const SnapManifestState *state) {
    if (!state->name[0] || !g_utf8_validate(state->name, -1, NULL))
        return "the name is empty or not UTF-8";
    if (!snap_file_base_name_ok(state->file))
        return "the file name is not one";
    return state->length_bytes > INT64_MAX ? "the length is not one" : NULL;
}

/* "ram/BASE.SUFFIX" or "state/BASE", nothing else. */
static gboolean path_ok(const char *path) {
    const char *slash = strchr(path, '/');
    if (!slash)
        return FALSE;
    g_autofree char *base = g_strdup(slash + 1);
    if (g_str_has_prefix(path, SNAP_DIR_STATE "/"))
        return snap_file_base_name_ok(base);
    if (!g_str_has_prefix(path, SNAP_DIR_RAM "/"))
        return FALSE;
    char *dot = strrchr(base, '.');
    if (!dot)
        return FALSE;
    *dot = '\0';
    return snap_file_base_name_ok(base) && snap_file_base_name_ok(dot + 1);
}

gboolean snap_manifest_corrupt(GError **error, const char *format, ...) {
    va_list args;
    va_start(args, format);
    g_autofree char *what = g_strdup_vprintf(format, args);
    va_end(args);
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_CORRUPT, SNAP_FILE_MANIFEST ": %s", what);
    return FALSE;
}

/* The files a region or state blob consists of must be listed. @hashed: with a checksum. */
static gboolean check_listed(GHashTable *files, const char *path, uint64_t length_bytes, gboolean hashed,
                             GError **error) {
    const SnapManifestFile *file = g_hash_table_lookup(files, path);
    if (!file)
        return snap_manifest_corrupt(error, "\"files\" lacks \"%s\"", path);
    if (file->length_bytes != length_bytes || (hashed && !file->has_xxh3))
        return snap_manifest_corrupt(error, "\"files\" has the wrong length or no checksum for \"%s\"", path);
    return TRUE;
}

static uint64_t index_bytes(const SnapManifestRegion *region) {
    return SNAP_INDEX_HEADER_BYTES +
           SNAP_INDEX_RECORD_BYTES * snap_chunk_count(region->length_bytes, region->page_bytes);
}

static gboolean check_regions(const SnapManifest *manifest, GHashTable *files, GError **error) {
    g_autoptr(GHashTable) names = g_hash_table_new(g_str_hash, g_str_equal);
    g_autoptr(GHashTable) bases = g_hash_table_new(g_str_hash, g_str_equal);
    for (guint i = 0; i < manifest->regions->len; i++) {
        const SnapManifestRegion *region = manifest->regions->pdata[i];
        const char *wrong = snap_manifest_region_check(region);
        if (wrong)
            return snap_manifest_corrupt(error, "region %u: %s", i, wrong);
        if (!g_hash_table_add(names, region->name) || !g_hash_table_add(bases, region->file))
            return snap_manifest_corrupt(error, "region \"%s\" is there twice", region->file);
        g_autofree char *data = g_strconcat(SNAP_DIR_RAM "/", region->file, SNAP_SUFFIX_DATA, NULL);
        g_autofree char *idx = g_strconcat(SNAP_DIR_RAM "/", region->file, SNAP_SUFFIX_INDEX, NULL);
        if (!check_listed(files, data, region->length_bytes, FALSE, error) ||
            !check_listed(files, idx, index_bytes(region), TRUE, error))
            return FALSE;
    }
    return TRUE;
}

static int compare_host(const void *a, const void *b) {
    const SnapManifestRegion *x = *(SnapManifestRegion *const *)a, *y = *(SnapManifestRegion *const *)b;
    return (x->host_address > y->host_address) - (x->host_address < y->host_address);
}

static gboolean check_overlap(const SnapManifest *manifest, GError **error) {
    g_autoptr(GPtrArray) sorted = g_ptr_array_copy(manifest->regions, NULL, NULL);
    g_ptr_array_set_free_func(sorted, NULL);
    g_ptr_array_sort(sorted, compare_host);
    for (guint i = 1; i < sorted->len; i++) {
        const SnapManifestRegion *low = sorted->pdata[i - 1], *high = sorted->pdata[i];
        if (low->host_address + low->length_bytes > high->host_address)
            return snap_manifest_corrupt(error, "regions \"%s\" and \"%s\" overlap", low->file, high->file);
    }
    return TRUE;
}

static gboolean check_states(const SnapManifest *manifest, GHashTable *files, GError **error) {
    g_autoptr(GHashTable) names = g_hash_table_new(g_str_hash, g_str_equal);
    g_autoptr(GHashTable) bases = g_hash_table_new(g_str_hash, g_str_equal);
    for (guint i = 0; i < manifest->states->len; i++) {
        const SnapManifestState *state = manifest->states->pdata[i];
        const char *wrong = check_state(state);
        if (wrong)
            return snap_manifest_corrupt(error, "state %u: %s", i, wrong);
        if (!g_hash_table_add(names, state->name) || !g_hash_table_add(bases, state->file))
            return snap_manifest_corrupt(error, "state \"%s\" is there twice", state->file);
        g_autofree char *path = g_strconcat(SNAP_DIR_STATE "/", state->file, NULL);
        if (!check_listed(files, path, state->length_bytes, TRUE, error))
            return FALSE;
    }
    return TRUE;
}

gboolean snap_manifest_check(const SnapManifest *manifest, GError **error) {
    g_autoptr(GHashTable) files = g_hash_table_new(g_str_hash, g_str_equal);
    if (!snap_page_bytes_ok(manifest->page_bytes))
        return snap_manifest_corrupt(error, "\"page-size\" is not a page size");
    for (guint i = 0; i < manifest->files->len; i++) {
        SnapManifestFile *file = manifest->files->pdata[i];
        if (!path_ok(file->path) || file->length_bytes > INT64_MAX)
            return snap_manifest_corrupt(error, "file %u: not a file of an image", i);
        if (!g_hash_table_insert(files, file->path, file))
            return snap_manifest_corrupt(error, "file \"%s\" is there twice", file->path);
    }
    return check_regions(manifest, files, error) && check_overlap(manifest, error) &&
           check_states(manifest, files, error);
}
