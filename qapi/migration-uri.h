/* Where a migration stream goes: "file:PATH", "fd:NAME" or "exec:COMMAND". */
#pragma once

#include "call.h"

typedef struct QapiStreamOutput QapiStreamOutput;

/**
 * qapi_stream_output_open: begin.
 * Errors: FAILED, no such protocol, as QEMU says it; no descriptor of that name; a file that cannot be made.
 * Return: (out) free with qapi_stream_output_free().
 */
QapiStreamOutput *qapi_stream_output_open(QapiCall *call, const char *uri, GError **error);

/** qapi_stream_output_fd: (borrow) what to write to. */
int qapi_stream_output_fd(const QapiStreamOutput *output);

/** qapi_stream_output_sent_bytes: (borrow) a place to count what was written. */
uint64_t *qapi_stream_output_sent_bytes(QapiStreamOutput *output);

/**
 * qapi_stream_output_finish: all is written.
 * Errors: IO, the disk; FAILED, the command ended otherwise than by 0.
 */
gboolean qapi_stream_output_finish(QapiStreamOutput *output, GError **error);

/** qapi_stream_output_free: without finish before, a file is removed and a command killed. NULL is allowed. */
void qapi_stream_output_free(QapiStreamOutput *output);
