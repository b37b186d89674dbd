/* Exported core files, from images made by hand: headers, segments, sparse content. */
#include <elf.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "image-write.h"
#include "libsnap.h"
#include "process/process.h"

static uint64_t page_bytes;
static char *scratch;

typedef struct {
    const char *name;
    uint64_t guest_address;
    uint64_t host_address; /* in pages */
    uint64_t n_pages;
    uint64_t filled; /* bit i: page i holds its number + 1; the others are zero */
} TestRegion;

static void fill_region(SnapImageWriter *writer, guint number, const TestRegion *test) {
    SnapChunk *chunk = snap_image_writer_get(writer, -1, NULL);
    chunk->region = number;
    chunk->index = 0;
    chunk->present = test->n_pages == SNAP_CHUNK_PAGES ? UINT64_MAX : (UINT64_C(1) << test->n_pages) - 1;
    for (uint64_t i = 0; i < test->n_pages; i++) {
        memset(chunk->data + i * page_bytes, test->filled >> i & 1 ? (int)i + 1 : 0, page_bytes);
    }
    assert_true(snap_image_writer_put(writer, chunk, NULL));
}

static void add_state(SnapImageWriter *writer, const char *name, const char *text) {
    if (text) {
        g_autoptr(SnapState) state = snap_state_new(name, g_bytes_new(text, strlen(text)));
        assert_true(snap_image_writer_add_state(writer, state, NULL));
    }
}

static SnapImage *make_image(const TestRegion *tests, guint n, const char *notes, const char *maps) {
    static int number;
    g_autofree char *dir = g_strdup_printf("%s/image-%d", scratch, number++);
    g_autoptr(SnapImageWriter) writer =
        snap_image_writer_new(dir, notes ? "process" : "qemu", page_bytes, 4, NULL);
    assert_non_null(writer);
    for (guint i = 0; i < n; i++) {
        g_autoptr(SnapRegion) region = snap_region_new(
            tests[i].name, SNAP_MEMORY_ANON, tests[i].host_address * page_bytes, tests[i].n_pages * page_bytes);
        region->guest_address = tests[i].guest_address;
        assert_true(snap_image_writer_add_region(writer, region, NULL));
    }
    for (guint i = 0; i < n; i++) {
        fill_region(writer, i, &tests[i]);
    }
    add_state(writer, "notes", notes);
    add_state(writer, "maps", maps);
    assert_true(snap_image_writer_commit(writer, 0, NULL, 0, NULL));
    SnapImage *image = snap_image_open(dir, NULL);
    assert_non_null(image);
    return image;
}

static char *export(const SnapImage *image, gsize *ret_length) {
    g_autoptr(GError) error = NULL;
    g_autofree char *path = g_build_filename(scratch, "core", NULL);
    char *data = NULL;
    if (!process_export_core(image, path, NULL, NULL, &error)) {
        fail_msg("%s", error->message);
    }
    assert_true(g_file_get_contents(path, &data, ret_length, NULL));
    struct stat info;
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_mode & 0777, 0600);
    return data;
}

static void expect_load(const Elf64_Phdr *head, uint64_t address, uint64_t pages, uint64_t file_pages,
                        guint flags) {
    assert_int_equal(head->p_type, PT_LOAD);
    assert_int_equal(head->p_vaddr, address * page_bytes);
    assert_int_equal(head->p_memsz, pages * page_bytes);
    assert_int_equal(head->p_filesz, file_pages * page_bytes);
    assert_int_equal(head->p_flags, flags);
    assert_int_equal(head->p_offset % page_bytes, 0);
}

static char *maps_line(uint64_t start, uint64_t end, const char *permissions, const char *path) {
    return g_strdup_printf("%lx-%lx %sp 00000000 00:00 0                 %s\n", start * page_bytes,
                           end * page_bytes, permissions, path);
}

/* Mapping 16-20 has a region for 17-19 only, 20-24 one that goes on into 24-26. */
static void process_segments_follow_mappings_and_regions(void **state) {
    (void)state;
    static const TestRegion regions[] = {{"late", SNAP_NO_ADDRESS, 20, 6, 0x21},
                                         {"early", SNAP_NO_ADDRESS, 17, 2, 2}};
    g_autofree char *a = maps_line(16, 20, "r-x", "/bin/a");
    g_autofree char *b = maps_line(20, 24, "rw-", "");
    g_autofree char *c = maps_line(24, 26, "---", "");
    g_autofree char *maps = g_strconcat(a, b, c, NULL);
    g_autoptr(SnapImage) image = make_image(regions, 2, "note segment", maps);
    gsize length = 0;
    g_autofree char *core = export(image, &length);
    Elf64_Ehdr head;
    Elf64_Phdr heads[6];
    memcpy(&head, core, sizeof(head));
    assert_int_equal(head.e_type, ET_CORE);
    assert_int_equal(head.e_phnum, 6);
    memcpy(heads, core + head.e_phoff, sizeof(heads));
    assert_int_equal(heads[0].p_type, PT_NOTE);
    assert_int_equal(heads[0].p_filesz, strlen("note segment"));
    assert_memory_equal(core + heads[0].p_offset, "note segment", heads[0].p_filesz);
    expect_load(&heads[1], 16, 1, 0, PF_R | PF_X);
    expect_load(&heads[2], 17, 2, 2, PF_R | PF_X);
    expect_load(&heads[3], 19, 1, 0, PF_R | PF_X);
    expect_load(&heads[4], 20, 4, 4, PF_R | PF_W);
    expect_load(&heads[5], 24, 2, 2, 0);
    assert_int_equal(core[heads[2].p_offset], 0);
    assert_int_equal(core[heads[2].p_offset + page_bytes], 2);
    assert_int_equal(core[heads[4].p_offset], 1);
    assert_int_equal(core[heads[4].p_offset + page_bytes], 0);
    assert_int_equal(core[heads[5].p_offset + page_bytes], 6);
    assert_int_equal(length, heads[5].p_offset + heads[5].p_filesz);
}

