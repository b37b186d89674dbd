/* Manifest text: what comes out goes in again, and nothing else does. */
#include "hash.h"
#include "image-fixture.h"
#include "manifest.h"

static SnapManifest *make_manifest(void) {
    SnapManifest *manifest = snap_manifest_new();
    g_autoptr(SnapRegion) ram = fix_region("pc.ram", 0x7f0000000000, 100, 4096);
    g_autoptr(SnapRegion) odd = fix_region("dir/a b\n\"é", UINT64_MAX - 8192, 1, 4096);
    const uint64_t xxh3 = 0x0123456789abcdef;
    ram->guest_address = UINT64_MAX - 1;
    odd->granule_bytes = 2 << 20;
    odd->memory = SNAP_MEMORY_HUGETLB;
    manifest->id = g_strdup("3e0a1c1e-0000-4000-8000-000000000000");
    manifest->driver = g_strdup("test");
    manifest->created = snap_manifest_format_time(1714979289123456);
    manifest->page_bytes = 4096;
    snap_manifest_add_region(manifest, ram);
    snap_manifest_add_region(manifest, odd);
    snap_manifest_add_state(manifest, "vcpu", 19);
    snap_manifest_add_statistic(manifest, "pause-us", UINT64_MAX);
    snap_manifest_add_file(manifest, "ram/pc.ram.img", 409600, NULL);
    snap_manifest_add_file(manifest, "ram/pc.ram.idx", 64 + 2 * 40, &xxh3);
    snap_manifest_add_file(manifest, "ram/dir%2Fa%20b%0A%22%C3%A9.img", 4096, NULL);
    snap_manifest_add_file(manifest, "ram/dir%2Fa%20b%0A%22%C3%A9.idx", 64 + 40, &xxh3);
    snap_manifest_add_file(manifest, "state/vcpu", 19, &xxh3);
    return manifest;
}

static char *make_text(size_t *ret_length) {
    g_autoptr(SnapManifest) manifest = make_manifest();
    return snap_manifest_encode(manifest, ret_length);
}

static void decode_of_encode_is_the_same(void **state) {
    (void)state;
    GError *error = NULL;
    size_t length = 0, again_length = 0;
    g_autofree char *text = make_text(&length);
    g_autoptr(SnapManifest) back = snap_manifest_decode(text, length, &error);
    expect_ok(back != NULL, error);
    const SnapManifestRegion *ram = back->regions->pdata[0], *odd = back->regions->pdata[1];
    assert_string_equal(odd->name, "dir/a b\n\"é");
    assert_true(ram->guest_address == UINT64_MAX - 1);
    assert_true(odd->guest_address == SNAP_NO_ADDRESS);
    assert_int_equal(odd->memory, SNAP_MEMORY_HUGETLB);
    assert_null(back->parent_id);
    assert_string_equal(back->created, "2024-05-06T07:08:09.123456Z");
    g_autofree char *again = snap_manifest_encode(back, &again_length);
    assert_string_equal(again, text);
    assert_int_equal(again_length, length);
}

static void decode_every_cut_is_corrupt(void **state) {
    (void)state;
    size_t length = 0;
    g_autofree char *text = make_text(&length);
    for (size_t cut = 0; cut < length; cut++) {
        GError *error = NULL;
        g_autofree char *part = g_memdup2(text, cut); /* exactly as long: a reader beyond it is found out */
        assert_null(snap_manifest_decode(part, cut, &error));
        expect_error(&error, SNAP_ERROR_CORRUPT, "manifest.json");
    }
}

static void decode_every_flipped_bit_is_corrupt(void **state) {
    (void)state;
    size_t length = 0;
    g_autofree char *text = make_text(&length);
    for (size_t bit = 0; bit < length * 8; bit++) {
        GError *error = NULL;
        text[bit / 8] = (char)(text[bit / 8] ^ 1 << bit % 8);
        assert_null(snap_manifest_decode(text, length, &error));
        expect_error(&error, SNAP_ERROR_CORRUPT, "manifest.json");
        text[bit / 8] = (char)(text[bit / 8] ^ 1 << bit % 8);
    }
}

/* The text with the first @from replaced by @to and a checksum that is right again. */
static char *forge(const char *from, const char *to, size_t *ret_length) {
    size_t length = 0;
    g_autofree char *text = make_text(&length);
    char *at = strstr(text, from);
    if (!at)
        fail_msg("the manifest has no %s", from);
    char *line = strstr(text, "  \"checksum\"");
    g_autofree char *body = g_strdup_printf("%.*s%s%.*s", (int)(at - text), text, to,
                                            (int)(line - at - (ptrdiff_t)strlen(from)), at + strlen(from));
    char *forged = g_strdup_printf("%s  \"checksum\": \"%016" G_GINT64_MODIFIER "x\"\n}\n", body,
                                   (guint64)XXH3_64bits(body, strlen(body)));
    *ret_length = strlen(forged);
    return forged;
}

