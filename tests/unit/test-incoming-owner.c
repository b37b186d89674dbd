/*
 * What the owner of a destination may ask of it: to run a guest whose source is dead, to listen again, to end;
 * also while somebody is connected who says nothing. Against a source made by hand.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "incoming-rig.h"

#include "../lib/own-process.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PAGES = 70, AT_ONCE_MS = 800 }; /* far less than any silence here, and than a second of last words */

static void expect_refused(gboolean done, const GError *error, const char *part) {
    assert_false(done);
    assert_int_equal(error->code, SNAP_ERROR_REFUSED);
    if (!strstr(error->message, part))
        fail_msg("\"%s\" is not in \"%s\"", part, error->message);
}

static void refuses_to_promote(Rig *rig, gboolean force, const char *part) {
    g_autoptr(GError) error = NULL;
    gboolean done = snap_incoming_promote(rig->incoming, force, &error);
    expect_refused(done, error, part);
}

static void promote(Rig *rig) {
    g_autoptr(GError) error = NULL;
    snap_incoming_promote(rig->incoming, FALSE, &error);
    fail_on(error);
}

static void recover(Rig *rig, const char *uri) {
    g_autoptr(GError) error = NULL;
    snap_incoming_recover(rig->incoming, uri, &error);
    fail_on(error);
}

static void begin(Rig *rig) {
    const SnapMemory kind = SNAP_MEMORY_ANON;
    rig_init(rig, &kind, 1, PAGES);
}

/* ---- promote --------------------------------------------------------------------------------------------- */

static void greet(Rig *rig, Hand *hand) {
    begin(rig);
    rig_listen(rig);
    hand_open(hand, rig);
    hand_greet(hand, rig);
}

static void come_to_ready(Rig *rig, Hand *hand) {
    greet(rig, hand);
    hand_region(hand, rig, 0, 1);
    hand_state(hand, "cpu", "registers", 9);
    hand_end(hand, 0, 1, 0);
    hand_expect_ready(hand, 0);
}

/* All is there, and the source is not. */
static void lose_after_ready(Rig *rig, Hand *hand) {
    come_to_ready(rig, hand);
    hand_close(hand);
    rig_wait_lost(rig, SNAP_MIGRATION_DEVICE);
}

/* HELLO of the source that comes back. Return: where the destination says it is. */
static SnapWireAt come_back(Rig *rig, Hand *hand) {
    SnapWireWelcome welcome;
    rig->flags = SNAP_WIRE_RESUME;
    hand_open(hand, rig);
    hand_say_hello(hand, rig, 0);
    hand_expect(hand, SNAP_WIRE_WELCOME);
    assert_null(snap_wire_decode_welcome(&hand->head, hand->body, &welcome));
    return welcome.at;
}

static void is_told_that_it_runs(Rig *rig, Hand *hand) {
    assert_int_equal(come_back(rig, hand), SNAP_WIRE_AT_STARTED);
    hand_expect(hand, SNAP_WIRE_STARTED);
}

static void guest_that_lacks_only_go_is_started_by_its_owner(void **state) {
    (void)state;
    Rig rig;
    Hand hand;
    lose_after_ready(&rig, &hand);
    promote(&rig);
    rig_wait(&rig, 0, NULL);
    assert_int_equal(rig.loads, 1); /* before READY */
    for (uint64_t page = 0; page < PAGES; page++)
        assert_true(rig_is(&rig, 0, page, 1));
    refuses_to_promote(&rig, TRUE, "no standby");
    rig_clear(&rig, 1);
}

static void source_of_a_promoted_guest_is_told_and_its_go_starts_nothing(void **state) {
    (void)state;
    Rig rig;
    Hand hand;
    lose_after_ready(&rig, &hand);
    promote(&rig);
    rig_wait(&rig, 0, NULL);
    recover(&rig, rig.uri);
    is_told_that_it_runs(&rig, &hand);
    hand_id(&hand, &rig, SNAP_WIRE_GO);
    hand_close(&hand);
    rig_wait(&rig, 0, NULL);
    rig_clear(&rig, 1);
}

static void guest_whose_source_is_connected_is_not_started_by_its_owner(void **state) {
    (void)state;
    Rig rig;
    Hand hand;
    greet(&rig, &hand);
    refuses_to_promote(&rig, FALSE, "no standby");
    hand_region(&hand, &rig, 0, 1);
    hand_end(&hand, 0, 0, 0);
    hand_expect_ready(&hand, 0);
    refuses_to_promote(&rig, FALSE, "no standby");
    refuses_to_promote(&rig, TRUE, "no standby");
    snap_channel_send_failed(&hand.channel, "it stays here");
    hand_close(&hand);
    rig_wait(&rig, SNAP_ERROR_REFUSED, "it stays here");
    refuses_to_promote(&rig, TRUE, "no standby");
    rig_clear(&rig, 0);
}