static void region_outside_mappings_is_corrupt(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    static const TestRegion regions[] = {{"r", SNAP_NO_ADDRESS, 17, 2, 2}};
    g_autofree char *maps = maps_line(16, 18, "rw-", "");
    g_autoptr(SnapImage) image = make_image(regions, 1, "n", maps);
    g_autofree char *path = g_build_filename(scratch, "no-core", NULL);
    assert_false(process_export_core(image, path, NULL, NULL, &error));
    assert_true(g_error_matches(error, SNAP_ERROR, SNAP_ERROR_CORRUPT));
    assert_int_not_equal(access(path, F_OK), 0);
}

static void machine_is_exported_by_guest_address(void **state) {
    (void)state;
    static const TestRegion regions[] = {
        {"high", 0x100000000, 100, 2, 1}, {"rom", SNAP_NO_ADDRESS, 200, 1, 1}, {"low", 0, 300, 3, 4}};
    g_autoptr(SnapImage) image = make_image(regions, 3, NULL, NULL);
    gsize length = 0;
    g_autofree char *core = export(image, &length);
    Elf64_Ehdr head;
    Elf64_Phdr heads[2];
    memcpy(&head, core, sizeof(head));
    assert_int_equal(head.e_phnum, 2);
    memcpy(heads, core + head.e_phoff, sizeof(heads));
    assert_true(heads[0].p_paddr == 0 && heads[0].p_filesz == 3 * page_bytes);
    assert_true(heads[1].p_paddr == 0x100000000 && heads[1].p_vaddr == 0x100000000);
    assert_int_equal(core[heads[0].p_offset + 2 * page_bytes], 3);
    assert_int_equal(core[heads[1].p_offset], 1);
}

static void machine_without_addresses_is_refused(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    static const TestRegion regions[] = {{"rom", SNAP_NO_ADDRESS, 200, 1, 1}};
    g_autoptr(SnapImage) image = make_image(regions, 1, NULL, NULL);
    assert_false(process_export_core(image, "/nonexistent/core", NULL, NULL, &error));
    assert_true(g_error_matches(error, SNAP_ERROR, SNAP_ERROR_REFUSED));
}

static void very_many_segments_are_counted_in_section_zero(void **state) {
    (void)state;
    enum { N_MAPPINGS = 66000 };
    static const TestRegion regions[] = {{"r", SNAP_NO_ADDRESS, 16, 1, 1}};
    g_autoptr(GString) maps = g_string_new(NULL);
    for (uint64_t i = 0; i < N_MAPPINGS; i++) {
        g_autofree char *line = maps_line(16 + 2 * i, 17 + 2 * i, "rw-", "");
        g_string_append(maps, line);
    }
    g_autoptr(SnapImage) image = make_image(regions, 1, "n", maps->str);
    gsize length = 0;
    g_autofree char *core = export(image, &length);
    Elf64_Ehdr head;
    Elf64_Shdr section;
    memcpy(&head, core, sizeof(head));
    assert_int_equal(head.e_phnum, PN_XNUM);
    assert_int_equal(head.e_shnum, 1);
    memcpy(&section, core + head.e_shoff, sizeof(section));
    assert_int_equal(section.sh_info, N_MAPPINGS + 1);
}

static gboolean refuse_to_go_on(uint64_t done, uint64_t total, void *opaque) {
    (void)done, (void)total, (void)opaque;
    return FALSE;
}

static void export_that_fails_leaves_no_file(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    static const TestRegion regions[] = {{"low", 0, 300, 3, 4}};
    g_autoptr(SnapImage) image = make_image(regions, 1, NULL, NULL);
    g_autofree char *path = g_build_filename(scratch, "cancelled", NULL);
    assert_false(process_export_core(image, path, refuse_to_go_on, NULL, &error));
    assert_true(g_error_matches(error, SNAP_ERROR, SNAP_ERROR_CANCELLED));
    assert_int_not_equal(access(path, F_OK), 0);
    g_clear_error(&error);
    assert_false(process_export_core(image, "/dev/full", NULL, NULL, &error));
    assert_true(g_error_matches(error, SNAP_ERROR, SNAP_ERROR_NO_SPACE));
}

static int set_up(void **state) {
    (void)state;
    page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
    scratch = g_dir_make_tmp("test-core-XXXXXX", NULL);
    return scratch == NULL;
}

static int tear_down(void **state) {
    (void)state;
    char *arguments[] = {"rm", "-rf", scratch, NULL};
    gboolean ok = g_spawn_sync(NULL, arguments, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL, NULL, NULL, NULL, NULL);
    g_free(scratch);
    return !ok;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(process_segments_follow_mappings_and_regions),
        cmocka_unit_test(region_outside_mappings_is_corrupt),
        cmocka_unit_test(machine_is_exported_by_guest_address),
        cmocka_unit_test(machine_without_addresses_is_refused),
        cmocka_unit_test(very_many_segments_are_counted_in_section_zero),
        cmocka_unit_test(export_that_fails_leaves_no_file),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
