/*
 * What the owner of a destination may ask of it: to run a guest whose source is dead, to listen again, to end;
 * also while somebody is connected who says nothing. Against a source made by hand.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "expect.h"
#include "incoming-fixture.h"

#include <fcntl.h>
#include <malloc.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

enum { AT_ONCE_MS = 500 }; /* far less than any silence here, and than a second of last words */

static void refuses_to_promote(Rig *rig, gboolean force, const char *part) {
    GError *error = NULL;
    expect_error(snap_incoming_promote(rig->incoming, force, &error), &error, SNAP_ERROR_REFUSED, part);
}

static void refuses_to_recover(Rig *rig, const char *uri, const char *part) {
    GError *error = NULL;
    expect_error(snap_incoming_recover(rig->incoming, uri, &error), &error, SNAP_ERROR_REFUSED, part);
}

/* Of a guest whose source is not connected. */
static void promote(Rig *rig) {
    g_autoptr(GError) error = NULL;
    snap_incoming_promote(rig->incoming, FALSE, &error);
    fail_on(error);
}

static void expect_soon(int64_t since_us, const char *what) {
    int64_t ms = (g_get_monotonic_time() - since_us) / 1000;
    if (ms >= AT_ONCE_MS)
        fail_msg("%s took %d ms", what, (int)ms);
}

static void promote_soon(Rig *rig) {
    int64_t begin_us = g_get_monotonic_time();
    promote(rig);
    rig_expect_completed(rig);
    expect_soon(begin_us, "promote");
}

static void cancel_soon(Rig *rig) {
    int64_t begin_us = g_get_monotonic_time();
    assert_true(snap_incoming_cancel(rig->incoming, NULL));
    rig_expect_ended(rig, SNAP_ERROR_CANCELLED, "cancelled");
    expect_soon(begin_us, "cancel");
}

/* ---- promote --------------------------------------------------------------------------------------------- */

static void come_to_ready(Rig *rig) {
    rig_send_region(rig, 0, 1);
    rig_send_state(rig, "cpu", "registers", 9);
    rig_end(rig, 0, 1, 0);
    hand_expect_ready(&rig->main, 0);
}

static void lose(Rig *rig) {
    rig_close(rig);
    rig_expect_lost(rig, SNAP_MIGRATION_DEVICE);
}

/* All is there, and the source is not. */
static Rig *lose_after_ready(void **state) {
    Rig *rig = rig_greeted(state, 1);
    come_to_ready(rig);
    lose(rig);
    return rig;
}

static void is_told_that_it_runs(Rig *rig) {
    rig_resume(rig, SNAP_WIRE_AT_STARTED);
    hand_expect(&rig->main, SNAP_WIRE_STARTED);
}

static void guest_that_lacks_only_go_is_started_by_its_owner(void **state) {
    Rig *rig = lose_after_ready(state);
    promote(rig);
    rig_expect_completed(rig);
    assert_int_equal(rig->loads, 1); /* before READY */
    rig_check(rig);
    refuses_to_promote(rig, TRUE, "no standby");
}

static void source_of_a_promoted_guest_is_told_and_its_go_starts_nothing(void **state) {
    Rig *rig = lose_after_ready(state);
    promote(rig);
    rig_expect_completed(rig);
    rig_recover(rig);
    is_told_that_it_runs(rig);
    hand_say_id(&rig->main, SNAP_WIRE_GO);
    rig_close(rig);
    rig_expect_completed(rig);
}

static void guest_whose_source_is_connected_is_not_started_by_its_owner(void **state) {
    Rig *rig = rig_greeted(state, 1);
    refuses_to_promote(rig, FALSE, "no standby");
    come_to_ready(rig);
    refuses_to_promote(rig, FALSE, "no standby");
    refuses_to_promote(rig, TRUE, "no standby");
    hand_say_failed(&rig->main, "it stays here");
    rig_close(rig);
    rig_expect_ended(rig, SNAP_ERROR_REFUSED, "it stays here");
    refuses_to_promote(rig, TRUE, "no standby");
}

