/*
 * One JSON message: its tokens come one by one, and at its end it is a value, or what is wrong with it in QEMU's
 * words.
 *
 *     add … add → finish      and again; or → clear, to give it up
 */
#pragma once

#include "json.h"

typedef enum {
    QAPI_TOKEN_OPEN_OBJECT,
    QAPI_TOKEN_CLOSE_OBJECT,
    QAPI_TOKEN_OPEN_ARRAY,
    QAPI_TOKEN_CLOSE_ARRAY,
    QAPI_TOKEN_COLON,
    QAPI_TOKEN_COMMA,
    QAPI_TOKEN_STRING, /* with its marks */
    QAPI_TOKEN_INTEGER,
    QAPI_TOKEN_FLOAT,
    QAPI_TOKEN_WORD,
    QAPI_TOKEN_CUT, /* part of a token that is too long */
    QAPI_TOKEN_MAX
} QapiTokenKind;

typedef struct QapiMessage QapiMessage;

QapiMessage *qapi_message_new(void);
void qapi_message_free(QapiMessage *message);

/**
 * qapi_message_add: the next token. After the first mistake the rest is not looked at.
 * @text: (borrow) ends in a zero byte that @length_bytes does not count.
 */
void qapi_message_add(QapiMessage *message, QapiTokenKind kind, const char *text, gsize length_bytes);

/**
 * qapi_message_finish: that was all; what is added next is another message.
 * @ret_value: (out) (nullable) NULL is JSON null.
 * Errors: FAILED: the first mistake. The tokens of a value that is not complete must not be all.
 */
gboolean qapi_message_finish(QapiMessage *message, json_object **ret_value, GError **error);

/** qapi_message_clear: forget what was added. */
void qapi_message_clear(QapiMessage *message);
