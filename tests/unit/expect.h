/*
 * What is expected of functions that return whether they succeeded, and set a GError where not.
 */
#pragma once

#include "libsnap.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

/* It failed, with @code, and its text has @text. Frees the error. */
static inline void expect_error(bool good, GError **error, SnapErrorCode code, const char *text) {
    if (good || !*error)
        fail_msg("no error, but \"%s\" was to come", text);
    g_assert(*error); /* fail_msg() does not say of itself that it does not return */
    if (!g_error_matches(*error, SNAP_ERROR, (gint)code) || !strstr((*error)->message, text))
        fail_msg("%s (%d) instead of \"%s\" (%d)", (*error)->message, (*error)->code, text, code);
    g_clear_error(error);
}

static inline void expect_good(bool good, GError **error) {
    if (!good || *error)
        fail_msg("unexpected error: %s", *error ? (*error)->message : "(none set)");
}
