/*
 * From the user's command to one that restores.
 *
 * RAM can come back in two ways. Sent through the stream, it is copied: 0.4 s for 600 MB, and what the user's
 * command says about memory holds as it stands. Mapped privately from the image's raw file, it is there at once
 * (milliseconds, whatever its size), pages are read as the guest touches them, and the image stays as it is. What
 * that costs:
 *
 *   - the guest's memory is no longer shared with anyone (vhost-user back ends), nor of huge pages;
 *   - a private mapping of a file on disk cannot be write-protected by userfaultfd, so that this guest cannot be
 *     snapshotted again without stopping it, until it is migrated;
 *   - the image must stay in place while the guest runs;
 *   - a balloon, or another device that gives memory back, would punch holes into the image's file (QEMU 7.2 does
 * so to private mappings too), so a command with one is never mapped.
 *
 * So QEMU_MAP_AUTO maps where the command itself keeps RAM in a file or a memfd, and neither of these stands
 * against it; plain anonymous RAM is copied and remains what it was. QEMU_MAP_ALWAYS maps default RAM as well, for
 * whom the milliseconds count more.
 *
 * What is replaced: the definition of a memory backend object, by one of the same id; for default RAM, which QEMU
 * makes under the name of the block (pc.ram), an object of that id is added and named as the machine's
 * memory-backend.
 */
#include "command-line.h"

#include "qmp.h"

#include <string.h>

void command_line_free(CommandLine *line) {
    if (!line)
        return;
    g_ptr_array_unref(line->argv);
    g_free(line->contents);
    g_free(line);
}

void command_line_add(CommandLine *line, const char *option, const char *value) {
    g_ptr_array_add(line->argv, g_strdup(option));
    if (value)
        g_ptr_array_add(line->argv, g_strdup(value));
}

/* ---- looking ---- */

/* QEMU takes -option and --option. */
static gboolean is_option(const char *word, const char *name) {
    if (*word++ != '-')
        return FALSE;
    return g_str_equal(*word == '-' ? word + 1 : word, name);
}

static int find_option(const GPtrArray *argv, const char *name) {
    for (guint i = 1; i < argv->len; i++)
        if (is_option(g_ptr_array_index(argv, i), name))
            return (int)i;
    return -1;
}

static gboolean mentions(const GPtrArray *argv, const char *text) {
    for (guint i = 1; i < argv->len; i++)
        if (strstr(g_ptr_array_index(argv, i), text))
            return TRUE;
    return FALSE;
}

/* Commas separate properties, a doubled one is part of a value. NULL when it is not there. */
static char *get_property(const char *text, const char *name) {
    g_autoptr(GString) item = g_string_new(NULL);
    g_autofree char *prefix = g_strconcat(name, "=", NULL);
    for (const char *at = text;; at++) {
        if (*at == ',' && at[1] == ',')
            at++;
        else if (*at == ',' || *at == '\0') {
            if (g_str_has_prefix(item->str, prefix))
                return g_strdup(item->str + strlen(prefix));
            g_string_truncate(item, 0);
            if (*at == '\0')
                return NULL;
            continue;
        }
        g_string_append_c(item, *at);
    }
}

/* A memory backend object in the command: in QEMU's own form or as JSON, which libvirt writes. */
typedef struct {
    guint index;     /* of its definition in argv */
    char *type;      /* "memory-backend-ram" … */
    char *canonical; /* (nullable) its x-use-canonical-path-for-ramblock-id */
    gboolean huge;
} Backend;

static void backend_free(Backend *backend) {
    if (!backend)
        return;
    g_free(backend->type);
    g_free(backend->canonical);
    g_free(backend);
}
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Backend, backend_free)

static Backend *parse_json_backend(const char *text, const char *id) {
    static const char canonical[] = "x-use-canonical-path-for-ramblock-id";
    g_autoptr(json_object) object = json_tokener_parse(text);
    if (!g_str_equal(qmp_get_string(object, "id"), id))
        return NULL;
    Backend *backend = g_new0(Backend, 1);
    backend->type = g_strdup(qmp_get_string(object, "qom-type"));
    backend->huge = qmp_get_bool(object, "hugetlb");
    if (qmp_get(object, canonical))
        backend->canonical = g_strdup(qmp_get_bool(object, canonical) ? "on" : "off");
    return backend;
}

static Backend *parse_backend(const char *text, const char *id) {
    if (*text == '{')
        return parse_json_backend(text, id);
    g_autofree char *name = get_property(text, "id");
    g_autofree char *huge = get_property(text, "hugetlb");
    if (g_strcmp0(name, id) != 0)
        return NULL;
    Backend *backend = g_new0(Backend, 1);
    backend->type = g_strndup(text, strcspn(text, ","));
    backend->canonical = get_property(text, "x-use-canonical-path-for-ramblock-id");
    backend->huge = g_strcmp0(huge, "on") == 0;
    return backend;
}

