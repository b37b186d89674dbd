/*
 * qapi/stream.c and what is behind it: which bytes make which messages, in whatever pieces they come; the limits;
 * and how values are written. The answers in the tables are those of QEMU 7.2 (tests/qmp/stream-qemu.py compares
 * many more).
 */
#include "libsnap.h"
#include "qapi/stream.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

/* ---- what comes out -------------------------------------------------------------------------------------- */

typedef struct {
    GString *lines; /* values as they are written; errors as "! " and what stands behind "JSON parse error, " */
    guint n_messages;
    gboolean stops; /* after each message */
} Log;

static gboolean log_message(json_object *value, GError *error, void *opaque) {
    Log *log = (Log *)opaque;
    static const char prefix[] = "JSON parse error, ";
    if (error) {
        assert_null(value);
        assert_int_equal(error->domain, SNAP_ERROR);
        assert_string_equal(snap_error_qmp_class(error->code), "GenericError");
        gboolean usual = g_str_has_prefix(error->message, prefix);
        g_string_append_printf(log->lines, "! %s", error->message + (usual ? strlen(prefix) : 0));
    } else {
        qapi_json_write(value, log->lines);
    }
    g_string_append_c(log->lines, '\n');
    log->n_messages++;
    json_object_put(value);
    g_clear_error(&error);
    return !log->stops;
}

/* Feed @bytes in two pieces; or one by one when @cut is beyond their end. Return: (out) the lines. */
static char *feed(const char *bytes, gsize length, gsize cut, gboolean stops) {
    Log log = {.lines = g_string_new(NULL), .stops = stops};
    g_autoptr(QapiStream) stream = qapi_stream_new(log_message, &log);
    if (cut > length) {
        for (gsize i = 0; i < length; i++)
            qapi_stream_feed(stream, bytes + i, 1);
    } else {
        qapi_stream_feed(stream, bytes, cut);
        qapi_stream_feed(stream, bytes + cut, length - cut);
    }
    while (stops && !qapi_stream_continue(stream))
        ;
    return g_string_free(log.lines, FALSE);
}

static void check_pieces(const char *bytes, gsize length, const char *expected) {
    for (gsize cut = 0; cut <= length + 1; cut++) {
        g_autofree char *lines = feed(bytes, length, cut, cut % 2 != 0);
        assert_string_equal(lines, expected);
    }
}

typedef struct {
    const char *bytes;
    const char *expected;
    gsize length; /* when there are zero bytes */
} Case;

#define check_cases(cases)                                                                                        \
    for (gsize i = 0; i < G_N_ELEMENTS(cases); i++)                                                               \
    check_pieces((cases)[i].bytes, (cases)[i].length ? (cases)[i].length : strlen((cases)[i].bytes),              \
                 (cases)[i].expected)

/* ---- messages -------------------------------------------------------------------------------------------- */

static void stream_values_come_as_they_end(void **state) {
    (void)state;
    static const Case cases[] = {
        {"", "", 0},
        {" \t\r\n", "", 0},
        {"{}", "{}\n", 0},
        {"{}{}[]", "{}\n{}\n[]\n", 0},
        {"{\"execute\":\"query-name\"}\r\n", "{\"execute\": \"query-name\"}\n", 0},
        {"{'execute':'query-name'}", "{\"execute\": \"query-name\"}\n", 0},
        {" { \"a\" : [ 1 , true , { } ] } ", "{\"a\": [1, true, {}]}\n", 0},
        {"null false\ttrue\n", "null\nfalse\ntrue\n", 0},
        {"\"a\"'b'\"c'd\"'e\"f'", "\"a\"\n\"b\"\n\"c'd\"\n\"e\\\"f\"\n", 0},
        {"1[2]3{}-4 ", "1\n[2]\n3\n{}\n-4\n", 0},
        {"{\"a\":{\"a\":1},\"b\":{\"a\":1}}", "{\"a\": {\"a\": 1}, \"b\": {\"a\": 1}}\n", 0},
        {"[{\"\":1},{\"\":1}]", "[{\"\": 1}, {\"\": 1}]\n", 0},
    };
    check_cases(cases);
}

