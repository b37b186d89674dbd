/*
 * From the last END to the guest that runs, or to the standby.
 *
 * Happy path of a move: all has come and was checked; in a post-copy what is missing is registered; the state is
 * loaded; READY is said; GO is read; the guest is started; STARTED is said. Of a replication: each END puts an
 * epoch in force, which READY says; the state is loaded when the guest is to run.
 *
 * Failure modes: before READY the source is told, and keeps its guest. What fails between GO and STARTED leaves a
 * guest that runs nowhere: it is this side's, and cannot be started; the source is told that it will not be.
 *
 * Invariant: start is called in one place, once.
 */
#include "incoming.h"

/* ---- the guest ------------------------------------------------------------------------------------------- */

static gboolean load_state(SnapIncoming *incoming, GError **error) {
    const SnapMoveOps *ops = snap_guest_move_ops(incoming->guest);
    if (ops->load_state(incoming->guest->opaque, incoming->states, error))
        return TRUE;
    g_prefix_error(error, "the guest's state cannot be loaded: ");
    return FALSE;
}

/* It may look at memory that has not come yet. */
static gboolean load_fetching(SnapIncoming *incoming, GError **error) {
    if (!incoming->postcopy)
        return load_state(incoming, error);
    snap_missing_begin_load(incoming->missing);
    gboolean loaded = load_state(incoming, error);
    return snap_missing_end_load(incoming->missing, error) && loaded;
}

static gboolean start(SnapIncoming *incoming, GError **error) {
    const SnapMoveOps *ops = snap_guest_move_ops(incoming->guest);
    g_assert(!incoming->started && !incoming->hopeless);
    if (!ops->start(incoming->guest->opaque, error)) {
        g_prefix_error(error, "the guest cannot be started: ");
        incoming->hopeless = true;
        return FALSE;
    }
    incoming->started = true;
    incoming->met = !incoming->one_way;
    incoming->complete = incoming->done = !incoming->postcopy;
    SnapMigrationStats stats;
    snap_incoming_get_stats(incoming, &stats);
    snap_lock(&incoming->lock);
    incoming->started_us = g_get_monotonic_time();
    incoming->switch_bytes[1] = stats.sent_bytes;
    snap_unlock(&incoming->lock);
    return TRUE;
}

/* The state of a move was loaded before READY. */
gboolean snap_incoming_start_guest(SnapIncoming *incoming, GError **error) {
    if (incoming->hello.purpose == SNAP_WIRE_MOVE || load_state(incoming, error))
        return start(incoming, error);
    incoming->hopeless = true;
    return FALSE;
}

/* ---- a part is complete ---------------------------------------------------------------------------------- */

static gboolean say_ready(SnapIncoming *incoming, uint64_t epoch, GError **error) {
    uint8_t body[16];
    return snap_incoming_send(incoming, SNAP_WIRE_READY, body, snap_wire_encode_number(epoch, body), error);
}

/* A move: everything is there, or will be. */
static gboolean move_done(SnapIncoming *incoming, GError **error) {
    if (!incoming->guest) {
        incoming->done = snap_incoming_image_commit(incoming, error);
        return incoming->done;
    }
    if (incoming->postcopy) {
        if (!snap_missing_arm(incoming->missing, error))
            return FALSE;
        incoming->place = SNAP_PLACE_MISSING;
    }
    if (!load_fetching(incoming, error) || !snap_incoming_commit(incoming, error))
        return FALSE;
    if (incoming->one_way)
        return start(incoming, error);
    incoming->state = SNAP_INCOMING_READY;
    return say_ready(incoming, 0, error);
}

/* Nothing here can fail for a guest: all was checked as it came. */
static gboolean put_in_force(SnapIncoming *incoming, GError **error) {
    if (!incoming->guest)
        return snap_incoming_image_commit(incoming, error);
    if (incoming->place == SNAP_PLACE_KEPT)
        snap_arrivals_apply(incoming->arrivals);
    incoming->place = SNAP_PLACE_KEPT;
    return TRUE;
}

static gboolean epoch_done(SnapIncoming *incoming, GError **error) {
    if (!put_in_force(incoming, error))
        return FALSE;
    g_clear_pointer(&incoming->states, g_ptr_array_unref);
    incoming->states = g_steal_pointer(&incoming->next_states);
    incoming->next_states = g_ptr_array_new_with_free_func((GDestroyNotify)snap_state_free);
    incoming->blob_bytes = 0;
    snap_lock(&incoming->lock);
    uint64_t epoch = ++incoming->epoch;
    snap_unlock(&incoming->lock);
    incoming->state = SNAP_INCOMING_STANDBY;
    snap_incoming_set_phase(incoming, SNAP_MIGRATION_STANDBY);
    gboolean said = say_ready(incoming, epoch, error);
    return (incoming->guest || snap_incoming_image_fold_old(incoming, said ? error : NULL)) && said;
}

gboolean snap_incoming_part_done(SnapIncoming *incoming, GError **error) {
    bool moves = incoming->hello.purpose == SNAP_WIRE_MOVE;
    if (moves) {
        g_ptr_array_unref(incoming->states);
        incoming->states = g_ptr_array_ref(incoming->next_states);
    }
    if (!(moves ? move_done(incoming, error) : epoch_done(incoming, error)))
        return FALSE;
    snap_incoming_link_go_on(incoming);
    return TRUE;
}

/* ---- it is this side's ----------------------------------------------------------------------------------- */

gboolean snap_incoming_say_started(SnapIncoming *incoming, GError **error) {
    uint8_t body[16];
    uint32_t body_bytes = snap_wire_encode_id(&incoming->hello.id, body);
    return snap_incoming_send(incoming, SNAP_WIRE_STARTED, body, body_bytes, error);
}

gboolean snap_incoming_take_over(SnapIncoming *incoming, GError **error) {
    if (!snap_incoming_commit(incoming, error) || !snap_incoming_start_guest(incoming, error))
        return FALSE;
    incoming->state = SNAP_INCOMING_RUNS;
    if (incoming->postcopy)
        snap_incoming_set_phase(incoming, SNAP_MIGRATION_POSTCOPY);
    if (snap_incoming_say_started(incoming, error))
        return TRUE;
    if (incoming->complete)
        g_clear_error(error);
    return incoming->complete;
}

/* It runs here with all it has, whether COMPLETE gets through or not. */
gboolean snap_incoming_all_there(SnapIncoming *incoming, GError **error) {
    (void)error;
    uint8_t body[16];
    uint32_t body_bytes = snap_wire_encode_id(&incoming->hello.id, body);
    snap_missing_finish(incoming->missing);
    incoming->complete = incoming->done = true;
    snap_incoming_send(incoming, SNAP_WIRE_COMPLETE, body, body_bytes, NULL);
    return TRUE;
}

/* ---- one-way --------------------------------------------------------------------------------------------- */

gboolean snap_incoming_end_of_file(SnapIncoming *incoming, GError **failure) {
    bool cut = g_error_matches(*failure, SNAP_ERROR, SNAP_ERROR_IO);
    if (!cut || incoming->epoch == 0) {
        if (cut)
            g_prefix_error(failure, "it ends before it is complete: ");
        return FALSE;
    }
    g_clear_error(failure);
    if (!incoming->guest)
        return TRUE;
    return snap_incoming_commit(incoming, failure) && snap_incoming_start_guest(incoming, failure);
}
