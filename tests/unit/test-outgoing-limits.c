/*
 * What the owner of a source may ask for, and what it is told: a dirty limit is refused where the guest cannot be
 * throttled; and the downtime is all of the time that the guest stood, also where a connection was lost in it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "expect.h"
#include "outgoing-fixture.h"

#include <unistd.h>

enum { EPOCH_MS = 20, LOST_MS = 400 };

/* ---- limits ---------------------------------------------------------------------------------------------- */

static const SnapMigrationLimits dirty = {.dirty_limit_bytes = 1 << 20}, none = {0};

static void ignore(void *opaque) {
    (void)opaque;
}

static const char no_way[] = "a dirty limit is not for this guest: it has no way to be throttled";
static const SnapMoveOps without_throttle = {.hand_over = ignore};

static void limits_at_start_dirty_one_without_throttle_is_refused(void **state) {
    GError *error = NULL;
    Rig *rig = *state;
    const SnapOutgoingOptions options = {.uri = "unix:nobody-listens-here", .limits = dirty};
    snap_guest_set_move_ops(rig->guest.guest, &without_throttle);
    expect_error(snap_outgoing_start(rig->guest.guest, &options, NULL, NULL, &error), &error, SNAP_ERROR_REFUSED,
                 no_way);
}

/* Of a guest that is replicated into a file. */
static void limits_changed_dirty_one_without_throttle_is_refused(void **state) {
    GError *error = NULL;
    Rig *rig = *state;
    g_snprintf(rig->uri, sizeof rig->uri, "file:%s/stream", rig->folder);
    rig->options.epoch_ms = EPOCH_MS;
    rig_begin(rig);
    assert_true(snap_outgoing_set_limits(rig->outgoing, &dirty, NULL)); /* it has one */
    snap_guest_set_move_ops(rig->guest.guest, &without_throttle);
    expect_error(snap_outgoing_set_limits(rig->outgoing, &dirty, &error), &error, SNAP_ERROR_REFUSED, no_way);
    assert_true(snap_outgoing_set_limits(rig->outgoing, &none, NULL));
    rig_join(rig);
    (void)unlink(rig->uri + strlen("file:")); /* it may not have come to be */
}

/* ---- downtime -------------------------------------------------------------------------------------------- */

/* The connection goes with GO; the source is resumed LOST_MS later. */
static void downtime_of_a_move_that_was_resumed_is_from_stop_to_started(void **state) {
    for (SnapWireAt at = SNAP_WIRE_AT_READY; at < SNAP_WIRE_AT_MAX; at++) {
        Rig *rig = *state;
        rig->peer.met_at = at;
        rig_listen(rig, PEER_AT_GO, peer_meet_again);
        rig_begin(rig);
        rig_expect_lost(rig, SNAP_ERROR_IO, "", SNAP_MIGRATION_DEVICE);
        assert_int_equal(rig_stats(rig).downtime_ns, 0); /* not known yet */
        g_usleep(LOST_MS * 1000);
        assert_true(snap_outgoing_resume(rig->outgoing, rig->uri, NULL));
        rig_expect_completed(rig);
        SnapMigrationStats stats = rig_stats(rig);
        assert_in_range(stats.downtime_ns, LOST_MS * UINT64_C(1000000), stats.total_ns);
        rig_again(state);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(limits_at_start_dirty_one_without_throttle_is_refused),
        TEST(limits_changed_dirty_one_without_throttle_is_refused),
        TEST(downtime_of_a_move_that_was_resumed_is_from_stop_to_started),
    };
    if (!move_can_run()) {
        return 77;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
