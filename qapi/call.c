/* One call of a command: see call.h. */
#include "call.h"

#include "targets.h"

json_object *qapi_argument(const QapiCall *call, const char *name) {
    json_object *value = NULL;
    g_assert(qapi_type_has_member(call->command->arguments, name));
    return json_object_object_get_ex(call->arguments, name, &value) ? value : NULL;
}

gboolean qapi_has(const QapiCall *call, const char *name) {
    g_assert(qapi_type_has_member(call->command->arguments, name));
    return json_object_object_get_ex(call->arguments, name, NULL);
}

const char *qapi_string(const QapiCall *call, const char *name) {
    json_object *value = qapi_argument(call, name);
    return value ? json_object_get_string(value) : NULL;
}

gboolean qapi_bool(const QapiCall *call, const char *name, gboolean otherwise) {
    json_object *value = qapi_argument(call, name);
    return value ? json_object_get_boolean(value) : otherwise;
}

int64_t qapi_int(const QapiCall *call, const char *name, int64_t otherwise) {
    json_object *value = qapi_argument(call, name);
    return value ? json_object_get_int64(value) : otherwise;
}

uint64_t qapi_uint(const QapiCall *call, const char *name, uint64_t otherwise) {
    json_object *value = qapi_argument(call, name);
    return value ? qapi_json_get_uint(value) : otherwise;
}

char *qapi_call_path(const QapiCall *call, const char *name) {
    const char *path = qapi_string(call, name);
    return path ? qapi_path(call->helper, path) : NULL;
}

gboolean qapi_check_path(const QapiCall *call, const char *name, GError **error) {
    if (qapi_string(call, name)[0])
        return TRUE;
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "Parameter '%s' expects an image directory", name);
    return FALSE;
}

QapiTarget *qapi_call_target(const QapiCall *call, GError **error) {
    return qapi_target_find(call->helper, qapi_string(call, "target"), error);
}
