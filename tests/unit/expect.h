/*
 * What is expected of functions that return whether they succeeded, and set a GError where not; and of a
 * migration, that it comes to a phase.
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

/* Where the migration of @job is. */
typedef SnapMigrationPhase (*ExpectPhaseFunc)(const void *job);

/* Within @patience_ms. */
static inline void expect_phase(ExpectPhaseFunc where, const void *job, SnapMigrationPhase phase,
                                int patience_ms) {
    SnapMigrationPhase now = where(job);
    for (int ms = 0; ms < patience_ms && now != phase; ms++) {
        g_usleep(1000);
        now = where(job);
    }
    assert_string_equal(snap_migration_phase_name(now), snap_migration_phase_name(phase));
}
