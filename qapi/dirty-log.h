/*
 * The dirty log of a target, for clients: dirty-log-start, -collect, -stop.
 *
 * There is one for a guest, whoever has started it; what one client collects no other gets.
 */
#pragma once

#include "targets.h"

DirtyLog *qapi_dirty_log_new(void);
/** qapi_dirty_log_free: ends it. Before its guest is freed. */
void qapi_dirty_log_free(DirtyLog *log);

/** qapi_dirty_log_is_on: never waits. */
gboolean qapi_dirty_log_is_on(const DirtyLog *log);

/** qapi_dirty_log_rate: pages a second of the round collected last; -1: there was none. Never waits. */
int qapi_dirty_log_rate(const DirtyLog *log);

/**
 * qapi_dirty_log_open: a log of the target's guest that has begun, and is the caller's. Waits for nobody.
 * @mode: (nullable) "auto", "async" or "sync". @region: (nullable) a pattern.
 * @ret_why_not_async: (out) (nullable) why auto came to be sync; g_free() it.
 * Errors: REFUSED, the guest has a log already; those of snap_tracker_set_mode().
 * Return: (out) qapi_dirty_log_close() it.
 */
SnapTracker *qapi_dirty_log_open(QapiTarget *target, const char *mode, const char *region,
                                 char **ret_why_not_async, GError **error);
void qapi_dirty_log_close(QapiTarget *target, SnapTracker *tracker);

/** qapi_dirty_log_reserve: nobody gets it until qapi_dirty_log_release(). Errors: REFUSED, somebody has it. */
gboolean qapi_dirty_log_reserve(QapiTarget *target, GError **error);
void qapi_dirty_log_release(QapiTarget *target);
