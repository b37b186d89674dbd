/* RAM blocks: the monitor's table as QEMU 7.2 and 10.0 print it, and records of blocks in this process's own heap.
 */
#include "ramblock.h"

#include "backing.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define HEAD_7 "              Block Name    PSize              Offset               Used              Total\r\n"
#define HEAD_10                                                                                                   \
    "              Block Name    PSize              Offset               Used              Total                " \
    "HVA  RO\r\n"

static const char table_7[] =
    HEAD_7 "                  pc.ram    4 KiB  0x0000000000000000 0x0000000140000000 0x0000000140000000\r\n"
           "    /rom@etc/acpi/tables    4 KiB  0x0000000141140000 0x0000000000020000 0x0000000000200000\r\n"
           "0000:00:03.0/virtio-net-pci.rom    4 KiB  0x0000000141100000 0x0000000000040000 0x0000000000040000\r\n"
           "                            4 KiB  0x0000000141400000 0x0000000000001000 0x0000000000001000\r\n"
           "                    huge    2 MiB  0x0000000150000000 0x0000000040000000 0x0000000040000000\r\n\r\n";

static const char table_10[] = HEAD_10 "                  pc.ram    4 KiB  0x0000000000000000 0x0000000010000000 "
                                       "0x0000000010000000 0x00007fbc47e00000  rw\r\n"
                                       "  0000:00:03.0/e1000.rom    4 KiB  0x00000000110c0000 0x0000000000040000 "
                                       "0x0000000000040000 0x00007fbc46a00000  ro\r\n";

static const RamBlock *at(const GPtrArray *blocks, guint i) {
    return g_ptr_array_index(blocks, i);
}

static void table_of_qemu_7_is_parsed(void **state) {
    (void)state;
    g_autoptr(GPtrArray) blocks = ramblock_parse(table_7, NULL);
    assert_non_null(blocks);
    assert_int_equal(blocks->len, 5);
    assert_string_equal(at(blocks, 0)->name, "pc.ram");
    assert_true(at(blocks, 0)->used_bytes == UINT64_C(0x140000000));
    assert_true(at(blocks, 0)->host_address == 0 && at(blocks, 0)->migratable);
    assert_true(at(blocks, 0)->guest_address == SNAP_NO_ADDRESS);
    assert_int_equal(at(blocks, 1)->used_bytes, 0x20000);
    assert_int_equal(at(blocks, 1)->max_bytes, 0x200000);
    assert_string_equal(at(blocks, 4)->name, "huge");
    assert_int_equal(at(blocks, 4)->page_bytes, 2 << 20);
}

static void name_longer_than_its_column_is_whole(void **state) {
    (void)state;
    g_autoptr(GPtrArray) blocks = ramblock_parse(table_7, NULL);
    assert_string_equal(at(blocks, 2)->name, "0000:00:03.0/virtio-net-pci.rom");
    assert_true(at(blocks, 2)->offset == UINT64_C(0x141100000));
}

static void block_without_a_name_is_not_migratable(void **state) {
    (void)state;
    g_autoptr(GPtrArray) blocks = ramblock_parse(table_7, NULL);
    assert_string_equal(at(blocks, 3)->name, "");
    assert_false(at(blocks, 3)->migratable);
}

static void table_of_qemu_10_gives_host_addresses(void **state) {
    (void)state;
    g_autoptr(GPtrArray) blocks = ramblock_parse(table_10, NULL);
    assert_non_null(blocks);
    assert_int_equal(blocks->len, 2);
    assert_true(at(blocks, 0)->host_address == UINT64_C(0x7fbc47e00000));
    assert_string_equal(at(blocks, 1)->name, "0000:00:03.0/e1000.rom");
    assert_int_equal(at(blocks, 1)->used_bytes, 0x40000);
}

