/*
 * The RAM of a QEMU as it is now: blocks with their addresses, and a region for each that is migrated.
 *
 *     inventory_new       while the guest runs: asks the monitor, searches the heap, opens files; some ms
 *     inventory_update    in the pause: the lengths of now; some tens of µs
 *     inventory_append    copies of the regions for the caller
 */
#pragma once

#include "qmp.h"
#include "ramblock.h"

typedef struct {
    int pid;
    ProcMaps *maps;
    GPtrArray *blocks;     /* of RamBlock: all */
    GPtrArray *regions;    /* of SnapRegion: element i is that of block i; NULL for one that is not migrated */
    gboolean have_records; /* of all blocks, in QEMU's heap */
} Inventory;

/**
 * inventory_new: Errors: NOT_SUPPORTED, where a block is mapped cannot be told, or its memory is in pieces;
 * PROTOCOL; PERMISSION; GUEST_GONE. Return: (out) free with inventory_free().
 */
Inventory *inventory_new(Qmp *qmp, int pid, GError **error);
void inventory_free(Inventory *inventory);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Inventory, inventory_free)

/**
 * inventory_update: the lengths of now. Errors: LOST, blocks came or went; as inventory_new().
 */
gboolean inventory_update(Inventory *inventory, Qmp *qmp, GError **error);

/** inventory_append: append copies of all regions to @regions. */
void inventory_append(const Inventory *inventory, GPtrArray *regions);
