/* Errors as QMP has them: see qmp-error.h. */
#include "qmp-error.h"

/* The code of an error in this domain is the GQuark of its class. */
static G_DEFINE_QUARK(qapi - qmp - error, qmp_error)

    void qapi_set_qmp_error(GError **error, const char *qmp_class, const char *format, ...) {
    va_list args;
    va_start(args, format);
    g_autofree char *text = g_strdup_vprintf(format, args);
    va_end(args);
    g_set_error_literal(error, qmp_error_quark(), (int)g_quark_from_string(qmp_class), text);
}

const char *qapi_qmp_error_class(const GError *error) {
    if (error->domain == qmp_error_quark())
        return g_quark_to_string((GQuark)error->code);
    return error->domain == SNAP_ERROR ? snap_error_qmp_class(error->code) : "GenericError";
}

/* ---- codes by name --------------------------------------------------------------------------------------- */

static const char *const code_names[] = {
#define X(name, text, qmp_class) [SNAP_ERROR_##name] = #name,
    SNAP_ERROR_TABLE(X)
#undef X
};
G_STATIC_ASSERT(G_N_ELEMENTS(code_names) == SNAP_ERROR_MAX);

const char *qapi_error_code_name(const GError *error) {
    gboolean ours = error->domain == SNAP_ERROR && error->code >= 0 && error->code < SNAP_ERROR_MAX;
    return code_names[ours ? error->code : SNAP_ERROR_FAILED];
}

SnapErrorCode qapi_error_code(const char *name) {
    for (SnapErrorCode code = 0; code < SNAP_ERROR_MAX; code++)
        if (g_strcmp0(name, code_names[code]) == 0)
            return code;
    return SNAP_ERROR_FAILED;
}
