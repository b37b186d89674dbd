/*
 * Blocks and regions of a running QEMU.
 *
 * Happy path: `info ramblock` for names and lengths, QEMU's own records for host addresses and flags, `info mtree`
 * for where the guest sees the blocks (each place confirmed by gpa2hva), the mappings for what they are made of.
 *
 * Failure modes: the records are not found, in a QEMU of another make: the addresses that newer QEMUs print will
 * do, and lengths are asked of the monitor in the pause (0.3-0.9 ms more); without either the guest cannot be
 * saved. Blocks that come or go between listing and pause: everything is listed again, in the pause.
 */
#include "inventory.h"

#include "backing.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

void inventory_free(Inventory *inventory) {
    if (!inventory)
        return;
    maps_free(inventory->maps);
    g_clear_pointer(&inventory->blocks, g_ptr_array_unref);
    g_clear_pointer(&inventory->regions, g_ptr_array_unref);
    g_free(inventory);
}

static gboolean all_addresses_known(const GPtrArray *blocks) {
    for (guint i = 0; i < blocks->len; i++) {
        const RamBlock *block = g_ptr_array_index(blocks, i);
        if (block->migratable && block->host_address == 0)
            return FALSE;
    }
    return TRUE;
}

/* A block may be resized between printing and finding: then nothing fits, and it is printed again. */
static gboolean read_blocks(Inventory *inventory, Qmp *qmp, GError **error) {
    const guint attempts = 3;
    g_autoptr(GError) why = NULL;
    for (guint i = 0; i < attempts; i++) {
        g_autofree char *text = qmp_hmp(qmp, "info ramblock", error);
        if (!text)
            return FALSE;
        g_clear_pointer(&inventory->blocks, g_ptr_array_unref);
        inventory->blocks = ramblock_parse(text, error);
        if (!inventory->blocks)
            return FALSE;
        g_clear_error(&why);
        inventory->have_records = ramblock_find(inventory->pid, inventory->maps, inventory->blocks, &why);
        if (inventory->have_records)
            return TRUE;
    }
    if (all_addresses_known(inventory->blocks))
        return TRUE;
    g_propagate_error(error, g_steal_pointer(&why));
    return FALSE;
}

/* ---- where the guest sees them ---- */

/* A line of `info mtree -f` about the first byte of some RAM, "START-END (prio N, ram): NAME": an offset into the
 * block would follow as " @OFFSET". */
static gboolean parse_place(const char *line, uint64_t *ret_address) {
    char *end;
    if (!strstr(line, ", ram): ") && !strstr(line, ", rom): ") && !strstr(line, ", romd): "))
        return FALSE;
    if (strstr(line, " @"))
        return FALSE;
    *ret_address = g_ascii_strtoull(line, &end, 16);
    return *end == '-';
}

/* "Host virtual address for 0x0 (pc.ram) is 0x7f62c7e00000"; 0 where it is not RAM. */
static uint64_t host_of(Qmp *qmp, uint64_t guest_address) {
    g_autofree char *line = g_strdup_printf("gpa2hva 0x%" G_GINT64_MODIFIER "x", guest_address);
    g_autofree char *text = qmp_hmp(qmp, line, NULL);
    const char *at = text ? strstr(text, ") is 0x") : NULL;
    return at ? g_ascii_strtoull(at + strlen(") is "), NULL, 16) : 0;
}

/* Guest addresses are for people and tools: where one is not found it stays unknown, without an error. */
static void read_guest_addresses(Inventory *inventory, Qmp *qmp) {
    g_autofree char *text = qmp_hmp(qmp, "info mtree -f", NULL);
    g_auto(GStrv) lines = g_strsplit(text ? text : "", "\n", -1);
    g_autoptr(GHashTable) seen = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL);
    for (char **line = lines; *line; line++) {
        uint64_t address;
        if (!parse_place(g_strstrip(*line), &address))
            continue;
        uint64_t *key = g_memdup2(&address, sizeof(address));
        uint64_t host = g_hash_table_add(seen, key) ? host_of(qmp, address) : 0;
        for (guint i = 0; host != 0 && i < inventory->blocks->len; i++) {
            RamBlock *block = g_ptr_array_index(inventory->blocks, i);
            if (block->host_address == host)
                block->guest_address = address;
        }
    }
}

