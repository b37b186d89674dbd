/* The composer, its stream taken apart again by a reader that knows nothing of it, and an image of 512-byte pages.
 */
#include "image-fixture.h"

#include "description.h"
#include "qemu.h"
#include "stream.h"

#define RAM "pc.ram"
#define ROM "0000:00:02.0/vga.rom"
#define DEVICES "QEVM\0\0\0\3device sections of all kinds\0"

/* ---- an image ---- */

typedef struct {
    const char *left_out; /* (nullable) a region that is not saved */
    const char *devices;  /* (nullable) instead of DEVICES, of @devices_length bytes */
    size_t devices_length;
    uint64_t rom_used_pages; /* what the description says; 0: the truth */
} Variant;

static void add_block(GPtrArray *blocks, const char *name, uint64_t pages) {
    RamBlock *block = g_new0(RamBlock, 1);
    *block = (RamBlock){.name = g_strdup(name),
                        .page_bytes = FIX_PAGE,
                        .used_bytes = pages * FIX_PAGE,
                        .max_bytes = pages * FIX_PAGE,
                        .guest_address = SNAP_NO_ADDRESS};
    g_ptr_array_add(blocks, block);
}

static GBytes *describe(const Variant *variant) {
    g_autoptr(GPtrArray) blocks = g_ptr_array_new_with_free_func((GDestroyNotify)ramblock_free);
    add_block(blocks, RAM, FIX_RAM_PAGES);
    add_block(blocks, ROM, variant->rom_used_pages ? variant->rom_used_pages : FIX_ROM_PAGES);
    const QemuDescription description = {"pc-i440fx-7.2", "7.2.22", "tcg", TRUE, blocks};
    return description_encode(&description);
}

static void add_state(SnapImageWriter *writer, const char *name, GBytes *data) {
    GError *error = NULL;
    g_autoptr(SnapState) blob = snap_state_new(name, data);
    expect_ok(snap_image_writer_add_state(writer, blob, &error), error);
}

static SnapImage *make_image(void **state, const Variant *variant) {
    GError *error = NULL;
    g_autofree char *dir = fix_path(state, "image");
    static const char *const names[] = {RAM, ROM};
    static const uint64_t pages[] = {FIX_RAM_PAGES, FIX_ROM_PAGES};
    g_autoptr(SnapImageWriter) writer = snap_image_writer_new(dir, "qemu", FIX_PAGE, 4, &error);
    expect_ok(writer != NULL, error);
    for (guint i = 0, number = 0; i < G_N_ELEMENTS(names); i++) {
        if (g_strcmp0(names[i], variant->left_out) == 0)
            continue;
        g_autoptr(SnapRegion) region = fix_region(names[i], (i + 1) * UINT64_C(0x10000000), pages[i], FIX_PAGE);
        expect_ok(snap_image_writer_add_region(writer, region, &error), error);
        expect_ok(fix_put_region(writer, number++, pages[i], FIX_PAGE, &error), error);
    }
    add_state(writer, QEMU_STATE_DEVICES,
              variant->devices ? g_bytes_new(variant->devices, variant->devices_length)
                               : g_bytes_new(DEVICES, sizeof(DEVICES) - 1));
    add_state(writer, QEMU_STATE_DESCRIPTION, describe(variant));
    expect_ok(snap_image_writer_commit(writer, 0, NULL, 0, &error), error);
    SnapImage *image = snap_image_open(dir, &error);
    expect_ok(image != NULL, error);
    return image;
}

/* ---- a reader of streams ---- */

typedef struct {
    const uint8_t *at, *end;
    /* what was found */
    uint8_t pages[2][FIX_RAM_PAGES][FIX_PAGE];
    guint seen[2][FIX_RAM_PAGES];
    guint n_zero, n_data;
} Reader;

static const uint8_t *take(Reader *reader, size_t length) {
    if ((size_t)(reader->end - reader->at) < length)
        fail_msg("the stream ends %zu bytes early", length - (size_t)(reader->end - reader->at));
    reader->at += length;
    return reader->at - length;
}

