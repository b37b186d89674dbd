/* One call of a command, as its handler sees it. */
#pragma once

#include "helper.h"
#include "schema.h"

struct QapiCall {
    QapiHelper *helper;
    const QapiCommand *command;
    json_object *arguments;       /* valid */
    QapiDescriptors *descriptors; /* (nullable) of the client; NULL for one that cannot pass any */
    gboolean negotiated;          /* the client has begun: see qmp_capabilities */
};

/*
 * Arguments by name. A name that the schema does not have for this command is a bug. What is absent is NULL, or
 * @otherwise.
 */
gboolean qapi_has(const QapiCall *call, const char *name);
json_object *qapi_argument(const QapiCall *call, const char *name);
const char *qapi_string(const QapiCall *call, const char *name);
gboolean qapi_bool(const QapiCall *call, const char *name, gboolean otherwise);
int64_t qapi_int(const QapiCall *call, const char *name, int64_t otherwise);
uint64_t qapi_uint(const QapiCall *call, const char *name, uint64_t otherwise);

/** qapi_call_path: a path argument, as of qapi_path(). Return: (out) g_free() it; NULL where it is absent. */
char *qapi_call_path(const QapiCall *call, const char *name);

/** qapi_check_path: Errors: FAILED, a path argument is empty, which would name the snapshot folder itself. */
gboolean qapi_check_path(const QapiCall *call, const char *name, GError **error);

/** qapi_call_target: the guest that the argument "target" names. Errors: as qapi_target_find(). Return: (out). */
QapiTarget *qapi_call_target(const QapiCall *call, GError **error);
