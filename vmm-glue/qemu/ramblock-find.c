/*
 * QEMU's own records of its RAM blocks, found in its heap and read from outside.
 *
 * The monitor of QEMU 7 does not say where a block is mapped, and no monitor says its length quickly enough to ask
 * in the pause; the record says both, in one process_vm_readv. A record, as it has been since QEMU 2.12:
 *
 *       0  two pointers (for deferred freeing), MemoryRegion *
 *      24  uint8_t *host, then another pointer
 *      40  offset, used_length, max_length          u64 each: what `info ramblock` prints
 *      64  a function pointer
 *      72  flags                                    u32: 1<<1 shared, 1<<4 migratable
 *      76  idstr                                    256 bytes
 *     336  next record, address of the previous one's `next`
 *
 * Happy path: the first block's offset and lengths are looked for in the heap; from the place where they stand the
 * list is followed, and each record on it must be that of the next block printed.
 *
 * Failure modes: another layout (nothing is found: NOT_SUPPORTED, the caller asks the monitor instead); a freed
 * record that looks alive (its list does not lead back to a head that points at it, so it is passed over); a block
 * resized since it was printed (nothing fits; the caller prints again).
 */
#include "ramblock.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/uio.h>

#define FLAG_SHARED (1u << 1)
#define FLAG_MIGRATABLE (1u << 4)

/* The part of a record that is read; for a 64-bit QEMU on a 64-bit host. */
typedef struct {
    uint64_t rcu[2];
    uint64_t memory_region;
    uint64_t host;
    uint64_t colo_cache;
    uint64_t offset;
    uint64_t used_length;
    uint64_t max_length;
    uint64_t resized;
    uint32_t flags;
    char idstr[256];
    uint64_t next;
    uint64_t previous_link;
} Record;
G_STATIC_ASSERT(offsetof(Record, offset) == 40 && offsetof(Record, idstr) == 76 && offsetof(Record, next) == 336);

#define KEY_OFFSET offsetof(Record, offset)
#define KEY_BYTES (3 * sizeof(uint64_t))

static gboolean peek(int pid, uint64_t address, void *ret_data, size_t length) {
    struct iovec local = {.iov_base = ret_data, .iov_len = length};
    struct iovec remote = {.iov_base = (void *)(uintptr_t)address, .iov_len = length};
    return process_vm_readv(pid, &local, 1, &remote, 1, 0) == (ssize_t)length;
}

static gboolean record_is(const Record *record, const RamBlock *block) {
    return record->offset == block->offset && record->used_length == block->used_bytes &&
           record->max_length == block->max_bytes && record->host != 0 &&
           (block->host_address == 0 || record->host == block->host_address) &&
           record->idstr[sizeof(record->idstr) - 1] == '\0' && g_str_equal(record->idstr, block->name);
}

/* Is there a list that begins at @address and is that of all @blocks? Then fill them in. */
static gboolean follow_list(int pid, uint64_t address, GPtrArray *blocks) {
    g_autofree Record *records = g_new0(Record, blocks->len);
    g_autofree uint64_t *addresses = g_new0(uint64_t, blocks->len);
    uint64_t link = 0, head = 0;
    for (guint i = 0; i < blocks->len; i++) {
        if (address == 0 || !peek(pid, address, &records[i], sizeof(Record)) ||
            !record_is(&records[i], g_ptr_array_index(blocks, i)))
            return FALSE;
        if (i == 0)
            link = records[i].previous_link;
        if (records[i].previous_link != link)
            return FALSE;
        addresses[i] = address;
        link = address + offsetof(Record, next);
        address = records[i].next;
    }
    if (address != 0 || !peek(pid, records[0].previous_link, &head, sizeof(head)) || head != addresses[0])
        return FALSE;
    for (guint i = 0; i < blocks->len; i++) {
        RamBlock *block = g_ptr_array_index(blocks, i);
        block->record = addresses[i];
        block->host_address = records[i].host;
        block->shared = (records[i].flags & FLAG_SHARED) != 0;
        block->migratable = (records[i].flags & FLAG_MIGRATABLE) != 0;
    }
    return TRUE;
}

