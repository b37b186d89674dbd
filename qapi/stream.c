/*
 * Messages out of a stream of bytes: see stream.h.
 *
 * A table says for each state and byte what comes of it; bytes that change nothing, such as the inside of a
 * string, are taken in one go. Complete tokens go to message.c, and count against the limits. A message is over
 * when no brace and no bracket is open, or more are closed than were opened. Braces and brackets are counted
 * apart, and whether they match is the grammar's business: {"a":[1} is over at the next ].
 *
 * Failure modes: any bytes may come, in any pieces. A byte that fits nothing ends the message with a complaint
 * ("stray"), and what follows is skipped up to the next of {}[]:, or control character but the tab. A token that
 * is too long is cut, and its rest taken for tokens of their own. All of this is QEMU's behaviour.
 *
 * Invariants: what comes in one piece and what comes byte by byte makes the same calls. A token is never more than
 * a byte longer than QAPI_STREAM_BYTES_MAX. What waits is moved at most once for each byte that is taken from it.
 */
#include "stream.h"

#include "libsnap.h"
#include "message.h"

#define KEPT_BYTES 65536 /* a buffer that has grown beyond is not kept */

/* Where in the stream we are. The last three are no places but what a byte does. */
typedef enum {
    BETWEEN, /* tokens */
    SKIPPING,
    QUOTED,
    QUOTED_ESCAPE,
    APOSTROPHES,
    APOSTROPHES_ESCAPE,
    MINUS,
    ZERO,
    INTEGER,
    POINT,
    FRACTION,
    EXPONENT,
    EXPONENT_SIGN,
    EXPONENT_DIGITS,
    WORD,
    STATE_MAX,
    STRAY = STATE_MAX, /* it fits nothing */
    LAST,              /* it is the last of its token */
    BEHIND,            /* it is the first that does not belong to the token, or to what is skipped */
} State;

struct QapiStream {
    QapiStreamFunc func;
    void *opaque;
    guint8 moves[STATE_MAX][256];

    State state;
    GString *token; /* what there is of it */

    QapiMessage *message;
    int open_braces, open_brackets;
    gsize n_tokens;
    gsize tokens_bytes;

    gboolean stopped;
    gboolean running;
    GByteArray *waiting; /* what was fed and not taken, from `taken` on */
    gsize taken;
};

/* ---- the table ------------------------------------------------------------------------------------------- */

/* What is to be said of single bytes; the rest is in other_move(). */
static const struct {
    State from;
    const char *bytes;
    State to;
} byte_moves[] = {
    {BETWEEN, " \t\r\n", BETWEEN},
    {BETWEEN, "{}[]:,", LAST},
    {BETWEEN, "\"", QUOTED},
    {BETWEEN, "'", APOSTROPHES},
    {BETWEEN, "-", MINUS},
    {BETWEEN, "0", ZERO},
    {BETWEEN, "123456789", INTEGER},
    {BETWEEN, "abcdefghijklmnopqrstuvwxyz", WORD},
    {SKIPPING, "{}[]:,", BEHIND},
    {SKIPPING, "\t", SKIPPING},
    {QUOTED, "\"", LAST},
    {QUOTED, "\\", QUOTED_ESCAPE},
    {APOSTROPHES, "'", LAST},
    {APOSTROPHES, "\\", APOSTROPHES_ESCAPE},
    {MINUS, "0", ZERO},
    {MINUS, "123456789", INTEGER},
    {ZERO, "0123456789", STRAY},
    {ZERO, ".", POINT},
    {INTEGER, "0123456789", INTEGER},
    {INTEGER, ".", POINT},
    {INTEGER, "eE", EXPONENT},
    {POINT, "0123456789", FRACTION},
    {FRACTION, "0123456789", FRACTION},
    {FRACTION, "eE", EXPONENT},
    {EXPONENT, "+-", EXPONENT_SIGN},
    {EXPONENT, "0123456789", EXPONENT_DIGITS},
    {EXPONENT_SIGN, "0123456789", EXPONENT_DIGITS},
    {EXPONENT_DIGITS, "0123456789", EXPONENT_DIGITS},
    {WORD, "abcdefghijklmnopqrstuvwxyz", WORD},
};

