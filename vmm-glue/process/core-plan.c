/*
 * The layout of a core file.
 *
 *     ELF header | program headers | [section header 0] | notes | segments, each at a multiple of the page size
 *
 * More than 65534 program headers do not fit into the ELF header's field: it then says PN_XNUM, and section header
 * 0, which exists only for that, has the number in sh_info.
 */
#include "core-plan.h"

#include <elf.h>
#include <string.h>

#include "maps.h"

void core_plan_free(CorePlan *plan) {
    if (plan) {
        g_clear_pointer(&plan->notes, g_bytes_unref);
        g_clear_pointer(&plan->segments, g_array_unref);
        g_free(plan);
    }
}

/* ---- segments --------------------------------------------------------------------------------------------- */

/* The regions of an image by address. */
typedef struct {
    uint64_t address;
    uint64_t length;
    guint number;
} Extent;

static gint by_address(gconstpointer a, gconstpointer b) {
    const Extent *x = (const Extent *)a, *y = (const Extent *)b;
    return x->address < y->address ? -1 : x->address > y->address;
}

static GArray *sort_regions(const SnapImage *image, gboolean machine) {
    GArray *extents = g_array_new(FALSE, FALSE, sizeof(Extent));
    for (guint i = 0; i < snap_image_info(image)->n_regions; i++) {
        const SnapImageRegion *region = snap_image_region(image, i);
        Extent extent = {machine ? region->guest_address : region->host_address, region->length_bytes, i};
        if (extent.address != SNAP_NO_ADDRESS) {
            g_array_append_val(extents, extent);
        }
    }
    g_array_sort(extents, by_address);
    return extents;
}

static void add_part(CorePlan *plan, const ProcMap *map, uint64_t start, uint64_t end, const Extent *extent) {
    CoreSegment segment = {.virtual_address = start, .memory_bytes = end - start};
    segment.flags = (map->readable ? PF_R : 0u) | (map->writable ? PF_W : 0u) | (map->executable ? PF_X : 0u);
    if (extent) {
        segment.file_bytes = end - start;
        segment.region = extent->number;
        segment.region_offset = start - extent->address;
    }
    g_array_append_val(plan->segments, segment);
}

/* Cut one mapping at the borders of the regions in it. Returns how many bytes of regions it holds. */
static uint64_t add_mapping(CorePlan *plan, const ProcMap *map, const GArray *extents, guint *cursor) {
    uint64_t covered = 0;
    for (uint64_t at = map->start, end; at < map->end; at = end) {
        const Extent *extent = NULL;
        for (; *cursor < extents->len; (*cursor)++) {
            extent = &g_array_index(extents, Extent, *cursor);
            if (extent->address + extent->length > at) {
                break;
            }
        }
        gboolean any = *cursor < extents->len;
        gboolean inside = any && extent->address <= at;
        end = MIN(map->end, !any ? map->end : inside ? extent->address + extent->length : extent->address);
        add_part(plan, map, at, end, inside ? extent : NULL);
        covered += inside ? end - at : 0;
    }
    return covered;
}

static gboolean plan_process(CorePlan *plan, const SnapImage *image, GError **error) {
    g_autoptr(GBytes) text = snap_image_state(image, "maps", error);
    if (!text) {
        return FALSE;
    }
    gsize length = 0;
    const char *data = (const char *)g_bytes_get_data(text, &length);
    g_autoptr(ProcMaps) maps = maps_parse(data, length, error);
    if (!maps) {
        return FALSE;
    }
    g_autoptr(GArray) extents = sort_regions(image, FALSE);
    uint64_t covered = 0, total = 0;
    guint cursor = 0;
    for (guint i = 0; i < extents->len; i++) {
        total += g_array_index(extents, Extent, i).length;
    }
    for (guint i = 0; i < maps->n_entries; i++) {
        if (strcmp(maps->entries[i].path, "[vsyscall]") != 0) {
            covered += add_mapping(plan, &maps->entries[i], extents, &cursor);
        }
    }
    if (covered != total) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_CORRUPT,
                    "%s: regions lie outside the mappings in its state \"maps\"", snap_image_info(image)->dir);
        return FALSE;
    }
    return TRUE;
}

static gboolean plan_machine(CorePlan *plan, const SnapImage *image, GError **error) {
    g_autoptr(GArray) extents = sort_regions(image, TRUE);
    for (guint i = 0; i < extents->len; i++) {
        const Extent *extent = &g_array_index(extents, Extent, i);
        CoreSegment segment = {.virtual_address = extent->address,
                               .physical_address = extent->address,
                               .memory_bytes = extent->length,
                               .file_bytes = extent->length,
                               .flags = PF_R | PF_W | PF_X,
                               .region = extent->number};
        g_array_append_val(plan->segments, segment);
    }
    if (extents->len == 0) {
        g_set_error(
            error, SNAP_ERROR, SNAP_ERROR_REFUSED,
            "%s: no region of this image has a guest address, so there is no core file of it: use --format raw",
            snap_image_info(image)->dir);
        return FALSE;
    }
    return TRUE;
}

