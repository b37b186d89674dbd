/* From a request to its answer: see dispatch.h. */
#include "dispatch.h"

#include "qmp-error.h"
#include "validate.h"

static json_object *get(json_object *object, const char *name) {
    json_object *value = NULL;
    json_object_object_get_ex(object, name, &value);
    return value;
}

gboolean qapi_request_is_oob(json_object *request) {
    return json_object_is_type(request, json_type_object) &&
           json_object_object_get_ex(request, "exec-oob", NULL) &&
           !json_object_object_get_ex(request, "execute", NULL);
}

const QapiCommand *qapi_request_command(json_object *request) {
    json_object *name = json_object_is_type(request, json_type_object) ? get(request, "execute") : NULL;
    return json_object_is_type(name, json_type_string)
               ? qapi_find_command(&qapi_schema, json_object_get_string(name))
               : NULL;
}

/* ---- the request ----------------------------------------------------------------------------------------- */

typedef struct {
    const char *execute; /* "execute" or "exec-oob" */
    const char *command;
    json_object *arguments; /* (nullable) */
} Request;

static gboolean fail(GError **error, const char *format, ...) G_GNUC_PRINTF(2, 3);
static gboolean fail(GError **error, const char *format, ...) {
    va_list args;
    va_start(args, format);
    g_autofree char *text = g_strdup_vprintf(format, args);
    va_end(args);
    g_set_error_literal(error, SNAP_ERROR, SNAP_ERROR_FAILED, text);
    return FALSE;
}

static gboolean take_member(Request *request, const char *name, json_object *value, gboolean oob, GError **error) {
    if (g_str_equal(name, "id"))
        return TRUE;
    if (g_str_equal(name, "execute") || (g_str_equal(name, "exec-oob") && oob)) {
        if (!json_object_is_type(value, json_type_string))
            return fail(error, "QMP input member '%s' must be a string", name);
        if (request->execute)
            return fail(error, "QMP input member '%s' clashes with '%s'", name, request->execute);
        request->execute = name;
        request->command = json_object_get_string(value);
        return TRUE;
    }
    if (!g_str_equal(name, "arguments"))
        return fail(error, "QMP input member '%s' is unexpected", name);
    if (!json_object_is_type(value, json_type_object))
        return fail(error, "QMP input member 'arguments' must be an object");
    request->arguments = value;
    return TRUE;
}

static gboolean take_request(Request *request, json_object *object, gboolean oob, GError **error) {
    if (!json_object_is_type(object, json_type_object))
        return fail(error, "QMP input must be a JSON object");
    json_object_object_foreach(object, name, value) {
        if (!take_member(request, name, value, oob, error))
            return FALSE;
    }
    return request->execute || fail(error, "QMP input lacks member 'execute'");
}

/* ---- the command ----------------------------------------------------------------------------------------- */

/* Before the negotiation there is one command. */
static const QapiCommand *choose(const Request *request, QapiMay may, GError **error) {
    const QapiCommand *command = qapi_find_command(&qapi_schema, request->command);
    if (may == QAPI_MAY_NEGOTIATE && !g_str_equal(request->command, "qmp_capabilities"))
        qapi_set_qmp_error(error, "CommandNotFound", "Expecting capabilities negotiation with 'qmp_capabilities'");
    else if (!command)
        qapi_set_qmp_error(error, "CommandNotFound", "The command %s has not been found", request->command);
    else if (g_str_equal(request->execute, "exec-oob") && !command->allow_oob)
        fail(error, "The command %s does not support OOB", request->command);
    else
        return command;
    return NULL;
}

static json_object *call(QapiHelper *helper, const QapiCommand *command, json_object *arguments, QapiMay may,
                         QapiDescriptors *descriptors, GError **error) {
    g_autoptr(json_object) nothing = json_object_new_object();
    QapiCall call = {.helper = helper,
                     .command = command,
                     .arguments = arguments ? arguments : nothing,
                     .descriptors = descriptors,
                     .negotiated = may == QAPI_MAY_ALL};
    GError *failure = NULL;
    g_autoptr(GError) wrong = NULL;
    if (!qapi_validate(command->arguments, call.arguments, NULL, error))
        return NULL;
    json_object *result = command->handler(&call, &failure);
    if (failure) {
        g_assert(!result);
        g_propagate_error(error, failure);
        return NULL;
    }
    if (!result)
        result = json_object_new_object();
    if (!qapi_validate(command->returns, result, "return", &wrong))
        g_warning("%s: what it returns is not as the schema has it: %s", command->name, wrong->message);
    return result;
}

json_object *qapi_execute(QapiHelper *helper, const char *name, json_object *arguments, GError **error) {
    const QapiCommand *command = qapi_find_command(&qapi_schema, name);
    if (command)
        return call(helper, command, arguments, QAPI_MAY_NEGOTIATE, NULL, error);
    qapi_set_qmp_error(error, "CommandNotFound", "The command %s has not been found", name);
    return NULL;
}

/* ---- the answer ------------------------------------------------------------------------------------------ */

static json_object *error_to_json(const GError *error) {
    json_object *object = json_object_new_object();
    qapi_json_add_string(object, "class", qapi_qmp_error_class(error));
    qapi_json_add_string(object, "desc", error->message);
    return object;
}

/* In the order in which QEMU has the members. */
static json_object *make_answer(json_object *request, json_object *result, const GError *error) {
    json_object *id = NULL;
    gboolean has_id =
        json_object_is_type(request, json_type_object) && json_object_object_get_ex(request, "id", &id);
    json_object *answer = json_object_new_object();
    if (!error)
        qapi_json_add(answer, "return", result);
    if (has_id)
        json_object_object_add(answer, "id", json_object_get(id));
    if (error)
        qapi_json_add(answer, "error", error_to_json(error));
    return answer;
}

json_object *qapi_error_answer(const GError *error) {
    return make_answer(NULL, NULL, error);
}

json_object *qapi_dispatch(QapiHelper *helper, json_object *object, QapiMay may, gboolean oob,
                           QapiDescriptors *descriptors) {
    g_autoptr(GError) error = NULL;
    Request request = {0};
    const QapiCommand *command = NULL;
    json_object *result = NULL;
    if (take_request(&request, object, oob, &error))
        command = choose(&request, may, &error);
    if (command)
        result = call(helper, command, request.arguments, may, descriptors, &error);
    if (result && command->no_response) {
        json_object_put(result);
        return NULL;
    }
    return make_answer(object, result, error);
}
