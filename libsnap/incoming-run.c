/*
 * The thread "snap-incoming": one connection after the other, and what follows when one has ended.
 *
 * Happy path: a source is met, the conversation is held to its end, the guest runs: COMPLETED. Failure modes, by
 * how far it had come when it failed:
 *
 *     no READY was sent                 FAILED or CANCELLED; the source is told why, and keeps its guest
 *     READY was sent, no GO was read    UNCONNECTED: the source may have let go of the guest, or not; it says so
 *                                       when it is back, or our owner does, if it never will be (promote)
 *     an epoch is in force              UNCONNECTED: it can be promoted, or the source hands the guest over
 *     it runs, and pages are missing    UNCONNECTED: the source has them
 *
 * In UNCONNECTED, and in COMPLETED where the source may not have heard of it, the thread waits for what its owner
 * asks: to listen again, to start the guest, or to end.
 */
#include "incoming.h"

#include <unistd.h>

/* ---- phases ---------------------------------------------------------------------------------------------- */

bool snap_incoming_rests(SnapMigrationPhase phase) {
    return phase == SNAP_MIGRATION_COMPLETED || phase == SNAP_MIGRATION_FAILED ||
           phase == SNAP_MIGRATION_CANCELLED || phase == SNAP_MIGRATION_UNCONNECTED;
}

static bool is_end(SnapMigrationPhase phase) {
    return snap_incoming_rests(phase) && phase != SNAP_MIGRATION_UNCONNECTED;
}

static void enter_locked(SnapIncoming *incoming, SnapMigrationPhase phase) SNAP_REQUIRES(incoming->lock) {
    if (phase == SNAP_MIGRATION_UNCONNECTED && incoming->phase != SNAP_MIGRATION_RECOVER)
        incoming->since = incoming->phase;
    if (phase != SNAP_MIGRATION_UNCONNECTED && phase != SNAP_MIGRATION_RECOVER)
        incoming->since = phase;
    incoming->resumable = phase == SNAP_MIGRATION_COMPLETED && incoming->met;
    if (is_end(phase) && !incoming->ended_us)
        incoming->ended_us = g_get_monotonic_time();
    if (!snap_incoming_rests(phase))
        g_clear_error(&incoming->error);
    incoming->phase = phase;
    snap_cond_broadcast(&incoming->changed);
}

void snap_incoming_tell(SnapIncoming *incoming) {
    snap_lock(&incoming->lock);
    SnapMigrationPhase phase = incoming->phase;
    uint64_t rounds = incoming->rounds;
    snap_unlock(&incoming->lock);
    if (incoming->func)
        incoming->func(phase, rounds, incoming->opaque);
}

void snap_incoming_set_phase(SnapIncoming *incoming, SnapMigrationPhase phase) {
    snap_lock(&incoming->lock);
    bool new = incoming->phase != phase;
    enter_locked(incoming, phase);
    snap_unlock(&incoming->lock);
    if (new)
        snap_incoming_tell(incoming);
}

bool snap_incoming_commit(SnapIncoming *incoming, GError **error) {
    snap_lock(&incoming->lock);
    bool free = incoming->asked == 0;
    bool again = incoming->committed || incoming->hello.purpose == SNAP_WIRE_REPLICATE;
    incoming->taken |= free && again;
    incoming->committed |= free;
    snap_unlock(&incoming->lock);
    if (!free)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_CANCELLED, "cancelled");
    return free;
}

void snap_incoming_wake(SnapIncoming *incoming) {
    uint64_t one = 1;
    if (write(incoming->wake_fd, &one, sizeof one) < 0)
        return; /* it is readable already */
}

void snap_incoming_interrupt_locked(SnapIncoming *incoming) {
    SnapIncomingLink *link = incoming->link;
    if (incoming->transport)
        snap_transport_stop(incoming->transport);
    if (incoming->newcomer)
        snap_channel_stop(&incoming->newcomer->channel);
    if (link) {
        link->stopped = true;
        for (unsigned i = 0; i < G_N_ELEMENTS(link->lanes); i++) {
            if (link->lanes[i])
                snap_channel_stop(&link->lanes[i]->channel);
        }
        if (link->urgent)
            snap_channel_stop(&link->urgent->channel);
    }
    snap_cond_broadcast(&incoming->changed);
    snap_incoming_wake(incoming);
}

/* ---- when a connection has ended ------------------------------------------------------------------------- */

