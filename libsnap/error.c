/* The error domain; see libsnap.h for the table and the rules. */
#include "libsnap.h"

#include <errno.h>

static const struct {
    const char *text;
    const char *qmp_class;
} codes[] = {
#define X(name, text, qmp_class) [SNAP_ERROR_##name] = {text, qmp_class},
    SNAP_ERROR_TABLE(X)
#undef X
};
G_STATIC_ASSERT(G_N_ELEMENTS(codes) == SNAP_ERROR_MAX);

G_DEFINE_QUARK(snap - error - quark, snap_error)

static unsigned known(int code) {
    return code >= 0 && code < SNAP_ERROR_MAX ? (unsigned)code : SNAP_ERROR_FAILED;
}

const char *snap_error_text(int code) {
    return codes[known(code)].text;
}

const char *snap_error_qmp_class(int code) {
    return codes[known(code)].qmp_class;
}

SnapErrorCode snap_error_from_errno(int errnum) {
    switch (errnum) {
    case EPERM:
    case EACCES:
        return SNAP_ERROR_PERMISSION;
    case ESRCH:
        return SNAP_ERROR_GUEST_GONE;
    case ENOSPC:
    case EDQUOT:
        return SNAP_ERROR_NO_SPACE;
    case EEXIST:
        return SNAP_ERROR_EXISTS;
    case ENOENT:
        return SNAP_ERROR_NOT_FOUND;
    case ETIMEDOUT:
        return SNAP_ERROR_TIMED_OUT;
    default:
        return SNAP_ERROR_IO;
    }
}

void snap_set_errno(GError **error, int errnum, const char *format, ...) {
    va_list args;
    va_start(args, format);
    g_autofree char *what = g_strdup_vprintf(format, args);
    va_end(args);
    g_set_error(error, SNAP_ERROR, (gint)snap_error_from_errno(errnum), "%s: %s", what, g_strerror(errnum));
}
