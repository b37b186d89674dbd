/*
 * Every file of an image cut at every boundary, with every bit or byte flipped, lengthened, missing, or something
 * else in its place: never a crash, never "ok", always one line with the file's name.
 */
#include "chunk.h"
#include "hash.h"
#include "image-fixture.h"
#include "manifest.h"

static const char *const files[] = {
    "manifest.json", "ram/pc.ram.img", "ram/pc.ram.idx", "ram/%2From@etc%2Facpi.img", "ram/%2From@etc%2Facpi.idx",
    "state/vcpu"};

/* A file of the image in memory, and its damaged form put in its place. */
typedef struct {
    const char *name;
    char *path;
    char *data;
    size_t length;
} Victim;

static void victim_clear(Victim *victim) {
    g_free(victim->path);
    g_free(victim->data);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Victim, victim_clear)

static void victim_load(Victim *victim, const char *dir, const char *name) {
    *victim = (Victim){.name = name, .path = g_strconcat(dir, "/", name, NULL)};
    assert_true(g_file_get_contents(victim->path, &victim->data, &victim->length, NULL));
}

/* In place: rewriting is quicker than g_file_set_contents(), and a damaged disk does not rename either. */
static void victim_write(const Victim *victim, size_t length) {
    int fd = open(victim->path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, victim->data, length), length);
    close(fd);
}

static void expect_damage(const char *dir, const char *name) {
    GError *error = NULL;
    if (fix_check_image(dir, &error))
        fail_msg("damage of %s is not seen", name);
    expect_error(&error, SNAP_ERROR_CORRUPT, name);
}

static void write_image(void **state, char **ret_dir) {
    GError *error = NULL;
    *ret_dir = fix_path(state, "image");
    expect_ok(fix_write_image(*ret_dir, &error), error);
    expect_ok(fix_check_image(*ret_dir, &error), error);
}

static void cut_at_every_byte_is_seen(void **state) {
    g_autofree char *dir = NULL;
    write_image(state, &dir);
    for (guint i = 0; i < G_N_ELEMENTS(files); i++) {
        g_auto(Victim) victim = {0};
        victim_load(&victim, dir, files[i]);
        /* Data files are long: around every page boundary is enough. */
        size_t step = g_str_has_suffix(files[i], ".img") ? FIX_PAGE : 1;
        for (size_t length = 0; length < victim.length; length += step) {
            victim_write(&victim, length);
            expect_damage(dir, files[i]);
            if (step > 1 && length > 0) {
                victim_write(&victim, length - 1);
                expect_damage(dir, files[i]);
            }
        }
        victim_write(&victim, victim.length);
    }
}

static void lengthened_is_seen(void **state) {
    g_autofree char *dir = NULL;
    write_image(state, &dir);
    for (guint i = 0; i < G_N_ELEMENTS(files); i++) {
        g_auto(Victim) victim = {0};
        victim_load(&victim, dir, files[i]);
        int fd = open(victim.path, O_WRONLY | O_APPEND | O_CLOEXEC);
        assert_int_equal(write(fd, "", 1), 1);
        close(fd);
        expect_damage(dir, files[i]);
        victim_write(&victim, victim.length);
    }
}

/* In small files every bit; in data files a bit at the first, a middle and the last byte of every page, those
 * that are recorded as zero or absent included. */
static void flipped_bit_is_seen(void **state) {
    g_autofree char *dir = NULL;
    write_image(state, &dir);
    for (guint i = 0; i < G_N_ELEMENTS(files); i++) {
        g_auto(Victim) victim = {0};
        victim_load(&victim, dir, files[i]);
        size_t step = g_str_has_suffix(files[i], ".img") ? FIX_PAGE * 8 / 3 : 1;
        for (size_t bit = 0; bit < victim.length * 8; bit += step) {
            int fd = open(victim.path, O_WRONLY | O_CLOEXEC);
            char flipped = (char)(victim.data[bit / 8] ^ 1 << bit % 8);
            assert_int_equal(pwrite(fd, &flipped, 1, (off_t)(bit / 8)), 1);
            expect_damage(dir, files[i]);
            assert_int_equal(pwrite(fd, victim.data + bit / 8, 1, (off_t)(bit / 8)), 1);
            close(fd);
        }
    }
}

static void missing_is_seen(void **state) {
    GError *error = NULL;
    g_autofree char *dir = NULL;
    write_image(state, &dir);
    for (guint i = 0; i < G_N_ELEMENTS(files); i++) {
        g_auto(Victim) victim = {0};
        victim_load(&victim, dir, files[i]);
        assert_int_equal(unlink(victim.path), 0);
        assert_false(fix_check_image(dir, &error));
        expect_error(&error, i == 0 ? SNAP_ERROR_INCOMPLETE : SNAP_ERROR_CORRUPT, files[i]);
        victim_write(&victim, victim.length);
    }
    expect_ok(fix_check_image(dir, &error), error);
}

/* A directory, a FIFO, or a link to the very same content: not the file that was written. */
static void something_else_in_its_place_is_seen(void **state) {
    g_autofree char *dir = NULL, *aside = fix_path(state, "aside");
    write_image(state, &dir);
    for (guint i = 0; i < G_N_ELEMENTS(files); i++) {
        g_autofree char *path = g_strconcat(dir, "/", files[i], NULL);
        assert_int_equal(rename(path, aside), 0);
        assert_int_equal(mkdir(path, 0700), 0);
        expect_damage(dir, files[i]);
        assert_int_equal(rmdir(path), 0);
        assert_int_equal(mkfifo(path, 0600), 0);
        expect_damage(dir, files[i]);
        assert_int_equal(unlink(path), 0);
        assert_int_equal(symlink(aside, path), 0);
        expect_damage(dir, files[i]);
        assert_int_equal(unlink(path), 0);
        assert_int_equal(rename(aside, path), 0);
    }
}