static void stream_end_of_input_ends_nothing(void **state) {
    (void)state;
    static const Case cases[] = {
        {"12", "", 0}, {"true", "", 0}, {"\"a", "", 0}, {"{\"a\":1", "", 0}, {"[[]", "", 0}};
    check_cases(cases);
}

static void stream_bad_grammar_gives_first_complaint(void **state) {
    (void)state;
    static const Case cases[] = {
        {"{\"a\":}", "! expecting value\n", 0},
        {"[,]", "! expecting value\n", 0},
        {"[1,]", "! expecting value\n", 0},
        {"{\"a\":1,}", "! expecting value\n", 0},
        {"{,}", "! expecting value\n", 0},
        {",:]}", "! expecting value\n! expecting value\n! expecting value\n! expecting value\n", 0},
        {"{]", "! expecting value\n", 0},
        {"[}", "! expecting value\n", 0},
        {"[1}", "! expected separator in list\n", 0},
        {"[1 2]", "! expected separator in list\n", 0},
        {"{\"a\":1 2}", "! expected separator in dict\n", 0},
        {"{\"a\":1]", "! expected separator in dict\n", 0},
        {"{\"a\" 1}", "! missing : in object pair\n", 0},
        {"{\"a\"}", "! missing : in object pair\n", 0},
        {"{1:2}", "! key is not a string in object\n", 0},
        {"{null:2}", "! key is not a string in object\n", 0},
        {"{[\"a\"]:2}", "! key is not a string in object\n", 0},
        {"{[x]:2}", "! invalid keyword 'x'\n", 0},
        {"{x}", "! invalid keyword 'x'\n", 0},
        {"[x,y}]", "! invalid keyword 'x'\n! expecting value\n", 0},
        {"{\"a\":[1}]}{}", "! expected separator in list\n! expecting value\n{}\n", 0},
        {"nulll truefalse ", "! invalid keyword 'nulll'\n! invalid keyword 'truefalse'\n", 0},
    };
    check_cases(cases);
}

static void stream_duplicate_key_is_found_behind_its_value(void **state) {
    (void)state;
    static const Case cases[] = {
        {"{\"a\":1,\"a\":2}", "! duplicate key\n", 0},
        {"{\"a\":1,'a':2}", "! duplicate key\n", 0},
        {"{\"a\":1,\"\\u0061\":2}", "! duplicate key\n", 0},
        {"{\"\\n\":1,\"\\u000a\":2}", "! duplicate key\n", 0},
        {"{\"a\":1,\"b\":{\"a\":1,\"a\":1},\"b\":3}", "! duplicate key\n", 0},
        {"{\"a\":1,\"a\":x}", "! invalid keyword 'x'\n", 0},
        {"{\"a\":1,\"a\":[{}]}", "! duplicate key\n", 0},
        {"{\"a\":1,\"a\":[}]", "! expecting value\n", 0},
        {"{\"a\":1,\"b\":[{\"a\":1}],\"c\":\"a\"}", "{\"a\": 1, \"b\": [{\"a\": 1}], \"c\": \"a\"}\n", 0},
        {"{\"a\":1,\"a\\u0000\":2}", "{\"a\": 1, \"a\\u0000\": 2}\n", 0},
    };
    check_cases(cases);
}

