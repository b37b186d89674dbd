/*
 * The source of a migration: the job, and what others ask of it. See outgoing.h for the map.
 *
 * The happy path, in the thread "snap-outgoing": list regions, connect, greet; log the guest's writes; copy all of
 * its memory, then what it wrote meanwhile, again and again, until little is left; stop it; send the rest and its
 * device state; hear that it is ready there; let go of it; hear that it has started.
 *
 * Failure modes: see outgoing.h; and a wish that comes at the wrong time is REFUSED.
 */
#include "outgoing.h"

#include "stats.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <unistd.h>

enum {
    EPOCH_MAX_MS = 24 * 3600 * 1000,
    DEFAULT_DOWNTIME_MS = 300,
    DEFAULT_SILENCE_MS = 10000,
    DEFAULT_USELESS_ROUNDS = 30,
    DEFAULT_THROTTLE_INITIAL = 20,
    DEFAULT_THROTTLE_INCREMENT = 10,
    DEFAULT_THROTTLE_MAX = 99,
    COMPRESS_LEVEL_MAX = 19,
};

/* ---- the thread ------------------------------------------------------------------------------------------ */

static gboolean set_up(SnapOutgoing *outgoing, GError **error) {
    SnapWireWelcome welcome;
    snap_guest_drop_log(outgoing->guest);
    if (!snap_outgoing_list(outgoing, error) || !snap_outgoing_connect(outgoing, false, &welcome, error) ||
        !snap_outgoing_connect_urgent(outgoing, false, error)) {
        return FALSE;
    }
    snap_outgoing_start_lanes(outgoing);
    snap_lock(&outgoing->lock);
    outgoing->stats.setup_ns = snap_now_ns() - outgoing->start_ns;
    snap_unlock(&outgoing->lock);
    return TRUE;
}

static gboolean work(SnapOutgoing *outgoing, GError **error) {
    if (!set_up(outgoing, error) || !snap_outgoing_begin_log(outgoing, error)) {
        return FALSE;
    }
    snap_outgoing_enter(outgoing, SNAP_MIGRATION_ACTIVE);
    if (!snap_outgoing_iterate(outgoing, error)) {
        return FALSE;
    }
    return outgoing->options.epoch_ms ? snap_outgoing_replicate(outgoing, error)
                                      : snap_outgoing_switch_over(outgoing, 0, error);
}

/* The guest first, then the other side. */
static void keep_guest(SnapOutgoing *outgoing, GError **error) {
    g_autoptr(GError) failure = NULL;
    if (!snap_outgoing_resume_guest(outgoing, NULL, &failure)) {
        g_prefix_error(error, "the guest cannot be resumed (%s), after: ", failure->message);
    }
    snap_outgoing_throttle(outgoing, 0);
    if (outgoing->lanes[0].open) {
        snap_lane_transmit_failed(&outgoing->lanes[0], (*error)->message);
    }
}

static void release(SnapOutgoing *outgoing) {
    snap_outgoing_stop_answering(outgoing);
    snap_outgoing_stop_lanes(outgoing);
    snap_outgoing_disconnect(outgoing);
    g_clear_pointer(&outgoing->tracker, snap_tracker_free);
    snap_outgoing_forget_regions(outgoing);
}

static gpointer run(gpointer data) {
    SnapOutgoing *outgoing = data;
    GError *error = NULL;
    prctl(PR_SET_NAME, "snap-outgoing");
    gboolean done = work(outgoing, &error);
    if (!done && outgoing->committed) {
        done = snap_outgoing_recover(outgoing, &error);
    }
    if (!done && outgoing->committed) { /* by free(): nobody is to know */
        g_clear_error(&error);
        release(outgoing);
        return NULL;
    }
    if (done) {
        snap_outgoing_throttle(outgoing, 0);
        release(outgoing);
        snap_outgoing_end(outgoing, SNAP_MIGRATION_COMPLETED, NULL);
        return NULL;
    }
    snap_outgoing_explain(outgoing, &error);
    keep_guest(outgoing, &error);
    release(outgoing);
    bool cancelled = g_atomic_int_get(&outgoing->cancelled);
    if (cancelled) {
        g_clear_error(&error);
        snap_outgoing_is_cancelled(outgoing, &error);
    }
    snap_outgoing_end(outgoing, cancelled ? SNAP_MIGRATION_CANCELLED : SNAP_MIGRATION_FAILED, error);
    return NULL;
}

