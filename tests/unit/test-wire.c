/*
 * Records of the migration protocol as a whole: what was sealed is opened again, what was changed on the way is
 * refused, and docs/protocol.md says what the encoders do. Bodies field by field: test-wire-body.c.
 */
#include "wire-fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>

static const char *open_and_check(const uint8_t *head, const uint8_t *body, SnapWireSender sender, uint64_t number,
                                  uint32_t body_bytes) {
    SnapWireHead opened;
    const char *wrong = snap_wire_open(head, sender, number, &opened);
    if (!wrong && opened.body_bytes != body_bytes)
        return "another length, which would make the reader wait for other bytes"; /* and find them wrong */
    return wrong ? wrong : snap_wire_check(head, body, body_bytes);
}

static void record_of_each_type_is_what_it_was(void **state) {
    (void)state;
    for (SnapWireType type = SNAP_WIRE_NONE + 1; type < SNAP_WIRE_MAX; type++) {
        uint8_t head[SNAP_WIRE_HEAD_BYTES], body[512], again[512];
        uint32_t again_bytes = 0;
        SnapWireHead opened;
        const SnapWireHead sealed = fix_seal(type, 0x123456789, head, body);
        assert_null(snap_wire_open(head, fix_records[type].sender, 0x123456789, &opened));
        assert_int_equal(opened.type, type);
        assert_int_equal(opened.flags, sealed.flags);
        assert_int_equal(opened.body_bytes, sealed.body_bytes);
        assert_int_equal(opened.bulk_bytes, sealed.bulk_bytes);
        assert_true(opened.number == 0x123456789);
        assert_null(snap_wire_check(head, body, opened.body_bytes));
        assert_null(fix_records[type].recode(&opened, body, again, &again_bytes));
        assert_int_equal(again_bytes, sealed.body_bytes);
        assert_memory_equal(again, body, again_bytes);
    }
}

static void record_with_any_bit_flipped_is_refused(void **state) {
    (void)state;
    for (SnapWireType type = SNAP_WIRE_NONE + 1; type < SNAP_WIRE_MAX; type++) {
        uint8_t bytes[SNAP_WIRE_HEAD_BYTES + 512];
        uint8_t *body = bytes + SNAP_WIRE_HEAD_BYTES;
        const SnapWireHead head = fix_seal(type, 7, bytes, body);
        for (uint32_t bit = 0; bit < 8 * (SNAP_WIRE_HEAD_BYTES + head.body_bytes); bit++) {
            bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
            if (!open_and_check(bytes, body, fix_records[type].sender, 7, head.body_bytes))
                fail_msg("%s: bit %u changed, and nobody saw it", snap_wire_name(type), bit);
            bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        }
        assert_null(open_and_check(bytes, body, fix_records[type].sender, 7, head.body_bytes));
    }
}

/* Bodies too long for the buffer on the stack are hashed in two steps. */
static void checksum_of_a_long_body_is_that_of_one_piece(void **state) {
    (void)state;
    g_autofree uint8_t *whole = g_malloc0(SNAP_WIRE_HEAD_BYTES + SNAP_WIRE_MAX_BODY_BYTES);
    for (uint32_t bytes = 200; bytes <= SNAP_WIRE_MAX_BODY_BYTES; bytes += bytes < 300 ? 1 : 99991) {
        uint8_t *body = whole + 24, sealed[SNAP_WIRE_HEAD_BYTES];
        for (uint32_t i = 0; i < bytes; i++)
            body[i] = (uint8_t)(i * 7);
        snap_wire_seal(&(SnapWireHead){.type = SNAP_WIRE_STATE, .body_bytes = bytes}, body, sealed);
        memcpy(whole, sealed, 24);
        assert_true(get64(sealed + 24) == XXH3_64bits(whole, 24 + bytes));
        assert_null(snap_wire_check(sealed, body, bytes));
    }
}

static void record_of_the_other_side_is_refused(void **state) {
    (void)state;
    for (SnapWireType type = SNAP_WIRE_NONE + 1; type < SNAP_WIRE_MAX; type++) {
        uint8_t head[SNAP_WIRE_HEAD_BYTES], body[512];
        SnapWireHead opened;
        bool both = type == SNAP_WIRE_FAILED || type == SNAP_WIRE_MISSING || type == SNAP_WIRE_ALIVE;
        fix_seal(type, 0, head, body);
        const char *wrong = snap_wire_open(head, 1 - fix_records[type].sender, 0, &opened);
        if (both)
            assert_null(wrong);
        else
            assert_string_equal(wrong, "this side does not send such");
    }
}