static uint64_t take_number(Reader *reader, size_t length) {
    uint64_t value = 0;
    for (const uint8_t *byte = take(reader, length), *past = byte + length; byte < past; byte++)
        value = value << 8 | *byte;
    return value;
}

static void take_text(Reader *reader, const char *text) {
    assert_memory_equal(take(reader, strlen(text)), text, strlen(text));
}

static char *take_name(Reader *reader) {
    size_t length = take_number(reader, 1);
    return g_strndup((const char *)take(reader, length), length);
}

static void take_page(Reader *reader, uint64_t head, guint block) {
    uint64_t page = head / FIX_PAGE;
    assert_in_range(page, 0, block == 0 ? FIX_RAM_PAGES - 1 : FIX_ROM_PAGES - 1);
    reader->seen[block][page]++;
    if (head & 0x02) {
        assert_int_equal(take_number(reader, 1), 0);
        reader->n_zero++;
    } else {
        assert_true(head & 0x08);
        memcpy(reader->pages[block][page], take(reader, FIX_PAGE), FIX_PAGE);
        reader->n_data++;
    }
}

static void take_pages(Reader *reader) {
    int block = -1;
    for (;;) {
        uint64_t head = take_number(reader, 8);
        if ((head & (FIX_PAGE - 1)) == 0x10)
            return;
        if (!(head & 0x20)) {
            g_autofree char *name = take_name(reader);
            block = g_str_equal(name, RAM) ? 0 : g_str_equal(name, ROM) ? 1 : -1;
        }
        assert_in_range(block, 0, 1);
        take_page(reader, head, (guint)block);
    }
}

static void take_stream(Reader *reader) {
    take_text(reader, "QEVM");
    assert_int_equal(take_number(reader, 4), 3);
    assert_int_equal(take_number(reader, 1), 7);
    assert_int_equal(take_number(reader, 4), strlen("pc-i440fx-7.2"));
    take_text(reader, "pc-i440fx-7.2");
    assert_int_equal(take_number(reader, 1), 1);
    uint64_t section = take_number(reader, 4);
    g_autofree char *ram = take_name(reader);
    assert_string_equal(ram, "ram");
    assert_int_equal(take_number(reader, 4), 0);
    assert_int_equal(take_number(reader, 4), 4);
    assert_int_equal(take_number(reader, 8), (FIX_RAM_PAGES + FIX_ROM_PAGES) * FIX_PAGE | 4);
    static const struct {
        const char *name;
        uint64_t pages;
    } blocks[] = {{RAM, FIX_RAM_PAGES}, {ROM, FIX_ROM_PAGES}};
    for (guint i = 0; i < G_N_ELEMENTS(blocks); i++) {
        g_autofree char *name = take_name(reader);
        assert_string_equal(name, blocks[i].name);
        assert_int_equal(take_number(reader, 8), blocks[i].pages * FIX_PAGE);
    }
    assert_int_equal(take_number(reader, 8), 0x10);
    assert_int_equal(take_number(reader, 1), 0x7e);
    assert_int_equal(take_number(reader, 4), section);
    assert_int_equal(take_number(reader, 1), 3);
    assert_int_equal(take_number(reader, 4), section);
    take_pages(reader);
    assert_int_equal(take_number(reader, 1), 0x7e);
    assert_int_equal(take_number(reader, 4), section);
    assert_memory_equal(take(reader, sizeof(DEVICES) - 1 - 8), &DEVICES[8], sizeof(DEVICES) - 1 - 8);
    assert_int_equal(take_number(reader, 1), 6);
    size_t length = take_number(reader, 4);
    assert_true(g_strstr_len((const char *)take(reader, length), (gssize)length, "\"devices\"") != NULL);
    assert_true(reader->at == reader->end);
}

/* ---- composing ---- */

static gboolean append(const void *data, size_t length, void *opaque, GError **error) {
    (void)error;
    g_byte_array_append(opaque, data, (guint)length);
    return TRUE;
}