static void exchanged_files_are_seen(void **state) {
    g_autofree char *dir = NULL, *a = NULL, *b = NULL, *aside = fix_path(state, "aside");
    write_image(state, &dir);
    a = g_strconcat(dir, "/", files[2], NULL);
    b = g_strconcat(dir, "/", files[4], NULL);
    assert_true(rename(a, aside) == 0 && rename(b, a) == 0 && rename(aside, b) == 0);
    expect_damage(dir, "ram/");
}

/* A read sees what it touches, by region and chunk, even after the image was opened without complaint. */
static void read_of_flipped_page_names_region_and_chunk(void **state) {
    GError *error = NULL;
    g_autofree char *dir = NULL;
    uint8_t page[FIX_PAGE];
    write_image(state, &dir);
    g_auto(Victim) victim = {0};
    victim_load(&victim, dir, "ram/pc.ram.img");
    victim.data[FIX_CHUNK + FIX_PAGE / 2] ^= 1; /* page 64: data */
    assert_int_equal(fix_kind(0, 64), PAGE_DATA);
    victim_write(&victim, victim.length);
    g_autoptr(SnapImage) image = snap_image_open(dir, &error);
    expect_ok(image != NULL, error);
    expect_ok(snap_image_read(image, 0, 0, page, FIX_PAGE, &error), error);
    assert_false(snap_image_read(image, 0, FIX_CHUNK + 3 * FIX_PAGE, page, FIX_PAGE, &error));
    expect_error(&error, SNAP_ERROR_CORRUPT, "pc.ram.img: chunk 1");
    assert_false(snap_image_verify(image, NULL, NULL, &error));
    expect_error(&error, SNAP_ERROR_CORRUPT, "pc.ram.img: chunk 1");
}

static void read_of_file_cut_after_opening_is_corrupt(void **state) {
    GError *error = NULL;
    static const char *const cut[] = {"ram/pc.ram.img", "ram/pc.ram.idx"};
    g_autofree char *dir = NULL;
    static uint8_t data[FIX_RAM_PAGES * FIX_PAGE];
    write_image(state, &dir);
    for (guint i = 0; i < G_N_ELEMENTS(cut); i++) {
        g_auto(Victim) victim = {0};
        g_autoptr(SnapImage) image = snap_image_open(dir, &error);
        expect_ok(image != NULL, error);
        victim_load(&victim, dir, cut[i]);
        assert_int_equal(truncate(victim.path, 70), 0);
        assert_false(snap_image_read(image, 0, 0, data, sizeof data, &error));
        expect_error(&error, SNAP_ERROR_CORRUPT, cut[i]);
        victim_write(&victim, victim.length);
    }
}

static void state_changed_after_opening_is_corrupt(void **state) {
    GError *error = NULL;
    g_autofree char *dir = NULL;
    write_image(state, &dir);
    g_autoptr(SnapImage) image = snap_image_open(dir, &error);
    g_auto(Victim) victim = {0};
    victim_load(&victim, dir, "state/vcpu");
    victim.data[3] ^= 4;
    victim_write(&victim, victim.length);
    assert_null(snap_image_state(image, "vcpu", &error));
    expect_error(&error, SNAP_ERROR_CORRUPT, "state/vcpu");
}

/* ---- an index that lies, under checksums that are right ---------------------------------------------------- */

/* Give the manifest the checksum of the index as it is now. */
static void forge_manifest(const char *dir, const Victim *index) {
    size_t length = 0;
    g_auto(Victim) manifest = {0};
    victim_load(&manifest, dir, "manifest.json");
    g_autoptr(SnapManifest) decoded = snap_manifest_decode(manifest.data, manifest.length, NULL);
    assert_non_null(decoded);
    for (guint i = 0; i < decoded->files->len; i++) {
        SnapManifestFile *file = decoded->files->pdata[i];
        if (strcmp(file->path, index->name) == 0)
            file->xxh3 = XXH3_64bits(index->data, index->length);
    }
    g_free(manifest.data);
    manifest.data = snap_manifest_encode(decoded, &length);
    victim_write(&manifest, length);
}

static void forged_index_every_flipped_byte_is_seen(void **state) {
    GError *error = NULL;
    g_autofree char *dir = NULL;
    write_image(state, &dir);
    g_auto(Victim) victim = {0};
    victim_load(&victim, dir, "ram/pc.ram.idx");
    for (size_t at = 0; at < victim.length; at++) {
        victim.data[at] = (char)(victim.data[at] ^ 0x81);
        victim_write(&victim, victim.length);
        forge_manifest(dir, &victim);
        if (fix_check_image(dir, &error))
            fail_msg("a lie at byte %zu of the index is believed", at);
        expect_error(&error, SNAP_ERROR_CORRUPT, "ram/pc.ram.i");
        victim.data[at] = (char)(victim.data[at] ^ 0x81);
    }
    victim_write(&victim, victim.length);
    forge_manifest(dir, &victim);
    expect_ok(fix_check_image(dir, &error), error);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        FIX_TEST(cut_at_every_byte_is_seen),
        FIX_TEST(lengthened_is_seen),
        FIX_TEST(flipped_bit_is_seen),
        FIX_TEST(missing_is_seen),
        FIX_TEST(something_else_in_its_place_is_seen),
        FIX_TEST(exchanged_files_are_seen),
        FIX_TEST(read_of_flipped_page_names_region_and_chunk),
        FIX_TEST(read_of_file_cut_after_opening_is_corrupt),
        FIX_TEST(state_changed_after_opening_is_corrupt),
        FIX_TEST(forged_index_every_flipped_byte_is_seen),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