static SnapManifest *decode_forged(const char *from, const char *to, GError **error) {
    size_t length = 0;
    g_autofree char *text = forge(from, to, &length);
    return snap_manifest_decode(text, length, error);
}

static void decode_unknown_members_are_skipped(void **state) {
    (void)state;
    GError *error = NULL;
    g_autoptr(SnapManifest) manifest =
        decode_forged("\"driver\"", "\"colour\": [\"blue\", {\"deep\": true}],\n  \"driver\"", &error);
    expect_ok(manifest != NULL, error);
}

static void decode_optional_members_are_kept(void **state) {
    (void)state;
    GError *error = NULL;
    size_t length = 0, again_length = 0;
    g_autoptr(SnapManifest) manifest = make_manifest();
    manifest->parent_id = g_strdup("one");
    manifest->parent_path = g_strdup("../\"one\"");
    manifest->folding_into = g_strdup("two");
    manifest->guest = g_strdup("pid 5 since 7");
    g_autofree char *text = snap_manifest_encode(manifest, &length);
    g_autoptr(SnapManifest) back = snap_manifest_decode(text, length, &error);
    expect_ok(back != NULL, error);
    assert_string_equal(back->parent_id, "one");
    assert_string_equal(back->parent_path, "../\"one\"");
    assert_string_equal(back->folding_into, "two");
    assert_string_equal(back->guest, "pid 5 since 7");
    g_autofree char *again = snap_manifest_encode(back, &again_length);
    assert_string_equal(again, text);
}

static void decode_optional_members_may_be_null_or_not_there(void **state) {
    (void)state;
    GError *error = NULL;
    size_t length = 0;
    g_autoptr(SnapManifest) manifest = decode_forged(
        "\"parent-id\": null", "\"parent-id\": null, \"parent-path\": null, \"guest\": null", &error);
    expect_ok(manifest != NULL, error);
    assert_true(!manifest->parent_path && !manifest->guest && !manifest->folding_into);
    g_autofree char *plain = make_text(&length);
    assert_null(strstr(plain, "parent-path"));
    assert_null(strstr(plain, "\"guest\""));
}

static void decode_newer_version_is_not_supported(void **state) {
    (void)state;
    GError *error = NULL;
    assert_null(decode_forged("\"format-version\": 1", "\"format-version\": 2", &error));
    expect_error(&error, SNAP_ERROR_NOT_SUPPORTED, "version 2");
}