static void stream_byte_that_fits_nothing_ends_message(void **state) {
    (void)state;
    static const Case cases[] = {
        {"\x01", "! stray '\x01'\n", 0},
        {"\x01\x01", "! stray '\x01'\n! stray '\x01'\n", 0},
        {"{\"a\":\x01{}", "! stray '\x01'\n{}\n", 0},
        {"{x\xff{}", "! stray '\xff'\n{}\n", 0},
        {"\"a\nb\n", "! stray '\"a\n'\n", 0},
        {"\"a\xfe\"", "! stray '\"a\xfe'\n", 0},
        {"\"\\\x1f", "! stray '\"\\\x1f'\n", 0},
        {"\0{}\"a\0{}", "! stray ''\n{}\n! stray '\"a'\n{}\n", 8},
        {"01 1\n1\n", "! stray '01'\n1\n", 0},
        {"-a {}", "! stray '-a'\n{}\n", 0},
        {"1.e 1\n1.5ex\n1e+x\n", "! stray '1.e'\n! stray '1.5ex'\n! stray '1e+x'\n", 0},
        {"X \"a\" 1\t2, 3 ", "! stray 'X'\n! expecting value\n3\n", 0},
        {"[1,X 2]3 ", "! stray 'X'\n! expecting value\n3\n", 0},
        {"%d\n{%d:1}\n", "! stray '%'\n! stray '%'\n! expecting value\n1\n! expecting value\n", 0},
        {"/* a */ 1\n1 ", "! stray '/'\n1\n", 0},
        {"1.5.5 ", "1.5\n! stray '.'\n", 0},
        {"\xef\xbb\xbf{}", "! stray '\xef'\n{}\n", 0},
    };
    check_cases(cases);
}

static void stream_numbers_are_as_wide_as_they_need(void **state) {
    (void)state;
    static const Case cases[] = {
        {"0 -0 1 -1 ", "0\n0\n1\n-1\n", 0},
        {"9223372036854775807 -9223372036854775808 ", "9223372036854775807\n-9223372036854775808\n", 0},
        {"9223372036854775808 18446744073709551615 ", "9223372036854775808\n18446744073709551615\n", 0},
        {"18446744073709551616 ", "1.8446744073709552e+19\n", 0},
        {"-9223372036854775809 ", "-9.2233720368547758e+18\n", 0},
        {"1.5 0.1 1e3 1E+3 15e-1 1.0 ", "1.5\n0.10000000000000001\n1000\n1000\n1.5\n1\n", 0},
        {"-0.0 1e1000 -1e1000 1e-1000 ", "-0\ninf\n-inf\n0\n", 0},
        {"0e1 ", "0\n! invalid keyword 'e'\n1\n", 0},
        {"1-2 ", "1\n-2\n", 0},
    };
    check_cases(cases);
}

static gboolean check_type(json_object *value, GError *error, void *opaque) {
    assert_null(error);
    assert_int_equal(json_object_get_type(value), *(const json_type *)opaque);
    json_object_put(value);
    return FALSE;
}

static void stream_number_is_integer_or_double(void **state) {
    (void)state;
    struct {
        const char *text;
        json_type type;
    } cases[] = {
        {"1 ", json_type_int},      {"-0 ", json_type_int},     {"18446744073709551615 ", json_type_int},
        {"1.0 ", json_type_double}, {"1e3 ", json_type_double}, {"18446744073709551616 ", json_type_double},
    };
    for (gsize i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autoptr(QapiStream) stream = qapi_stream_new(check_type, &cases[i].type);
        assert_false(qapi_stream_feed(stream, cases[i].text, strlen(cases[i].text)));
    }
}

static void stream_strings_mean_what_they_say(void **state) {
    (void)state;
    static const Case cases[] = {
        {"\"\\\"\\'\\\\\\/\\b\\f\\n\\r\\t\"", "\"\\\"'\\\\/\\b\\f\\n\\r\\t\"\n", 0},
        {"'\\\"\\'\"'", "\"\\\"'\\\"\"\n", 0},
        {"\"\\u0001\\u001f\\u0041\\u007F\\u00e9\"", "\"\\u0001\\u001FA\\u007F\\u00E9\"\n", 0},
        {"\"\x7f\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\"", "\"\\u007F\\u00E9\\u20AC\\uD83D\\uDE00\"\n", 0},
        {"\"\\ud83d\\ude00\\u20ac\"", "\"\\uD83D\\uDE00\\u20AC\"\n", 0},
        {"\"a\\u0000b\xc0\x80\"", "\"a\\u0000b\\u0000\"\n", 0},
        {"\"100%d // /* */\"", "\"100%d // /* */\"\n", 0},
    };
    check_cases(cases);
}