/* ---- limits ---------------------------------------------------------------------------------------------- */

static gboolean fail_refused(GError **error, const char *text) {
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_REFUSED, "%s", text);
    return FALSE;
}

static bool can_throttle(const SnapGuest *guest) {
    return guest->move_ops && guest->move_ops->throttle;
}

static gboolean check_limits(const SnapGuest *guest, const SnapMigrationLimits *limits, GError **error) {
    if (!limits->dirty_limit_bytes || can_throttle(guest)) {
        return TRUE;
    }
    return fail_refused(error, "a dirty limit is not for this guest: it has no way to be throttled");
}

/* None in the pause: every byte that waits there, the guest waits for. */
void snap_outgoing_apply_limit_locked(SnapOutgoing *outgoing) {
    const SnapMigrationLimits *limits = &outgoing->limits;
    int part = g_atomic_int_get(&outgoing->part);
    snap_pace_set(&outgoing->pace, part == SNAP_PART_PRECOPY    ? limits->max_bandwidth_bytes
                                   : part == SNAP_PART_POSTCOPY ? limits->max_postcopy_bandwidth_bytes
                                                                : 0);
}

static void put_limits(SnapOutgoing *outgoing, const SnapMigrationLimits *limits) {
    snap_lock(&outgoing->lock);
    outgoing->limits = *limits;
    if (!limits->downtime_limit_ms) {
        outgoing->limits.downtime_limit_ms = DEFAULT_DOWNTIME_MS;
    }
    snap_outgoing_apply_limit_locked(outgoing);
    snap_unlock(&outgoing->lock);
}

gboolean snap_outgoing_set_limits(SnapOutgoing *outgoing, const SnapMigrationLimits *limits, GError **error) {
    if (!check_limits(outgoing->guest, limits, error)) {
        return FALSE;
    }
    put_limits(outgoing, limits);
    return TRUE;
}

/* ---- start ----------------------------------------------------------------------------------------------- */

static gboolean fail_usage(GError **error, const char *text) {
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_USAGE, "%s", text);
    return FALSE;
}

static gboolean check_options(const SnapOutgoingOptions *options, GError **error) {
    if (!options->uri) {
        return fail_usage(error, "no URI given");
    }
    if (options->n_channels > SNAP_WIRE_MAX_CHANNELS) {
        return fail_usage(error, "there may be 1 to 8 channels");
    }
    if (options->compress_level < 0 || options->compress_level > COMPRESS_LEVEL_MAX) {
        return fail_usage(error, "the level of compression is 1 to 19");
    }
    if (options->throttle_initial > 99 || options->throttle_increment > 99 || options->throttle_max > 99) {
        return fail_usage(error, "a guest is throttled by 1 to 99 per cent");
    }
    if (options->silence_ms > SNAP_WIRE_MAX_SILENCE_MS) {
        return fail_usage(error, "a time of silence is at most 2147483647 ms");
    }
    if (options->epoch_ms > EPOCH_MAX_MS) {
        return fail_usage(error, "an epoch takes at most a day");
    }
    if (!options->epoch_ms && options->region_glob) {
        return fail_usage(error, "all regions of a guest are moved");
    }
    if (options->epoch_ms && options->may_postcopy) {
        return fail_usage(error, "a replication cannot go over to post-copy");
    }
    return TRUE;
}