static bool is_standby(const SnapIncoming *incoming) {
    return incoming->guest && incoming->epoch > 0 && !incoming->hopeless;
}

/* READY was said, and since then nothing that has decided anything. */
static bool lacks_go(const SnapIncoming *incoming) {
    return incoming->state == SNAP_INCOMING_READY && !incoming->told && !incoming->hopeless;
}

/* The source may be told that the guest will not be started here: it is certain. */
static bool may_say_why(const SnapIncoming *incoming, unsigned bits) {
    if (incoming->told || incoming->started || (bits & SNAP_ASKED_PROMOTE) != 0)
        return false;
    if (!incoming->guest || incoming->hopeless || (bits & (SNAP_ASKED_CANCEL | SNAP_ASKED_END)) != 0)
        return true;
    return incoming->state != SNAP_INCOMING_READY && incoming->state != SNAP_INCOMING_STANDBY;
}

/* Neither side can end it now. */
static bool must_wait(const SnapIncoming *incoming) {
    if (incoming->hopeless)
        return false;
    return incoming->started || is_standby(incoming) || lacks_go(incoming);
}

static SnapMigrationPhase phase_after(const SnapIncoming *incoming, bool ok, unsigned bits) {
    if (ok || incoming->complete)
        return SNAP_MIGRATION_COMPLETED;
    if (!incoming->started && (bits & (SNAP_ASKED_CANCEL | SNAP_ASKED_END)) != 0)
        return SNAP_MIGRATION_CANCELLED;
    return must_wait(incoming) ? SNAP_MIGRATION_UNCONNECTED : SNAP_MIGRATION_FAILED;
}

static bool will_promote(const SnapIncoming *incoming, unsigned bits) {
    bool can_run = is_standby(incoming) || (lacks_go(incoming) && !incoming->postcopy);
    return can_run && !incoming->started &&
           (bits & (SNAP_ASKED_PROMOTE | SNAP_ASKED_CANCEL | SNAP_ASKED_END)) == SNAP_ASKED_PROMOTE;
}

/* @order: what is done next. Phase and request change in one, so that nobody sees it rest in between. */
static void begin_promotion_locked(SnapIncoming *incoming) SNAP_REQUIRES(incoming->lock) {
    incoming->asked &= ~(unsigned)SNAP_ASKED_PROMOTE;
    incoming->committed = incoming->taken = true;
    enter_locked(incoming, SNAP_MIGRATION_DEVICE);
}

/* It runs here with all it has. A source that asks again is told so, and for that nothing else is needed: what the
 * guest came with does not stay for as long as it runs. Nobody else is there to look at it. */
static void let_go(SnapIncoming *incoming) {
    if (incoming->missing)
        snap_missing_finish(incoming->missing); /* it may not have come to a post-copy */
    g_clear_pointer(&incoming->arrivals, snap_arrivals_free);
    g_clear_pointer(&incoming->states, g_ptr_array_unref);
    g_clear_pointer(&incoming->next_states, g_ptr_array_unref);
    for (guint i = 0; i < incoming->regions->len; i++)
        snap_incoming_region_drop_masks(g_ptr_array_index(incoming->regions, i));
}

/* Close the connection, and say where that leaves us. @failure: (take). Return: what is to be done next, if that
 * is known. */
static unsigned settle(SnapIncoming *incoming, bool ok, GError *failure) {
    g_autoptr(SnapTransport) transport = NULL; /* ended without the lock: a command has to be waited for */
    snap_lock(&incoming->lock);
    unsigned bits = incoming->asked;
    transport = g_steal_pointer(&incoming->transport); /* before it rests: whoever is asked then brings another */
    snap_unlock(&incoming->lock);
    if (incoming->complete)
        snap_incoming_set_phase(incoming, SNAP_MIGRATION_COMPLETED); /* nobody has to wait for the rest */
    snap_incoming_link_close(incoming, failure && may_say_why(incoming, bits) ? failure->message : NULL);
    if (incoming->arrivals)
        snap_arrivals_drop(incoming->arrivals);
    snap_incoming_drop_states(incoming);
    if (incoming->complete)
        let_go(incoming);
    SnapMigrationPhase phase = phase_after(incoming, ok, bits);
    snap_lock(&incoming->lock);
    SnapMigrationPhase before = incoming->phase;
    bool promoted = will_promote(incoming, incoming->asked);
    if (promoted) {
        begin_promotion_locked(incoming);
    } else {
        incoming->asked &= ~(unsigned)SNAP_ASKED_PROMOTE;
        enter_locked(incoming, phase);
        if (phase != SNAP_MIGRATION_COMPLETED) {
            g_clear_error(&incoming->error);
            incoming->error = g_steal_pointer(&failure);
        }
    }
    bool new = incoming->phase != before;
    snap_unlock(&incoming->lock);
    g_clear_error(&failure);
    if (new)
        snap_incoming_tell(incoming);
    return promoted ? SNAP_ASKED_PROMOTE : 0;
}