static void guest_that_cannot_be_started_by_its_owner_fails(void **state) {
    Rig *rig = lose_after_ready(state);
    rig->no_start = true;
    rig->starts_due = 1; /* it is tried once */
    promote(rig);
    rig_expect_ended(rig, SNAP_ERROR_FAILED, "no processor");
    refuses_to_promote(rig, FALSE, "no standby");
}

static size_t heap_bytes(void) {
    struct mallinfo2 heap = mallinfo2();
    return heap.uordblks + heap.hblkhd;
}

/* It may run for years, and its source may ask again at any time. */
static void standby_that_was_started_does_not_hold_the_state_of_its_epoch(void **state) {
    enum { STATE_BYTES = 32 << 20 }; /* more than all else that goes */
    g_autofree uint8_t *device = g_malloc0(STATE_BYTES);
    Rig *rig = *state;
    rig->hello.purpose = SNAP_WIRE_REPLICATE;
    rig_greeted(state, 1);
    rig_send_region(rig, 0, 1);
    rig_send_state(rig, "device", device, STATE_BYTES);
    rig_end(rig, 1, 1, 0);
    hand_expect_ready(&rig->main, 1);
    size_t before_bytes = heap_bytes();
    if (before_bytes < 2 * STATE_BYTES) { /* ours, and its */
        print_message("skip: this malloc does not count what it gives out\n");
        skip();
    }
    rig_hand_over(rig);
    g_ptr_array_set_size(rig->states, 0);
    for (int ms = 0; ms < HAND_PATIENCE_MS && heap_bytes() + STATE_BYTES > before_bytes; ms++)
        g_usleep(1000);
    assert_true(heap_bytes() + STATE_BYTES <= before_bytes);
    rig_recover(rig);
    is_told_that_it_runs(rig);
}

/* READY was said, and has been lost as well. */
static void guest_that_lacks_pages_is_not_started_by_its_owner(void **state) {
    int uffd = snap_uffd_open();
    if (uffd < 0) {
        print_message("skip: no userfaultfd: run as root, or set vm.unprivileged_userfaultfd to 1\n");
        skip();
    }
    close(uffd);
    Rig *rig = *state;
    rig->flags = SNAP_WIRE_POSTCOPY;
    rig_greeted(state, 1);
    rig_join(rig, SNAP_WIRE_URGENT);
    hand_say_missing(&rig->main, &(SnapWireMissing){.n_masks = 1}, (const uint64_t[]){6});
    rig_end(rig, 0, 0, SNAP_WIRE_PAGES_MISSING);
    hand_expect_ready(&rig->main, 0);
    lose(rig);
    refuses_to_promote(rig, FALSE, "pages of the guest are missing");
}

/* ---- somebody who says nothing --------------------------------------------------------------------------- */

/* A stranger, whom the destination listens to by now. */
static void be_silent(Rig *rig) {
    rig_connect(rig, &rig->stranger);
    g_usleep(50000);
}

static void silent_stranger_does_not_hold_up_a_cancel(void **state) {
    Rig *rig = rig_listening(state, 1);
    be_silent(rig);
    cancel_soon(rig);
}

static void source_without_its_regions_does_not_hold_up_a_cancel(void **state) {
    Rig *rig = rig_listening(state, 1);
    be_silent(rig);
    rig_say_hello(rig, &rig->stranger, 0);
    g_usleep(50000);
    cancel_soon(rig);
}

static void silent_further_channel_does_not_hold_up_a_cancel(void **state) {
    Rig *rig = rig_greeted(state, 2);
    be_silent(rig);
    int64_t begin_us = g_get_monotonic_time();
    assert_true(snap_incoming_cancel(rig->incoming, NULL));
    hand_expect_failed(&rig->main, "cancelled");
    expect_soon(begin_us, "cancel");
    rig_close(rig);
    rig_expect_ended(rig, SNAP_ERROR_CANCELLED, "cancelled");
}

