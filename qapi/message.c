/*
 * The grammar of a message, and its way to json-c: see message.h.
 *
 * A stack holds the arrays and objects that are open, each with what it expects next. While the tokens fit, they
 * are written to a text that means the same to json-c as the message does to QEMU: strings by json-string.c, -0
 * without its sign, integers of more than 64 bits as floats. json-c parses that text when the message is complete.
 *
 * QEMU parses with one function per array and object, from left to right, and reports what it met first. Hence: a
 * name is read as any value is, and only then found to be no string; a name that was there before is found when
 * its value has been read.
 *
 * Failure modes: any tokens may come. Of a wrong message only the complaint is kept, until it is over.
 *
 * Invariants: the text is a beginning of JSON as long as nothing is wrong (but for names that are no strings:
 * these end in a complaint). The stack is as deep as the brackets that are open, which the caller limits.
 */
#include "message.h"

#include "json-string.h"
#include "libsnap.h"
#include "stream.h"

#include <errno.h>

#define COMPLAINT_BYTES 1023 /* QEMU's, behind "JSON parse error, " */
#define KEPT_BYTES 65536     /* a buffer that has grown beyond is not kept for the next message */
#define KEPT_DEPTH 32        /* of json-c's parser, which is as large as it may be deep */

/* What comes next in an array or object. */
typedef enum {
    EXPECT_FIRST, /* element or name, or the end */
    EXPECT_NEXT,  /* element or name */
    EXPECT_COLON,
    EXPECT_MEMBER, /* the value behind a name */
    EXPECT_SEPARATOR,
} Expect;

typedef struct {
    gboolean is_object;
    Expect expect;
    gboolean had_name; /* the name that was read last was there before */
    json_object
        *names; /* (nullable) a set, for json-c's hash is not easily made to collide; the values are NULL */
} Container;

struct QapiMessage {
    GArray *open; /* of Container, the innermost last */
    guint deepest;
    GString *text;
    char *wrong; /* (nullable) the first complaint */
    json_tokener *tokener;
};

/* ---- life ------------------------------------------------------------------------------------------------ */

static void clear_container(gpointer data) {
    Container *container = (Container *)data;
    json_object_put(container->names);
}

QapiMessage *qapi_message_new(void) {
    QapiMessage *message = g_new0(QapiMessage, 1);
    message->open = g_array_new(FALSE, FALSE, sizeof(Container));
    g_array_set_clear_func(message->open, clear_container);
    message->text = g_string_new(NULL);
    message->tokener = json_tokener_new_ex(KEPT_DEPTH);
    g_assert(message->tokener);
    return message;
}

void qapi_message_free(QapiMessage *message) {
    if (!message)
        return;
    g_array_unref(message->open);
    g_string_free(message->text, TRUE);
    g_free(message->wrong);
    json_tokener_free(message->tokener);
    g_free(message);
}

void qapi_message_clear(QapiMessage *message) {
    g_array_set_size(message->open, 0);
    message->deepest = 0;
    g_clear_pointer(&message->wrong, g_free);
    if (message->text->allocated_len > KEPT_BYTES) {
        g_string_free(message->text, TRUE);
        message->text = g_string_new(NULL);
    }
    g_string_truncate(message->text, 0);
}

/* ---- the grammar ----------------------------------------------------------------------------------------- */

static Container *innermost(QapiMessage *message) {
    guint depth = message->open->len;
    return depth ? &g_array_index(message->open, Container, depth - 1) : NULL;
}

static gboolean is_name_next(const Container *container) {
    return container && container->is_object &&
           (container->expect == EXPECT_FIRST || container->expect == EXPECT_NEXT);
}

/* @complaint: (take). */
static void complain(QapiMessage *message, char *complaint) {
    message->wrong = complaint;
}

/* A value has been read: of what is open, or the message itself. */
static void end_value(QapiMessage *message, gboolean is_string) {
    Container *container = innermost(message);
    if (!container)
        return;
    if (is_name_next(container) && !is_string) {
        complain(message, g_strdup("key is not a string in object"));
    } else if (is_name_next(container)) {
        container->expect = EXPECT_COLON;
    } else {
        if (container->had_name)
            complain(message, g_strdup("duplicate key"));
        container->expect = EXPECT_SEPARATOR;
    }
}

static void open_container(QapiMessage *message, gboolean is_object) {
    const Container container = {.is_object = is_object, .expect = EXPECT_FIRST};
    g_array_append_val(message->open, container);
    message->deepest = MAX(message->deepest, message->open->len);
    g_string_append_c(message->text, is_object ? '{' : '[');
}

static void close_container(QapiMessage *message) {
    g_string_append_c(message->text, innermost(message)->is_object ? '}' : ']');
    g_array_set_size(message->open, message->open->len - 1);
    end_value(message, FALSE);
}

static void add_name(Container *container, const char *name) {
    if (!container->names)
        container->names = json_object_new_object();
    container->had_name = json_object_object_get_ex(container->names, name, NULL);
    if (!container->had_name)
        json_object_object_add_ex(container->names, name, NULL, JSON_C_OBJECT_ADD_KEY_IS_NEW);
}