static gboolean check_transport(const SnapTransport *transport, const SnapOutgoingOptions *options,
                                GError **error) {
    bool several = options->n_channels > 1 || options->may_postcopy;
    if (several && !snap_transport_can_have_several(transport)) {
        return fail_usage(error, "several channels, and post-copy, need unix: or tcp:");
    }
    return TRUE;
}

static gboolean check_guest(const SnapGuest *guest, const SnapOutgoingOptions *options, GError **error) {
    if (!options->epoch_ms && (!guest->move_ops || !guest->move_ops->hand_over)) {
        return fail_refused(error, "this guest cannot be moved");
    }
    if (guest->tracker) {
        return fail_refused(error, "the guest's writes are logged by somebody else, or it is being moved");
    }
    if (options->auto_converge && !can_throttle(guest)) {
        return fail_refused(error, "auto-converge is not for this guest: it has no way to be throttled");
    }
    return check_limits(guest, &options->limits, error);
}

static SnapOutgoingOptions with_defaults(const SnapOutgoingOptions *given) {
    SnapOutgoingOptions options = *given;
    options.uri = NULL; /* the transport has it */
    options.region_glob = NULL;
    options.n_channels = MAX(options.n_channels, 1);
    options.compress_level = MAX(options.compress_level, 1);
    options.throttle_max = options.throttle_max ? options.throttle_max : DEFAULT_THROTTLE_MAX;
    options.throttle_initial = options.throttle_initial ? options.throttle_initial : DEFAULT_THROTTLE_INITIAL;
    options.throttle_increment =
        options.throttle_increment ? options.throttle_increment : DEFAULT_THROTTLE_INCREMENT;
    options.max_useless_rounds = options.max_useless_rounds ? options.max_useless_rounds : DEFAULT_USELESS_ROUNDS;
    options.silence_ms = options.silence_ms ? options.silence_ms : DEFAULT_SILENCE_MS;
    return options;
}

static SnapOutgoing *outgoing_new(SnapGuest *guest, const SnapOutgoingOptions *options, SnapTransport *transport) {
    SnapOutgoing *outgoing = g_new0(SnapOutgoing, 1);
    outgoing->guest = guest;
    outgoing->options = with_defaults(options);
    outgoing->transport = transport;
    outgoing->glob = options->region_glob ? g_pattern_spec_new(options->region_glob) : NULL;
    outgoing->one_way = snap_transport_is_one_way(transport);
    outgoing->start_ns = snap_now_ns();
    outgoing->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    outgoing->channels = g_ptr_array_new();
    outgoing->skipped = g_array_new(FALSE, FALSE, sizeof(SnapKeptChunk));
    outgoing->body = g_malloc(SNAP_WIRE_MAX_BODY_BYTES);
    outgoing->pagemap = -1;
    outgoing->stats.page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
    snap_lock_init(&outgoing->lock);
    snap_cond_init(&outgoing->changed);
    snap_pace_init(&outgoing->pace);
    g_assert(getrandom(&outgoing->id, sizeof outgoing->id, 0) == sizeof outgoing->id);
    put_limits(outgoing, &options->limits);
    return outgoing;
}

SnapOutgoing *snap_outgoing_start(SnapGuest *guest, const SnapOutgoingOptions *options, SnapMigrationFunc func,
                                  void *opaque, GError **error) {
    /* First of all, as a descriptor is taken in any case. */
    g_autoptr(SnapTransport) transport = options->uri ? snap_transport_new_source(options->uri, error) : NULL;
    if (options->uri && !transport) {
        return NULL;
    }
    if (!check_options(options, error) || !check_guest(guest, options, error) ||
        !check_transport(transport, options, error)) {
        return NULL;
    }
    SnapOutgoing *outgoing = outgoing_new(guest, options, g_steal_pointer(&transport));
    outgoing->func = func;
    outgoing->opaque = opaque;
    outgoing->tracker = snap_tracker_new(guest, options->region_glob);  /* the guest is taken from now on */
    outgoing->tracker->watch_drops = snap_guest_pid(guest) != getpid(); /* one of its own tells of them */
    outgoing->thread = g_thread_new("snap-outgoing", run, outgoing);
    return outgoing;
}