static Rig *listen_again_to_nobody(void **state) {
    Rig *rig = lose_after_ready(state);
    rig_recover(rig);
    be_silent(rig);
    return rig;
}

static void silent_stranger_does_not_hold_up_a_promotion(void **state) {
    Rig *rig = listen_again_to_nobody(state);
    promote_soon(rig);
    hand_expect_closed(&rig->stranger); /* and no FAILED, which would be a promise */
}

static void silent_stranger_does_not_hold_up_the_end(void **state) {
    Rig *rig = listen_again_to_nobody(state);
    int64_t begin_us = g_get_monotonic_time();
    g_clear_pointer(&rig->incoming, snap_incoming_free);
    expect_soon(begin_us, "free");
}

/* A byte now and then is not a HELLO. */
static void stranger_that_trickles_is_sent_away_and_the_source_let_in(void **state) {
    bool gone = false;
    Rig *rig = *state;
    rig->hello.silence_ms = 400;
    lose_after_ready(state);
    rig_recover(rig);
    rig_connect(rig, &rig->stranger);
    for (int i = 0; i < 40 && !gone; i++) {
        gone = send(rig->stranger.channel.out, &"snpr"[i % 4], 1, MSG_NOSIGNAL) < 0;
        g_usleep(50000);
    }
    assert_true(gone);
    rig_resume(rig, SNAP_WIRE_AT_READY);
    rig_hand_over(rig);
}

/* ---- recover --------------------------------------------------------------------------------------------- */

static void recover_that_is_refused_closes_its_descriptor_once(void **state) {
    char byte;
    int fds[2];
    Rig *rig = rig_greeted(state, 1);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    g_autofree char *uri = g_strdup_printf("fd:%d", fds[0]);
    refuses_to_recover(rig, uri, "no connection was lost");
    assert_int_equal(read(fds[1], &byte, 1), 0); /* its end */
    assert_int_equal(dup2(fds[1], fds[0]), fds[0]);
    come_to_ready(rig);
    lose(rig);
    g_clear_pointer(&rig->incoming, snap_incoming_free);
    assert_true(fcntl(fds[0], F_GETFD) >= 0); /* another's, under that number */
    close(fds[0]);
    close(fds[1]);
}

static void recover_at_its_own_address_is_not_taken_for_a_source(void **state) {
    Rig *rig = rig_listening(state, 1);
    refuses_to_recover(rig, rig->uri, "no connection was lost");
    rig_greet(rig);
    rig_finish(rig, 0);
}

/* It has not heard STARTED, again and again; and nobody listens twice. */
static void source_that_is_answered_may_ask_again(void **state) {
    Rig *rig = rig_greeted(state, 1);
    come_to_ready(rig);
    hand_say_id(&rig->main, SNAP_WIRE_GO);
    rig_expect_completed(rig);
    for (int i = 0; i < 3; i++) {
        /* While the connection before it is still being closed; it has to be done with its source. */
        for (int ms = 0; i > 0 && ms < AT_ONCE_MS && !snap_incoming_recover(rig->incoming, rig->uri, NULL); ms++)
            g_usleep(1000);
        if (i == 0)
            rig_recover(rig);
        rig_close(rig);
        refuses_to_recover(rig, rig->uri, "");
        is_told_that_it_runs(rig);
    }
    rig_close(rig);
    rig_expect_completed(rig);
}

/* ---- a name that is not found at once -------------------------------------------------------------------- */

static int lookup_ms; /* how long a name server takes */
static int n_lookups; /* that have ended: atomic */

int __real_getaddrinfo(const char *host, const char *port, const struct addrinfo *hints, struct addrinfo **found);
int __wrap_getaddrinfo(const char *host, const char *port, const struct addrinfo *hints, struct addrinfo **found);