static void anything_else_is_refused(void **state) {
    (void)state;
    static const char *const texts[] = {"",
                                        "unknown command: 'info ramblock'\r\n",
                                        HEAD_7,
                                        HEAD_7 "pc.ram 4 KiB 0x0\r\n",
                                        HEAD_7 "pc.ram 4 XiB 0x0 0x1000 0x1000\r\n",
                                        HEAD_7 "0x1\r\n",
                                        HEAD_7 "pc.ram 4 KiB 0x0 0x1000 zzz\r\n"};
    for (guint i = 0; i < G_N_ELEMENTS(texts); i++) {
        g_autoptr(GError) error = NULL;
        assert_null(ramblock_parse(texts[i], &error));
        assert_true(g_error_matches(error, SNAP_ERROR, SNAP_ERROR_PROTOCOL));
    }
}

/* ---- records ---- */

/* As QEMU lays them out: written down here once more, on purpose. */
typedef struct Record {
    void *rcu[2], *region;
    uint8_t *host;
    void *cache;
    uint64_t offset, used, max;
    void *resized;
    uint32_t flags;
    char name[256];
    struct Record *next, **previous;
} Record;

typedef struct {
    Record *head;
    Record *records[3];
    GPtrArray *blocks;
    uint8_t ram[3][16];
    ProcMaps *maps;
} Heap;

static void add_record(Heap *heap, guint i, const char *name, uint64_t offset, uint64_t used, uint64_t max,
                       uint32_t flags) {
    Record *record = calloc(1, sizeof(Record));
    Record **link = i == 0 ? &heap->head : &heap->records[i - 1]->next;
    *record = (Record){
        .host = heap->ram[i], .offset = offset, .used = used, .max = max, .flags = flags, .previous = link};
    g_strlcpy(record->name, name, sizeof(record->name));
    heap->records[i] = *link = record;
    RamBlock *block = g_new0(RamBlock, 1);
    *block = (RamBlock){
        .name = g_strdup(name), .offset = offset, .used_bytes = used, .max_bytes = max, .migratable = TRUE};
    g_ptr_array_add(heap->blocks, block);
}

static int make_heap(void **state) {
    Heap *heap = *state = calloc(1, sizeof(Heap));
    heap->blocks = g_ptr_array_new_with_free_func((GDestroyNotify)ramblock_free);
    add_record(heap, 0, "pc.ram", 0, 0x12345000, 0x12345000, 1u << 4 | 1u << 1);
    add_record(heap, 1, "/rom@etc/acpi/tables", 0x20000000, 0x20000, 0x200000, 1u << 4 | 1u << 2);
    add_record(heap, 2, "hidden", 0x30000000, 0x1000, 0x1000, 0);
    heap->maps = backing_read_maps(getpid(), NULL);
    return heap->maps ? 0 : -1;
}

static int free_heap(void **state) {
    Heap *heap = *state;
    for (guint i = 0; i < G_N_ELEMENTS(heap->records); i++)
        free(heap->records[i]);
    g_ptr_array_unref(heap->blocks);
    maps_free(heap->maps);
    free(heap);
    return 0;
}

static void records_that_agree_give_addresses_and_flags(void **state) {
    Heap *heap = *state;
    GError *error = NULL;
    assert_true(ramblock_find(getpid(), heap->maps, heap->blocks, &error));
    assert_true(at(heap->blocks, 0)->host_address == (uintptr_t)heap->ram[0]);
    assert_true(at(heap->blocks, 0)->shared && at(heap->blocks, 0)->migratable);
    assert_true(at(heap->blocks, 1)->host_address == (uintptr_t)heap->ram[1]);
    assert_false(at(heap->blocks, 1)->shared);
    assert_false(at(heap->blocks, 2)->migratable);
}

typedef void (*Spoil)(Heap *heap);

