/*
 * All lanes at work: what is to be sent goes out, each chunk on the channel of its number. See outgoing.h.
 *
 * Happy path: a sweep begins; every lane goes through the sets and sends its own chunks, the job's thread as lane
 * 0, looking up between them; it ends when the last lane has found nothing more of its own. Lanes wait for each
 * other only there.
 *
 * Failure modes: a lane that fails halts the others; the first error is that of the sweep. `halt` may also be set
 * by who wants the sweep to end early (post-copy).
 *
 * Invariant: while no sweep runs, lanes touch nothing, and everything of theirs is the job's.
 */
#include "outgoing.h"

#include <sys/prctl.h>

enum { PACE_SLICE_MS = 50, JOIN_SLICE_MS = 20 };

static bool halted(SnapOutgoing *outgoing) {
    return g_atomic_int_get(&outgoing->halt);
}

static bool is_mine(const SnapLane *lane, uint64_t chunk) {
    return chunk % lane->outgoing->n_lanes == lane->number;
}

/* The next chunk of @lane in [from, end) of a region. */
static bool next_in(const SnapLane *lane, uint32_t region, uint64_t from, uint64_t end, SnapPosition *ret_place) {
    const SnapPageSet *set = &snap_outgoing_source(lane->outgoing, region)->pages;
    for (; snap_pageset_next(set, from, end, &from); from++) {
        if (is_mine(lane, from)) {
            *ret_place = (SnapPosition){region, from};
            return true;
        }
    }
    return false;
}

/* From lane->at on, and around. */
static bool next_place(const SnapLane *lane, SnapPosition *ret_place) {
    uint32_t n = lane->outgoing->sources->len, first = lane->at.region;
    g_assert(n > 0);
    for (uint32_t i = 0; i <= n; i++) {
        uint64_t from = i == 0 ? lane->at.chunk : 0, end = i == n ? lane->at.chunk : UINT64_MAX;
        if (next_in(lane, (first + i) % n, from, end, ret_place)) {
            return true;
        }
    }
    return false;
}

/* Post-copy: what is near to what was asked for is likely to be asked for next. */
static void follow_wish(SnapLane *lane) {
    SnapOutgoing *outgoing = lane->outgoing;
    snap_lock(&outgoing->lock);
    if (lane->wanted != outgoing->n_wanted) {
        lane->wanted = outgoing->n_wanted;
        lane->at = outgoing->wanted;
    }
    snap_unlock(&outgoing->lock);
}

/* FALSE without an error: the sweep is to end. */
static gboolean may_send(SnapLane *lane, GError **error) {
    SnapOutgoing *outgoing = lane->outgoing;
    do {
        if (halted(outgoing) || (lane->number == 0 && !snap_outgoing_look(outgoing, error))) {
            return FALSE;
        }
    } while (!snap_pace_wait(&outgoing->pace, PACE_SLICE_MS));
    return TRUE;
}

static gboolean send_sets(SnapLane *lane, GError **error) {
    SnapOutgoing *outgoing = lane->outgoing;
    bool postcopy = g_atomic_int_get(&outgoing->part) == SNAP_PART_POSTCOPY;
    SnapPosition place;
    GError *failure = NULL;
    lane->at = (SnapPosition){0};
    while (may_send(lane, &failure)) {
        if (postcopy) {
            follow_wish(lane);
        }
        if (!next_place(lane, &place)) {
            return TRUE;
        }
        lane->at = (SnapPosition){place.region, place.chunk + 1};
        uint64_t mask =
            snap_pageset_take(&snap_outgoing_source(outgoing, place.region)->pages, place.chunk, UINT64_MAX);
        if (mask && !snap_lane_send(lane, place, mask, &failure)) {
            break;
        }
    }
    if (failure) {
        g_propagate_error(error, failure);
    }
    return !failure;
}

static gboolean send_kept(SnapLane *lane, GError **error) {
    SnapOutgoing *outgoing = lane->outgoing;
    GError *failure = NULL;
    for (guint i = 0; i < outgoing->kept->len && !failure; i++) {
        const SnapKeptChunk *kept = &g_array_index(outgoing->kept, SnapKeptChunk, i);
        if (is_mine(lane, kept->place.chunk) && may_send(lane, &failure)) {
            snap_lane_send_kept(lane, kept->place, kept->mask, outgoing->kept_bytes + kept->offset, &failure);
        }
    }
    if (failure) {
        g_propagate_error(error, failure);
    }
    return !failure;
}

static void work(SnapLane *lane) {
    SnapOutgoing *outgoing = lane->outgoing;
    GError *error = NULL;
    gboolean done = outgoing->kept ? send_kept(lane, &error) : send_sets(lane, &error);
    if (!done) {
        g_atomic_int_set(&outgoing->halt, 1);
        snap_pace_stop(&outgoing->pace, true);
    }
    snap_lock(&outgoing->lock);
    if (!done && !outgoing->lane_error) {
        outgoing->lane_error = g_steal_pointer(&error);
    }
    outgoing->busy--;
    snap_cond_broadcast(&outgoing->changed);
    snap_unlock(&outgoing->lock);
    g_clear_error(&error);
}