static Backend *find_backend(const GPtrArray *argv, const char *id) {
    for (guint i = 1; i + 1 < argv->len; i++) {
        if (!is_option(g_ptr_array_index(argv, i), "object"))
            continue;
        Backend *backend = parse_backend(g_ptr_array_index(argv, i + 1), id);
        if (backend && g_str_has_prefix(backend->type, "memory-backend-")) {
            backend->index = i + 1;
            return backend;
        }
        backend_free(backend);
    }
    return NULL;
}

/* ---- deciding ---- */

/* Is the block what QEMU makes of -m alone? Then its backend is named as the block, and nobody defines it. */
static gboolean is_default_ram(const GPtrArray *argv, const RamBlock *block) {
    return block->backend && g_str_equal(block->backend, block->name) && g_str_has_suffix(block->name, ".ram") &&
           find_option(argv, "mem-path") < 0 && find_option(argv, "readconfig") < 0;
}

/* Why no RAM of this command may be mapped; NULL when it may. */
static const char *map_obstacle(const GPtrArray *argv) {
    if (mentions(argv, "virtio-balloon") || mentions(argv, "virtio-mem"))
        return "the command has a balloon or virtio-mem device, which would punch holes into the image";
    if (mentions(argv, "vhost-user"))
        return "the command has a vhost-user device, which needs shared memory";
    return NULL;
}

static gboolean wants_map(const Backend *backend, QemuMap map) {
    if (map != QEMU_MAP_AUTO)
        return map == QEMU_MAP_ALWAYS;
    return backend && !backend->huge &&
           (g_str_equal(backend->type, "memory-backend-file") ||
            g_str_equal(backend->type, "memory-backend-memfd"));
}

/* ---- changing ---- */

static char *mapped_definition(const char *id, const char *raw_path, uint64_t length_bytes,
                               const char *canonical) {
    g_auto(GStrv) parts = g_strsplit(raw_path, ",", -1);
    g_autofree char *path = g_strjoinv(",,", parts);
    g_autofree char *tail =
        canonical ? g_strconcat(",x-use-canonical-path-for-ramblock-id=", canonical, NULL) : g_strdup("");
    return g_strdup_printf("memory-backend-file,id=%s,size=%" G_GUINT64_FORMAT ",share=off,mem-path=%s%s", id,
                           length_bytes, path, tail);
}

static void map_block(CommandLine *line, const Backend *backend, const RamBlock *block, const char *raw_path) {
    if (backend) {
        char **place = (char **)&line->argv->pdata[backend->index];
        g_free(*place);
        *place = mapped_definition(block->backend, raw_path, block->used_bytes, backend->canonical);
    } else {
        g_autofree char *definition = mapped_definition(block->backend, raw_path, block->used_bytes, "off");
        g_autofree char *machine = g_strconcat("memory-backend=", block->backend, NULL);
        command_line_add(line, "-object", definition);
        command_line_add(line, "-machine", machine);
    }
    line->mapped_bytes += block->used_bytes;
}

/* One block: mapped, or sent, and then with its zero pages or without. */
static StreamContent plan_block(CommandLine *line, const SnapImage *image, const RamBlock *block, QemuMap map) {
    gboolean is_default = is_default_ram(line->argv, block);
    g_autoptr(Backend) backend = block->backend ? find_backend(line->argv, block->backend) : NULL;
    int index = snap_image_find_region(image, block->name);
    const char *raw_path = index < 0 ? NULL : snap_image_region(image, (guint)index)->raw_path;
    if (raw_path && (backend || is_default) && wants_map(backend, map)) {
        map_block(line, backend, block, raw_path);
        return STREAM_NOTHING;
    }
    if (backend ? !g_str_equal(backend->type, "memory-backend-file") : is_default)
        return STREAM_DATA; /* memory made for this QEMU: zero */
    return STREAM_ALL;
}

CommandLine *command_line_new(char *const *argv, const SnapImage *image, const QemuDescription *description,
                              QemuMap map, GError **error) {
    g_autoptr(CommandLine) line = g_new0(CommandLine, 1);
    line->argv = g_ptr_array_new_with_free_func(g_free);
    line->contents = g_new0(StreamContent, description->blocks->len);
    for (; *argv; argv++)
        g_ptr_array_add(line->argv, g_strdup(*argv));
    if (find_option(line->argv, "incoming") >= 0) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_USAGE,
                    "leave -incoming out of the command: the image comes that way");
        return NULL;
    }
    const char *obstacle = map_obstacle(line->argv);
    if (obstacle && map == QEMU_MAP_ALWAYS) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED, "RAM cannot be mapped: %s", obstacle);
        return NULL;
    }
    for (guint i = 0; i < description->blocks->len; i++)
        line->contents[i] =
            plan_block(line, image, g_ptr_array_index(description->blocks, i), obstacle ? QEMU_MAP_NEVER : map);
    if (map == QEMU_MAP_ALWAYS && line->mapped_bytes == 0) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED,
                    "RAM cannot be mapped: the command defines none that is in the image as a raw file");
        return NULL;
    }
    return g_steal_pointer(&line);
}
