/*
 * A connection of the migration protocol: every wait ends when it should, by silence, by being stopped, or by
 * being cut, wherever it is.
 */
#include "channel-fixture.h"

static void receiving_from_who_is_silent_times_out(void **state) {
    (void)state;
    g_auto(Rig) rig = {0};
    GError *error = NULL;
    rig_raw(&rig);
    int64_t start_ms = now_ms();
    expect_error(receive(&rig.destination, &rig, -1, &error), &error, SNAP_ERROR_TIMED_OUT, "silent");
    assert_in_range(now_ms() - start_ms, SILENCE_MS, SOON_MS);
    start_ms = now_ms();
    expect_error(receive(&rig.destination, &rig, 3 * SILENCE_MS, &error), &error, SNAP_ERROR_TIMED_OUT, "silent");
    assert_in_range(now_ms() - start_ms, 3 * SILENCE_MS, SOON_MS);
    expect_error(receive(&rig.destination, &rig, 0, &error), &error, SNAP_ERROR_TIMED_OUT, "silent");
}

/* A record that has begun is waited for by silence_ms, however long its first byte was. */
static void receiving_half_a_record_times_out(void **state) {
    (void)state;
    uint8_t head[SNAP_WIRE_HEAD_BYTES], body[512];
    fix_seal(SNAP_WIRE_HELLO, 0, head, body);
    const size_t cuts[] = {1, SNAP_WIRE_HEAD_BYTES - 1, SNAP_WIRE_HEAD_BYTES};
    for (size_t i = 0; i < G_N_ELEMENTS(cuts); i++) {
        g_auto(Rig) rig = {0};
        GError *error = NULL;
        rig_raw(&rig);
        assert_int_equal(write(rig.raw, head, cuts[i]), cuts[i]);
        int64_t start_ms = now_ms();
        expect_error(receive(&rig.destination, &rig, 100 * SOON_MS, &error), &error, SNAP_ERROR_TIMED_OUT,
                     "silent");
        assert_in_range(now_ms() - start_ms, SILENCE_MS, SOON_MS);
    }
}

static void sending_to_who_does_not_read_times_out(void **state) {
    (void)state;
    g_auto(Rig) rig = {0};
    GError *error = NULL;
    rig_sockets(&rig);
    expect_error(send_much(&rig.source, &error), &error, SNAP_ERROR_TIMED_OUT, "silent");
    /* a record went out in part: what would follow it would be taken for its rest */
    assert_true(rig.source.out_broken);
    uint64_t sent_bytes = rig.source.sent_bytes;
    expect_error(send_much(&rig.source, &error), &error, SNAP_ERROR_IO, "closed");
    snap_channel_send_failed(&rig.source, "gives up");
    assert_int_equal(rig.source.sent_bytes, sent_bytes);
}

static void sending_to_a_full_pipe_times_out(void **state) {
    (void)state;
    g_auto(Rig) rig = {0};
    GError *error = NULL;
    rig_pipes(&rig);
    expect_error(send_much(&rig.source, &error), &error, SNAP_ERROR_TIMED_OUT, "silent");
}

typedef struct {
    SnapChannel *channel;
    void (*end)(SnapChannel *channel);
    int64_t ended_us;
} Ending;

static void *end_soon(void *opaque) {
    Ending *ending = opaque;
    g_usleep(20000);
    ending->ended_us = g_get_monotonic_time();
    ending->end(ending->channel);
    return NULL;
}

/* @channel, which waits in @work, is ended by another thread. */
static void expect_ended(SnapChannel *channel, void (*end)(SnapChannel *), bool (*work)(SnapChannel *, GError **),
                         SnapErrorCode code, const char *text) {
    Ending ending = {.channel = channel, .end = end};
    GError *error = NULL;
    channel->silence_ms = 100 * SOON_MS;
    GThread *thread = g_thread_new("ending", end_soon, &ending);
    bool good = work(channel, &error);
    int64_t ended_us = g_get_monotonic_time();
    g_thread_join(thread);
    expect_error(good, &error, code, text);
    assert_true(ended_us - ending.ended_us < SOON_MS * 1000);
    expect_error(work(channel, &error), &error, code, text); /* and from now on */
}

static bool receive_one(SnapChannel *channel, GError **error) {
    g_autofree uint8_t *body = g_malloc(SNAP_WIRE_MAX_BODY_BYTES);
    SnapWireHead head;
    return snap_channel_receive(channel, -1, &head, body, error);
}

static void stop_ends_receiving(void **state) {
    (void)state;
    g_auto(Rig) rig = {0};
    rig_raw(&rig);
    expect_ended(&rig.destination, snap_channel_stop, receive_one, SNAP_ERROR_CANCELLED, "cancelled");
}

static void stop_ends_receiving_half_a_record(void **state) {
    (void)state;
    g_auto(Rig) rig = {0};
    rig_raw(&rig);
    assert_int_equal(write(rig.raw, "snpr", 4), 4);
    expect_ended(&rig.destination, snap_channel_stop, receive_one, SNAP_ERROR_CANCELLED, "cancelled");
}