static State other_move(State from, guint byte) {
    gboolean is_text = byte >= 0x20 && byte < 0xFE;
    switch (from) {
    case SKIPPING:
        return is_text ? SKIPPING : BEHIND;
    case QUOTED:
    case QUOTED_ESCAPE:
        return is_text ? QUOTED : STRAY;
    case APOSTROPHES:
    case APOSTROPHES_ESCAPE:
        return is_text ? APOSTROPHES : STRAY;
    case ZERO:
    case INTEGER:
    case FRACTION:
    case EXPONENT_DIGITS:
    case WORD:
        return BEHIND;
    default:
        return STRAY;
    }
}

static void fill_moves(QapiStream *stream) {
    for (State from = 0; from < STATE_MAX; from++)
        for (guint byte = 0; byte < 256; byte++)
            stream->moves[from][byte] = (guint8)other_move(from, byte);
    for (gsize i = 0; i < G_N_ELEMENTS(byte_moves); i++)
        for (const char *byte = byte_moves[i].bytes; *byte; byte++)
            stream->moves[byte_moves[i].from][(guint8)*byte] = (guint8)byte_moves[i].to;
}

static QapiTokenKind kind_of_mark(char mark) {
    switch (mark) {
    case '{':
        return QAPI_TOKEN_OPEN_OBJECT;
    case '}':
        return QAPI_TOKEN_CLOSE_OBJECT;
    case '[':
        return QAPI_TOKEN_OPEN_ARRAY;
    case ']':
        return QAPI_TOKEN_CLOSE_ARRAY;
    case ':':
        return QAPI_TOKEN_COLON;
    default:
        return QAPI_TOKEN_COMMA;
    }
}

/* Of a token that ends in @state. */
static QapiTokenKind kind_of_token(State state, char first) {
    switch (state) {
    case BETWEEN:
        return kind_of_mark(first);
    case ZERO:
    case INTEGER:
        return QAPI_TOKEN_INTEGER;
    case FRACTION:
    case EXPONENT_DIGITS:
        return QAPI_TOKEN_FLOAT;
    case WORD:
        return QAPI_TOKEN_WORD;
    default:
        return QAPI_TOKEN_STRING;
    }
}

/* ---- life ------------------------------------------------------------------------------------------------ */

QapiStream *qapi_stream_new(QapiStreamFunc func, void *opaque) {
    QapiStream *stream = g_new0(QapiStream, 1);
    stream->func = func;
    stream->opaque = opaque;
    stream->token = g_string_new(NULL);
    stream->message = qapi_message_new();
    stream->waiting = g_byte_array_new();
    fill_moves(stream);
    return stream;
}

void qapi_stream_free(QapiStream *stream) {
    if (!stream)
        return;
    g_assert(!stream->running);
    g_string_free(stream->token, TRUE);
    qapi_message_free(stream->message);
    g_byte_array_unref(stream->waiting);
    g_free(stream);
}

/* ---- messages -------------------------------------------------------------------------------------------- */

/* @value: (take). @error: (take). */
static void end_message(QapiStream *stream, json_object *value, GError *error) {
    stream->open_braces = stream->open_brackets = 0;
    stream->n_tokens = stream->tokens_bytes = 0;
    stream->stopped = !stream->func(value, error, stream->opaque);
}

static void refuse_message(QapiStream *stream, const char *complaint) {
    qapi_message_clear(stream->message);
    end_message(stream, NULL, g_error_new_literal(SNAP_ERROR, SNAP_ERROR_FAILED, complaint));
}

static void finish_message(QapiStream *stream) {
    json_object *value = NULL;
    GError *error = NULL;
    qapi_message_finish(stream->message, &value, &error);
    end_message(stream, value, error);
}

static void count_token(QapiStream *stream, QapiTokenKind kind) {
    stream->open_braces += (kind == QAPI_TOKEN_OPEN_OBJECT) - (kind == QAPI_TOKEN_CLOSE_OBJECT);
    stream->open_brackets += (kind == QAPI_TOKEN_OPEN_ARRAY) - (kind == QAPI_TOKEN_CLOSE_ARRAY);
    stream->tokens_bytes += stream->token->len;
    stream->n_tokens++;
}

/* A message that is over is not held against its size: of its last token QEMU does not ask. */
static void check_message(QapiStream *stream) {
    int braces = stream->open_braces;
    int brackets = stream->open_brackets;
    if (braces < 0 || brackets < 0 || (braces == 0 && brackets == 0))
        finish_message(stream);
    else if (stream->tokens_bytes > QAPI_STREAM_BYTES_MAX)
        refuse_message(stream, "JSON token size limit exceeded");
    else if (stream->n_tokens > QAPI_STREAM_TOKENS_MAX)
        refuse_message(stream, "JSON token count limit exceeded");
    else if (braces + brackets > QAPI_STREAM_DEPTH_MAX)
        refuse_message(stream, "JSON nesting depth limit exceeded");
}