/* Look through one mapping of the heap, a window at a time; windows overlap so that no key falls between two. */
static gboolean search_range(int pid, uint64_t start, uint64_t end, GPtrArray *blocks) {
    const RamBlock *first = g_ptr_array_index(blocks, 0);
    const uint64_t key[3] = {first->offset, first->used_bytes, first->max_bytes};
    G_STATIC_ASSERT(sizeof(key) == KEY_BYTES);
    const size_t window = 1u << 20;
    g_autofree uint8_t *bytes = g_malloc(window);
    for (uint64_t at = start; at + KEY_BYTES <= end; at += window - KEY_BYTES) {
        size_t length = MIN(window, end - at);
        if (!peek(pid, at, bytes, length))
            return FALSE;
        /* The middle of the key is looked at first: the offset of the first block is often 0, as most of a heap
         * is. */
        for (size_t i = 0; i + KEY_BYTES <= length; i += sizeof(uint64_t)) {
            uint64_t used;
            memcpy(&used, bytes + i + sizeof(uint64_t), sizeof(used));
            if (used == key[1] && memcmp(bytes + i, key, KEY_BYTES) == 0 && at + i >= KEY_OFFSET &&
                follow_list(pid, at + i - KEY_OFFSET, blocks))
                return TRUE;
        }
    }
    return FALSE;
}

/* Memory that malloc may have handed out: private, writable, no file. Guest RAM may look the same: it is passed
 * over by its size, for a heap that big would be none. */
static gboolean is_heap(const ProcMap *map) {
    const uint64_t largest = 256u << 20;
    return map->ino == 0 && map->readable && map->writable && !map->shared && map->end - map->start <= largest;
}

static gboolean search_maps(int pid, const ProcMaps *maps, gboolean brk_heap, GPtrArray *blocks) {
    for (guint i = 0; i < maps->n_entries; i++) {
        const ProcMap *map = &maps->entries[i];
        if (is_heap(map) && g_str_equal(map->path, "[heap]") == brk_heap &&
            search_range(pid, map->start, map->end, blocks))
            return TRUE;
    }
    return FALSE;
}

gboolean ramblock_find(int pid, const ProcMaps *maps, GPtrArray *blocks, GError **error) {
    if (search_maps(pid, maps, TRUE, blocks) || search_maps(pid, maps, FALSE, blocks))
        return TRUE;
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED,
                "process %d: no records of the RAM blocks were found in its memory", pid);
    return FALSE;
}

gboolean ramblock_reread(int pid, GPtrArray *blocks, gboolean *ret_changed, GError **error) {
    g_autofree Record *records = g_new0(Record, blocks->len);
    g_autofree struct iovec *remote = g_new0(struct iovec, blocks->len + 1);
    struct iovec local[2] = {{records, blocks->len * sizeof(Record)}};
    uint64_t head = 0;
    const RamBlock *first = g_ptr_array_index(blocks, 0);
    uint64_t head_address;
    if (!peek(pid, first->record + offsetof(Record, previous_link), &head_address, sizeof(head_address))) {
        snap_set_errno(error, errno, "process %d: reading its RAM block records", pid);
        return FALSE;
    }
    for (guint i = 0; i < blocks->len; i++) {
        const RamBlock *block = g_ptr_array_index(blocks, i);
        remote[i] = (struct iovec){(void *)(uintptr_t)block->record, sizeof(Record)};
    }
    remote[blocks->len] = (struct iovec){(void *)(uintptr_t)head_address, sizeof(head)};
    local[1] = (struct iovec){&head, sizeof(head)};
    ssize_t want = (ssize_t)(blocks->len * sizeof(Record) + sizeof(head));
    if (process_vm_readv(pid, local, 2, remote, blocks->len + 1, 0) != want) {
        snap_set_errno(error, errno, "process %d: reading its RAM block records", pid);
        return FALSE;
    }
    gboolean same = head == first->record;
    for (guint i = 0; same && i < blocks->len; i++) {
        const RamBlock *block = g_ptr_array_index(blocks, i);
        const RamBlock *next = i + 1 < blocks->len ? g_ptr_array_index(blocks, i + 1) : NULL;
        same = records[i].host == block->host_address && records[i].max_length == block->max_bytes &&
               records[i].next == (next ? next->record : 0) && strncmp(records[i].idstr, block->name, 256) == 0;
    }
    for (guint i = 0; same && i < blocks->len; i++)
        ((RamBlock *)g_ptr_array_index(blocks, i))->used_bytes = records[i].used_length;
    *ret_changed = !same;
    return TRUE;
}
