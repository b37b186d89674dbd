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
 * qapi_stream_output_end: all is written; wait until the command has ended too.
 * @progress: called meanwhile with @total_bytes twice.
 * Errors: IO, the disk; FAILED, the command ended otherwise than by 0; CANCELLED.
 */
gboolean qapi_stream_output_end(QapiStreamOutput *output, uint64_t total_bytes, SnapProgressFunc progress,
                                void *opaque, GError **error);

/** qapi_stream_output_keep: after end, let a file have its name. Errors: IO. */
gboolean qapi_stream_output_keep(QapiStreamOutput *output, GError **error);

/** qapi_stream_output_free: a file that was not kept is removed, a command that runs is killed. NULL is allowed.
 */
void qapi_stream_output_free(QapiStreamOutput *output);
