/*
 * The destination of a migration, as its owner sees it: see libsnap.h; incoming.h is the map of the rest.
 *
 * Happy path: start listens and makes the thread, which does everything; wait waits for it to rest. What is asked
 * of it meanwhile (cancel, promote, recover, free) is noted as a bit, and ends whatever the thread waits for; the
 * thread alone changes the phase. Failure modes: what comes too late is REFUSED, which is decided under the lock
 * together with the thread's own step past the point.
 */
#include "incoming.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { LOOK_UP_MS = 100 }; /* that recover waits for a name: of this machine or network it is there by then */

/* ---- start and end --------------------------------------------------------------------------------------- */

static gboolean check_guest(const SnapGuest *guest, GError **error) {
    const SnapMoveOps *ops = snap_guest_move_ops(guest);
    const char *why = NULL;
    if (!ops || !ops->load_state || !ops->start)
        why = "it cannot take over the state of another";
    else if (guest->pid != getpid())
        why = "its memory is another process's";
    else if (guest->tracker || guest->log.tracker)
        why = "its writes are logged";
    if (!why)
        return TRUE;
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_REFUSED, "no guest can be moved here: %s", why);
    return FALSE;
}

static gboolean check_options(const SnapGuest *guest, const SnapIncomingOptions *options, GError **error) {
    if (!options->uri || (guest != NULL) == (options->image_dir != NULL)) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_USAGE, "%s",
                    options->uri ? "either a guest or a folder for images" : "there is no URI to listen at");
        return FALSE;
    }
    if (options->silence_ms > G_MAXINT) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_USAGE, "a time of silence is at most %d ms", G_MAXINT);
        return FALSE;
    }
    return !guest || check_guest(guest, error);
}

SnapIncoming *snap_incoming_start(SnapGuest *guest, const SnapIncomingOptions *options, SnapMigrationFunc func,
                                  void *opaque, GError **error) {
    /* First of all, as a descriptor is taken in any case. */
    g_autoptr(SnapTransport) transport = options->uri ? snap_transport_new_destination(options->uri, error) : NULL;
    if (options->uri && !transport)
        return NULL;
    if (!check_options(guest, options, error))
        return NULL;
    int wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (wake_fd < 0) {
        snap_set_errno(error, errno, "an eventfd");
        return NULL;
    }
    bool made = false;
    if (!guest && !snap_incoming_image_prepare(options->image_dir, &made, error)) {
        if (made)
            rmdir(options->image_dir);
        close(wake_fd);
        return NULL;
    }
    SnapIncoming *incoming = g_new0(SnapIncoming, 1);
    snap_lock_init(&incoming->lock);
    snap_cond_init(&incoming->changed);
    incoming->guest = guest;
    incoming->image_dir = g_strdup(options->image_dir);
    incoming->image_keep = options->image_keep;
    incoming->image_dir_made = made;
    incoming->silence_ms = options->silence_ms;
    incoming->func = func;
    incoming->opaque = opaque;
    incoming->start_us = g_get_monotonic_time();
    incoming->wake_fd = wake_fd;
    incoming->uri = g_strdup(snap_transport_uri(transport));
    incoming->transport = g_steal_pointer(&transport);
    incoming->phase = incoming->since = SNAP_MIGRATION_SETUP;
    incoming->thread = g_thread_new("snap-incoming", snap_incoming_run, incoming);
    return incoming;
}

void snap_incoming_free(SnapIncoming *incoming) {
    if (!incoming)
        return;
    snap_lock(&incoming->lock);
    incoming->asked |= SNAP_ASKED_END;
    snap_incoming_interrupt_locked(incoming);
    snap_unlock(&incoming->lock);
    g_thread_join(incoming->thread);
    g_clear_error(&incoming->error);
    close(incoming->wake_fd);
    snap_cond_clear(&incoming->changed);
    snap_lock_clear(&incoming->lock);
    if (incoming->image_dir_made)
        rmdir(incoming->image_dir);
    g_free(incoming->image_dir);
    g_free(incoming->uri);
    g_free(incoming);
}

/* ---- waiting --------------------------------------------------------------------------------------------- */

/* What was asked for is about to change the phase. */
static bool rests_locked(const SnapIncoming *incoming) {
    return snap_incoming_rests(incoming->phase) &&
           (incoming->asked & (SNAP_ASKED_PROMOTE | SNAP_ASKED_RECOVER)) == 0;
}

