/*
 * JSON values out of a stream of bytes, as QEMU's monitor takes them.
 *
 * Values follow each other with or without white space or line ends between them, in pieces of any size. Beyond
 * RFC 8259 strings may stand in apostrophes. What is wrong ends the value it is in, and reading goes on behind it;
 * a byte that can be in no value, such as 0x01, so brings the two sides back into step.
 *
 * A message that is well formed is handed to json-c; this part knows where it ends, what json-c is too generous
 * about (duplicate keys, comments, bad UTF-8, surrogates), and how QEMU words its complaints.
 */
#pragma once

#include "json.h"

/* As QEMU's: what one message may be. */
enum {
    QAPI_STREAM_BYTES_MAX = 64 << 20, /* of all its tokens together */
    QAPI_STREAM_TOKENS_MAX = 2 << 20,
    QAPI_STREAM_DEPTH_MAX = 1024,
};

typedef struct QapiStream QapiStream;

/*
 * A value has come, or something that is none. May not call feed, continue or free of the stream that calls it.
 * @value: (take) (nullable) NULL is JSON null or an error. Strings and names in it are C strings: U+0000 is C0 80.
 * @error: (take) (nullable) FAILED (class GenericError) with QEMU's text, in which there may be bytes that are no
 * UTF-8; qapi_json_write() replaces them. Return: FALSE to be given no more of what was fed before
 * qapi_stream_continue() is called.
 */
typedef gboolean (*QapiStreamFunc)(json_object *value, GError *error, void *opaque);

/** qapi_stream_new: Return: (out) free with qapi_stream_free(). @func: called by feed and continue. */
QapiStream *qapi_stream_new(QapiStreamFunc func, void *opaque);
/** qapi_stream_free: NULL is allowed. */
void qapi_stream_free(QapiStream *stream);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(QapiStream, qapi_stream_free)

/**
 * qapi_stream_feed: more bytes have come. A number or word by itself ends with the byte behind it.
 * Return: FALSE when the function has said stop; what is left waits inside, and so does what is fed now.
 */
gboolean qapi_stream_feed(QapiStream *stream, const void *data, gsize length_bytes);
/** qapi_stream_continue: go on with what waits. Return: as qapi_stream_feed(); TRUE when it is all taken. */
gboolean qapi_stream_continue(QapiStream *stream);

/**
 * qapi_json_write: append a value as QEMU writes it: one line, ", " and ": " between, nothing but ASCII (\uXXXX
 * for the rest, U+FFFD for what is no character), doubles with 17 digits. Members are in the order of adding.
 * @value: (borrow) (nullable) NULL is JSON null.
 */
void qapi_json_write(json_object *value, GString *out);
