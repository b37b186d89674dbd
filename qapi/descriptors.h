/*
 * Descriptors that clients pass along with commands (SCM_RIGHTS).
 *
 *     arrived, oldest first ── getfd ──> by name, of one client      ── used, closed ──
 *                           └─ add-fd ─> in a set, of all clients, until it is removed or the last client goes
 *
 * Thread: any; the lock of a client's own is in here, that of the sets is the helper's.
 */
#pragma once

#include "helper.h"
#include "output.h"

/** qapi_descriptors_new: of a client that has passed none. Return: (out) free with qapi_descriptors_free(). */
QapiDescriptors *qapi_descriptors_new(void);
/** qapi_descriptors_free: closes them. NULL is allowed. */
void qapi_descriptors_free(QapiDescriptors *descriptors);

/** qapi_descriptors_arrived: @fd (take) has come. A client that passes many and uses none loses the oldest. */
void qapi_descriptors_arrived(QapiDescriptors *descriptors, int fd);

/** qapi_descriptors_forget_arrived: those that no command has used were meant for none that is still to be done.
 */
void qapi_descriptors_forget_arrived(QapiDescriptors *descriptors);

/**
 * qapi_descriptors_take: the descriptor that getfd has kept as @name, which is free again.
 * @descriptors: (nullable). Errors: FAILED, as QEMU says it. Return: (out) it; -1 on error.
 */
int qapi_descriptors_take(QapiDescriptors *descriptors, const char *name, GError **error);

/** qapi_fdsets_new: an empty list of sets. Return: (out) g_ptr_array_unref(). */
GPtrArray *qapi_fdsets_new(void);

/** qapi_fdsets_clear: close all in all sets, as there is nobody left who could know of them. */
void qapi_fdsets_clear(QapiHelper *helper);

/**
 * qapi_open_file: a file that a client names, to be written: one that it has passed, where @path is
 * "/dev/fdset/ID", or one by its path (see output.h). Errors: FAILED, as QEMU says it: there is none, or none can
 * be made there. Return: (out) qapi_output_free() it.
 */
QapiOutput *qapi_open_file(QapiHelper *helper, const char *path, GError **error);