/* A manifest that was made to deceive, or by a program with an error: well-formed, and refused. */
static void decode_nonsense_is_corrupt(void **state) {
    (void)state;
    static const struct {
        const char *from, *to, *text;
    } cases[] = {
        {"{", "[", "not a JSON object"},
        {"\"format\": \"libsnap-image\"", "\"format\": \"tar\"", "not the manifest"},
        {"\"format-version\": 1", "\"format-version\": 0", "not the manifest"},
        {"\"format-version\": 1", "\"format-version\": \"1\"", "format-version"},
        {"\"format-version\": 1", "\"format-version\": -1", "negative"},
        {"\"id\"", "\"di\"", "\"id\" is missing"},
        {"\"driver\": \"test\"", "\"driver\": null", "\"driver\""},
        {"\"driver\": \"test\"", "\"driver\": \"te\\u0000st\"", "NUL"},
        {"\"driver\": \"test\"", "\"driver\": \"\xff\"", "not a JSON object"},
        {"\"parent-id\": null", "\"parent-id\": 5", "parent-id"},
        {"\"parent-id\": null", "\"parent-id\": \"x\",\n \"parent-path\": 5", "parent-path"},
        {"\"parent-id\": null", "\"parent-id\": null,\n \"parent-path\": \"a\\u0000b\"", "NUL"},
        {"\"parent-id\": null", "\"parent-id\": null,\n \"folding-into\": {}", "folding-into"},
        {"\"driver\": \"test\"", "\"driver\": \"test\", \"guest\": []", "guest"},
        {"\"page-size\": 4096", "\"page-size\": 4095", "page-size"},
        {"\"chunk-pages\": 64", "\"chunk-pages\": 32", "chunk-pages"},
        {"\"regions\": [", "\"regions\": [ 5, ", "region 0 is not an object"},
        {"\"regions\": [", "\"regions\": {}, \"x\": [", "\"regions\""},
        {"\"regions\": [", "\"regions\": [[[[[[[[[[", "not a JSON object"},
        {"\"name\": \"pc.ram\"", "\"name\": \"\"", "region 0: the name"},
        {"\"name\": \"pc.ram\"", "\"name\": \"dir/a b\\n\\\"é\"", "twice"},
        {"\"file\": \"pc.ram\"", "\"file\": \"../../etc/passwd\"", "file name"},
        {"\"file\": \"pc.ram\"", "\"file\": \".\"", "file name"},
        {"\"file\": \"pc.ram\"", "\"file\": \"\"", "file name"},
        {"\"file\": \"pc.ram\"", "\"file\": \"other\"", "lacks"},
        {"\"file\": \"pc.ram\"", "\"file\": \"dir%2Fa%20b%0A%22%C3%A9\"", "length"},
        {"\"memory\": \"anon\"", "\"memory\": \"drum\"", "memory"},
        {"\"host-address\": 139637976727552", "\"host-address\": 18446744073709137919", "overlap"},
        {"\"host-address\": 139637976727552", "\"host-address\": 18446744073709551600", "address space"},
        {"\"host-address\": 139637976727552", "\"host-address\": 1.5", "host-address"},
        {"\"length\": 409600", "\"length\": 409601", "multiple"},
        {"\"length\": 409600", "\"length\": 0", "multiple"},
        {"\"length\": 409600", "\"length\": 9223372036854775808", "multiple"},
        {"\"length\": 409600", "\"length\": 99999999999999999999999", "multiple"},
        {"\"length\": 409600", "\"length\": 413696", "wrong length"},
        {"\"granule\": 4096", "\"granule\": 6144", "granule"},
        {"\"granule\": 4096", "\"granule\": 0", "granule"},
        {"\"codec\": \"raw\"", "\"codec\": \"zstd\"", "codec"},
        {"\"name\": \"vcpu\"", "\"name\": \"\"", "state 0"},
        {"\"file\": \"vcpu\"", "\"file\": \"a/b\"", "state 0"},
        {"\"file\": \"vcpu\"", "\"file\": \"vcpv\"", "lacks"},
        {"\"statistics\": {", "\"statistics\": 5, \"x\": {", "statistics"},
        {"\"pause-us\": 18446744073709551615", "\"pause-us\": \"soon\"", "pause-us"},
        {"\"path\": \"ram/pc.ram.img\"", "\"path\": \"ram/../../x.img\"", "file 0"},
        {"\"path\": \"ram/pc.ram.img\"", "\"path\": \"/etc/passwd\"", "file 0"},
        {"\"path\": \"ram/pc.ram.img\"", "\"path\": \"ram/x\"", "file 0"},
        {"\"path\": \"ram/pc.ram.img\"", "\"path\": \"manifest.json\"", "file 0"},
        {"\"path\": \"ram/pc.ram.img\"", "\"path\": \"ram/pc.ram.idx\"", "twice"},
        {"\"path\": \"ram/pc.ram.img\"", "\"path\": \"ram/pc.rom.img\"", "lacks"},
        {"\"xxh3-64\": \"0123456789abcdef\"", "\"xxh3-64\": \"0123456789ABCDEF\"", "hexadecimal"},
        {"\"xxh3-64\": \"0123456789abcdef\"", "\"xxh3-64\": \"0\"", "hexadecimal"},
        {"\"xxh3-64\": \"0123456789abcdef\"", "\"xxh4-64\": \"0123456789abcdef\"", "no checksum"},
    };
    for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
        GError *error = NULL;
        if (decode_forged(cases[i].from, cases[i].to, &error))
            fail_msg("case %u was accepted: %s", i, cases[i].to);
        expect_error(&error, SNAP_ERROR_CORRUPT, cases[i].text);
    }
}

static void encode_is_for_people_and_checkable(void **state) {
    (void)state;
    size_t length = 0;
    g_autofree char *text = make_text(&length);
    assert_true(g_str_has_prefix(text, "{\n  \"format\": \"libsnap-image\",\n  \"format-version\": 1,\n"));
    assert_non_null(strstr(text, "\n      \"guest-address\": null,\n"));
    const char *line = strstr(text, "  \"checksum\": \"");
    g_autofree char *expected = g_strdup_printf("  \"checksum\": \"%016" G_GINT64_MODIFIER "x\"\n}\n",
                                                (guint64)XXH3_64bits(text, (size_t)(line - text)));
    assert_string_equal(line, expected);
}

static void format_time_before_the_epoch_or_absurd_is_still_a_time(void **state) {
    (void)state;
    g_autofree char *before = snap_manifest_format_time(-1);
    g_autofree char *absurd = snap_manifest_format_time(INT64_MAX);
    assert_string_equal(before, "1969-12-31T23:59:59.999999Z");
    assert_int_equal(strlen(absurd), 27);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(decode_of_encode_is_the_same),
        cmocka_unit_test(decode_every_cut_is_corrupt),
        cmocka_unit_test(decode_every_flipped_bit_is_corrupt),
        cmocka_unit_test(decode_unknown_members_are_skipped),
        cmocka_unit_test(decode_optional_members_are_kept),
        cmocka_unit_test(decode_optional_members_may_be_null_or_not_there),
        cmocka_unit_test(decode_newer_version_is_not_supported),
        cmocka_unit_test(decode_nonsense_is_corrupt),
        cmocka_unit_test(encode_is_for_people_and_checkable),
        cmocka_unit_test(format_time_before_the_epoch_or_absurd_is_still_a_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