static void add_string(QapiMessage *message, const char *text, gsize length_bytes) {
    Container *container = innermost(message);
    gsize begin = message->text->len;
    char *wrong = qapi_string_read(text, length_bytes, message->text);
    if (wrong) {
        complain(message, wrong);
        return;
    }
    if (is_name_next(container))
        add_name(container, message->text->str + begin);
    end_value(message, TRUE);
}

static void add_integer(QapiMessage *message, const char *text, gsize length_bytes) {
    errno = 0;
    if (*text == '-')
        g_ascii_strtoll(text, NULL, 10);
    else
        g_ascii_strtoull(text, NULL, 10);
    gboolean fits = errno == 0;
    g_string_append_len(message->text, text, (gssize)length_bytes);
    if (!fits)
        g_string_append(message->text, "e0");
    end_value(message, FALSE);
}

static void add_word(QapiMessage *message, const char *text) {
    if (g_str_equal(text, "true") || g_str_equal(text, "false") || g_str_equal(text, "null")) {
        g_string_append(message->text, text);
        end_value(message, FALSE);
        return;
    }
    char *complaint = g_strdup_printf("invalid keyword '%.*s'", COMPLAINT_BYTES, text);
    if (strlen(complaint) > COMPLAINT_BYTES)
        complaint[COMPLAINT_BYTES] = 0;
    complain(message, complaint);
}

static void add_value(QapiMessage *message, QapiTokenKind kind, const char *text, gsize length_bytes) {
    switch (kind) {
    case QAPI_TOKEN_OPEN_OBJECT:
    case QAPI_TOKEN_OPEN_ARRAY:
        open_container(message, kind == QAPI_TOKEN_OPEN_OBJECT);
        break;
    case QAPI_TOKEN_STRING:
        add_string(message, text, length_bytes);
        break;
    case QAPI_TOKEN_INTEGER:
        add_integer(message, text, length_bytes);
        break;
    case QAPI_TOKEN_FLOAT:
        g_string_append_len(message->text, text, (gssize)length_bytes);
        end_value(message, FALSE);
        break;
    case QAPI_TOKEN_WORD:
        add_word(message, text);
        break;
    default:
        complain(message, g_strdup("expecting value"));
    }
}

static void add_colon(QapiMessage *message, Container *container, QapiTokenKind kind) {
    if (kind == QAPI_TOKEN_COLON) {
        g_string_append_c(message->text, ':');
        container->expect = EXPECT_MEMBER;
    } else {
        complain(message, g_strdup("missing : in object pair"));
    }
}

static void add_comma(QapiMessage *message, Container *container, QapiTokenKind kind) {
    if (kind == QAPI_TOKEN_COMMA) {
        g_string_append_c(message->text, ',');
        container->expect = EXPECT_NEXT;
    } else {
        complain(message, g_strdup_printf("expected separator in %s", container->is_object ? "dict" : "list"));
    }
}

static gboolean may_close(const Container *container, QapiTokenKind kind) {
    gboolean is_place = container->expect == EXPECT_FIRST || container->expect == EXPECT_SEPARATOR;
    return is_place && kind == (container->is_object ? QAPI_TOKEN_CLOSE_OBJECT : QAPI_TOKEN_CLOSE_ARRAY);
}

void qapi_message_add(QapiMessage *message, QapiTokenKind kind, const char *text, gsize length_bytes) {
    if (message->wrong)
        return;
    Container *container = innermost(message);
    if (container && may_close(container, kind))
        close_container(message);
    else if (container && container->expect == EXPECT_COLON)
        add_colon(message, container, kind);
    else if (container && container->expect == EXPECT_SEPARATOR)
        add_comma(message, container, kind);
    else
        add_value(message, kind, text, length_bytes);
}

/* ---- json-c ---------------------------------------------------------------------------------------------- */

static gboolean parse_with(json_tokener *tokener, const GString *text, json_object **ret_value, GError **error) {
    /* With the zero byte: that is where a number ends. */
    json_object *value = json_tokener_parse_ex(tokener, text->str, (int)text->len + 1);
    enum json_tokener_error result = json_tokener_get_error(tokener);
    json_tokener_reset(tokener);
    if (result != json_tokener_success) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "JSON parse error, %s", json_tokener_error_desc(result));
        return FALSE;
    }
    *ret_value = value;
    return TRUE;
}

/* json-c's parser also keeps a buffer as long as the longest string was: a big one is not kept. */
static gboolean parse(QapiMessage *message, json_object **ret_value, GError **error) {
    g_assert(message->open->len == 0 && message->text->len < G_MAXINT);
    if (message->deepest < KEPT_DEPTH && message->text->len <= KEPT_BYTES)
        return parse_with(message->tokener, message->text, ret_value, error);
    json_tokener *tokener = json_tokener_new_ex(QAPI_STREAM_DEPTH_MAX + 1);
    g_assert(tokener);
    gboolean ok = parse_with(tokener, message->text, ret_value, error);
    json_tokener_free(tokener);
    return ok;
}

gboolean qapi_message_finish(QapiMessage *message, json_object **ret_value, GError **error) {
    gboolean ok = FALSE;
    if (message->wrong) {
        g_autofree char *text = g_strconcat("JSON parse error, ", message->wrong, NULL);
        g_set_error_literal(error, SNAP_ERROR, SNAP_ERROR_FAILED, text);
    } else {
        ok = parse(message, ret_value, error);
    }
    qapi_message_clear(message);
    return ok;
}
