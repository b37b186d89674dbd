/* Chunk masks, zero check, checksums and the bytes of an index. */
#include "chunk.h"
#include "hash.h"
#include "image-fixture.h"

static const SnapIndexHeader header = {.page_bytes = 4096, .n_chunks = 3, .region_bytes = 150 * 4096};

static void chunk_count_partial_last_is_counted(void **state) {
    (void)state;
    assert_int_equal(snap_chunk_count(4096, 4096), 1);
    assert_int_equal(snap_chunk_count(64 * 4096, 4096), 1);
    assert_int_equal(snap_chunk_count(65 * 4096, 4096), 2);
    assert_int_equal(snap_chunk_count(UINT64_C(1) << 46, 4096), UINT64_C(1) << 28);
}

static void chunk_pages_last_has_fewer(void **state) {
    (void)state;
    assert_true(snap_chunk_pages(header.region_bytes, 4096, 0) == UINT64_MAX);
    assert_true(snap_chunk_pages(header.region_bytes, 4096, 1) == UINT64_MAX);
    assert_true(snap_chunk_pages(header.region_bytes, 4096, 2) == (UINT64_C(1) << 22) - 1);
}

static void page_bytes_only_powers_of_two_in_range(void **state) {
    (void)state;
    const struct {
        uint64_t page_bytes;
        gboolean good;
    } cases[] = {
        {0, 0},     {1, 0},       {256, 0},     {512, 1},   {4096, 1}, {4097, 0},    {12288, 0},
        {65536, 1}, {1 << 25, 1}, {1 << 26, 0}, {~0ull, 0}, {6144, 0}, {1 << 14, 1}, {UINT64_C(1) << 63, 0}};
    for (guint i = 0; i < G_N_ELEMENTS(cases); i++)
        assert_int_equal(snap_page_bytes_ok(cases[i].page_bytes), cases[i].good);
}

static void bytes_are_zero_any_single_bit_is_seen(void **state) {
    (void)state;
    uint8_t data[512 + 13] = {0};
    assert_true(snap_bytes_are_zero(data, sizeof data));
    assert_true(snap_bytes_are_zero(data, 0));
    for (guint i = 0; i < sizeof data; i++) {
        data[i] = (uint8_t)(1u << (i % 8));
        assert_false(snap_bytes_are_zero(data, sizeof data));
        assert_true(snap_bytes_are_zero(data, i));
        data[i] = 0;
    }
}

static void find_zero_looks_at_present_pages_only(void **state) {
    (void)state;
    g_autofree uint8_t *data = g_malloc0(64 * 512);
    data[3 * 512 + 511] = 1;
    data[63 * 512] = 1;
    assert_true(snap_chunk_find_zero(data, 512, UINT64_MAX) == ~(UINT64_C(1) << 3 | UINT64_C(1) << 63));
    assert_true(snap_chunk_find_zero(data, 512, 0x1E) == 0x16);
    assert_true(snap_chunk_find_zero(data, 512, 0) == 0);
}

static void take_run_gives_runs_in_order(void **state) {
    (void)state;
    const struct {
        uint64_t mask;
        unsigned runs[8]; /* first, count, …; 0, 0 ends */
    } cases[] = {
        {0, {0}},
        {UINT64_MAX, {0, 64}},
        {1, {0, 1}},
        {UINT64_C(1) << 63, {63, 1}},
        {0xF0F, {0, 4, 8, 4}},
        {UINT64_MAX << 1, {1, 63}},
        {UINT64_C(0xC000000000000005), {0, 1, 2, 1, 62, 2}},
    };
    for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
        uint64_t mask = cases[i].mask;
        unsigned first = 0, count = 0;
        const unsigned *run = cases[i].runs;
        for (; snap_chunk_take_run(&mask, &first, &count); run += 2) {
            assert_int_equal(first, run[0]);
            assert_int_equal(count, run[1]);
        }
        assert_int_equal(run[1], 0);
    }
}