/* ---- what is asked of it --------------------------------------------------------------------------------- */

static void wake_locked(SnapOutgoing *outgoing) SNAP_REQUIRES(outgoing->lock) {
    (void)eventfd_write(outgoing->wake_fd, 1);
    snap_cond_broadcast(&outgoing->changed);
}

gboolean snap_outgoing_wait(SnapOutgoing *outgoing, int timeout_ms, GError **error) {
    gint64 until_us = g_get_monotonic_time() + (gint64)timeout_ms * 1000;
    bool in_time = true;
    snap_lock(&outgoing->lock);
    while (!snap_outgoing_is_over(outgoing->phase) && outgoing->phase != SNAP_MIGRATION_UNCONNECTED && in_time) {
        if (timeout_ms < 0) {
            snap_cond_wait(&outgoing->changed, &outgoing->lock);
        } else {
            in_time = snap_cond_wait_until(&outgoing->changed, &outgoing->lock, until_us);
        }
    }
    gboolean completed = outgoing->phase == SNAP_MIGRATION_COMPLETED;
    if (!completed && !snap_outgoing_is_over(outgoing->phase) && outgoing->phase != SNAP_MIGRATION_UNCONNECTED) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_TIMED_OUT, "the migration is still under way");
    } else if (!completed && error) {
        *error = g_error_copy(outgoing->error);
        if (g_error_matches(*error, SNAP_ERROR, SNAP_ERROR_TIMED_OUT)) {
            (*error)->code = SNAP_ERROR_IO; /* silence; TIMED_OUT would mean that it still runs */
        }
    }
    snap_unlock(&outgoing->lock);
    return completed;
}

gboolean snap_outgoing_cancel(SnapOutgoing *outgoing, GError **error) {
    snap_lock(&outgoing->lock);
    gboolean may = !outgoing->committed;
    if (may && !snap_outgoing_is_over(outgoing->phase)) {
        g_atomic_int_set(&outgoing->cancelled, 1);
        snap_outgoing_stop_locked(outgoing);
        wake_locked(outgoing);
    }
    snap_unlock(&outgoing->lock);
    if (may) {
        snap_pace_stop(&outgoing->pace, true);
        return TRUE;
    }
    return fail_refused(error, "it is too late: the other side may have the guest");
}

/* @may: whether it is the time for @wish; then it is set. */
static gboolean set_wish(SnapOutgoing *outgoing, bool may, bool *wish, const char *why_not, GError **error)
    SNAP_REQUIRES(outgoing->lock) {
    if (!may) {
        return fail_refused(error, why_not);
    }
    *wish = true;
    wake_locked(outgoing);
    return TRUE;
}

gboolean snap_outgoing_continue(SnapOutgoing *outgoing, GError **error) {
    snap_lock(&outgoing->lock);
    gboolean done = set_wish(outgoing, outgoing->phase == SNAP_MIGRATION_PRE_SWITCHOVER, &outgoing->wishes.go_on,
                             "the migration does not wait before its switch-over", error);
    snap_unlock(&outgoing->lock);
    return done;
}

gboolean snap_outgoing_hand_over(SnapOutgoing *outgoing, GError **error) {
    const SnapMoveOps *ops = outgoing->guest->move_ops;
    snap_lock(&outgoing->lock);
    bool may = outgoing->options.epoch_ms && ops && ops->hand_over && !outgoing->one_way && !outgoing->committed &&
               !snap_outgoing_is_over(outgoing->phase);
    gboolean done = set_wish(outgoing, may, &outgoing->wishes.hand_over,
                             "it is not a replication of a guest that can be moved, or it is over", error);
    snap_unlock(&outgoing->lock);
    return done;
}