static void stream_bad_strings_are_refused(void **state) {
    (void)state;
    static const Case cases[] = {
        {"\"\\x\"", "! invalid escape sequence in string\n", 0},
        {"\"\\U0041\"", "! invalid escape sequence in string\n", 0},
        {"\"\\\xc3\xa9\"", "! invalid escape sequence in string\n", 0},
        {"\"\\u00g0 more\"", "! \\u00g0 is not a valid Unicode character\n", 0},
        {"\"\\u12\"", "! \\u12\" is not a valid Unicode character\n", 0},
        {"'\\u'", "! \\u' is not a valid Unicode character\n", 0},
        {"\"\\ud800\"", "! \\ud800 is not a valid Unicode character\n", 0},
        {"\"\\ud800\\u0041\"", "! \\ud800 is not a valid Unicode character\n", 0},
        {"\"\\ud800\\\\\"", "! \\ud800 is not a valid Unicode character\n", 0},
        {"\"\\ud800\\udc0\"", "! \\ud800 is not a valid Unicode character\n", 0},
        {"\"\\udc00\\ud800\"", "! \\udc00 is not a valid Unicode character\n", 0},
        {"\"\\ud83f\\udffe\"", "! \\ud83f\\udffe is not a valid Unicode character\n", 0},
        {"\"\\ufffe\"", "! \\ufffe is not a valid Unicode character\n", 0},
        {"\"\\udc00\\udc00\"", "! \\udc00 is not a valid Unicode character\n", 0},
        {"\"\\ud800\\ue000\"", "! \\ud800 is not a valid Unicode character\n", 0},
        {"\"\\ufdd0\"", "! \\ufdd0 is not a valid Unicode character\n", 0},
        {"\"\\ufdef\"", "! \\ufdef is not a valid Unicode character\n", 0},
        {"\"\x80\"", "! invalid UTF-8 sequence in string\n", 0},
        {"\"\xc3\"", "! invalid UTF-8 sequence in string\n", 0},
        {"\"\xe2\x82\"", "! invalid UTF-8 sequence in string\n", 0},
        {"\"\xc0\xaf\"", "! invalid UTF-8 sequence in string\n", 0},
        {"\"\xe0\x80\x80\"", "! invalid UTF-8 sequence in string\n", 0},
        {"\"\xe0\x9f\xbf\"", "! invalid UTF-8 sequence in string\n", 0},
        {"\"\xf0\x8f\xbf\xbd\"", "! invalid UTF-8 sequence in string\n", 0},
        {"\"\xed\xa0\x80\"", "! invalid UTF-8 sequence in string\n", 0},
        {"\"\xef\xbf\xbf\"", "! invalid UTF-8 sequence in string\n", 0},
        {"\"\xf4\x90\x80\x80\"", "! invalid UTF-8 sequence in string\n", 0},
        {"\"\xfd\xbf\xbf\xbf\xbf\xbf\"", "! invalid UTF-8 sequence in string\n", 0},
        {"{\"\\x\":1}", "! invalid escape sequence in string\n", 0},
    };
    check_cases(cases);
}

static void stream_long_keyword_is_shown_in_part(void **state) {
    (void)state;
    static const gsize lengths[] = {1, 1004, 1005, 1006, 1007, 5000};
    for (gsize i = 0; i < G_N_ELEMENTS(lengths); i++) {
        g_autofree char *word = g_strnfill(lengths[i], 'z');
        g_autofree char *bytes = g_strconcat(word, "\n", NULL);
        g_autofree char *complaint = g_strdup_printf("invalid keyword '%s'", word);
        g_autofree char *expected = g_strdup_printf("! %.1023s\n", complaint);
        g_autofree char *lines = feed(bytes, strlen(bytes), 0, FALSE);
        assert_string_equal(lines, expected);
    }
}