static void head_beyond_its_limits_is_refused(void **state) {
    (void)state;
    const struct {
        SnapWireType type;
        uint32_t at, size;
        uint64_t value;
        const char *wrong;
    } cases[] = {
        {SNAP_WIRE_GO, 0, 1, 'S', "it does not begin as a record does"},
        {SNAP_WIRE_GO, 3, 1, 'q', "it does not begin as a record does"},
        {SNAP_WIRE_GO, 4, 2, 0, "unknown type"},
        {SNAP_WIRE_GO, 4, 2, SNAP_WIRE_MAX, "unknown type"},
        {SNAP_WIRE_GO, 4, 2, 0xffff, "unknown type"},
        {SNAP_WIRE_GO, 6, 2, 1, "unknown flags"},
        {SNAP_WIRE_HELLO, 6, 2, 7, NULL},
        {SNAP_WIRE_HELLO, 6, 2, 8, "unknown flags"},
        {SNAP_WIRE_END, 6, 2, 2, "unknown flags"},
        {SNAP_WIRE_CHUNK, 6, 2, 0x8000, "unknown flags"},
        {SNAP_WIRE_HELLO, 8, 4, 512, NULL},
        {SNAP_WIRE_HELLO, 8, 4, 513, "the body is longer than it may be"},
        {SNAP_WIRE_REGION, 8, 4, 1152, NULL},
        {SNAP_WIRE_REGION, 8, 4, 1153, "the body is longer than it may be"},
        {SNAP_WIRE_FAILED, 8, 4, 1025, "the body is longer than it may be"},
        {SNAP_WIRE_MISSING, 8, 4, 65561, "the body is longer than it may be"},
        {SNAP_WIRE_STATE, 8, 4, SNAP_WIRE_MAX_BODY_BYTES, NULL},
        {SNAP_WIRE_STATE, 8, 4, SNAP_WIRE_MAX_BODY_BYTES + 1, "the body is longer than it may be"},
        {SNAP_WIRE_GO, 8, 4, UINT32_MAX, "the body is longer than it may be"},
        {SNAP_WIRE_CHUNK, 12, 4, SNAP_WIRE_MAX_BULK_BYTES, NULL},
        {SNAP_WIRE_CHUNK, 12, 4, SNAP_WIRE_MAX_BULK_BYTES + 1, "the bulk is longer than it may be"},
        {SNAP_WIRE_CHUNK, 12, 4, UINT32_MAX, "the bulk is longer than it may be"},
        {SNAP_WIRE_STATE, 12, 4, 1, "the bulk is longer than it may be"},
        {SNAP_WIRE_GO, 16, 8, 4, "its number is out of order"},
        {SNAP_WIRE_GO, 16, 8, 6, "its number is out of order"},
        {SNAP_WIRE_GO, 16, 8, UINT64_C(1) << 32 | 5, "its number is out of order"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        uint8_t head[SNAP_WIRE_HEAD_BYTES], body[512], value[8];
        SnapWireHead opened = {.number = 99};
        fix_seal(cases[i].type, 5, head, body);
        put64(value, cases[i].value);
        memcpy(head + cases[i].at, value, cases[i].size);
        const char *wrong = snap_wire_open(head, fix_records[cases[i].type].sender, 5, &opened);
        if (g_strcmp0(wrong, cases[i].wrong) != 0)
            fail_msg("case %zu: %s instead of %s", i, wrong, cases[i].wrong);
        assert_int_equal(opened.number, wrong ? 99 : 5); /* untouched where it is refused */
    }
}

static void name_of_what_is_no_type_is_null(void **state) {
    (void)state;
    assert_string_equal(snap_wire_name(SNAP_WIRE_HELLO), "HELLO");
    assert_string_equal(snap_wire_name(SNAP_WIRE_LAYOUT), "LAYOUT");
    assert_null(snap_wire_name(SNAP_WIRE_NONE));
    assert_null(snap_wire_name(SNAP_WIRE_MAX));
    assert_null(snap_wire_name((SnapWireType)77777));
}

/* A record written down by hand from docs/protocol.md, but for its checksum. */
static void bytes_of_a_request_are_those_of_the_document(void **state) {
    (void)state;
    const uint8_t wanted_head[] = {'s', 'n', 'p', 'r', 13, 0, 0, 0, 24, 0, 0, 0,
                                   0,   0,   0,   0,   2,  1, 0, 0, 0,  0, 0, 0};
    const uint8_t wanted_body[] = {1, 0, 0, 0, 0, 2, 0, 0, 0x67, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
    uint8_t head[SNAP_WIRE_HEAD_BYTES], body[512];
    const SnapWireHead sealed = fix_seal(SNAP_WIRE_REQUEST, 0x102, head, body);
    assert_int_equal(sealed.body_bytes, sizeof wanted_body);
    assert_memory_equal(head, wanted_head, sizeof wanted_head);
    assert_memory_equal(body, wanted_body, sizeof wanted_body);
}

/* ---- the document ---------------------------------------------------------------------------------------- */

static char *read_source(const char *name) {
    g_autofree char *path = g_strconcat(SOURCE_ROOT "/", name, NULL);
    char *text = NULL;
    if (!g_file_get_contents(path, &text, NULL, NULL)) {
        fprintf(stderr, "SKIP: %s is not there\n", name);
        exit(77);
    }
    return text;
}

static void table_of_the_document_is_that_of_the_code(void **state) {
    (void)state;
    g_autofree char *document = read_source("docs/protocol.md");
    const char *const senders[] = {['S'] = "source", ['D'] = "destination", ['B'] = "both"};
    const struct {
        const char *name, *sender;
        unsigned number, body_bytes;
    } types[] = {
#define X(name, number, sender, body, flags) {#name, #sender, number, body},
        SNAP_WIRE_TABLE(X)
#undef X
    };
    for (size_t i = 0; i < G_N_ELEMENTS(types); i++) {
        g_autofree char *most = types[i].body_bytes == SNAP_WIRE_MAX_BODY_BYTES
                                    ? g_strdup("1 MiB + 280")
                                    : g_strdup_printf("%u", types[i].body_bytes);
        g_autofree char *row = g_strdup_printf("| %s | %u | %s | %s", types[i].name, types[i].number,
                                               senders[(unsigned char)types[i].sender[0]], most);
        if (!strstr(document, row))
            fail_msg("docs/protocol.md has no row \"%s\"", row);
    }
}

/* Every row "[n] what" of a comment above an encoder is in the document, in the same words, and the other way
 * round. @prefix: what a line of the other file has in front of it. */
static void expect_rows(const char *rows, const char *prefix, const char *other, const char *other_prefix) {
    g_auto(GStrv) lines = g_strsplit(rows, "\n", -1);
    for (char **line = lines; *line; line++) {
        if (!g_str_has_prefix(*line, prefix))
            continue;
        g_autofree char *wanted = g_strconcat("\n", other_prefix, *line + strlen(prefix), "\n", NULL);
        if (!strstr(other, wanted))
            fail_msg("the other file has no row \"%s\"", *line);
    }
}

static void rows_of_the_document_are_those_of_the_code(void **state) {
    (void)state;
    g_autofree char *document = read_source("docs/protocol.md");
    g_autofree char *head = read_source("libsnap/wire.c");
    g_autofree char *hello = read_source("libsnap/wire-hello.c");
    g_autofree char *bodies = read_source("libsnap/wire-body.c");
    g_autofree char *code = g_strconcat(head, hello, bodies, NULL);
    assert_non_null(strstr(document, "\n    [16] id of the migration, random"));
    expect_rows(document, "    [", code, " *     [");
    expect_rows(code, " *     [", document, "    [");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(record_of_each_type_is_what_it_was),
        cmocka_unit_test(record_with_any_bit_flipped_is_refused),
        cmocka_unit_test(checksum_of_a_long_body_is_that_of_one_piece),
        cmocka_unit_test(record_of_the_other_side_is_refused),
        cmocka_unit_test(head_beyond_its_limits_is_refused),
        cmocka_unit_test(name_of_what_is_no_type_is_null),
        cmocka_unit_test(bytes_of_a_request_are_those_of_the_document),
        cmocka_unit_test(table_of_the_document_is_that_of_the_code),
        cmocka_unit_test(rows_of_the_document_are_those_of_the_code),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
