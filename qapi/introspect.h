/* query-qmp-schema: what commands and events there are, and what they take and return, for programs. */
#pragma once

#include "schema.h"

/**
 * qapi_introspect: the schema as QEMU tells its own: an array of objects with name, meta-type and the rest. Names
 * of types are numbers, as they are none of a client's business.
 *
 * Return: (out) an array.
 */
json_object *qapi_introspect(const QapiSchema *schema);