/* Handlers compare names as C strings: none may be cut short by what a client sends. */
static gboolean check_zero(json_object *value, GError *error, void *opaque) {
    const char *text = json_object_get_string(value);
    assert_null(error);
    assert_int_equal(json_object_get_string_len(value), 12);
    assert_memory_equal(text, "query-name\xC0\x80", 13);
    json_object_put(value);
    *(gboolean *)opaque = TRUE;
    return TRUE;
}

static void stream_zero_character_is_no_end_of_string(void **state) {
    (void)state;
    gboolean called = FALSE;
    g_autoptr(QapiStream) stream = qapi_stream_new(check_zero, &called);
    qapi_stream_feed(stream, "\"query-name\\u0000\"", 18);
    assert_true(called);
}

/* ---- stopping -------------------------------------------------------------------------------------------- */

static void stream_stopped_gives_one_message_a_time(void **state) {
    (void)state;
    Log log = {.lines = g_string_new(NULL), .stops = TRUE};
    g_autoptr(QapiStream) stream = qapi_stream_new(log_message, &log);
    assert_true(qapi_stream_continue(stream));
    assert_false(qapi_stream_feed(stream, "1 2 [", 5));
    assert_int_equal(log.n_messages, 1);
    assert_false(qapi_stream_feed(stream, "3]4", 3));
    assert_int_equal(log.n_messages, 1);
    assert_false(qapi_stream_continue(stream));
    assert_int_equal(log.n_messages, 2);
    assert_false(qapi_stream_feed(stream, "\n", 1));
    assert_false(qapi_stream_continue(stream));
    assert_string_equal(log.lines->str, "1\n2\n[3]\n");
    assert_false(qapi_stream_continue(stream));
    assert_true(qapi_stream_continue(stream));
    assert_string_equal(log.lines->str, "1\n2\n[3]\n4\n");
    assert_false(qapi_stream_feed(stream, "{}", 2)); /* the last byte: nothing waits, and still it is stopped */
    assert_false(qapi_stream_feed(stream, "{}", 2));
    assert_int_equal(log.n_messages, 5);
    g_string_free(log.lines, TRUE);
}

/* While much waits, each step is as quick as ever, and so is adding to it. */
static void stream_much_that_waits_is_not_moved_each_time(void **state) {
    (void)state;
    enum { N = 20000, WAITING_BYTES = 32 << 20 };
    Log log = {.lines = g_string_new(NULL), .stops = TRUE};
    g_autoptr(QapiStream) stream = qapi_stream_new(log_message, &log);
    g_autofree char *many = g_strnfill(WAITING_BYTES, '[');
    for (gsize i = 1; i < WAITING_BYTES; i += 2)
        many[i] = ']';
    qapi_stream_feed(stream, many, WAITING_BYTES);
    gint64 begin = g_get_monotonic_time();
    for (guint i = 1; i < N; i++) {
        assert_false(qapi_stream_continue(stream));
        assert_false(qapi_stream_feed(stream, "{}", 2));
    }
    assert_int_equal(log.n_messages, N);
    assert_true(g_get_monotonic_time() - begin < 10 * G_USEC_PER_SEC);
    g_string_free(log.lines, TRUE);
}

/* What waits comes in its order, though it is moved together in between. */
static void stream_waiting_keeps_its_order(void **state) {
    (void)state;
    enum { N = 3000 };
    Log log = {.lines = g_string_new(NULL), .stops = TRUE};
    g_autoptr(QapiStream) stream = qapi_stream_new(log_message, &log);
    g_autoptr(GString) expected = g_string_new(NULL);
    for (guint i = 0; i < N; i++) {
        g_autofree char *number = g_strdup_printf("%u\n", i);
        g_string_append(expected, number);
        qapi_stream_feed(stream, number, strlen(number));
        if (i % 3 != 0)
            qapi_stream_continue(stream);
    }
    while (!qapi_stream_continue(stream))
        ;
    assert_string_equal(log.lines->str, expected->str);
    g_string_free(log.lines, TRUE);
}

/* ---- limits ---------------------------------------------------------------------------------------------- */