static void spoil_name(Heap *heap) {
    heap->records[1]->name[3] ^= 1;
}
static void spoil_length(Heap *heap) {
    heap->records[2]->used += 0x1000;
}
static void spoil_order(Heap *heap) {
    heap->records[0]->next = heap->records[2];
}
static void spoil_end(Heap *heap) {
    heap->records[2]->next = heap->records[0];
}
static void spoil_head(Heap *heap) {
    heap->head = NULL;
}
static void spoil_link(Heap *heap) {
    heap->records[1]->previous = &heap->head;
}
static void spoil_printed_address(Heap *heap) {
    ((RamBlock *)g_ptr_array_index(heap->blocks, 1))->host_address = 0x1000;
}
static void spoil_host(Heap *heap) {
    heap->records[0]->host = NULL;
}

static void records_that_disagree_are_not_believed(void **state) {
    (void)state;
    static const Spoil spoils[] = {spoil_name, spoil_length, spoil_order,           spoil_end,
                                   spoil_head, spoil_link,   spoil_printed_address, spoil_host};
    for (guint i = 0; i < G_N_ELEMENTS(spoils); i++) {
        void *fresh;
        make_heap(&fresh);
        Heap *heap = fresh;
        spoils[i](heap);
        GError *error = NULL;
        assert_false(ramblock_find(getpid(), heap->maps, heap->blocks, &error));
        assert_true(g_error_matches(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED));
        assert_true(at(heap->blocks, 0)->host_address == 0);
        g_clear_error(&error);
        free_heap(&fresh);
    }
}

static void reread_sees_new_lengths(void **state) {
    Heap *heap = *state;
    gboolean changed = TRUE;
    assert_true(ramblock_find(getpid(), heap->maps, heap->blocks, NULL));
    heap->records[1]->used = 0x40000;
    assert_true(ramblock_reread(getpid(), heap->blocks, &changed, NULL));
    assert_false(changed);
    assert_int_equal(at(heap->blocks, 1)->used_bytes, 0x40000);
}

static void reread_sees_that_blocks_came_or_went(void **state) {
    Heap *heap = *state;
    static const Spoil spoils[] = {spoil_order, spoil_name, spoil_end, spoil_head};
    assert_true(ramblock_find(getpid(), heap->maps, heap->blocks, NULL));
    for (guint i = 0; i < G_N_ELEMENTS(spoils); i++) {
        const Record saved[] = {*heap->records[0], *heap->records[1], *heap->records[2]};
        gboolean changed = FALSE;
        spoils[i](heap);
        assert_true(ramblock_reread(getpid(), heap->blocks, &changed, NULL));
        assert_true(changed);
        heap->head = heap->records[0];
        for (guint j = 0; j < G_N_ELEMENTS(saved); j++)
            *heap->records[j] = saved[j];
    }
}

static void reread_of_a_process_that_is_gone_fails(void **state) {
    Heap *heap = *state;
    gboolean changed;
    GError *error = NULL;
    assert_true(ramblock_find(getpid(), heap->maps, heap->blocks, NULL));
    assert_false(ramblock_reread(INT32_MAX, heap->blocks, &changed, &error));
    assert_true(g_error_matches(error, SNAP_ERROR, SNAP_ERROR_GUEST_GONE));
    g_clear_error(&error);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(table_of_qemu_7_is_parsed),
        cmocka_unit_test(name_longer_than_its_column_is_whole),
        cmocka_unit_test(block_without_a_name_is_not_migratable),
        cmocka_unit_test(table_of_qemu_10_gives_host_addresses),
        cmocka_unit_test(anything_else_is_refused),
        cmocka_unit_test_setup_teardown(records_that_agree_give_addresses_and_flags, make_heap, free_heap),
        cmocka_unit_test(records_that_disagree_are_not_believed),
        cmocka_unit_test_setup_teardown(reread_sees_new_lengths, make_heap, free_heap),
        cmocka_unit_test_setup_teardown(reread_sees_that_blocks_came_or_went, make_heap, free_heap),
        cmocka_unit_test_setup_teardown(reread_of_a_process_that_is_gone_fails, make_heap, free_heap),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
