/*
 * Listing and relating; the rules for one mapping are in classify.c.
 *
 *     running: maps text → all mappings, cut at borders of those known before → classify → known
 *     paused:  maps text → for each mapping, cut at the borders of the known ones:
 *                  same memory as a known one  → a piece of that (touching pieces are joined)
 *                  anything else               → classify
 *
 * A mapping that grows is another one each time in the eyes of who logs it, and the kernel makes one of two where
 * it can. So what was known stays apart from what is new beside it. Neighbours of about the same size are joined:
 * there are not too many, and a byte is new again only when the region that it is in has grown by half.
 *
 * Invariants: names are label@address, so they are unique as long as regions do not overlap, which they do not;
 * known and current mappings are in ascending order.
 */
#include "regions.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "classify.h"
#include "descriptors.h"
#include "kind.h"
#include "maps.h"
#include "rings.h"
#include "target.h"

enum { LISTINGS_MAX = 3 };

struct Regions {
    int pid;
    int maps_fd;
    int pagemap_fd;
    uint64_t page_bytes;
    GString *text;
    GPtrArray *known; /* of Mapping; NULL before the first listing */
};

/* A part of the process as it is now. */
typedef struct {
    const Mapping *known; /* what it is a piece of; NULL: new */
    ProcMap map;
} Piece;

static int open_proc(int pid, const char *name, GError **error) {
    g_autofree char *path = g_strdup_printf("/proc/%d/%s", pid, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        snap_set_errno(error, errno == ENOENT ? ESRCH : errno, "cannot open %s", path);
    }
    return fd;
}

Regions *regions_new(int pid, GError **error) {
    int maps_fd = open_proc(pid, "maps", error);
    int pagemap_fd = maps_fd < 0 ? -1 : open_proc(pid, "pagemap", error);
    if (pagemap_fd < 0) {
        if (maps_fd >= 0) {
            close(maps_fd);
        }
        return NULL;
    }
    Regions *regions = g_new0(Regions, 1);
    regions->pid = pid;
    regions->maps_fd = maps_fd;
    regions->pagemap_fd = pagemap_fd;
    regions->page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
    return regions;
}

void regions_free(Regions *regions) {
    if (!regions) {
        return;
    }
    close(regions->maps_fd);
    close(regions->pagemap_fd);
    if (regions->text) {
        g_string_free(regions->text, TRUE);
    }
    g_clear_pointer(&regions->known, g_ptr_array_unref);
    g_free(regions);
}

const GString *regions_maps_text(const Regions *regions) {
    return regions->text;
}

/* ---- cutting the present at the borders of the past ------------------------------------------------------- */

/* Could @now, which lies inside @known, still be the same memory? */
static gboolean is_same_memory(const Mapping *known, const ProcMap *now) {
    const ProcMap *before = &known->map;
    if (before->ino != now->ino || before->dev != now->dev || before->shared != now->shared ||
        strcmp(before->path, now->path) != 0) {
        return FALSE;
    }
    if (now->ino && now->offset - now->start != before->offset - before->start) {
        return FALSE;
    }
    /* What was decided on as read-only must be decided on anew. */
    gboolean anonymous = !now->ino && !now->shared;
    return anonymous || before->writable || !now->writable;
}

static ProcMap part_of(const ProcMap *map, uint64_t start, uint64_t end) {
    ProcMap part = *map;
    part.start = start;
    part.end = end;
    part.offset = map->ino ? map->offset + (start - map->start) : map->offset;
    return part;
}

static void add_piece(GArray *pieces, const Mapping *known, const ProcMap *map) {
    Piece *last = pieces->len ? &g_array_index(pieces, Piece, pieces->len - 1) : NULL;
    if (last && known && last->known == known && last->map.end == map->start) {
        last->map.end = map->end;
        return;
    }
    Piece piece = {known, *map};
    g_array_append_val(pieces, piece);
}

static void cut_mapping(const GPtrArray *known, guint *cursor, const ProcMap *map, GArray *pieces) {
    uint64_t at = map->start;
    while (at < map->end) {
        while (*cursor < known->len && ((const Mapping *)g_ptr_array_index(known, *cursor))->map.end <= at) {
            (*cursor)++;
        }
        const Mapping *before = *cursor < known->len ? g_ptr_array_index(known, *cursor) : NULL;
        gboolean inside = before && before->map.start <= at;
        uint64_t border = !before ? map->end : inside ? before->map.end : before->map.start;
        ProcMap part = part_of(map, at, MIN(border, map->end));
        add_piece(pieces, inside && is_same_memory(before, &part) ? before : NULL, &part);
        at = part.end;
    }
}

