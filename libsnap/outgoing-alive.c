/*
 * The thread "snap-alive" of a source: it says that we live, when nothing else has been said for a while. See
 * outgoing.h.
 *
 * The job's thread may be at the log of a large guest, or at a guest's function that takes its time, for longer
 * than the other side is patient. Failure modes: none of its own; where nothing can be sent the job finds out.
 *
 * Invariant: it sends only what the socket has room for, so it never waits with the lane's lock held.
 */
#include "outgoing.h"

#include <poll.h>
#include <sys/prctl.h>

enum { ALIVE_MAX_MS = 500 }; /* a second is what the protocol asks for */

uint64_t snap_outgoing_alive_ms(const SnapOutgoing *outgoing) {
    return CLAMP(outgoing->options.silence_ms / 4, 1, ALIVE_MAX_MS);
}

static bool has_room(const SnapChannel *channel) {
    struct pollfd out = {.fd = channel->out, .events = POLLOUT};
    return poll(&out, 1, 0) == 1 && out.revents == POLLOUT;
}

/* In microseconds; 0: it is. */
static int64_t due_in(const SnapOutgoing *outgoing) {
    int64_t sent_us = __atomic_load_n(&outgoing->lanes[0].channel.sent_us, __ATOMIC_RELAXED);
    int64_t due_us = sent_us + (int64_t)snap_outgoing_alive_ms(outgoing) * 1000;
    return MAX(due_us - g_get_monotonic_time(), 0);
}

static void say_it(SnapOutgoing *outgoing) {
    uint8_t body[16];
    uint64_t n_chunks = __atomic_load_n(&outgoing->n_chunks, __ATOMIC_RELAXED);
    SnapLane *main = &outgoing->lanes[0];
    if (has_room(&main->channel)) {
        snap_lane_transmit(main, SNAP_WIRE_ALIVE, 0, body, snap_wire_encode_number(n_chunks, body), NULL, NULL);
    }
}

static gpointer run_alive(gpointer data) {
    SnapOutgoing *outgoing = data;
    prctl(PR_SET_NAME, "snap-alive");
    snap_lock(&outgoing->lock);
    while (!outgoing->alive_end) {
        int64_t wait_us = due_in(outgoing);
        if (wait_us == 0) {
            snap_unlock(&outgoing->lock);
            say_it(outgoing);
            snap_lock(&outgoing->lock);
            wait_us = MAX(due_in(outgoing), 1000); /* where there was no room: again, and not at once */
        }
        if (!outgoing->alive_end) {
            snap_cond_wait_until(&outgoing->changed, &outgoing->lock, g_get_monotonic_time() + wait_us);
        }
    }
    snap_unlock(&outgoing->lock);
    return NULL;
}

void snap_outgoing_start_alive(SnapOutgoing *outgoing) {
    outgoing->greeted = true;
    outgoing->alive = g_thread_new("snap-alive", run_alive, outgoing);
}

void snap_outgoing_stop_alive(SnapOutgoing *outgoing) {
    outgoing->greeted = false;
    if (!outgoing->alive) {
        return;
    }
    snap_lock(&outgoing->lock);
    outgoing->alive_end = true;
    snap_cond_broadcast(&outgoing->changed);
    snap_unlock(&outgoing->lock);
    g_thread_join(g_steal_pointer(&outgoing->alive));
    snap_lock(&outgoing->lock);
    outgoing->alive_end = false;
    snap_unlock(&outgoing->lock);
}
