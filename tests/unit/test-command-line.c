/* What becomes of a QEMU command in a restore. */
#include "image-fixture.h"

#include "command-line.h"

/* One region of RAM, one ROM, in an image without more. */
static SnapImage *make_image(void **state, const char *name) {
    GError *error = NULL;
    g_autofree char *dir = fix_path(state, "a,b"); /* a comma in a path is doubled for QEMU */
    g_autoptr(SnapImageWriter) writer = snap_image_writer_new(dir, "qemu", FIX_PAGE, 4, &error);
    expect_ok(writer != NULL, error);
    g_autoptr(SnapRegion) region = fix_region(name, 0, FIX_RAM_PAGES, FIX_PAGE);
    expect_ok(snap_image_writer_add_region(writer, region, &error), error);
    expect_ok(fix_put_region(writer, 0, FIX_RAM_PAGES, FIX_PAGE, &error), error);
    expect_ok(snap_image_writer_commit(writer, 0, NULL, 0, &error), error);
    SnapImage *image = snap_image_open(dir, &error);
    expect_ok(image != NULL, error);
    return image;
}

static QemuDescription *describe(const char *name, const char *backend) {
    QemuDescription *description = g_new0(QemuDescription, 1);
    RamBlock *block = g_new0(RamBlock, 1);
    *block = (RamBlock){.name = g_strdup(name),
                        .backend = g_strdup(backend),
                        .used_bytes = FIX_RAM_PAGES * FIX_PAGE,
                        .page_bytes = FIX_PAGE};
    description->machine = g_strdup("pc-i440fx-7.2");
    description->blocks = g_ptr_array_new_with_free_func((GDestroyNotify)ramblock_free);
    g_ptr_array_add(description->blocks, block);
    return description;
}

typedef struct {
    const char *command; /* words by blanks */
    const char *block;
    const char *backend;
    QemuMap map;
    StreamContent content;
    const char *result; /* RAW stands for the mapped file's path, SIZE for the block's */
} Case;

#define FILE_OBJECT(id) "memory-backend-file,id=" id ",size=SIZE,share=off,mem-path=RAW"

static const Case cases[] = {
    /* default RAM: copied, unless told otherwise */
    {"q -m 1G", "pc.ram", "pc.ram", QEMU_MAP_AUTO, STREAM_DATA, "q -m 1G"},
    {"q -m 1G", "pc.ram", "pc.ram", QEMU_MAP_NEVER, STREAM_DATA, "q -m 1G"},
    {"q -m 1G", "pc.ram", "pc.ram", QEMU_MAP_ALWAYS, STREAM_NOTHING,
     "q -m 1G -object " FILE_OBJECT(
         "pc.ram") ",x-use-canonical-path-for-ramblock-id=off -machine memory-backend=pc.ram"},
    /* RAM of an object: replaced where it stands */
    {"q -object memory-backend-memfd,id=m,size=1G,share=on -machine pc,memory-backend=m", "m", "m", QEMU_MAP_AUTO,
     STREAM_NOTHING, "q -object " FILE_OBJECT("m") " -machine pc,memory-backend=m"},
    {"q --object memory-backend-file,id=m,size=1G,mem-path=/x -smp 2", "m", "m", QEMU_MAP_AUTO, STREAM_NOTHING,
     "q --object " FILE_OBJECT("m") " -smp 2"},
    {"q -object memory-backend-file,id=m,size=1G,x-use-canonical-path-for-ramblock-id=off,mem-path=/x", "m", "m",
     QEMU_MAP_AUTO, STREAM_NOTHING, "q -object " FILE_OBJECT("m") ",x-use-canonical-path-for-ramblock-id=off"},
    {"q -object {\"qom-type\":\"memory-backend-memfd\",\"id\":\"m\",\"size\":1}", "m", "m", QEMU_MAP_AUTO,
     STREAM_NOTHING, "q -object " FILE_OBJECT("m")},
    /* anonymous and huge memory stays what it is */
    {"q -object memory-backend-ram,id=m,size=1G", "m", "m", QEMU_MAP_AUTO, STREAM_DATA,
     "q -object memory-backend-ram,id=m,size=1G"},
    {"q -object memory-backend-memfd,id=m,hugetlb=on", "m", "m", QEMU_MAP_AUTO, STREAM_DATA,
     "q -object memory-backend-memfd,id=m,hugetlb=on"},
    {"q -object memory-backend-memfd,id=m,hugetlb=on", "m", "m", QEMU_MAP_ALWAYS, STREAM_NOTHING,
     "q -object " FILE_OBJECT("m")},
    /* a file may have content of before: zero pages are sent */
    {"q -object memory-backend-file,id=m,size=1G,mem-path=/x", "m", "m", QEMU_MAP_NEVER, STREAM_ALL,
     "q -object memory-backend-file,id=m,size=1G,mem-path=/x"},
    {"q -m 1G -mem-path /dev/hugepages", "pc.ram", "pc.ram", QEMU_MAP_AUTO, STREAM_ALL,
     "q -m 1G -mem-path /dev/hugepages"},
    /* whose definition is not seen */
    {"q -object memory-backend-memfd,id=other", "m", "m", QEMU_MAP_AUTO, STREAM_ALL,
     "q -object memory-backend-memfd,id=other"},
    {"q -object secret,id=m", "m", "m", QEMU_MAP_AUTO, STREAM_ALL, "q -object secret,id=m"},
    {"q", "0000:00:02.0/vga.vram", NULL, QEMU_MAP_NEVER, STREAM_ALL, "q"},
    /* a device that stands against it */
    {"q -object memory-backend-memfd,id=m -device virtio-balloon", "m", "m", QEMU_MAP_AUTO, STREAM_DATA,
     "q -object memory-backend-memfd,id=m -device virtio-balloon"},
    {"q -object memory-backend-memfd,id=m -netdev vhost-user,id=n", "m", "m", QEMU_MAP_AUTO, STREAM_DATA,
     "q -object memory-backend-memfd,id=m -netdev vhost-user,id=n"},
};