/* The object that a block is of: its name is the object's id, or its path. */
static void read_backends(Inventory *inventory, Qmp *qmp) {
    g_autoptr(json_object) list = NULL;
    if (!qmp_command(qmp, "query-memdev", NULL, QMP_TIMEOUT_MS, &list, NULL))
        return;
    size_t n = json_object_is_type(list, json_type_array) ? json_object_array_length(list) : 0;
    for (size_t i = 0; i < n; i++) {
        const char *id = qmp_get_string(json_object_array_get_idx(list, i), "id");
        g_autofree char *path = g_strconcat("/objects/", id, NULL);
        for (guint j = 0; *id && j < inventory->blocks->len; j++) {
            RamBlock *block = g_ptr_array_index(inventory->blocks, j);
            if (!block->backend && (g_str_equal(block->name, id) || g_str_equal(block->name, path)))
                block->backend = g_strdup(id);
        }
    }
}

/* ---- regions ---- */

static void free_region(void *region) {
    snap_region_free(region);
}

static gboolean make_regions(Inventory *inventory, GError **error) {
    g_clear_pointer(&inventory->regions, g_ptr_array_unref);
    inventory->regions = g_ptr_array_new_with_free_func(free_region);
    for (guint i = 0; i < inventory->blocks->len; i++) {
        const RamBlock *block = g_ptr_array_index(inventory->blocks, i);
        SnapRegion *region = NULL;
        if (block->migratable && block->used_bytes > 0) {
            region = backing_region(inventory->pid, inventory->maps, block, error);
            if (!region)
                return FALSE;
        }
        g_ptr_array_add(inventory->regions, region);
    }
    return TRUE;
}

Inventory *inventory_new(Qmp *qmp, int pid, GError **error) {
    g_autoptr(Inventory) inventory = g_new0(Inventory, 1);
    inventory->pid = pid;
    inventory->maps = backing_read_maps(pid, error);
    if (!inventory->maps || !read_blocks(inventory, qmp, error))
        return NULL;
    read_backends(inventory, qmp);
    read_guest_addresses(inventory, qmp);
    return make_regions(inventory, error) ? g_steal_pointer(&inventory) : NULL;
}

/* Lengths asked of the monitor, for want of records. */
static gboolean reread_by_monitor(Inventory *inventory, Qmp *qmp, gboolean *ret_changed, GError **error) {
    g_autofree char *text = qmp_hmp(qmp, "info ramblock", error);
    g_autoptr(GPtrArray) blocks = text ? ramblock_parse(text, error) : NULL;
    if (!blocks)
        return FALSE;
    gboolean same = blocks->len == inventory->blocks->len;
    for (guint i = 0; same && i < blocks->len; i++) {
        const RamBlock *now = g_ptr_array_index(blocks, i);
        RamBlock *block = g_ptr_array_index(inventory->blocks, i);
        same = g_str_equal(now->name, block->name) && now->host_address == block->host_address &&
               now->max_bytes == block->max_bytes;
        block->used_bytes = now->used_bytes;
    }
    *ret_changed = !same;
    return TRUE;
}

gboolean inventory_update(Inventory *inventory, Qmp *qmp, GError **error) {
    gboolean changed;
    gboolean ok = inventory->have_records ? ramblock_reread(inventory->pid, inventory->blocks, &changed, error)
                                          : reread_by_monitor(inventory, qmp, &changed, error);
    if (!ok)
        return FALSE;
    if (changed) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_LOST,
                    "QEMU's RAM blocks changed while the snapshot began: memory was plugged or unplugged");
        return FALSE;
    }
    for (guint i = 0; i < inventory->blocks->len; i++) {
        const RamBlock *block = g_ptr_array_index(inventory->blocks, i);
        SnapRegion *old = g_ptr_array_index(inventory->regions, i);
        if (!old || old->length_bytes == backing_length(block, old->page_bytes))
            continue;
        SnapRegion *region = backing_region(inventory->pid, inventory->maps, block, error);
        if (!region)
            return FALSE;
        snap_region_free(old);
        inventory->regions->pdata[i] = region;
    }
    return TRUE;
}

void inventory_append(const Inventory *inventory, GPtrArray *regions) {
    for (guint i = 0; i < inventory->regions->len; i++) {
        const SnapRegion *region = g_ptr_array_index(inventory->regions, i);
        if (region) {
            g_ptr_array_add(regions, snap_region_copy(region));
        }
    }
}