gboolean snap_outgoing_start_postcopy(SnapOutgoing *outgoing, GError **error) {
    snap_lock(&outgoing->lock);
    bool may = outgoing->options.may_postcopy &&
               (outgoing->phase == SNAP_MIGRATION_SETUP || outgoing->phase == SNAP_MIGRATION_ACTIVE);
    if (may) {
        g_atomic_int_set(&outgoing->want_postcopy, 1);
        g_atomic_int_set(&outgoing->halt, 1); /* the rounds; under the lock and in these phases: nothing else */
        wake_locked(outgoing);
    }
    snap_unlock(&outgoing->lock);
    return may || fail_refused(error, "post-copy was not allowed for, or it is too late for it");
}

gboolean snap_outgoing_pause(SnapOutgoing *outgoing, GError **error) {
    snap_lock(&outgoing->lock);
    gboolean done = set_wish(outgoing, outgoing->phase == SNAP_MIGRATION_POSTCOPY, &outgoing->wishes.cut,
                             "only a post-copy can be paused", error);
    for (guint i = 0; i < outgoing->channels->len && done; i++) {
        snap_channel_shutdown(g_ptr_array_index(outgoing->channels, i));
    }
    snap_unlock(&outgoing->lock);
    return done;
}

gboolean snap_outgoing_resume(SnapOutgoing *outgoing, const char *uri, GError **error) {
    SnapTransport *transport = snap_transport_new_source(uri, error);
    if (!transport) {
        return FALSE;
    }
    snap_lock(&outgoing->lock);
    bool fits = !snap_transport_is_one_way(transport) &&
                (!outgoing->options.may_postcopy || snap_transport_can_have_several(transport));
    bool may = fits && outgoing->phase == SNAP_MIGRATION_UNCONNECTED;
    if (may) {
        outgoing->wishes.transport = g_steal_pointer(&transport);
        snap_outgoing_enter_locked(outgoing, SNAP_MIGRATION_RECOVER);
        wake_locked(outgoing);
    }
    snap_unlock(&outgoing->lock);
    snap_transport_free(transport);
    return may || fail_refused(error, fits ? "the migration has not lost its connection"
                                           : "the migration cannot be resumed over this kind of connection");
}

gboolean snap_outgoing_reclaim(SnapOutgoing *outgoing, GError **error) {
    snap_lock(&outgoing->lock);
    bool may = outgoing->phase == SNAP_MIGRATION_UNCONNECTED && outgoing->since == SNAP_MIGRATION_DEVICE;
    gboolean done = set_wish(outgoing, may, &outgoing->wishes.reclaim,
                             "the guest was not lost on its way, or has run at the other side", error);
    if (done) {
        snap_outgoing_enter_locked(outgoing, SNAP_MIGRATION_RECOVER);
    }
    snap_unlock(&outgoing->lock);
    return done;
}

/* ---- free ------------------------------------------------------------------------------------------------ */

void snap_outgoing_free(SnapOutgoing *outgoing) {
    if (!outgoing) {
        return;
    }
    snap_outgoing_cancel(outgoing, NULL);
    snap_lock(&outgoing->lock);
    outgoing->wishes.ended = true;
    snap_outgoing_stop_locked(outgoing);
    wake_locked(outgoing);
    snap_unlock(&outgoing->lock);
    snap_pace_stop(&outgoing->pace, true);
    g_thread_join(outgoing->thread);
    close(outgoing->wake_fd);
    snap_transport_free(outgoing->wishes.transport);
    g_clear_error(&outgoing->error);
    g_ptr_array_unref(outgoing->channels);
    g_clear_pointer(&outgoing->glob, g_pattern_spec_free);
    g_array_unref(outgoing->skipped);
    g_free(outgoing->body);
    snap_pace_clear(&outgoing->pace);
    snap_cond_clear(&outgoing->changed);
    snap_lock_clear(&outgoing->lock);
    g_free(outgoing);
}