static void hash_is_of_stored_pages_in_order(void **state) {
    (void)state;
    g_autofree uint8_t *data = g_malloc(64 * 512);
    for (guint i = 0; i < 64 * 512; i++)
        data[i] = (uint8_t)(i * 7 >> 3);
    uint8_t joined[3 * 512];
    memcpy(joined, data + 512, 512);
    memcpy(joined + 512, data + 4 * 512, 1024);
    assert_true(snap_chunk_hash(data, 512, 0x32) == XXH3_64bits(joined, sizeof joined));
    assert_true(snap_chunk_hash(data, 512, UINT64_MAX) == XXH3_64bits(data, 64 * 512));
    assert_true(snap_chunk_hash(data, 512, 2) == XXH3_64bits(data + 512, 512));
    /* The published XXH3-64 of no bytes. */
    assert_true(snap_chunk_hash(data, 512, 0) == UINT64_C(0x2D06800538D394C2));
}

static void record_encode_bytes_are_as_documented(void **state) {
    (void)state;
    const SnapChunkRecord record = {0x0807060504030201, 0x1817161514131211, 0x2827262524232221,
                                    0x34333231,         0x44434241,         0x5857565554535251};
    const uint8_t expected[SNAP_INDEX_RECORD_BYTES] = {0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x11, 0x12,
                                                       0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x21, 0x22, 0x23, 0x24,
                                                       0x25, 0x26, 0x27, 0x28, 0x31, 0x32, 0x33, 0x34, 0x41, 0x42,
                                                       0x43, 0x44, 0x51, 0x52, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58};
    uint8_t bytes[SNAP_INDEX_RECORD_BYTES];
    snap_chunk_record_encode(&record, bytes);
    assert_memory_equal(bytes, expected, sizeof bytes);
    SnapChunkRecord back;
    snap_chunk_record_decode(bytes, &back);
    assert_memory_equal(&back, &record, sizeof back);
}

static void record_check_names_what_is_wrong(void **state) {
    (void)state;
    const struct {
        SnapChunkRecord record;
        uint64_t index;
        const char *wrong; /* NULL: nothing */
    } cases[] = {
        {{0, 0, 0, 0, 0, 0}, 0, NULL},
        {{7, 2, 0, 8192, 0, 1}, 0, NULL},
        {{7, 7, 64 * 4096, 0, 0, 1}, 1, NULL},
        {{(1 << 22) - 1, 0, 128 * 4096, 22 * 4096, 0, 1}, 2, NULL},
        {{0, 0, 0, 0, 0, 1}, 0, "not empty"},
        {{0, 1, 0, 0, 0, 0}, 0, "not empty"},
        {{0, 0, 1, 0, 0, 0}, 0, "not empty"},
        {{1 << 22, 0, 128 * 4096, 4096, 0, 1}, 2, "beyond the end"},
        {{7, 8, 0, 3 * 4096, 0, 1}, 0, "zero but not"},
        {{7, 0, 0, 3 * 4096, 1, 1}, 0, "codec"},
        {{7, 0, 0, 2 * 4096, 0, 1}, 0, "length"},
        {{7, 0, 4096, 3 * 4096, 0, 1}, 0, "offset"},
    };
    for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
        const char *wrong = snap_chunk_record_check(&cases[i].record, &header, cases[i].index);
        if (!cases[i].wrong)
            assert_null(wrong);
        else
            assert_non_null(strstr(wrong, cases[i].wrong));
    }
}

static void index_header_every_flipped_bit_is_seen(void **state) {
    (void)state;
    uint8_t bytes[SNAP_INDEX_HEADER_BYTES];
    snap_index_header_encode(&header, bytes);
    assert_memory_equal(bytes, "snap-idx\1\0\0\0\x28\0\0\0\0\x10", 18);
    assert_null(snap_index_header_check(bytes, &header));
    for (guint i = 0; i < sizeof bytes * 8; i++) {
        bytes[i / 8] ^= (uint8_t)(1u << (i % 8));
        assert_non_null(snap_index_header_check(bytes, &header));
        bytes[i / 8] ^= (uint8_t)(1u << (i % 8));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chunk_count_partial_last_is_counted),
        cmocka_unit_test(chunk_pages_last_has_fewer),
        cmocka_unit_test(page_bytes_only_powers_of_two_in_range),
        cmocka_unit_test(bytes_are_zero_any_single_bit_is_seen),
        cmocka_unit_test(find_zero_looks_at_present_pages_only),
        cmocka_unit_test(take_run_gives_runs_in_order),
        cmocka_unit_test(hash_is_of_stored_pages_in_order),
        cmocka_unit_test(record_encode_bytes_are_as_documented),
        cmocka_unit_test(record_check_names_what_is_wrong),
        cmocka_unit_test(index_header_every_flipped_bit_is_seen),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