/* ---- the thread ------------------------------------------------------------------------------------------ */

static void cancel_rest_locked(SnapIncoming *incoming) SNAP_REQUIRES(incoming->lock) {
    g_clear_error(&incoming->error);
    g_set_error(&incoming->error, SNAP_ERROR, SNAP_ERROR_CANCELLED, "cancelled");
    enter_locked(incoming, SNAP_MIGRATION_CANCELLED);
}

static unsigned take_order_locked(SnapIncoming *incoming) SNAP_REQUIRES(incoming->lock) {
    unsigned bits = incoming->asked;
    if (bits & SNAP_ASKED_END)
        return SNAP_ASKED_END;
    incoming->asked = 0;
    if (bits & SNAP_ASKED_CANCEL) {
        cancel_rest_locked(incoming);
        return SNAP_ASKED_CANCEL;
    }
    if (bits & SNAP_ASKED_PROMOTE) {
        begin_promotion_locked(incoming);
        return SNAP_ASKED_PROMOTE;
    }
    incoming->resumable = false;             /* until it rests again */
    snap_cond_broadcast(&incoming->changed); /* who waits for its end: it has begun to listen */
    if (incoming->phase == SNAP_MIGRATION_UNCONNECTED)
        enter_locked(incoming, SNAP_MIGRATION_RECOVER);
    return SNAP_ASKED_RECOVER;
}

/* What is to be done next; 0: nothing any more. */
static unsigned wait_for_order(SnapIncoming *incoming) {
    snap_lock(&incoming->lock);
    bool waits = incoming->phase == SNAP_MIGRATION_UNCONNECTED || incoming->resumable;
    while (waits && incoming->asked == 0)
        snap_cond_wait(&incoming->changed, &incoming->lock);
    SnapMigrationPhase before = incoming->phase;
    unsigned order = waits ? take_order_locked(incoming) : 0;
    bool new = incoming->phase != before;
    snap_unlock(&incoming->lock);
    if (new)
        snap_incoming_tell(incoming);
    return order & (SNAP_ASKED_PROMOTE | SNAP_ASKED_RECOVER);
}

static bool obey(SnapIncoming *incoming, unsigned order, GError **failure) {
    if (order & SNAP_ASKED_PROMOTE)
        return snap_incoming_start_guest(incoming, failure);
    return snap_incoming_meet_again(incoming, failure) && snap_incoming_listen(incoming, failure);
}

static void clear(SnapIncoming *incoming) {
    snap_missing_free(incoming->missing);
    snap_arrivals_free(incoming->arrivals);
    snap_incoming_image_free(incoming->image);
    g_clear_pointer(&incoming->states, g_ptr_array_unref);
    g_clear_pointer(&incoming->next_states, g_ptr_array_unref);
    g_clear_pointer(&incoming->regions, g_ptr_array_unref);
    g_clear_pointer(&incoming->layout, g_ptr_array_unref);
    g_clear_pointer(&incoming->driver, g_free);
    snap_lock(&incoming->lock);
    SnapTransport *transport = g_steal_pointer(&incoming->transport);
    snap_unlock(&incoming->lock);
    snap_transport_free(transport);
}

gpointer snap_incoming_run(gpointer data) {
    SnapIncoming *incoming = data;
    GError *failure = NULL;
    incoming->regions = g_ptr_array_new_with_free_func(snap_incoming_region_free);
    snap_incoming_tell(incoming);
    bool ok = snap_incoming_meet(incoming, &failure) && snap_incoming_listen(incoming, &failure);
    for (;;) {
        unsigned order = settle(incoming, ok, g_steal_pointer(&failure));
        if (order == 0)
            order = wait_for_order(incoming);
        if (order == 0)
            break;
        ok = obey(incoming, order, &failure);
    }
    clear(incoming);
    return NULL;
}
