/*
 * A post-copy of huge pages that has lost its connection: what somebody waits for is asked for again on the next
 * one, each granule once.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "incoming-rig.h"

#include "../../libsnap/uffd.h"
#include "../lib/own-process.h"

#include <unistd.h>

enum { PAGES = 1024, QUIET_MS = 100, OLD = 1, NEW = 2 };

typedef struct {
    Rig rig;
    Hand main, urgent;
} Pair;

static gpointer touch(gpointer data) {
    return GINT_TO_POINTER(rig_is(data, 0, 5, NEW));
}

static void say_all_missing(Pair *pair) {
    const uint64_t mask = UINT64_MAX;
    for (uint64_t chunk = 0; chunk < rig_pages(&pair->rig, 0) / 64; chunk++)
        hand_missing(&pair->main, 0, chunk, &mask, 1);
}

static void begin(Pair *pair) {
    const SnapMemory kind = SNAP_MEMORY_HUGETLB;
    rig_init(&pair->rig, &kind, 1, PAGES);
    pair->rig.flags = SNAP_WIRE_POSTCOPY;
    rig_listen(&pair->rig);
    hand_open(&pair->main, &pair->rig);
    hand_greet(&pair->main, &pair->rig);
    hand_join(&pair->urgent, &pair->rig, SNAP_WIRE_URGENT);
    hand_region(&pair->main, &pair->rig, 0, OLD);
    say_all_missing(pair);
    hand_end(&pair->main, 0, 0, SNAP_WIRE_PAGES_MISSING);
    hand_expect_ready(&pair->main, 0);
    hand_id(&pair->main, &pair->rig, SNAP_WIRE_GO);
    hand_expect(&pair->main, SNAP_WIRE_STARTED);
    rig_wait_phase(&pair->rig, SNAP_MIGRATION_POSTCOPY);
}

static void lose_and_resume(Pair *pair) {
    g_autoptr(GError) error = NULL;
    SnapWireWelcome welcome;
    hand_close(&pair->main);
    hand_close(&pair->urgent);
    rig_wait_lost(&pair->rig, SNAP_MIGRATION_POSTCOPY);
    snap_incoming_recover(pair->rig.incoming, pair->rig.uri, &error);
    fail_on(error);
    pair->rig.flags = SNAP_WIRE_RESUME | SNAP_WIRE_POSTCOPY;
    hand_open(&pair->main, &pair->rig);
    hand_say_hello(&pair->main, &pair->rig, 0);
    hand_expect(&pair->main, SNAP_WIRE_WELCOME);
    assert_null(snap_wire_decode_welcome(&pair->main.head, pair->main.body, &welcome));
    for (uint64_t i = 0; i < welcome.n_missing; i++)
        hand_expect(&pair->main, SNAP_WIRE_MISSING);
    hand_join(&pair->urgent, &pair->rig, SNAP_WIRE_URGENT);
    hand_expect(&pair->main, SNAP_WIRE_STARTED);
}

/* The first huge page, and nothing after it. */
static void expect_one_request(Pair *pair) {
    SnapWireRequest request;
    hand_expect(&pair->urgent, SNAP_WIRE_REQUEST);
    assert_null(snap_wire_decode_request(&pair->urgent.head, pair->urgent.body, &request));
    assert_int_equal(request.first_page, 0);
    assert_int_equal(request.n_pages, pair->rig.regions[0].granule_bytes / pair->rig.page);
    g_usleep(QUIET_MS * 1000);
    assert_false(snap_channel_has_input(&pair->urgent.channel));
}

static void huge_page_waited_for_is_asked_for_once_on_each_connection(void **state) {
    (void)state;
    Pair pair;
    begin(&pair);
    GThread *toucher = g_thread_new("toucher", touch, &pair.rig);
    expect_one_request(&pair);
    lose_and_resume(&pair);
    expect_one_request(&pair);
    hand_region(&pair.main, &pair.rig, 0, NEW);
    assert_true(GPOINTER_TO_INT(g_thread_join(toucher)));
    hand_id(&pair.main, &pair.rig, SNAP_WIRE_ALL_SENT);
    hand_expect(&pair.main, SNAP_WIRE_COMPLETE);
    hand_close(&pair.main);
    hand_close(&pair.urgent);
    rig_wait(&pair.rig, 0, NULL);
    rig_clear(&pair.rig, 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(huge_page_waited_for_is_asked_for_once_on_each_connection),
    };
    int uffd = snap_uffd_open();
    if (uffd < 0) {
        print_message("skip: no userfaultfd: run as root, or set vm.unprivileged_userfaultfd to 1\n");
        return 77;
    }
    close(uffd);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