static GArray *cut(const GPtrArray *known, const ProcMaps *maps) {
    GArray *pieces = g_array_sized_new(FALSE, TRUE, sizeof(Piece), maps->n_entries);
    guint cursor = 0;
    for (guint i = 0; i < maps->n_entries; i++) {
        cut_mapping(known, &cursor, &maps->entries[i], pieces);
    }
    return pieces;
}

/* ---- borders that stay ----------------------------------------------------------------------------------- */

static gboolean are_of_a_size(const ProcMap *a, const ProcMap *b) {
    uint64_t x = a->end - a->start, y = b->end - b->start;
    return x <= 2 * y && y <= 2 * x;
}

/* @part follows those from @first on, which are of the same mapping. */
static void add_part(GArray *parts, guint first, ProcMap part) {
    while (parts->len > first) {
        const ProcMap *last = &g_array_index(parts, ProcMap, parts->len - 1);
        if (!are_of_a_size(last, &part)) {
            break;
        }
        part.start = last->start;
        part.offset = last->offset;
        g_array_set_size(parts, parts->len - 1);
    }
    g_array_append_val(parts, part);
}

/* All mappings, cut at borders of @known. Return: of ProcMap, which borrow from @maps. */
static GArray *cut_at_borders(const GPtrArray *known, const ProcMaps *maps) {
    GArray *parts = g_array_sized_new(FALSE, TRUE, sizeof(ProcMap), maps->n_entries);
    g_autoptr(GArray) pieces = g_array_new(FALSE, TRUE, sizeof(Piece));
    guint cursor = 0;
    for (guint i = 0; i < maps->n_entries; i++) {
        guint first = parts->len;
        g_array_set_size(pieces, 0);
        cut_mapping(known, &cursor, &maps->entries[i], pieces);
        for (guint k = 0; k < pieces->len; k++) {
            add_part(parts, first, g_array_index(pieces, Piece, k).map);
        }
    }
    return parts;
}

/* ---- regions ---------------------------------------------------------------------------------------------- */

static SnapRegion *copy_part(const SnapRegion *region, const char *name, uint64_t start, uint64_t end) {
    SnapRegion *copy = snap_region_copy(region);
    g_free(copy->name);
    copy->name = g_strdup(name);
    copy->host_address = start;
    copy->length_bytes = end - start;
    copy->fd_offset += start - region->host_address;
    return copy;
}

/* The part of @mapping's region that lies in [@start, @end), or NULL. */
static SnapRegion *region_of_part(const Mapping *mapping, const SnapRegion *region, uint64_t start, uint64_t end) {
    uint64_t from = MAX(start, region->host_address);
    uint64_t to = MIN(end, region->host_address + region->length_bytes);
    if (from >= to) {
        return NULL;
    }
    if (from == region->host_address) {
        return copy_part(region, region->name, from, to);
    }
    g_autofree char *name = g_strdup_printf("%s@%lx", mapping->label, from);
    return copy_part(region, name, from, to);
}

static SnapRegion *region_of_piece(const Regions *regions, const Mapping *mapping, uint64_t start, uint64_t end) {
    if (mapping->may_turn &&
        kind_was_written(regions->pagemap_fd, start, MIN(end, mapping->end_in_file), regions->page_bytes)) {
        g_autoptr(SnapRegion) turned = classify_turned(mapping);
        return region_of_part(mapping, turned, start, end);
    }
    return mapping->region ? region_of_part(mapping, mapping->region, start, end) : NULL;
}

static void add_region(GPtrArray *list, SnapRegion *region) {
    if (region) {
        g_ptr_array_add(list, region);
    }
}

static gint by_length(gconstpointer a, gconstpointer b) {
    const SnapRegion *x = *(const SnapRegion *const *)a, *y = *(const SnapRegion *const *)b;
    return x->length_bytes < y->length_bytes ? -1 : x->length_bytes > y->length_bytes;
}