gboolean snap_incoming_wait(SnapIncoming *incoming, int timeout_ms, GError **error) {
    gint64 until_us = g_get_monotonic_time() + (gint64)timeout_ms * G_TIME_SPAN_MILLISECOND;
    bool in_time = true;
    snap_lock(&incoming->lock);
    while (!rests_locked(incoming) && in_time) {
        if (timeout_ms < 0)
            snap_cond_wait(&incoming->changed, &incoming->lock);
        else
            in_time = snap_cond_wait_until(&incoming->changed, &incoming->lock, until_us);
    }
    bool rests = rests_locked(incoming);
    bool completed = rests && incoming->phase == SNAP_MIGRATION_COMPLETED;
    if (!rests)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_TIMED_OUT, "the migration is still under way");
    else if (!completed)
        g_propagate_error(error, g_error_copy(incoming->error));
    if (rests && error && g_error_matches(*error, SNAP_ERROR, SNAP_ERROR_TIMED_OUT))
        (*error)->code = SNAP_ERROR_IO; /* silence; TIMED_OUT would mean that it still runs */
    snap_unlock(&incoming->lock);
    return completed;
}

/* ---- what is asked of it --------------------------------------------------------------------------------- */

gboolean snap_incoming_refuse(GError **error, const char *format, ...) {
    va_list args;
    va_start(args, format);
    g_propagate_error(error, g_error_new_valist(SNAP_ERROR, SNAP_ERROR_REFUSED, format, args));
    va_end(args);
    return FALSE;
}

/* Where the connection was lost after READY only the source knows whose the guest is; a standby is not committed
 * before it is being started. */
static const char *cannot_cancel_locked(const SnapIncoming *incoming) {
    if (incoming->phase == SNAP_MIGRATION_COMPLETED || incoming->phase == SNAP_MIGRATION_POSTCOPY)
        return "the guest runs here already";
    if (incoming->phase == SNAP_MIGRATION_FAILED || incoming->phase == SNAP_MIGRATION_CANCELLED)
        return "the migration has ended already";
    if (incoming->asked & SNAP_ASKED_PROMOTE)
        return "the guest is being started here";
    return incoming->committed ? "it is too late: the guest may be this side's" : NULL;
}

gboolean snap_incoming_cancel(SnapIncoming *incoming, GError **error) {
    snap_lock(&incoming->lock);
    const char *why = cannot_cancel_locked(incoming);
    if (!why) {
        incoming->asked |= SNAP_ASKED_CANCEL;
        snap_incoming_interrupt_locked(incoming);
    }
    snap_unlock(&incoming->lock);
    return why ? snap_incoming_refuse(error, "%s", why) : TRUE;
}

/* Of a move only what has lost its source, and all else is here: of whoever is connected GO may come. */
static const char *cannot_promote_locked(const SnapIncoming *incoming, bool force) {
    bool lost = incoming->phase == SNAP_MIGRATION_UNCONNECTED || incoming->phase == SNAP_MIGRATION_RECOVER;
    bool lacks_go = lost && incoming->since == SNAP_MIGRATION_DEVICE;
    if (incoming->since != SNAP_MIGRATION_STANDBY && !lacks_go)
        return "it is no standby with a complete epoch, and no guest that has lost its source when all was here";
    if (!incoming->guest)
        return "there are images here, and no guest";
    if (lacks_go && incoming->postcopy)
        return "pages of the guest are missing here, and only its source has them";
    if (incoming->asked & SNAP_ASKED_CANCEL)
        return "it is being cancelled";
    if (!lost && !force)
        return "the source is connected, and runs the guest: let it hand the guest over, or force it";
    return incoming->taken ? "the guest becomes this side's at this moment" : NULL;
}

gboolean snap_incoming_promote(SnapIncoming *incoming, gboolean force, GError **error) {
    snap_lock(&incoming->lock);
    const char *why = cannot_promote_locked(incoming, force);
    if (!why) {
        incoming->asked |= SNAP_ASKED_PROMOTE;
        snap_incoming_interrupt_locked(incoming);
    }
    snap_unlock(&incoming->lock);
    return why ? snap_incoming_refuse(error, "%s", why) : TRUE;
}

static const char *cannot_recover_locked(const SnapIncoming *incoming) {
    if (incoming->asked)
        return "something else was asked for just now";
    if (incoming->phase == SNAP_MIGRATION_UNCONNECTED || incoming->resumable)
        return NULL;
    bool listens = incoming->transport && incoming->phase == SNAP_MIGRATION_COMPLETED;
    return listens ? "it listens already" : "no connection was lost that could be resumed";
}

/* Nothing is listened at before it is known that it may be: at its own address it would find itself. */
static SnapTransport *listen_for_source(SnapIncoming *incoming, const char *uri, GError **error) {
    g_autoptr(GError) failure = NULL;
    snap_lock(&incoming->lock);
    const char *why = cannot_recover_locked(incoming);
    snap_unlock(&incoming->lock);
    if (why) {
        snap_transport_discard(uri);
        snap_incoming_refuse(error, "%s", why);
        return NULL;
    }
    g_autoptr(SnapTransport) transport = snap_transport_prepare_destination(uri, error);
    if (!transport)
        return NULL;
    if (snap_transport_listen(transport, LOOK_UP_MS, &failure) ||
        g_error_matches(failure, SNAP_ERROR, SNAP_ERROR_TIMED_OUT))
        return g_steal_pointer(&transport);
    g_propagate_error(error, g_steal_pointer(&failure));
    return NULL;
}