int __wrap_getaddrinfo(const char *host, const char *port, const struct addrinfo *hints, struct addrinfo **found) {
    if ((hints->ai_flags & AI_NUMERICHOST) != 0 || !host)
        return __real_getaddrinfo(host, port, hints, found);
    g_usleep((gulong)lookup_ms * 1000);
    bool known = strcmp(host, "slow.test") == 0;
    int rc = known ? __real_getaddrinfo("127.0.0.1", port, hints, found) : EAI_NONAME;
    __atomic_add_fetch(&n_lookups, 1, __ATOMIC_SEQ_CST);
    return rc;
}

/* Threads that nobody waits for any more. */
static void await_lookups(int n) {
    for (int ms = 0; ms < HAND_PATIENCE_MS && __atomic_load_n(&n_lookups, __ATOMIC_SEQ_CST) < n; ms++)
        g_usleep(1000);
    assert_int_equal(n_lookups, n);
    n_lookups = 0;
}

static Rig *recover_slowly(void **state, const char *uri) {
    Rig *rig = lose_after_ready(state);
    lookup_ms = 1500;
    int64_t begin_us = g_get_monotonic_time();
    assert_true(snap_incoming_recover(rig->incoming, uri, NULL));
    expect_soon(begin_us, "recover");
    return rig;
}

static void name_that_takes_long_is_listened_at_when_it_is_found(void **state) {
    Rig *rig = recover_slowly(state, "tcp:slow.test:0");
    bool told = false;
    for (int ms = 0; ms < HAND_PATIENCE_MS && !told; ms++) {
        g_autofree char *uri = snap_incoming_uri(rig->incoming);
        told = !g_str_has_suffix(uri, ":0");
        if (told)
            assert_true(g_str_has_prefix(uri, "tcp:slow.test:"));
        g_usleep(1000);
    }
    assert_true(told);
    lookup_ms = 0;
    rig_resume(rig, SNAP_WIRE_AT_READY);
    rig_hand_over(rig);
    await_lookups(2);
}

static void name_that_is_not_found_leaves_it_lost(void **state) {
    GError *error = NULL;
    Rig *rig = recover_slowly(state, "tcp:nowhere.test:0");
    bool good = snap_incoming_wait(rig->incoming, HAND_PATIENCE_MS, &error);
    expect_error(good, &error, SNAP_ERROR_IO, "nowhere.test");
    rig_expect_lost(rig, SNAP_MIGRATION_DEVICE);
    rig_recover(rig);
    await_lookups(1);
}

static void name_that_takes_long_does_not_hold_up_a_promotion(void **state) {
    Rig *rig = recover_slowly(state, "tcp:slow.test:0");
    promote_soon(rig);
    g_clear_pointer(&rig->incoming, snap_incoming_free);
    await_lookups(1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(guest_that_lacks_only_go_is_started_by_its_owner),
        TEST(source_of_a_promoted_guest_is_told_and_its_go_starts_nothing),
        TEST(guest_whose_source_is_connected_is_not_started_by_its_owner),
        TEST(guest_that_cannot_be_started_by_its_owner_fails),
        TEST(standby_that_was_started_does_not_hold_the_state_of_its_epoch),
        TEST(guest_that_lacks_pages_is_not_started_by_its_owner),
        TEST(silent_stranger_does_not_hold_up_a_cancel),
        TEST(source_without_its_regions_does_not_hold_up_a_cancel),
        TEST(silent_further_channel_does_not_hold_up_a_cancel),
        TEST(silent_stranger_does_not_hold_up_a_promotion),
        TEST(silent_stranger_does_not_hold_up_the_end),
        TEST(stranger_that_trickles_is_sent_away_and_the_source_let_in),
        TEST(recover_that_is_refused_closes_its_descriptor_once),
        TEST(recover_at_its_own_address_is_not_taken_for_a_source),
        TEST(source_that_is_answered_may_ask_again),
        TEST(name_that_takes_long_is_listened_at_when_it_is_found),
        TEST(name_that_is_not_found_leaves_it_lost),
        TEST(name_that_takes_long_does_not_hold_up_a_promotion),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