static void guest_that_cannot_be_started_by_its_owner_fails(void **state) {
    (void)state;
    Rig rig;
    Hand hand;
    lose_after_ready(&rig, &hand);
    rig.no_start = true;
    promote(&rig);
    rig_wait(&rig, SNAP_ERROR_FAILED, "no processor");
    refuses_to_promote(&rig, FALSE, "no standby");
    rig_clear(&rig, 1); /* it was tried once */
}

/* READY was said, and has been lost as well. */
static void guest_that_lacks_pages_is_not_started_by_its_owner(void **state) {
    (void)state;
    const uint64_t mask = 6;
    Rig rig;
    Hand hand, urgent;
    int uffd = snap_uffd_open();
    if (uffd < 0) {
        print_message("skip: no userfaultfd: run as root, or set vm.unprivileged_userfaultfd to 1\n");
        skip();
    }
    close(uffd);
    begin(&rig);
    rig.flags = SNAP_WIRE_POSTCOPY;
    rig_listen(&rig);
    hand_open(&hand, &rig);
    hand_greet(&hand, &rig);
    hand_join(&urgent, &rig, SNAP_WIRE_URGENT);
    hand_missing(&hand, 0, 0, &mask, 1);
    hand_end(&hand, 0, 0, SNAP_WIRE_PAGES_MISSING);
    hand_expect_ready(&hand, 0);
    hand_close(&hand);
    hand_close(&urgent);
    rig_wait_lost(&rig, SNAP_MIGRATION_DEVICE);
    refuses_to_promote(&rig, FALSE, "pages of the guest are missing");
    rig_clear(&rig, 0);
}

/* ---- somebody who says nothing --------------------------------------------------------------------------- */

static void expect_soon(int64_t since_us, const char *what) {
    int64_t ms = (g_get_monotonic_time() - since_us) / 1000;
    if (ms >= AT_ONCE_MS)
        fail_msg("%s took %d ms", what, (int)ms);
}

/* A stranger, whom the destination listens to by now. */
static void be_silent(Rig *rig, Hand *stranger) {
    hand_open(stranger, rig);
    g_usleep(50000);
}

static void cancel_soon(Rig *rig) {
    g_autoptr(GError) error = NULL;
    int64_t begin_us = g_get_monotonic_time();
    snap_incoming_cancel(rig->incoming, &error);
    fail_on(error);
    rig_wait(rig, SNAP_ERROR_CANCELLED, "cancelled");
    expect_soon(begin_us, "cancel");
}

static void silent_stranger_does_not_hold_up_a_cancel(void **state) {
    (void)state;
    Rig rig;
    Hand stranger;
    begin(&rig);
    rig_listen(&rig);
    be_silent(&rig, &stranger);
    cancel_soon(&rig);
    hand_close(&stranger);
    rig_clear(&rig, 0);
}

static void source_without_its_regions_does_not_hold_up_a_cancel(void **state) {
    (void)state;
    Rig rig;
    Hand stranger;
    begin(&rig);
    rig_listen(&rig);
    be_silent(&rig, &stranger);
    hand_say_hello(&stranger, &rig, 0);
    g_usleep(50000);
    cancel_soon(&rig);
    hand_close(&stranger);
    rig_clear(&rig, 0);
}

static void silent_further_channel_does_not_hold_up_a_cancel(void **state) {
    (void)state;
    Rig rig;
    Hand hand, stranger;
    begin(&rig);
    rig.hello.n_channels = 2;
    rig_listen(&rig);
    hand_open(&hand, &rig);
    hand_greet(&hand, &rig);
    be_silent(&rig, &stranger);
    GError *error = NULL;
    int64_t begin_us = g_get_monotonic_time();
    assert_true(snap_incoming_cancel(rig.incoming, &error));
    hand_expect_failed(&hand, "cancelled");
    expect_soon(begin_us, "cancel");
    hand_close(&hand);
    hand_close(&stranger);
    rig_wait(&rig, SNAP_ERROR_CANCELLED, "cancelled");
    rig_clear(&rig, 0);
}

static void listen_again_to_nobody(Rig *rig, Hand *stranger) {
    Hand hand;
    lose_after_ready(rig, &hand);
    recover(rig, rig->uri);
    be_silent(rig, stranger);
}

static void silent_stranger_does_not_hold_up_a_promotion(void **state) {
    (void)state;
    Rig rig;
    Hand stranger;
    listen_again_to_nobody(&rig, &stranger);
    int64_t begin_us = g_get_monotonic_time();
    promote(&rig);
    rig_wait(&rig, 0, NULL);
    expect_soon(begin_us, "promote");
    hand_expect_end(&stranger); /* and no FAILED, which would be a promise */
    hand_close(&stranger);
    rig_clear(&rig, 1);
}