static Reader *compose(const SnapImage *image, const StreamContent *contents, GByteArray *stream) {
    GError *error = NULL;
    g_autoptr(QemuDescription) description = description_of_image(image, &error);
    expect_ok(description != NULL, error);
    expect_ok(stream_compose(image, description, contents, append, stream, NULL, NULL, &error), error);
    Reader *reader = g_new0(Reader, 1);
    reader->at = stream->data;
    reader->end = stream->data + stream->len;
    take_stream(reader);
    return reader;
}

static gboolean is_data(guint block, uint64_t page) {
    return fix_kind(block, page) == PAGE_DATA;
}

static void stream_holds_every_page_once(void **state) {
    g_autoptr(SnapImage) image = make_image(state, &(Variant){0});
    g_autoptr(GByteArray) stream = g_byte_array_new();
    g_autofree Reader *reader = compose(image, NULL, stream);
    for (guint block = 0; block < 2; block++) {
        for (uint64_t page = 0; page < (block ? FIX_ROM_PAGES : FIX_RAM_PAGES); page++) {
            uint8_t want[FIX_PAGE];
            fix_fill(block, page, FIX_PAGE, want);
            assert_int_equal(reader->seen[block][page], 1);
            assert_memory_equal(reader->pages[block][page], want, FIX_PAGE);
        }
    }
    assert_true(reader->n_zero > 0 && reader->n_data > 0);
}

static void stream_of_data_leaves_zero_pages_out(void **state) {
    g_autoptr(SnapImage) image = make_image(state, &(Variant){0});
    g_autoptr(GByteArray) stream = g_byte_array_new();
    const StreamContent contents[] = {STREAM_DATA, STREAM_DATA};
    g_autofree Reader *reader = compose(image, contents, stream);
    for (uint64_t page = 0; page < FIX_RAM_PAGES; page++)
        assert_int_equal(reader->seen[0][page], is_data(0, page));
    assert_int_equal(reader->n_zero, 0);
}

static void block_that_has_its_content_is_listed_without_pages(void **state) {
    g_autoptr(SnapImage) image = make_image(state, &(Variant){0});
    g_autoptr(GByteArray) stream = g_byte_array_new();
    const StreamContent contents[] = {STREAM_NOTHING, STREAM_ALL};
    g_autofree Reader *reader = compose(image, contents, stream);
    assert_int_equal(reader->n_data + reader->n_zero, FIX_ROM_PAGES);
}

static void export_fails(const SnapImage *image, SnapErrorCode code, const char *text) {
    GError *error = NULL;
    FILE *out = tmpfile();
    assert_false(qemu_export_stream(image, fileno(out), NULL, NULL, NULL, &error));
    expect_error(&error, code, text);
    assert_int_equal(lseek(fileno(out), 0, SEEK_END), 0); /* before the first byte */
    fclose(out);
}

static void image_without_a_block_is_refused(void **state) {
    g_autoptr(SnapImage) image = make_image(state, &(Variant){.left_out = ROM});
    export_fails(image, SNAP_ERROR_INCOMPLETE, "RAM block " ROM " is not in the image");
}

static void image_with_a_shorter_block_is_refused(void **state) {
    g_autoptr(SnapImage) image = make_image(state, &(Variant){.rom_used_pages = FIX_ROM_PAGES + 1});
    export_fails(image, SNAP_ERROR_CORRUPT, ROM);
}

static void device_state_that_is_none_is_refused(void **state) {
    static const Variant variants[] = {{.devices = "QEVM\0\0\0\3", .devices_length = 8},
                                       {.devices = "QEVM\0\0\0\2xxxx\0", .devices_length = 13},
                                       {.devices = "QEVM\0\0\0\3xxxx", .devices_length = 12},
                                       {.devices = "", .devices_length = 0}};
    for (guint i = 0; i < G_N_ELEMENTS(variants); i++) {
        g_autoptr(SnapImage) image = make_image(state, &variants[i]);
        export_fails(image, SNAP_ERROR_CORRUPT, QEMU_STATE_DEVICES);
        g_autofree char *dir = fix_path(state, "image");
        fix_remove(dir);
    }
}