/* ---- places in the file ------------------------------------------------------------------------------------ */

static guint n_headers(const CorePlan *plan) {
    return plan->segments->len + (plan->notes ? 1 : 0);
}

static gsize headers_bytes(const CorePlan *plan) {
    guint n = n_headers(plan);
    return sizeof(Elf64_Ehdr) + n * sizeof(Elf64_Phdr) + (n >= PN_XNUM ? sizeof(Elf64_Shdr) : 0);
}

static void place(CorePlan *plan, uint64_t page_bytes) {
    uint64_t at = headers_bytes(plan);
    plan->notes_offset = at;
    at += plan->notes ? g_bytes_get_size(plan->notes) : 0;
    for (guint i = 0; i < plan->segments->len; i++) {
        CoreSegment *segment = &g_array_index(plan->segments, CoreSegment, i);
        at = (at + page_bytes - 1) / page_bytes * page_bytes;
        segment->file_offset = at;
        at += segment->file_bytes;
    }
    plan->total_bytes = at;
}

static gboolean has_state(const SnapImage *image, const char *name) {
    for (guint i = 0; i < snap_image_info(image)->n_states; i++) {
        if (strcmp(snap_image_state_name(image, i), name) == 0) {
            return TRUE;
        }
    }
    return FALSE;
}

CorePlan *core_plan_new(const SnapImage *image, GError **error) {
    g_autoptr(CorePlan) plan = g_new0(CorePlan, 1);
    plan->segments = g_array_new(FALSE, TRUE, sizeof(CoreSegment));
    if (has_state(image, "notes")) {
        plan->notes = snap_image_state(image, "notes", error);
        if (!plan->notes || !plan_process(plan, image, error)) {
            return NULL;
        }
    } else if (!plan_machine(plan, image, error)) {
        return NULL;
    }
    place(plan, snap_image_info(image)->page_bytes);
    return g_steal_pointer(&plan);
}

/* ---- headers ------------------------------------------------------------------------------------------------ */

static void append(GByteArray *array, gconstpointer data, gsize length) {
    g_byte_array_append(array, (const guint8 *)data, (guint)length);
}

static void append_elf_header(GByteArray *headers, const CorePlan *plan) {
    guint n = n_headers(plan);
    gboolean extended = n >= PN_XNUM;
    Elf64_Ehdr head = {
        .e_ident = {ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS64, ELFDATA2LSB, EV_CURRENT, ELFOSABI_NONE},
        .e_type = ET_CORE,
        .e_machine = EM_X86_64,
        .e_version = EV_CURRENT,
        .e_phoff = sizeof(Elf64_Ehdr),
        .e_shoff = extended ? sizeof(Elf64_Ehdr) + (uint64_t)n * sizeof(Elf64_Phdr) : 0,
        .e_ehsize = sizeof(Elf64_Ehdr),
        .e_phentsize = sizeof(Elf64_Phdr),
        .e_phnum = (Elf64_Half)(extended ? PN_XNUM : n),
        .e_shentsize = extended ? sizeof(Elf64_Shdr) : 0,
        .e_shnum = extended ? 1 : 0,
    };
    append(headers, &head, sizeof(head));
}

GBytes *core_plan_headers(const CorePlan *plan, uint64_t page_bytes) {
    GByteArray *headers = g_byte_array_sized_new((guint)headers_bytes(plan));
    append_elf_header(headers, plan);
    if (plan->notes) {
        Elf64_Phdr note = {.p_type = PT_NOTE,
                           .p_offset = plan->notes_offset,
                           .p_filesz = g_bytes_get_size(plan->notes),
                           .p_align = sizeof(Elf64_Word)};
        append(headers, &note, sizeof(note));
    }
    for (guint i = 0; i < plan->segments->len; i++) {
        const CoreSegment *segment = &g_array_index(plan->segments, CoreSegment, i);
        Elf64_Phdr load = {.p_type = PT_LOAD,
                           .p_flags = segment->flags,
                           .p_offset = segment->file_offset,
                           .p_vaddr = segment->virtual_address,
                           .p_paddr = segment->physical_address,
                           .p_filesz = segment->file_bytes,
                           .p_memsz = segment->memory_bytes,
                           .p_align = page_bytes};
        append(headers, &load, sizeof(load));
    }
    if (n_headers(plan) >= PN_XNUM) {
        Elf64_Shdr section = {.sh_type = SHT_NULL, .sh_size = 1, .sh_info = n_headers(plan)};
        append(headers, &section, sizeof(section));
    }
    return g_byte_array_free_to_bytes(headers);
}