static void silent_stranger_does_not_hold_up_the_end(void **state) {
    (void)state;
    Rig rig;
    Hand stranger;
    listen_again_to_nobody(&rig, &stranger);
    int64_t begin_us = g_get_monotonic_time();
    g_clear_pointer(&rig.incoming, snap_incoming_free);
    expect_soon(begin_us, "free");
    hand_close(&stranger);
    rig_clear(&rig, 0);
}

/* A byte now and then is not a HELLO. */
static void stranger_that_trickles_is_sent_away_and_the_source_let_in(void **state) {
    (void)state;
    Rig rig;
    Hand hand, stranger;
    begin(&rig);
    rig.hello.silence_ms = 400;
    rig_listen(&rig);
    hand_open(&hand, &rig);
    hand_greet(&hand, &rig);
    hand_end(&hand, 0, 0, 0);
    hand_expect_ready(&hand, 0);
    hand_close(&hand);
    rig_wait_lost(&rig, SNAP_MIGRATION_DEVICE);
    recover(&rig, rig.uri);
    hand_open(&stranger, &rig);
    bool gone = false;
    for (int i = 0; i < 30 && !gone; i++) { /* a head is 40 bytes */
        gone = send(stranger.channel.out, &"snpr"[i % 4], 1, MSG_NOSIGNAL) < 0;
        g_usleep(50000);
    }
    assert_true(gone);
    assert_int_equal(come_back(&rig, &hand), SNAP_WIRE_AT_READY);
    hand_id(&hand, &rig, SNAP_WIRE_GO);
    hand_expect(&hand, SNAP_WIRE_STARTED);
    hand_close(&hand);
    hand_close(&stranger);
    rig_wait(&rig, 0, NULL);
    rig_clear(&rig, 1);
}

/* ---- recover --------------------------------------------------------------------------------------------- */

static void refuses_to_recover(Rig *rig, const char *uri, const char *part) {
    g_autoptr(GError) error = NULL;
    gboolean done = snap_incoming_recover(rig->incoming, uri, &error);
    expect_refused(done, error, part);
}

static void recover_that_is_refused_closes_its_descriptor_once(void **state) {
    (void)state;
    char byte;
    int fds[2];
    Rig rig;
    Hand hand;
    greet(&rig, &hand);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    g_autofree char *uri = g_strdup_printf("fd:%d", fds[0]);
    refuses_to_recover(&rig, uri, "no connection was lost");
    assert_int_equal(recv(fds[1], &byte, 1, MSG_DONTWAIT), 0); /* its end */
    assert_int_equal(dup2(fds[1], fds[0]), fds[0]);
    hand_end(&hand, 0, 0, 0);
    hand_expect_ready(&hand, 0);
    hand_close(&hand);
    rig_wait_lost(&rig, SNAP_MIGRATION_DEVICE);
    rig_clear(&rig, 0);
    assert_true(fcntl(fds[0], F_GETFD) >= 0); /* another's, under that number */
    close(fds[0]);
    close(fds[1]);
}

static void recover_at_its_own_address_is_not_taken_for_a_source(void **state) {
    (void)state;
    Rig rig;
    Hand hand;
    begin(&rig);
    rig_listen(&rig);
    refuses_to_recover(&rig, rig.uri, "no connection was lost");
    hand_open(&hand, &rig);
    hand_greet(&hand, &rig);
    hand_end(&hand, 0, 0, 0);
    hand_expect_ready(&hand, 0);
    hand_id(&hand, &rig, SNAP_WIRE_GO);
    hand_expect(&hand, SNAP_WIRE_STARTED);
    hand_close(&hand);
    rig_wait(&rig, 0, NULL);
    rig_clear(&rig, 1);
}

/* Until it listens, and says so to whoever asks for that once more. */
static void await_listening(Rig *rig) {
    bool listens = false;
    for (int ms = 0; ms < RIG_TIMEOUT_MS && !listens; ms++) {
        g_autoptr(GError) error = NULL;
        gboolean done = snap_incoming_recover(rig->incoming, "tcp:127.0.0.1:0", &error);
        expect_refused(done, error, "");
        listens = strstr(error->message, "listens already") != NULL;
        g_usleep(1000);
    }
    assert_true(listens);
}