static void stop_ends_sending(void **state) {
    (void)state;
    g_auto(Rig) rig = {0}, pipes = {0};
    rig_sockets(&rig);
    rig_pipes(&pipes);
    expect_ended(&rig.source, snap_channel_stop, send_much, SNAP_ERROR_CANCELLED, "cancelled");
    expect_ended(&pipes.source, snap_channel_stop, send_much, SNAP_ERROR_CANCELLED, "cancelled");
}

/* The other side always reads, so that there is nothing to wait for. */
static void *drain(void *opaque) {
    const int *fd = opaque;
    g_autofree uint8_t *bytes = g_malloc(1 << 20);
    while (read(*fd, bytes, 1 << 20) > 0)
        ;
    return NULL;
}

static bool send_on_and_on(SnapChannel *channel, GError **error) {
    while (send_much(channel, error))
        ;
    return false;
}

static void stop_ends_sending_that_never_waits(void **state) {
    (void)state;
    g_auto(Rig) rig = {0};
    int ends[2];
    rig_new(&rig);
    socket_pair(ends);
    start(&rig.source, SNAP_WIRE_FROM_SOURCE, ends[0], ends[0]);
    GThread *thread = g_thread_new("drain", drain, &ends[1]);
    expect_ended(&rig.source, snap_channel_stop, send_on_and_on, SNAP_ERROR_CANCELLED, "cancelled");
    snap_channel_clear(&rig.source);
    g_thread_join(thread);
    close(ends[1]);
}

static void shutdown_ends_both_sides(void **state) {
    (void)state;
    g_auto(Rig) rig = {0}, pipes = {0};
    GError *error = NULL;
    rig_sockets(&rig);
    rig_pipes(&pipes);
    expect_ended(&rig.source, snap_channel_shutdown, receive_one, SNAP_ERROR_IO, "the connection was closed");
    expect_error(receive(&rig.destination, &rig, -1, &error), &error, SNAP_ERROR_IO, "the connection was closed");
    expect_ended(&pipes.source, snap_channel_shutdown, receive_one, SNAP_ERROR_IO, "the connection was closed");
    snap_channel_stop(&rig.source);
    expect_error(receive_one(&rig.source, &error), &error, SNAP_ERROR_CANCELLED, "cancelled");
    snap_channel_shutdown(&rig.source); /* stopped stays stopped */
    expect_error(receive_one(&rig.source, &error), &error, SNAP_ERROR_CANCELLED, "cancelled");
}

static void wait_says_whether_there_is_input(void **state) {
    (void)state;
    g_auto(Rig) rig = {0};
    int ends[2];
    rig_raw(&rig);
    socket_pair(ends);
    assert_false(snap_channel_wait(&rig.destination, -1, 1));
    assert_false(snap_channel_wait(&rig.destination, ends[0], 1));
    assert_int_equal(write(ends[1], "x", 1), 1);
    int64_t start_ms = now_ms();
    assert_false(snap_channel_wait(&rig.destination, ends[0], 100 * SOON_MS));
    assert_int_equal(write(rig.raw, "x", 1), 1);
    assert_true(snap_channel_wait(&rig.destination, ends[0], 100 * SOON_MS));
    assert_true(snap_channel_wait(&rig.destination, -1, -1));
    snap_channel_stop(&rig.destination);
    assert_false(snap_channel_wait(&rig.destination, -1, -1));
    assert_true(now_ms() - start_ms < SOON_MS);
    close(ends[0]);
    close(ends[1]);
}

/* Cancelled, but it can still be said, if it can be said at once. */
static void failed_after_stop_is_sent_without_waiting(void **state) {
    (void)state;
    g_auto(Rig) rig = {0}, full = {0};
    GError *error = NULL;
    rig_sockets(&rig);
    snap_channel_stop(&rig.source);
    snap_channel_send_failed(&rig.source, "cancelled");
    expect_error(snap_channel_expect(&rig.destination, SNAP_WIRE_HELLO, -1, &rig.head, rig.body, &error), &error,
                 SNAP_ERROR_REFUSED, "the other side: cancelled");
    rig_sockets(&full);
    static const uint8_t page[FIX_PAGE_BYTES];
    while (send(full.source.out, page, sizeof page, MSG_NOSIGNAL | MSG_DONTWAIT) > 0)
        ;
    snap_channel_stop(&full.source);
    int64_t start_ms = now_ms();
    snap_channel_send_failed(&full.source, "cancelled");
    assert_true(now_ms() - start_ms < 900); /* not the second that it has otherwise */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(receiving_from_who_is_silent_times_out),
        cmocka_unit_test(receiving_half_a_record_times_out),
        cmocka_unit_test(sending_to_who_does_not_read_times_out),
        cmocka_unit_test(sending_to_a_full_pipe_times_out),
        cmocka_unit_test(stop_ends_receiving),
        cmocka_unit_test(stop_ends_receiving_half_a_record),
        cmocka_unit_test(stop_ends_sending),
        cmocka_unit_test(stop_ends_sending_that_never_waits),
        cmocka_unit_test(shutdown_ends_both_sides),
        cmocka_unit_test(wait_says_whether_there_is_input),
        cmocka_unit_test(failed_after_stop_is_sent_without_waiting),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
