/*
 * Parsing /proc/PID/maps and the VmFlags of /proc/PID/smaps.
 *
 * The text is copied once, its line ends become NULs and the paths point into the copy: listing a guest that
 * stands still must not spend its time in malloc. A newline in a file name arrives as \012 and is turned back.
 */
#include "maps.h"

#include <errno.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "libsnap.h"

static const char deleted_suffix[] = " (deleted)";

/* Hexadecimal or decimal digits up to @end_char, which is consumed. FALSE when there are none. */
static gboolean take_number(char **cursor, guint base, char end_char, uint64_t *ret_value) {
    char *end = NULL;
    if (!g_ascii_isxdigit(**cursor)) {
        return FALSE;
    }
    uint64_t value = g_ascii_strtoull(*cursor, &end, base);
    if (*end != end_char && !(end_char == ' ' && *end == '\0')) {
        return FALSE;
    }
    *cursor = *end == '\0' ? end : end + 1;
    *ret_value = value;
    return TRUE;
}

static gboolean take_permissions(char **cursor, ProcMap *map) {
    char *p = *cursor;
    if (strnlen(p, 5) < 5 || p[4] != ' ') {
        return FALSE;
    }
    map->readable = p[0] == 'r';
    map->writable = p[1] == 'w';
    map->executable = p[2] == 'x';
    map->shared = p[3] == 's';
    *cursor = p + 5;
    return TRUE;
}

static void unescape_newlines(char *path) {
    char *to = path;
    for (const char *from = path; *from; to++) {
        if (strncmp(from, "\\012", 4) == 0) {
            *to = '\n';
            from += 4;
        } else {
            *to = *from++;
        }
    }
    *to = '\0';
}

static void take_path(char *cursor, ProcMap *map) {
    while (*cursor == ' ') {
        cursor++;
    }
    size_t length = strlen(cursor);
    size_t suffix = sizeof(deleted_suffix) - 1;
    map->deleted = length > suffix && strcmp(cursor + length - suffix, deleted_suffix) == 0;
    if (map->deleted) {
        cursor[length - suffix] = '\0';
    }
    unescape_newlines(cursor);
    map->path = cursor;
}

static gboolean parse_line(char *line, ProcMap *map) {
    char *cursor = line;
    uint64_t major_number = 0, minor_number = 0;
    if (!take_number(&cursor, 16, '-', &map->start) || !take_number(&cursor, 16, ' ', &map->end) ||
        !take_permissions(&cursor, map) || !take_number(&cursor, 16, ' ', &map->offset) ||
        !take_number(&cursor, 16, ':', &major_number) || !take_number(&cursor, 16, ' ', &minor_number) ||
        !take_number(&cursor, 10, ' ', &map->ino) || map->start >= map->end) {
        return FALSE;
    }
    map->dev = makedev((unsigned)major_number, (unsigned)minor_number);
    take_path(cursor, map);
    return TRUE;
}

/* "VmFlags: rd wr" and "Rss:   12 kB": the lines that smaps has below each mapping. */
static gboolean is_attribute(const char *line) {
    const char *colon = strchr(line, ':');
    return g_ascii_isupper(line[0]) && colon && (colon[1] == ' ' || colon[1] == '\t') &&
           !memchr(line, ' ', (size_t)(colon - line));
}

ProcMaps *maps_parse(const char *text, gsize length_bytes, GError **error) {
    g_autofree char *storage = g_strndup(text, length_bytes);
    g_autoptr(GArray) entries = g_array_sized_new(FALSE, TRUE, sizeof(ProcMap), 256);
    char *line = storage;
    while (line && *line) {
        char *end = strchr(line, '\n');
        if (end) {
            *end = '\0';
        }
        ProcMap map = {0};
        if (parse_line(line, &map)) {
            g_array_append_val(entries, map);
        } else if (!is_attribute(line)) {
            g_set_error(error, SNAP_ERROR, SNAP_ERROR_PROTOCOL, "not a mapping: \"%.100s\"", line);
            return NULL;
        }
        line = end ? end + 1 : NULL;
    }
    ProcMaps *maps = g_new0(ProcMaps, 1);
    maps->n_entries = entries->len;
    maps->entries = (ProcMap *)(void *)g_array_free(g_steal_pointer(&entries), FALSE);
    maps->storage = g_steal_pointer(&storage);
    return maps;
}

void maps_free(ProcMaps *maps) {
    if (maps) {
        g_free(maps->entries);
        g_free(maps->storage);
        g_free(maps);
    }
}

const ProcMap *maps_find(const ProcMaps *maps, uint64_t address) {
    guint low = 0, high = maps->n_entries;
    while (low < high) {
        guint middle = low + (high - low) / 2;
        const ProcMap *map = &maps->entries[middle];
        if (address < map->start) {
            high = middle;
        } else if (address >= map->end) {
            low = middle + 1;
        } else {
            return map;
        }
    }
    return NULL;
}

gboolean maps_read_text(int fd, GString *text, GError **error) {
    enum { STEP_BYTES = 1 << 16 };
    gsize used = 0;
    for (;;) {
        g_string_set_size(text, used + STEP_BYTES);
        ssize_t n = pread(fd, text->str + used, STEP_BYTES, (off_t)used);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            snap_set_errno(error, errno, "cannot read the guest's mappings");
            return FALSE;
        }
        used += (gsize)n;
        if (n == 0) {
            break;
        }
    }
    g_string_set_size(text, used);
    if (used == 0) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_GUEST_GONE, "the guest's process has ended");
        return FALSE;
    }
    return TRUE;
}

static gboolean flags_contain(const char *flags, const char *const *wanted) {
    g_auto(GStrv) words = g_strsplit(flags, " ", -1);
    for (guint i = 0; wanted[i]; i++) {
        if (g_strv_contains((const char *const *)words, wanted[i])) {
            return TRUE;
        }
    }
    return FALSE;
}

GArray *maps_parse_vm_flags(const char *text, gsize length_bytes) {
    static const char *const userfault_flags[] = {"um", "uw", "ui", NULL};
    static const char prefix[] = "VmFlags: ";
    GArray *result = g_array_new(FALSE, TRUE, sizeof(ProcVmFlags));
    g_autofree char *copy = g_strndup(text, length_bytes);
    g_auto(GStrv) lines = g_strsplit(copy, "\n", -1);
    ProcMap map = {0};
    for (guint i = 0; lines[i]; i++) {
        if (g_str_has_prefix(lines[i], prefix)) {
            ProcVmFlags entry = {map.start, map.end,
                                 flags_contain(lines[i] + sizeof(prefix) - 1, userfault_flags)};
            g_array_append_val(result, entry);
        } else if (!is_attribute(lines[i])) {
            (void)parse_line(lines[i], &map);
        }
    }
    return result;
}