/* It has not heard STARTED, again and again; and nobody listens twice. */
static void source_that_is_answered_may_ask_again(void **state) {
    (void)state;
    Rig rig;
    Hand hand;
    come_to_ready(&rig, &hand);
    hand_id(&hand, &rig, SNAP_WIRE_GO);
    rig_wait(&rig, 0, NULL);
    recover(&rig, rig.uri); /* while the connection is still being closed */
    for (int i = 0; i < 3; i++) {
        hand_close(&hand);
        await_listening(&rig);
        is_told_that_it_runs(&rig, &hand);
        /* It has yet to be done with its source. */
        for (int ms = 0; ms < RIG_TIMEOUT_MS && !snap_incoming_recover(rig.incoming, rig.uri, NULL); ms++)
            g_usleep(1000);
    }
    hand_close(&hand);
    rig_wait(&rig, 0, NULL);
    rig_clear(&rig, 1);
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
    for (int ms = 0; ms < RIG_TIMEOUT_MS && __atomic_load_n(&n_lookups, __ATOMIC_SEQ_CST) < n; ms++)
        g_usleep(1000);
    assert_int_equal(n_lookups, n);
    n_lookups = 0;
}

static void recover_slowly(Rig *rig, Hand *hand, const char *uri) {
    lose_after_ready(rig, hand);
    lookup_ms = 1500;
    int64_t begin_us = g_get_monotonic_time();
    recover(rig, uri);
    expect_soon(begin_us, "recover");
}

static void name_that_takes_long_is_listened_at_when_it_is_found(void **state) {
    (void)state;
    Rig rig;
    Hand hand;
    recover_slowly(&rig, &hand, "tcp:slow.test:0");
    bool told = false;
    for (int ms = 0; ms < RIG_TIMEOUT_MS && !told; ms++) {
        g_autofree char *uri = snap_incoming_uri(rig.incoming);
        told = !g_str_has_suffix(uri, ":0");
        if (told)
            assert_true(g_str_has_prefix(uri, "tcp:slow.test:"));
        g_usleep(1000);
    }
    assert_true(told);
    lookup_ms = 0;
    assert_int_equal(come_back(&rig, &hand), SNAP_WIRE_AT_READY);
    hand_id(&hand, &rig, SNAP_WIRE_GO);
    hand_expect(&hand, SNAP_WIRE_STARTED);
    hand_close(&hand);
    rig_wait(&rig, 0, NULL);
    rig_clear(&rig, 1);
    await_lookups(2);
}

static void name_that_is_not_found_leaves_it_lost(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    Rig rig;
    Hand hand;
    recover_slowly(&rig, &hand, "tcp:nowhere.test:0");
    assert_false(snap_incoming_wait(rig.incoming, RIG_TIMEOUT_MS, &error));
    assert_non_null(strstr(error->message, "nowhere.test"));
    rig_wait_lost(&rig, SNAP_MIGRATION_DEVICE);
    recover(&rig, rig.uri);
    rig_clear(&rig, 0);
    await_lookups(1);
}

static void name_that_takes_long_does_not_hold_up_a_promotion(void **state) {
    (void)state;
    Rig rig;
    Hand hand;
    recover_slowly(&rig, &hand, "tcp:slow.test:0");
    int64_t begin_us = g_get_monotonic_time();
    promote(&rig);
    rig_wait(&rig, 0, NULL);
    expect_soon(begin_us, "promote");
    rig_clear(&rig, 1);
    await_lookups(1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(guest_that_lacks_only_go_is_started_by_its_owner),
        cmocka_unit_test(source_of_a_promoted_guest_is_told_and_its_go_starts_nothing),
        cmocka_unit_test(guest_whose_source_is_connected_is_not_started_by_its_owner),
        cmocka_unit_test(guest_that_cannot_be_started_by_its_owner_fails),
        cmocka_unit_test(guest_that_lacks_pages_is_not_started_by_its_owner),
        cmocka_unit_test(silent_stranger_does_not_hold_up_a_cancel),
        cmocka_unit_test(source_without_its_regions_does_not_hold_up_a_cancel),
        cmocka_unit_test(silent_further_channel_does_not_hold_up_a_cancel),
        cmocka_unit_test(silent_stranger_does_not_hold_up_a_promotion),
        cmocka_unit_test(silent_stranger_does_not_hold_up_the_end),
        cmocka_unit_test(stranger_that_trickles_is_sent_away_and_the_source_let_in),
        cmocka_unit_test(recover_that_is_refused_closes_its_descriptor_once),
        cmocka_unit_test(recover_at_its_own_address_is_not_taken_for_a_source),
        cmocka_unit_test(source_that_is_answered_may_ask_again),
        cmocka_unit_test(name_that_takes_long_is_listened_at_when_it_is_found),
        cmocka_unit_test(name_that_is_not_found_leaves_it_lost),
        cmocka_unit_test(name_that_takes_long_does_not_hold_up_a_promotion),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
