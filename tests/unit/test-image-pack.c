/* Writing scattered pages: they share buffers, and come back as they were put. */
#include "image-fixture.h"
#include "image-writer.h"

#define REGIONS 3u
#define CHUNKS 200u
#define REGION_PAGES (CHUNKS * SNAP_CHUNK_PAGES - 5)

/* Pages of chunk @chunk that are put: few in most, many in some. */
static uint64_t mask_of(guint region, uint64_t chunk) {
    uint64_t word = (chunk + 1) * 0x9E3779B97F4A7C15u + region * 77;
    uint64_t mask = chunk % 10 == 3   ? UINT64_MAX
                    : chunk % 10 == 7 ? 0x5555555555555555u /* 32 runs */
                                      : (word & (word >> 7) & (word >> 13) & (word >> 23));
    return mask & snap_chunk_pages(REGION_PAGES * FIX_PAGE, FIX_PAGE, chunk);
}

static void fill_page(guint region, uint64_t page, uint8_t *ret_data) {
    fix_fill(1, page * REGIONS + region, FIX_PAGE, ret_data);
}

static gboolean put(SnapImageWriter *writer, guint region, uint64_t index, GError **error) {
    SnapChunk *chunk = snap_image_writer_get(writer, -1, error);
    if (!chunk)
        return FALSE;
    chunk->region = region;
    chunk->index = index;
    chunk->present = mask_of(region, index);
    for (unsigned i = 0; i < SNAP_CHUNK_PAGES; i++)
        fill_page(region, index * SNAP_CHUNK_PAGES + i, chunk->data + i * FIX_PAGE);
    return snap_image_writer_put(writer, chunk, error);
}

static gboolean write_all(const char *dir, guint n_buffers, GError **error) {
    g_autoptr(SnapImageWriter) writer = snap_image_writer_new(dir, "test", FIX_PAGE, n_buffers, error);
    if (!writer)
        return FALSE;
    for (guint i = 0; i < REGIONS; i++) {
        g_autofree char *name = g_strdup_printf("region %u", i);
        g_autoptr(SnapRegion) region = fix_region(name, (i + 1) * UINT64_C(1) << 40, REGION_PAGES, FIX_PAGE);
        if (!snap_image_writer_add_region(writer, region, error))
            return FALSE;
    }
    /* Regions in turn: a buffer is shared by chunks of all of them. */
    for (uint64_t index = 0; index < CHUNKS; index++) {
        for (guint i = 0; i < REGIONS; i++) {
            if (!put(writer, i, index, error))
                return FALSE;
        }
    }
    return snap_image_writer_commit(writer, 0, NULL, 0, error);
}

static void expect_all(const char *dir) {
    GError *error = NULL;
    uint8_t page[FIX_PAGE], expected[FIX_PAGE];
    g_autoptr(SnapImage) image = snap_image_open(dir, &error);
    expect_ok(image != NULL, error);
    expect_ok(snap_image_verify(image, NULL, NULL, &error), error);
    for (guint i = 0; i < REGIONS; i++) {
        for (uint64_t n = 0; n < REGION_PAGES; n++) {
            memset(expected, 0, sizeof expected);
            if ((mask_of(i, n / SNAP_CHUNK_PAGES) >> n % SNAP_CHUNK_PAGES & 1) != 0)
                fill_page(i, n, expected);
            expect_ok(snap_image_read(image, i, n * FIX_PAGE, page, FIX_PAGE, &error), error);
            assert_memory_equal(page, expected, FIX_PAGE);
        }
    }
}

static void put_scattered_pages_come_back_with_any_number_of_buffers(void **state) {
    for (guint n_buffers = 1; n_buffers < 12; n_buffers += 1 + n_buffers / 3) {
        GError *error = NULL;
        g_autofree char *dir = fix_path(state, "image");
        expect_ok(write_all(dir, n_buffers, &error), error);
        expect_all(dir);
        fix_remove(dir);
    }
}

/* A chunk of few pages does not keep its buffer until they are on disk. */
static void put_few_pages_frees_the_buffer_at_once(void **state) {
    GError *error = NULL;
    g_autofree char *dir = fix_path(state, "image");
    g_autoptr(SnapImageWriter) writer = snap_image_writer_new(dir, "test", FIX_PAGE, 4, &error);
    g_autoptr(SnapRegion) region = fix_region("ram", 4096, REGION_PAGES, FIX_PAGE);
    expect_ok(writer && snap_image_writer_add_region(writer, region, &error), error);
    for (uint64_t index = 0; index < 40; index++) {
        SnapChunk *chunk = snap_image_writer_get(writer, 0, &error);
        assert_non_null(chunk);
        chunk->region = 0;
        chunk->index = index;
        chunk->present = 1;
        fill_page(0, index, chunk->data);
        expect_ok(snap_image_writer_put(writer, chunk, &error), error);
        assert_true(writer->n_free >= 3);
    }
    assert_int_equal(snap_image_writer_bytes_written(writer), 40 * FIX_PAGE);
}

/* Nobody waits for what has not been handed to the sink. */
static void get_without_waiting_is_served_in_the_end(void **state) {
    GError *error = NULL;
    g_autofree char *dir = fix_path(state, "image");
    SnapChunk *held[2] = {0};
    g_autoptr(SnapImageWriter) writer = snap_image_writer_new(dir, "test", FIX_PAGE, 3, &error);
    g_autoptr(SnapRegion) region = fix_region("ram", 4096, REGION_PAGES, FIX_PAGE);
    expect_ok(writer && snap_image_writer_add_region(writer, region, &error), error);
    SnapChunk *chunk = snap_image_writer_get(writer, -1, &error);
    chunk->region = 0;
    chunk->index = 0;
    chunk->present = 1;
    fill_page(0, 0, chunk->data);
    expect_ok(snap_image_writer_put(writer, chunk, &error), error);
    for (guint i = 0; i < G_N_ELEMENTS(held); i++)
        assert_non_null(held[i] = snap_image_writer_get(writer, -1, &error));
    for (int tries = 0; !snap_image_writer_get(writer, 0, &error); tries++) {
        assert_in_range(tries, 0, 5000);
        g_usleep(1000);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        FIX_TEST(put_scattered_pages_come_back_with_any_number_of_buffers),
        FIX_TEST(put_few_pages_frees_the_buffer_at_once),
        FIX_TEST(get_without_waiting_is_served_in_the_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