static char *replace(const char *text, const char *from, const char *to) {
    g_auto(GStrv) parts = g_strsplit(text, from, -1);
    return g_strjoinv(to, parts);
}

static char *expected(const Case *c, const SnapImage *image) {
    g_autofree char *size = g_strdup_printf("%u", FIX_RAM_PAGES * FIX_PAGE);
    g_autofree char *path = replace(snap_image_region(image, 0)->raw_path, ",", ",,");
    g_autofree char *with_size = replace(c->result, "SIZE", size);
    return replace(with_size, "RAW", path);
}

static void command_becomes_what_the_table_says(void **state) {
    for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
        const Case *c = &cases[i];
        GError *error = NULL;
        g_autoptr(SnapImage) image = make_image(state, c->block);
        g_autoptr(QemuDescription) description = describe(c->block, c->backend);
        g_auto(GStrv) argv = g_strsplit(c->command, " ", -1);
        g_autoptr(CommandLine) line = command_line_new(argv, image, description, c->map, &error);
        expect_ok(line != NULL, error);
        g_ptr_array_add(line->argv, NULL);
        g_autofree char *result = g_strjoinv(" ", (char **)line->argv->pdata);
        g_autofree char *want = expected(c, image);
        assert_string_equal(result, want);
        assert_int_equal(line->contents[0], c->content);
        assert_int_equal(line->mapped_bytes, c->content == STREAM_NOTHING ? FIX_RAM_PAGES * FIX_PAGE : 0);
        g_autofree char *dir = fix_path(state, "a,b");
        fix_remove(dir);
    }
}

static void command_that_cannot_be_restored_is_refused(void **state) {
    static const struct {
        const char *command;
        QemuMap map;
        SnapErrorCode code;
        const char *text;
    } refusals[] = {
        {"q -incoming defer", QEMU_MAP_AUTO, SNAP_ERROR_USAGE, "-incoming"},
        {"q --incoming tcp:0:1", QEMU_MAP_AUTO, SNAP_ERROR_USAGE, "-incoming"},
        {"q -device virtio-mem-pci", QEMU_MAP_ALWAYS, SNAP_ERROR_NOT_SUPPORTED, "punch holes"},
        {"q -chardev x -device vhost-user-fs-pci", QEMU_MAP_ALWAYS, SNAP_ERROR_NOT_SUPPORTED, "vhost-user"},
        {"q -mem-path /x", QEMU_MAP_ALWAYS, SNAP_ERROR_NOT_SUPPORTED, "defines none"},
    };
    g_autoptr(SnapImage) image = make_image(state, "pc.ram");
    g_autoptr(QemuDescription) description = describe("pc.ram", "pc.ram");
    for (guint i = 0; i < G_N_ELEMENTS(refusals); i++) {
        GError *error = NULL;
        g_auto(GStrv) argv = g_strsplit(refusals[i].command, " ", -1);
        assert_null(command_line_new(argv, image, description, refusals[i].map, &error));
        expect_error(&error, refusals[i].code, refusals[i].text);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        FIX_TEST(command_becomes_what_the_table_says),
        FIX_TEST(command_that_cannot_be_restored_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