/* The pause must not grow with what is copied in it: refuse the biggest that do not fit. */
static void refuse_big_copies(GPtrArray *list) {
    g_autoptr(GPtrArray) copied = g_ptr_array_new();
    for (guint i = 0; i < list->len; i++) {
        SnapRegion *region = g_ptr_array_index(list, i);
        if (region->memory == SNAP_MEMORY_COPIED && !region->refusal) {
            g_ptr_array_add(copied, region);
        }
    }
    g_ptr_array_sort(copied, by_length);
    uint64_t sum = 0;
    for (guint i = 0; i < copied->len; i++) {
        SnapRegion *region = g_ptr_array_index(copied, i);
        sum += region->length_bytes;
        if (sum > REGIONS_COPIED_MAX_BYTES) {
            g_autofree char *size = g_format_size_full(region->length_bytes, G_FORMAT_SIZE_IEC_UNITS);
            region->refusal =
                g_strdup_printf("it is a mapping of %s which userfaultfd cannot protect, and too big to be copied "
                                "while the guest stands still: leave it out with --region",
                                size);
        }
    }
}

static gboolean read_maps(Regions *regions, ProcMaps **ret_maps, GError **error) {
    if (!regions->text) {
        regions->text = g_string_new(NULL);
    }
    if (!maps_read_text(regions->maps_fd, regions->text, error)) {
        return FALSE;
    }
    *ret_maps = maps_parse(regions->text->str, regions->text->len, error);
    return *ret_maps != NULL;
}

/* ---- a listing while it runs ------------------------------------------------------------------------------- */

/* smaps walks all page tables, so it is read only for a process that has a userfaultfd of its own. */
static GArray *read_flags(int pid) {
    g_autofree char *path = g_strdup_printf("/proc/%d/smaps", pid);
    g_autofree char *text = NULL;
    gsize length = 0;
    return g_file_get_contents(path, &text, &length, NULL) ? maps_parse_vm_flags(text, length) : NULL;
}

static gboolean list_running(Regions *regions, gboolean watched, GPtrArray *list, GError **error) {
    g_auto(Descriptors) open_files = descriptors_look(regions->pid);
    if (open_files.device) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_REFUSED,
                    "process %d has %s open: a device writes its memory, which cannot be seen from here",
                    regions->pid, open_files.device);
        return FALSE;
    }
    g_autoptr(ProcMaps) maps = NULL;
    if (!read_maps(regions, &maps, error)) {
        return FALSE;
    }
    g_autoptr(GArray) flags = open_files.userfaultfd && !watched ? read_flags(regions->pid) : NULL;
    ClassifyContext context = {.pid = regions->pid,
                               .pagemap_fd = regions->pagemap_fd,
                               .page_bytes = regions->page_bytes,
                               .maps = maps,
                               .flags = flags};
    g_autoptr(GPtrArray) before = g_steal_pointer(&regions->known);
    regions->known = g_ptr_array_new_with_free_func((GDestroyNotify)classify_free);
    if (before) {
        g_autoptr(GArray) parts = cut_at_borders(before, maps);
        classify(&context, (const ProcMap *)(const void *)parts->data, parts->len, regions->known);
    } else {
        classify(&context, maps->entries, maps->n_entries, regions->known);
    }
    for (guint i = 0; i < regions->known->len; i++) {
        const Mapping *mapping = g_ptr_array_index(regions->known, i);
        add_region(list, region_of_piece(regions, mapping, mapping->map.start, mapping->map.end));
    }
    return TRUE;
}

/* ---- the listing in the pause ----------------------------------------------------------------------------- */

static GPtrArray *classify_new(const Regions *regions, const ProcMaps *maps, const GArray *pieces) {
    g_autoptr(GArray) wanted = g_array_new(FALSE, FALSE, sizeof(ProcMap));
    for (guint i = 0; i < pieces->len; i++) {
        const Piece *piece = &g_array_index(pieces, Piece, i);
        if (!piece->known) {
            g_array_append_val(wanted, piece->map);
        }
    }
    ClassifyContext context = {
        .pid = regions->pid, .pagemap_fd = regions->pagemap_fd, .page_bytes = regions->page_bytes, .maps = maps};
    GPtrArray *mappings = g_ptr_array_new_with_free_func((GDestroyNotify)classify_free);
    classify(&context, (const ProcMap *)(const void *)wanted->data, wanted->len, mappings);
    return mappings;
}