/* ---- bytes ----------------------------------------------------------------------------------------------- */

static void drop_token(QapiStream *stream, State next) {
    if (stream->token->allocated_len > KEPT_BYTES) {
        g_string_free(stream->token, TRUE);
        stream->token = g_string_new(NULL);
    }
    g_string_truncate(stream->token, 0);
    stream->state = next;
}

static void end_token(QapiStream *stream, QapiTokenKind kind) {
    count_token(stream, kind);
    qapi_message_add(stream->message, kind, stream->token->str, stream->token->len);
    drop_token(stream, BETWEEN);
    check_message(stream);
}

/* The token ends in a byte that fits nothing. A zero byte is not shown: the text ends there, in QEMU as well. */
static void refuse_token(QapiStream *stream) {
    g_autofree char *complaint = g_strconcat("JSON parse error, stray '", stream->token->str, "'", NULL);
    drop_token(stream, SKIPPING);
    refuse_message(stream, complaint);
}

/* The bytes at @data that leave the state as it is, as far as the token may grow. Return: how many. */
static gsize take_run(QapiStream *stream, const guint8 *data, gsize length_bytes) {
    const guint8 *moves = stream->moves[stream->state];
    gsize most = MIN(length_bytes, QAPI_STREAM_BYTES_MAX + 1 - stream->token->len);
    gsize length = 0;
    while (length < most && moves[data[length]] == stream->state)
        length++;
    if (stream->state != BETWEEN && stream->state != SKIPPING)
        g_string_append_len(stream->token, (const char *)data, (gssize)length);
    return length;
}

/* A byte that changes the state. Return: whether it is taken; else it is looked at again. */
static gboolean take_byte(QapiStream *stream, guint8 byte) {
    State move = stream->moves[stream->state][byte];
    if (move != BEHIND)
        g_string_append_c(stream->token, (char)byte);
    if (move == STRAY)
        refuse_token(stream);
    else if (move == BEHIND && stream->state == SKIPPING)
        stream->state = BETWEEN;
    else if (move == LAST || move == BEHIND)
        end_token(stream, kind_of_token(stream->state, stream->token->str[0]));
    else
        stream->state = move;
    return move != BEHIND;
}

/* Return: how many bytes were taken: all, or those before the function said stop. */
static gsize run(QapiStream *stream, const guint8 *data, gsize length_bytes) {
    gsize taken = 0;
    stream->running = TRUE;
    while (taken < length_bytes && !stream->stopped) {
        taken += take_run(stream, data + taken, length_bytes - taken);
        gboolean is_full = stream->token->len > QAPI_STREAM_BYTES_MAX;
        if (!is_full && taken < length_bytes && take_byte(stream, data[taken]))
            taken++;
        if (stream->token->len > QAPI_STREAM_BYTES_MAX)
            end_token(stream, QAPI_TOKEN_CUT);
    }
    stream->running = FALSE;
    return taken;
}

static void drop_waiting(QapiStream *stream) {
    stream->taken = 0;
    if (stream->waiting->len > KEPT_BYTES) {
        g_byte_array_unref(stream->waiting);
        stream->waiting = g_byte_array_new();
    }
    g_byte_array_set_size(stream->waiting, 0);
}

gboolean qapi_stream_feed(QapiStream *stream, const void *data, gsize length_bytes) {
    g_assert(!stream->running);
    const guint8 *bytes = (const guint8 *)data;
    gsize taken = run(stream, bytes, length_bytes); /* nothing when it is stopped */
    if (taken == length_bytes)
        return !stream->stopped;
    if (stream->taken > stream->waiting->len / 2) {
        g_byte_array_remove_range(stream->waiting, 0, (guint)stream->taken);
        stream->taken = 0;
    }
    g_byte_array_append(stream->waiting, bytes + taken, (guint)(length_bytes - taken));
    return FALSE;
}

gboolean qapi_stream_continue(QapiStream *stream) {
    g_assert(!stream->running);
    stream->stopped = FALSE;
    if (stream->waiting->len == 0)
        return TRUE;
    stream->taken += run(stream, stream->waiting->data + stream->taken, stream->waiting->len - stream->taken);
    if (stream->taken == stream->waiting->len)
        drop_waiting(stream);
    return !stream->stopped;
}
