/* Command family control: the session itself. */
#include "call.h"
#include "introspect.h"
#include "qmp-error.h"
#include "schema-handlers.h"

/* The QEMU whose QMP is spoken: what it was measured against. */
enum { QEMU_MAJOR = 7, QEMU_MINOR = 2, QEMU_MICRO = 0 };

/* What a success changes is the session's affair, which has the answer. */
json_object *qmp_qmp_capabilities(QapiCall *call, GError **error) {
    if (call->negotiated)
        qapi_set_qmp_error(error, "CommandNotFound",
                           "Capabilities negotiation is already complete, command ignored");
    return NULL;
}

json_object *qmp_query_version(QapiCall *call, GError **error) {
    (void)call, (void)error;
    json_object *qemu = json_object_new_object(), *result = json_object_new_object();
    qapi_json_add_uint(qemu, "major", QEMU_MAJOR);
    qapi_json_add_uint(qemu, "minor", QEMU_MINOR);
    qapi_json_add_uint(qemu, "micro", QEMU_MICRO);
    qapi_json_add(result, "qemu", qemu);
    qapi_json_add_string(result, "package", "vmsnapd " VMSNAP_VERSION);
    return result;
}

json_object *qmp_query_commands(QapiCall *call, GError **error) {
    (void)call, (void)error;
    json_object *list = json_object_new_array();
    for (guint i = 0; i < qapi_schema.n_commands; i++) {
        json_object *command = json_object_new_object();
        qapi_json_add_string(command, "name", qapi_schema.commands[i].name);
        json_object_array_add(list, command);
    }
    return list;
}

json_object *qmp_query_qmp_schema(QapiCall *call, GError **error) {
    (void)call, (void)error;
    return qapi_introspect(&qapi_schema);
}

json_object *qmp_quit(QapiCall *call, GError **error) {
    QapiHelper *helper = call->helper;
    g_mutex_lock(&helper->lock);
    const QapiListener *listener = helper->listener;
    void *opaque = helper->listener_opaque;
    g_mutex_unlock(&helper->lock);
    if (listener && listener->quit)
        listener->quit(opaque);
    else if (listener)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED,
                    "this VMM has not told its server how to do that");
    return NULL;
}