static char *repeat(const char *text, gsize times) {
    GString *all = g_string_new(NULL);
    for (gsize i = 0; i < times; i++)
        g_string_append(all, text);
    return g_string_free(all, FALSE);
}

static void stream_depth_beyond_limit_is_refused(void **state) {
    (void)state;
    static const struct {
        const char *open, *inner, *close;
        gsize times;
        gboolean ok;
    } cases[] = {
        {"[", "", "]", 31, TRUE},
        {"[", "", "]", 32, TRUE},
        {"[", "", "]", 33, TRUE},
        {"[", "", "]", 1024, TRUE},
        {"[", "", "]", 1025, FALSE},
        {"{\"a\": ", "1", "}", 31, TRUE},
        {"{\"a\": ", "1", "}", 32, TRUE},
        {"{\"a\": ", "1", "}", 1024, TRUE},
        {"{\"a\": ", "1", "}", 1025, FALSE},
        {"[{\"a\": ", "1", "}]", 512, TRUE},
        {"[{\"a\": ", "1", "}]", 513, FALSE},
    };
    for (gsize i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *open = repeat(cases[i].open, cases[i].times);
        g_autofree char *close = repeat(cases[i].close, cases[i].times);
        g_autofree char *bytes = g_strconcat(open, cases[i].inner, close, NULL);
        g_autofree char *expected = g_strconcat(bytes, "\n", NULL);
        g_autofree char *lines = feed(bytes, strlen(bytes), 7, FALSE);
        if (cases[i].ok)
            assert_string_equal(lines, expected);
        else
            assert_true(g_str_has_prefix(lines, "! JSON nesting depth limit exceeded\n"));
    }
}

/* A bracket, @n_tokens commas, and what comes then. */
static char *feed_commas(gsize n_tokens, const char *end) {
    g_autofree char *commas = g_strnfill(n_tokens, ',');
    g_autofree char *bytes = g_strconcat("[", commas, end, NULL);
    return feed(bytes, strlen(bytes), 12345, FALSE);
}

static void stream_tokens_beyond_limit_are_refused(void **state) {
    (void)state;
    g_autofree char *most = feed_commas(QAPI_STREAM_TOKENS_MAX - 1, "]{}");
    assert_string_equal(most, "! expecting value\n{}\n");
    g_autofree char *more = feed_commas(QAPI_STREAM_TOKENS_MAX, "{}");
    assert_string_equal(more, "! JSON token count limit exceeded\n{}\n");
}

/* @before, a string of @length_bytes with its marks, @after. */
static char *feed_string(const char *before, gsize length_bytes, const char *after) {
    Log log = {.lines = g_string_new(NULL)};
    g_autoptr(QapiStream) stream = qapi_stream_new(log_message, &log);
    g_autofree char *text = g_strnfill(length_bytes, 'a');
    text[0] = text[length_bytes - 1] = '"';
    qapi_stream_feed(stream, before, strlen(before));
    qapi_stream_feed(stream, text, length_bytes - 1);
    qapi_stream_feed(stream, text + length_bytes - 1, 1);
    qapi_stream_feed(stream, after, strlen(after));
    return g_string_free(log.lines, FALSE);
}

static void stream_bytes_up_to_limit_are_taken(void **state) {
    (void)state;
    const gsize max = QAPI_STREAM_BYTES_MAX;
    g_autofree char *in_array = feed_string("[", max - 1, "]{}");
    assert_int_equal(strlen(in_array), max + 5);
    assert_true(g_str_has_suffix(in_array, "aa\"]\n{}\n"));
    g_free(g_steal_pointer(&in_array));
    g_autofree char *alone = feed_string("", max + 1, "{}");
    assert_int_equal(strlen(alone), max + 5);
    assert_true(g_str_has_prefix(alone, "\"aa"));
}