static gboolean list_paused(Regions *regions, GPtrArray *list, GError **error) {
    g_autoptr(ProcMaps) maps = NULL;
    if (!read_maps(regions, &maps, error)) {
        return FALSE;
    }
    g_autoptr(GArray) pieces = cut(regions->known, maps);
    g_autoptr(GPtrArray) new_mappings = classify_new(regions, maps, pieces);
    guint next_new = 0;
    for (guint i = 0; i < pieces->len; i++) {
        const Piece *piece = &g_array_index(pieces, Piece, i);
        const Mapping *mapping = piece->known ? piece->known : g_ptr_array_index(new_mappings, next_new++);
        add_region(list, region_of_piece(regions, mapping, piece->map.start, piece->map.end));
    }
    return TRUE;
}

/* ---- what is written past the page tables ------------------------------------------------------------------- */

static void refuse_unseen(const SnapRange *range, uint64_t total, const GPtrArray *list) {
    for (guint i = 0; i < list->len; i++) {
        SnapRegion *region = g_ptr_array_index(list, i);
        if (!region->refusal && range->address < region->host_address + region->length_bytes &&
            region->host_address < range->address + range->length_bytes) {
            region->refusal = g_strdup_printf(
                "the process has registered buffers with io_uring, of which there is one in here, and "
                "what is read into them is not seen: %" G_GUINT64_FORMAT
                " KiB are more than the %" G_GUINT64_FORMAT
                " that can be copied while it stands; leave it out with --region",
                (guint64)(total >> 10), (guint64)(RINGS_BUFFERS_MAX_BYTES >> 10));
        }
    }
}

/* What is pinned, and is not the kernel's own as the pages of perf are, has to be found. */
static gboolean check_pinned(const Regions *regions, const GPtrArray *list, GError **error) {
    g_autoptr(GArray) ranges = g_array_new(FALSE, FALSE, sizeof(SnapRange));
    uint64_t pinned = rings_find_buffers(regions->pid, ranges), total = rings_bytes(ranges);
    if (pinned > 0 && ranges->len == 0 && !strstr(regions->text->str, "anon_inode:[perf_event]")) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_REFUSED,
                    "process %d has %" G_GUINT64_FORMAT
                    " KiB of memory pinned for a device (VmPin in its /proc status), and it cannot be found out "
                    "which: what is written there is not seen. End its use of the device first",
                    regions->pid, (guint64)(pinned >> 10));
        return FALSE;
    }
    for (guint i = 0; i < ranges->len && total > RINGS_BUFFERS_MAX_BYTES; i++) {
        refuse_unseen(&g_array_index(ranges, SnapRange, i), total, list);
    }
    return TRUE;
}

/* ---- a listing --------------------------------------------------------------------------------------------- */

static gboolean is_refused(const GPtrArray *list) {
    for (guint i = 0; i < list->len; i++) {
        if (((const SnapRegion *)g_ptr_array_index(list, i))->refusal) {
            return TRUE;
        }
    }
    return FALSE;
}

/*
 * Of a process that ends or becomes another program meanwhile, and of a mapping that goes, nothing can be found
 * out, which is no reason to refuse it. @ret_changed: its mappings are others than those that were looked at.
 */
static gboolean check_lives(const Regions *regions, gboolean *ret_changed, GError **error) {
    g_autoptr(GString) now = g_string_new(NULL);
    if (target_has_ended(regions->pid, regions->pid)) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_GUEST_GONE, "process %d has ended", regions->pid);
        return FALSE;
    }
    if (!maps_read_text(regions->maps_fd, now, error)) {
        return FALSE;
    }
    *ret_changed = !g_string_equal(now, regions->text);
    return TRUE;
}

static gboolean list_once(Regions *regions, gboolean paused, gboolean watched, GPtrArray *found, GError **error) {
    if (paused && regions->known) {
        return list_paused(regions, found, error); /* no time to look what is pinned; little can be new */
    }
    return list_running(regions, watched, found, error) && check_pinned(regions, found, error);
}

gboolean regions_list(Regions *regions, gboolean paused, gboolean watched, GPtrArray *list, GError **error) {
    for (int i = 1;; i++) {
        g_autoptr(GPtrArray) found = g_ptr_array_new_with_free_func((GDestroyNotify)snap_region_free);
        gboolean changed = FALSE;
        if (!list_once(regions, paused, watched, found, error) ||
            (is_refused(found) && !check_lives(regions, &changed, error))) {
            return FALSE;
        }
        if (!changed || i == LISTINGS_MAX) {
            refuse_big_copies(found);
            g_ptr_array_extend_and_steal(list, g_steal_pointer(&found));
            return TRUE;
        }
    }
}