/* ---- threads --------------------------------------------------------------------------------------------- */

static gpointer run_lane(gpointer data) {
    SnapLane *lane = data;
    SnapOutgoing *outgoing = lane->outgoing;
    guint64 seen = 0;
    prctl(PR_SET_NAME, "snap-lane");
    snap_lock(&outgoing->lock);
    while (!outgoing->lanes_end) {
        if (outgoing->turn == seen) {
            snap_cond_wait(&outgoing->changed, &outgoing->lock);
            continue;
        }
        seen = outgoing->turn;
        snap_unlock(&outgoing->lock);
        work(lane);
        snap_lock(&outgoing->lock);
    }
    snap_unlock(&outgoing->lock);
    return NULL;
}

void snap_outgoing_start_lanes(SnapOutgoing *outgoing) {
    for (guint i = 1; i < outgoing->n_lanes; i++) {
        outgoing->lanes[i].thread = g_thread_new("snap-lane", run_lane, &outgoing->lanes[i]);
    }
}

void snap_outgoing_stop_lanes(SnapOutgoing *outgoing) {
    snap_lock(&outgoing->lock);
    outgoing->lanes_end = true;
    snap_cond_broadcast(&outgoing->changed);
    snap_unlock(&outgoing->lock);
    for (guint i = 1; i < outgoing->n_lanes; i++) {
        if (outgoing->lanes[i].thread) {
            g_thread_join(g_steal_pointer(&outgoing->lanes[i].thread));
        }
    }
    snap_lock(&outgoing->lock);
    outgoing->lanes_end = false;
    outgoing->turn = 0;
    snap_unlock(&outgoing->lock);
}

/* ---- a sweep --------------------------------------------------------------------------------------------- */

/* Lanes that wait for their socket are given up with the sweep. */
static void halt_others(SnapOutgoing *outgoing) {
    g_atomic_int_set(&outgoing->halt, 1);
    snap_pace_stop(&outgoing->pace, true);
    for (guint i = 1; i < outgoing->n_lanes; i++) {
        snap_channel_stop(&outgoing->lanes[i].channel);
    }
}

/* The job goes on looking while others still send. */
static void join_others(SnapOutgoing *outgoing) {
    bool failed = false;
    snap_lock(&outgoing->lock);
    while (outgoing->busy > 0) {
        GError *error = NULL;
        snap_cond_wait_until(&outgoing->changed, &outgoing->lock, g_get_monotonic_time() + JOIN_SLICE_MS * 1000);
        failed = failed || outgoing->lane_error;
        snap_unlock(&outgoing->lock);
        bool look = !failed && !snap_outgoing_look(outgoing, &error);
        if (failed || look) {
            halt_others(outgoing);
        }
        snap_lock(&outgoing->lock);
        if (look) {
            failed = true;
            g_clear_error(&outgoing->lane_error); /* a consequence, if anything */
            outgoing->lane_error = error;
        }
    }
    snap_unlock(&outgoing->lock);
}

/* They are still to be sent. */
static void put_skipped_back(SnapOutgoing *outgoing) {
    for (guint i = 0; i < outgoing->skipped->len; i++) {
        const SnapKeptChunk *skipped = &g_array_index(outgoing->skipped, SnapKeptChunk, i);
        snap_pageset_add(&snap_outgoing_source(outgoing, skipped->place.region)->pages, skipped->place.chunk,
                         skipped->mask);
    }
    g_array_set_size(outgoing->skipped, 0);
}

gboolean snap_outgoing_sweep(SnapOutgoing *outgoing, GError **error) {
    snap_lock(&outgoing->lock);
    outgoing->busy = outgoing->n_lanes;
    outgoing->turn++;
    snap_cond_broadcast(&outgoing->changed);
    snap_unlock(&outgoing->lock);
    work(&outgoing->lanes[0]);
    join_others(outgoing);
    put_skipped_back(outgoing);
    if (!outgoing->lane_error) {
        return TRUE;
    }
    g_propagate_error(error, g_steal_pointer(&outgoing->lane_error));
    return FALSE;
}

gboolean snap_outgoing_sweep_kept(SnapOutgoing *outgoing, const GArray *kept, uint8_t *bytes, GError **error) {
    outgoing->kept = kept;
    outgoing->kept_bytes = bytes;
    gboolean done = snap_outgoing_sweep(outgoing, error);
    outgoing->kept = NULL;
    return done;
}

gboolean snap_outgoing_send_end(SnapOutgoing *outgoing, uint16_t flags, uint64_t epoch, uint64_t n_states,
                                GError **error) {
    for (guint i = outgoing->n_lanes; i-- > 0;) {
        if (!snap_lane_end(&outgoing->lanes[i], i == 0 ? flags : 0, epoch, i == 0 ? n_states : 0, error)) {
            return FALSE;
        }
    }
    return TRUE;
}

void snap_outgoing_set_part(SnapOutgoing *outgoing, SnapPart part) {
    snap_lock(&outgoing->lock);
    g_atomic_int_set(&outgoing->part, (gint)part);
    snap_outgoing_apply_limit_locked(outgoing);
    snap_unlock(&outgoing->lock);
}