static void stream_bytes_beyond_limit_are_refused(void **state) {
    (void)state;
    const gsize max = QAPI_STREAM_BYTES_MAX;
    g_autofree char *in_array = feed_string("[", max, "{}");
    assert_string_equal(in_array, "! JSON token size limit exceeded\n{}\n");
    g_autofree char *together = feed_string("[", max - 10, ",1,2,3,4,5]{}");
    assert_string_equal(together, "! JSON token size limit exceeded\n! expecting value\n{}\n");
    /* What is cut off is taken for tokens: here a word, and a string that begins with the closing mark. */
    g_autofree char *cut = feed_string("[", max + 5, ",\"{}");
    assert_string_equal(cut, "! JSON token size limit exceeded\n! invalid keyword 'aaa'\n\",\"\n{}\n");
    g_autofree char *alone = feed_string("", max + 5, ",\"{}");
    assert_string_equal(alone, "! expecting value\n! invalid keyword 'aaa'\n\",\"\n{}\n");
}

/* A message that is over is not asked for its size. */
static void stream_last_token_is_not_counted(void **state) {
    (void)state;
    const gsize max = QAPI_STREAM_BYTES_MAX;
    g_autofree char *lines = feed_string("[", max - 10, ",1,2,3,44]{}");
    assert_true(g_str_has_suffix(lines, ", 1, 2, 3, 44]\n{}\n"));
}

static void stream_limits_are_those_of_each_message(void **state) {
    (void)state;
    enum { N = 70 };
    Log log = {.lines = g_string_new(NULL)};
    g_autoptr(QapiStream) stream = qapi_stream_new(log_message, &log);
    g_autofree char *text = g_strnfill(1 << 20, ' ');
    text[0] = '[';
    memset(text + 1, '1', (1 << 20) - 2);
    text[(1 << 20) - 1] = ']';
    for (int i = 0; i < N; i++)
        assert_true(qapi_stream_feed(stream, text, 1 << 20));
    assert_int_equal(log.n_messages, N);
    assert_null(strchr(log.lines->str, '!'));
    g_string_free(log.lines, TRUE);
}

/* ---- any bytes ------------------------------------------------------------------------------------------- */

static void stream_random_bytes_give_the_same_in_any_pieces(void **state) {
    (void)state;
    static const char *const pieces[] = {
        "{", "}", "[", "]", ",",    ":", "\"", "'",  "\\",     "\\u",  "12", "d800", "\\udc0", "-",    "0",
        "1", ".", "e", "+", "true", "x", " ",  "\n", "\"a\":", "\xff", "%",  "\xc3", "\xa9",   "\x01", "1.5e3"};
    g_autoptr(GRand) random = g_rand_new_with_seed(4);
    for (int i = 0; i < 3000; i++) {
        g_autoptr(GString) bytes = g_string_new(NULL);
        for (int n = g_rand_int_range(random, 1, 40); n > 0; n--) {
            if (g_rand_int_range(random, 0, 20) == 0)
                g_string_append_c(bytes, (char)g_rand_int_range(random, -128, 128));
            else
                g_string_append(bytes, pieces[g_rand_int_range(random, 0, G_N_ELEMENTS(pieces))]);
        }
        g_autofree char *whole = feed(bytes->str, bytes->len, 0, FALSE);
        g_autofree char *bytewise = feed(bytes->str, bytes->len, bytes->len + 1, i % 2 != 0);
        gsize cut = (gsize)g_rand_int_range(random, 0, (gint32)bytes->len + 1);
        g_autofree char *split = feed(bytes->str, bytes->len, cut, i % 3 != 0);
        assert_string_equal(whole, bytewise);
        assert_string_equal(whole, split);
    }
}

/* ---- writing --------------------------------------------------------------------------------------------- */

static void check_written(json_object *value, const char *expected) {
    g_autoptr(GString) out = g_string_new("> ");
    qapi_json_write(value, out);
    assert_true(g_str_has_prefix(out->str, "> "));
    assert_string_equal(out->str + 2, expected);
    json_object_put(value);
}

