/*
 * A QEMU's RAM blocks: what its migration calls "ram", each a named run of QEMU's own memory.
 *
 *     ramblock_parse    the table that `info ramblock` prints
 *     ramblock_find     QEMU's own record of each block, in its heap: host address and flags
 *     ramblock_reread   in the pause: the lengths of now, by one read of those records
 */
#pragma once

#include "../process/maps.h"
#include "libsnap.h"

typedef struct {
    char *name;    /* "" for a block that migration does not know */
    char *backend; /* (nullable) id of the memory backend object that it is of */
    uint64_t page_bytes;
    uint64_t offset; /* in QEMU's ram_addr_t space: tells blocks apart */
    uint64_t used_bytes;
    uint64_t max_bytes;
    uint64_t host_address;  /* 0 while unknown */
    uint64_t guest_address; /* of its first byte, or SNAP_NO_ADDRESS */
    uint64_t record;        /* address of QEMU's record, 0 where it was not found */
    gboolean migratable;
    gboolean shared;
} RamBlock;

void ramblock_free(RamBlock *block);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(RamBlock, ramblock_free)

/**
 * ramblock_parse: the blocks in the output of `info ramblock`, in its order.
 * Errors: PROTOCOL, it is something else.
 * Return: (out) RamBlocks, owned by the array.
 */
GPtrArray *ramblock_parse(const char *text, GError **error);

/**
 * ramblock_find: find QEMU's records of all @blocks in its heap and take host addresses and flags from them.
 * Nothing is believed that does not fit together: name, offset and both lengths of each block, the list that the
 * records form, its order and its head, and a host address that was printed must all agree.
 * @blocks: as ramblock_parse() made them.
 * Errors: NOT_SUPPORTED, there are no such records, as in a QEMU of another make.
 */
gboolean ramblock_find(int pid, const ProcMaps *maps, GPtrArray *blocks, GError **error);

/**
 * ramblock_reread: read used_bytes again, where the records were found.
 * @ret_changed: (out) the list is not the one it was: blocks came or went.
 * Errors: GUEST_GONE, IO.
 */
gboolean ramblock_reread(int pid, GPtrArray *blocks, gboolean *ret_changed, GError **error);
