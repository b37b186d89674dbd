/* The dirty log round by round: begun, collected, as JSON. */
#pragma once

#include "json.h"
#include "libsnap.h"

typedef enum {
    QAPI_TRACK_LOG_AUTO, /* ASYNC, or SYNC where that cannot be had */
    QAPI_TRACK_LOG_ASYNC,
    QAPI_TRACK_LOG_SYNC,
} QapiTrackLog;

/* Dirty bytes that lie next to each other. */
typedef struct {
    const char *region;
    uint64_t offset_bytes;
    uint64_t address; /* in the guest's process */
    uint64_t length_bytes;
} QapiTrackRange;

/* What was written since the round before; since the log began, in the first. */
typedef struct {
    guint number; /* from 1 on */
    SnapTrackMode log;
    SnapDirtyStats stats;
    uint64_t dirty_bytes;
    double pages_per_second;
    const GArray *ranges; /* of QapiTrackRange, by address */
} QapiTrackRound;

typedef struct QapiTrackRounds QapiTrackRounds;

/**
 * qapi_track_begin: start the log of @tracker, which is OFF.
 * @ret_why_not_async: (out) why AUTO came to be SYNC, or NULL; g_free() it.
 * Errors: those of snap_tracker_set_mode().
 */
gboolean qapi_track_begin(SnapTracker *tracker, QapiTrackLog log, char **ret_why_not_async, GError **error);

/**
 * qapi_track_rounds_new: the rounds of a log that has just begun.
 * @tracker: (borrow) until free. @region_glob: (nullable) (borrow) until free: for the complaint that nothing
 * matches.
 */
QapiTrackRounds *qapi_track_rounds_new(SnapTracker *tracker, const char *region_glob);
/** qapi_track_rounds_free: NULL is allowed. */
void qapi_track_rounds_free(QapiTrackRounds *rounds);

/**
 * qapi_track_rounds_next: collect a round.
 * @ret_round: (out) what is in it is valid until the next, or free.
 * Errors: those of snap_tracker_collect(); NOT_FOUND, in the first round: no region of the guest is logged.
 */
gboolean qapi_track_rounds_next(QapiTrackRounds *rounds, QapiTrackRound *ret_round, GError **error);

/**
 * qapi_track_round_to_json: a round as an object.
 * Return: (out) {round, dirty-pages, ranges: [{region, offset, address, length}], scan-us, rate-pages-per-second,
 *   pages-total, log: "async"|"sync"}
 */
json_object *qapi_track_round_to_json(const QapiTrackRound *round);