static void json_write_values_are_on_one_line(void **state) {
    (void)state;
    json_object *list = json_object_new_array();
    json_object_array_add(list, json_object_new_object());
    json_object_array_add(list, NULL);
    json_object *object = json_object_new_object();
    json_object_object_add(object, "list", list);
    json_object_object_add(object, "a\n", json_object_new_boolean(TRUE));
    check_written(object, "{\"list\": [{}, null], \"a\\n\": true}");
    check_written(NULL, "null");
}

static void json_write_numbers_are_exact(void **state) {
    (void)state;
    check_written(json_object_new_int64(INT64_MIN), "-9223372036854775808");
    check_written(json_object_new_int64(INT64_MAX), "9223372036854775807");
    check_written(json_object_new_uint64(UINT64_C(1) << 63), "9223372036854775808");
    check_written(json_object_new_uint64(UINT64_MAX), "18446744073709551615");
    check_written(json_object_new_double(0.1), "0.10000000000000001");
    check_written(json_object_new_double_s(2.5, "2.500"), "2.5");
}

static void json_write_bytes_that_are_no_text_are_replaced(void **state) {
    (void)state;
    static const struct {
        const char *bytes;
        const char *expected;
    } cases[] = {
        {"a\xff\xfe"
         "b",
         "\"a\\uFFFD\\uFFFDb\""},
        {"\x80\xbf", "\"\\uFFFD\\uFFFD\""},
        {"\xc3", "\"\\uFFFD\""},
        {"\xe2\x82"
         "a",
         "\"\\uFFFDa\""},
        {"\xc0\xaf", "\"\\uFFFD\""},
        {"\xed\xa0\x80", "\"\\uFFFD\""},
        {"\xef\xbf\xbe", "\"\\uFFFD\""},
        {"\xfd\xbf\xbf\xbf\xbf\xbf", "\"\\uFFFD\""},
        {"\xf4\x90\x80\x80", "\"\\uFFFD\""},
        {"\xc3\xc3\xa9", "\"\\uFFFD\\u00E9\""},
        {"\xc0\x80", "\"\\u0000\""},
    };
    for (gsize i = 0; i < G_N_ELEMENTS(cases); i++)
        check_written(json_object_new_string(cases[i].bytes), cases[i].expected);
    check_written(json_object_new_string_len("a\0b", 3), "\"a\\u0000b\"");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stream_values_come_as_they_end),
        cmocka_unit_test(stream_end_of_input_ends_nothing),
        cmocka_unit_test(stream_bad_grammar_gives_first_complaint),
        cmocka_unit_test(stream_duplicate_key_is_found_behind_its_value),
        cmocka_unit_test(stream_byte_that_fits_nothing_ends_message),
        cmocka_unit_test(stream_numbers_are_as_wide_as_they_need),
        cmocka_unit_test(stream_number_is_integer_or_double),
        cmocka_unit_test(stream_strings_mean_what_they_say),
        cmocka_unit_test(stream_bad_strings_are_refused),
        cmocka_unit_test(stream_long_keyword_is_shown_in_part),
        cmocka_unit_test(stream_zero_character_is_no_end_of_string),
        cmocka_unit_test(stream_stopped_gives_one_message_a_time),
        cmocka_unit_test(stream_waiting_keeps_its_order),
        cmocka_unit_test(stream_much_that_waits_is_not_moved_each_time),
        cmocka_unit_test(stream_depth_beyond_limit_is_refused),
        cmocka_unit_test(stream_tokens_beyond_limit_are_refused),
        cmocka_unit_test(stream_bytes_up_to_limit_are_taken),
        cmocka_unit_test(stream_bytes_beyond_limit_are_refused),
        cmocka_unit_test(stream_last_token_is_not_counted),
        cmocka_unit_test(stream_limits_are_those_of_each_message),
        cmocka_unit_test(stream_random_bytes_give_the_same_in_any_pieces),
        cmocka_unit_test(json_write_values_are_on_one_line),
        cmocka_unit_test(json_write_numbers_are_exact),
        cmocka_unit_test(json_write_bytes_that_are_no_text_are_replaced),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
