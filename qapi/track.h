/* Command family track: the dirty log of one guest, collected round by round. */
#pragma once

#include "rounds.h"
#include "save.h"

typedef struct {
    QapiGuestOptions target;
    const char *region_glob; /* (nullable) only regions whose name matches; * ? as in a shell */
    QapiTrackLog log;
    uint64_t interval_us; /* from collection to collection; one that takes longer is followed at once */
    guint rounds;         /* end after so many. 0: go on */
} QapiTrackOptions;

/* All are called in the thread of qapi_track(). */
typedef struct {
    /* The log has begun. @why_not_async: (nullable) why AUTO came to be SYNC. */
    void (*started)(SnapTrackMode log, const char *why_not_async, void *opaque);
    /* A round is over. @round: (borrow) with all that is in it. FALSE ends the log. */
    gboolean (*round)(const QapiTrackRound *round, void *opaque);
    /* Between rounds, about twenty times a second. FALSE ends the log. */
    gboolean (*go_on)(void *opaque);
} QapiTrackFuncs;

/**
 * qapi_track: log what a guest writes. The guest runs on; nothing is left in it afterwards.
 * @funcs: (borrow). @opaque: handed to each of them.
 * Errors: those of qapi_open_guest(), snap_tracker_set_mode() and snap_tracker_collect(); NOT_FOUND, no region of
 * the guest matches; GUEST_GONE, it ended, also between two rounds. Return: TRUE when it ended by @funcs or by
 * rounds.
 */
gboolean qapi_track(const QapiTrackOptions *options, const QapiTrackFuncs *funcs, void *opaque, GError **error);