static gboolean stop_at_once(uint64_t done, uint64_t total, void *opaque) {
    (void)opaque;
    assert_true(done <= total);
    return FALSE;
}

static void export_that_is_cancelled_says_so(void **state) {
    g_autoptr(SnapImage) image = make_image(state, &(Variant){0});
    GError *error = NULL;
    FILE *out = tmpfile();
    assert_false(qemu_export_stream(image, fileno(out), NULL, stop_at_once, NULL, &error));
    expect_error(&error, SNAP_ERROR_CANCELLED, "cancelled");
    fclose(out);
}

static void export_to_a_full_device_says_so(void **state) {
    g_autoptr(SnapImage) image = make_image(state, &(Variant){0});
    GError *error = NULL;
    int full = open("/dev/full", O_WRONLY | O_CLOEXEC);
    assert_false(qemu_export_stream(image, full, NULL, NULL, NULL, &error));
    expect_error(&error, SNAP_ERROR_NO_SPACE, "writing the migration stream");
    close(full);
}

static void description_comes_back_as_it_was(void **state) {
    (void)state;
    g_autoptr(GPtrArray) blocks = g_ptr_array_new_with_free_func((GDestroyNotify)ramblock_free);
    add_block(blocks, RAM, 7);
    RamBlock *block = g_ptr_array_index(blocks, 0);
    block->backend = g_strdup("mem0");
    block->host_address = UINT64_C(0xffff800012345000);
    block->guest_address = 0;
    block->shared = TRUE;
    const QemuDescription description = {"pc-q35-10.0", "10.0.2", "kvm", FALSE, blocks};
    g_autoptr(GBytes) json = description_encode(&description);
    GError *error = NULL;
    g_autoptr(QemuDescription) back = description_decode(json, &error);
    expect_ok(back != NULL, error);
    const RamBlock *again = g_ptr_array_index(back->blocks, 0);
    assert_string_equal(back->machine, "pc-q35-10.0");
    assert_string_equal(back->accel, "kvm");
    assert_false(back->running);
    assert_string_equal(again->backend, "mem0");
    assert_true(again->host_address == block->host_address && again->guest_address == 0 && again->shared);
    assert_int_equal(again->used_bytes, 7 * FIX_PAGE);
}

static void description_with_something_missing_is_corrupt(void **state) {
    (void)state;
    static const char *const texts[] = {
        "",
        "[]",
        "{\"machine\": \"pc\"}",
        "{\"machine\": \"pc\", \"blocks\": []}",
        "{\"machine\": \"\", \"blocks\": [{\"name\": \"a\", \"used-bytes\": 1, \"page-bytes\": 1}]}",
        "{\"machine\": \"pc\", \"blocks\": [{\"name\": \"\", \"used-bytes\": 1, \"page-bytes\": 1}]}",
        "{\"machine\": \"pc\", \"blocks\": [{\"name\": \"a\", \"page-bytes\": 1}]}",
        "{\"machine\": \"pc\", \"blocks\": [3]}"};
    for (guint i = 0; i < G_N_ELEMENTS(texts); i++) {
        g_autoptr(GBytes) json = g_bytes_new_static(texts[i], strlen(texts[i]));
        GError *error = NULL;
        assert_null(description_decode(json, &error));
        expect_error(&error, SNAP_ERROR_CORRUPT, QEMU_STATE_DESCRIPTION);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        FIX_TEST(stream_holds_every_page_once),
        FIX_TEST(stream_of_data_leaves_zero_pages_out),
        FIX_TEST(block_that_has_its_content_is_listed_without_pages),
        FIX_TEST(image_without_a_block_is_refused),
        FIX_TEST(image_with_a_shorter_block_is_refused),
        FIX_TEST(device_state_that_is_none_is_refused),
        FIX_TEST(export_that_is_cancelled_says_so),
        FIX_TEST(export_to_a_full_device_says_so),
        cmocka_unit_test(description_comes_back_as_it_was),
        cmocka_unit_test(description_with_something_missing_is_corrupt),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
