/*
 * A JSON value against its type in the schema; the complaints are those of QEMU, word for word, for its clients
 * and their authors know them.
 */
#pragma once

#include "schema.h"

/**
 * qapi_validate: whether @value is a @type, in everything that is in it. As in QEMU a negative number is a uint64,
 * too: the one that C makes of it (qapi_json_get_uint()).
 *
 * @name: (nullable) what it is called in complaints; NULL for the arguments of a command themselves, whose members
 *   are called by their own names ("capabilities[0].state").
 *
 * Errors: FAILED (QMP class GenericError), the first thing wrong in the order in which QEMU looks.
 */
gboolean qapi_validate(const QapiType *type, json_object *value, const char *name, GError **error);
