/* Errors as QMP has them: a class and a text. GErrors of SNAP_ERROR have a class by their code. */
#pragma once

#include "libsnap.h"

/**
 * qapi_set_qmp_error: an error of a class that no SNAP_ERROR stands for, or of another program's making.
 * @qmp_class: any string.
 */
void qapi_set_qmp_error(GError **error, const char *qmp_class, const char *format, ...) G_GNUC_PRINTF(3, 4);

/** qapi_qmp_error_class: what to tell a client. Return: a string that lives as long as the program. */
const char *qapi_qmp_error_class(const GError *error);

/** qapi_error_code_name: "BUFFER_FULL" of SNAP_ERROR_BUFFER_FULL, "FAILED" of other domains. Return: as above. */
const char *qapi_error_code_name(const GError *error);
/** qapi_error_code: the other way round. @name: (nullable). Return: FAILED where no code has this name. */
SnapErrorCode qapi_error_code(const char *name);
