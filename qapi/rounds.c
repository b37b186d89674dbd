/*
 * The dirty log round by round: see rounds.h.
 *
 * Invariant: ranges and names of a round are the round's own, as regions may go while it is collected.
 */
#include "rounds.h"

struct QapiTrackRounds {
    SnapTracker *tracker;
    char *region_glob; /* (nullable) */
    guint number;      /* of the last round */
    gint64 since_us;   /* the collection before, or the start */
    GArray *ranges;    /* of QapiTrackRange */
    GPtrArray *names;  /* of the regions in it, owned */
    uint64_t n_bytes;
};

gboolean qapi_track_begin(SnapTracker *tracker, QapiTrackLog log, char **ret_why_not_async, GError **error) {
    g_autoptr(GError) failure = NULL;
    SnapTrackMode mode = log == QAPI_TRACK_LOG_SYNC ? SNAP_TRACK_SYNC : SNAP_TRACK_ASYNC;
    *ret_why_not_async = NULL;
    if (snap_tracker_set_mode(tracker, mode, FALSE, &failure))
        return TRUE;
    if (log != QAPI_TRACK_LOG_AUTO || !g_error_matches(failure, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED)) {
        g_propagate_error(error, g_steal_pointer(&failure));
        return FALSE;
    }
    if (!snap_tracker_set_mode(tracker, SNAP_TRACK_SYNC, FALSE, error))
        return FALSE;
    *ret_why_not_async = g_strdup(failure->message);
    return TRUE;
}

QapiTrackRounds *qapi_track_rounds_new(SnapTracker *tracker, const char *region_glob) {
    QapiTrackRounds *rounds = g_new0(QapiTrackRounds, 1);
    rounds->tracker = tracker;
    rounds->region_glob = g_strdup(region_glob);
    rounds->since_us = g_get_monotonic_time();
    rounds->ranges = g_array_new(FALSE, FALSE, sizeof(QapiTrackRange));
    rounds->names = g_ptr_array_new_with_free_func(g_free);
    return rounds;
}

void qapi_track_rounds_free(QapiTrackRounds *rounds) {
    if (!rounds)
        return;
    g_array_unref(rounds->ranges);
    g_ptr_array_unref(rounds->names);
    g_free(rounds->region_glob);
    g_free(rounds);
}

/* ---- one round ------------------------------------------------------------------------------------------- */

/* A round's own copy of the name; ranges come region by region. */
static const char *keep_name(QapiTrackRounds *rounds, const char *name) {
    const char *last = rounds->names->len ? g_ptr_array_index(rounds->names, rounds->names->len - 1) : NULL;
    if (last && g_str_equal(last, name))
        return last;
    char *copy = g_strdup(name);
    g_ptr_array_add(rounds->names, copy);
    return copy;
}

/* A SnapDirtyFunc. */
static void add_range(const SnapRegion *region, uint64_t offset_bytes, uint64_t length_bytes, void *opaque) {
    QapiTrackRounds *rounds = opaque;
    QapiTrackRange range = {.region = keep_name(rounds, region->name),
                            .offset_bytes = offset_bytes,
                            .address = region->host_address + offset_bytes,
                            .length_bytes = length_bytes};
    g_array_append_val(rounds->ranges, range);
    rounds->n_bytes += length_bytes;
}

static gboolean fail_unmatched(const QapiTrackRounds *rounds, GError **error) {
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_FOUND, "no region of the guest matches \"%s\"",
                rounds->region_glob ? rounds->region_glob : "*");
    return FALSE;
}

gboolean qapi_track_rounds_next(QapiTrackRounds *rounds, QapiTrackRound *ret_round, GError **error) {
    QapiTrackRound round = {
        .number = rounds->number + 1, .log = snap_tracker_mode(rounds->tracker), .ranges = rounds->ranges};
    g_array_set_size(rounds->ranges, 0);
    g_ptr_array_set_size(rounds->names, 0);
    rounds->n_bytes = 0;
    if (!snap_tracker_collect(rounds->tracker, add_range, rounds, &round.stats, error))
        return FALSE;
    if (round.number == 1 && round.stats.pages_total == 0)
        return fail_unmatched(rounds, error);
    /* Behind it: where regions were listed anew, that came first and took most of the time. */
    gint64 now_us = g_get_monotonic_time();
    round.dirty_bytes = rounds->n_bytes;
    round.pages_per_second = (double)round.stats.n_pages * 1e6 / (double)MAX(now_us - rounds->since_us, 1);
    rounds->since_us = now_us;
    rounds->number = round.number;
    *ret_round = round;
    return TRUE;
}

/* ---- as JSON --------------------------------------------------------------------------------------------- */

static json_object *range_to_json(const QapiTrackRange *range) {
    json_object *object = json_object_new_object();
    qapi_json_add_string(object, "region", range->region);
    qapi_json_add_uint(object, "offset", range->offset_bytes);
    qapi_json_add_uint(object, "address", range->address);
    qapi_json_add_uint(object, "length", range->length_bytes);
    return object;
}

json_object *qapi_track_round_to_json(const QapiTrackRound *round) {
    json_object *ranges = json_object_new_array();
    for (guint i = 0; i < round->ranges->len; i++)
        json_object_array_add(ranges, range_to_json(&g_array_index(round->ranges, QapiTrackRange, i)));

    json_object *object = json_object_new_object();
    qapi_json_add_uint(object, "round", round->number);
    qapi_json_add_uint(object, "dirty-pages", round->stats.n_pages);
    qapi_json_add(object, "ranges", ranges);
    qapi_json_add_double(object, "scan-us", (double)round->stats.scan_ns / 1e3);
    qapi_json_add_double(object, "rate-pages-per-second", round->pages_per_second);
    qapi_json_add_uint(object, "pages-total", round->stats.pages_total);
    qapi_json_add_string(object, "log", snap_track_mode_name(round->log));
    return object;
}