gboolean snap_incoming_recover(SnapIncoming *incoming, const char *uri, GError **error) {
    if (!snap_transport_check(uri, error))
        return FALSE;
    g_autoptr(SnapTransport) transport = listen_for_source(incoming, uri, error);
    if (!transport)
        return FALSE;
    bool one_way = snap_transport_is_one_way(transport);
    snap_lock(&incoming->lock);
    const char *why = one_way ? "nothing is resumed from a file" : cannot_recover_locked(incoming);
    if (!why) {
        incoming->asked |= SNAP_ASKED_RECOVER;
        g_free(incoming->uri);
        incoming->uri = g_strdup(snap_transport_uri(transport));
        incoming->transport = g_steal_pointer(&transport);
        snap_cond_broadcast(&incoming->changed);
    }
    snap_unlock(&incoming->lock);
    return why ? snap_incoming_refuse(error, "%s", why) : TRUE;
}

/* ---- where it is ----------------------------------------------------------------------------------------- */

char *snap_incoming_uri(SnapIncoming *incoming) {
    snap_lock(&incoming->lock);
    char *uri = g_strdup(incoming->uri);
    snap_unlock(&incoming->lock);
    return uri;
}

static uint64_t lane_bytes(const SnapIncomingLane *lane) {
    return lane ? __atomic_load_n(&lane->channel.received_bytes, __ATOMIC_RELAXED) : 0;
}

static uint64_t ns_between(int64_t from_us, int64_t to_us) {
    return to_us > from_us ? (uint64_t)(to_us - from_us) * 1000 : 0;
}

/* The bytes that have come, and in which part of the migration. */
static void count_bytes_locked(const SnapIncoming *incoming, SnapMigrationStats *stats) {
    uint64_t others = 0, main_and_urgent = 0;
    if (incoming->link) {
        main_and_urgent = lane_bytes(incoming->link->lanes[0]) + lane_bytes(incoming->link->urgent);
        for (unsigned i = 1; i < incoming->link->n_channels; i++)
            others += lane_bytes(incoming->link->lanes[i]);
    }
    stats->multifd_bytes = incoming->past_multifd_bytes + others;
    stats->sent_bytes = incoming->past_bytes + incoming->past_multifd_bytes + main_and_urgent + others;
    uint64_t stopped = incoming->switch_bytes[0] ? incoming->switch_bytes[0] : stats->sent_bytes;
    uint64_t started = incoming->switch_bytes[1] ? incoming->switch_bytes[1] : stats->sent_bytes;
    stats->precopy_bytes = stopped;
    stats->downtime_bytes = started - MIN(started, stopped);
    stats->postcopy_bytes = stats->sent_bytes - MIN(started, stats->sent_bytes);
}

void snap_incoming_get_stats(SnapIncoming *incoming, SnapMigrationStats *ret_stats) {
    SnapMigrationStats stats = {.page_bytes = (uint64_t)sysconf(_SC_PAGESIZE)};
    snap_lock(&incoming->lock);
    int64_t now_us = incoming->ended_us ? incoming->ended_us : g_get_monotonic_time();
    stats.phase = incoming->phase;
    stats.since = incoming->since;
    stats.total_bytes = incoming->total_bytes;
    count_bytes_locked(incoming, &stats);
    stats.rounds = incoming->rounds;
    stats.dirty_pages_per_second = incoming->dirty_pages_per_second;
    stats.epoch = incoming->epoch;
    stats.setup_ns = ns_between(incoming->start_us, incoming->welcome_us ? incoming->welcome_us : now_us);
    stats.total_ns = ns_between(incoming->start_us, now_us);
    bool known = incoming->ended_us && incoming->stopped_us; /* of a standby it is not */
    stats.downtime_ns = known ? ns_between(incoming->stopped_us, incoming->started_us) : 0;
    stats.bytes_per_second =
        incoming->ended_us ? 0 : snap_rate_look(&incoming->rate, snap_now_ns(), stats.sent_bytes);
    snap_unlock(&incoming->lock);
    stats.pages_zero = __atomic_load_n(&incoming->pages_zero, __ATOMIC_RELAXED);
    stats.pages_normal = __atomic_load_n(&incoming->pages_normal, __ATOMIC_RELAXED);
    stats.postcopy_requests = __atomic_load_n(&incoming->requests, __ATOMIC_RELAXED);
    stats.remaining_bytes = __atomic_load_n(&incoming->pages_missing, __ATOMIC_RELAXED) * stats.page_bytes;
    stats.pages_per_second = stats.bytes_per_second / stats.page_bytes;
    *ret_stats = stats;
}
