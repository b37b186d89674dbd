/*
 * The destination of a post-copy whose connection is lost, or whose source does something wrong, against a source
 * made by hand: before READY the migration has failed; from then on a guest waits where it touches what is
 * missing, and runs on where it does not, until the source has come back.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "expect.h"
#include "postcopy-fixture.h"

#include <sys/wait.h>
#include <unistd.h>

/* ---- while the state is loaded --------------------------------------------------------------------------- */

static void look_at_page_ten(void *rig) {
    assert_true(rig_is(rig, 0, 10, 2));
}

static void look_in_vain(void *rig) {
    assert_false(rig_is(rig, 0, 10, 2));
}

/* It wants page 10, and waits. */
static Rig *begin_to_load(void **state, void (*look)(void *rig)) {
    Rig *rig = postcopy_greet(state, SNAP_MEMORY_ANON);
    rig->on_load = look;
    postcopy_say_all_missing(rig);
    postcopy_end(rig);
    return rig;
}

static void state_that_looks_at_missing_memory_is_served_before_ready(void **state) {
    Rig *rig = begin_to_load(state, look_at_page_ten);
    postcopy_serve(rig, 10);
    hand_expect_ready(&rig->main, 0);
    rig_go(rig);
    postcopy_send_rest(rig);
    postcopy_finish(rig);
}

static void connection_lost_while_the_state_is_loaded_fails(void **state) {
    Rig *rig = begin_to_load(state, look_in_vain);
    postcopy_expect_request(rig);
    rig_close(rig);
    rig_expect_ended(rig, SNAP_ERROR_IO, "");
}

static void owner_that_ends_it_while_the_state_is_loaded_does_not_wait(void **state) {
    Rig *rig = begin_to_load(state, look_in_vain);
    postcopy_expect_request(rig);
    int64_t begun_us = g_get_monotonic_time();
    assert_true(snap_incoming_cancel(rig->incoming, NULL));
    hand_expect_failed(&rig->main, "");
    rig_close(rig);
    g_clear_pointer(&rig->incoming, snap_incoming_free);
    assert_true(g_get_monotonic_time() - begun_us < RIG_SILENCE_MS * 500);
}

/* ---- connections ----------------------------------------------------------------------------------------- */

static void connection_cut_before_ready_fails(void **state) {
    for (unsigned urgent = 0; urgent < 2; urgent++) {
        Rig *rig = postcopy_greet(state, SNAP_MEMORY_ANON);
        postcopy_say_all_missing(rig);
        hand_close(urgent ? &rig->urgent : &rig->main);
        rig_expect_ended(rig, SNAP_ERROR_IO, "closed");
        rig_again(state);
    }
}

static void connection_cut_after_ready_is_resumed_with_all_missing(void **state) {
    Rig *rig = postcopy_greet(state, SNAP_MEMORY_ANON);
    rig_send_region(rig, 0, 1);
    postcopy_say_all_missing(rig);
    postcopy_end(rig);
    hand_expect_ready(&rig->main, 0);
    rig_close(rig);
    rig_expect_lost(rig, SNAP_MIGRATION_DEVICE);
    rig_recover(rig);
    rig_resume(rig, SNAP_WIRE_AT_READY);
    rig_join(rig, SNAP_WIRE_URGENT);
    rig_go(rig);
    postcopy_send_rest(rig);
    postcopy_finish(rig);
}

static void connection_lost_is_resumed_with_what_was_asked_for(void **state) {
    Rig *rig = postcopy_begin(state, SNAP_MEMORY_SHMEM);
    Toucher there = {.first = 100, .n = 1, .generation = 2};
    Toucher asked = {.first = 101, .n = 1, .generation = 2};
    Toucher late = {.first = 200, .n = 1, .generation = 2};
    toucher_start(rig, &there);
    postcopy_serve(rig, 100);
    toucher_join(&there);
    toucher_start(rig, &asked);
    postcopy_expect_request(rig);
    postcopy_lose(rig);
    toucher_start(rig, &late);
    toucher_run(rig, (Toucher){.first = 100, .n = 1, .generation = 2}); /* runs on where nothing is missing */
    assert_true(postcopy_discard(rig, 250, 10));                        /* which waits for nobody either */
    g_usleep(100000);
    assert_int_equal(toucher_done(&asked) + toucher_done(&late), 0);
    postcopy_resume(rig, POSTCOPY_PAGES - 1 - 10);
    for (unsigned i = 0; i < 2; i++) {
        SnapWireRequest request = postcopy_expect_request(rig);
        assert_true(request.first_page == 101 || request.first_page == 200);
        postcopy_answer(rig, &request);
    }
    toucher_join(&asked);
    toucher_join(&late);
    postcopy_send_rest(rig);
    rig_note(rig, 0, 250, 10, 0);
    postcopy_finish(rig);
}

/* The first huge page, and nothing after it. */
static void expect_one_request(Rig *rig) {
    SnapWireRequest request = postcopy_expect_request(rig);
    assert_int_equal(request.first_page, 0);
    assert_int_equal(request.n_pages, rig->regions[0].granule_pages);
    postcopy_expect_no_request(rig);
}

static void huge_page_waited_for_is_asked_for_once_on_each_connection(void **state) {
    Rig *rig = postcopy_begin(state, SNAP_MEMORY_HUGETLB);
    Toucher toucher = {.first = 5, .n = 1, .generation = 2};
    toucher_start(rig, &toucher);
    expect_one_request(rig);
    postcopy_lose(rig);
    postcopy_resume(rig, rig->regions[0].n_pages);
    expect_one_request(rig);
    postcopy_send_rest(rig);
    toucher_join(&toucher);
    postcopy_finish(rig);
}

static void urgent_connection_lost_is_a_connection_lost(void **state) {
    Rig *rig = postcopy_begin(state, SNAP_MEMORY_ANON);
    hand_close(&rig->urgent);
    hand_expect_closed(&rig->main);
    postcopy_lose(rig);
    postcopy_resume(rig, POSTCOPY_PAGES);
    postcopy_send_rest(rig);
    postcopy_finish(rig);
}

static void source_that_has_not_heard_of_the_end_is_told(void **state) {
    Rig *rig = postcopy_begin(state, SNAP_MEMORY_ANON);
    postcopy_send_rest(rig);
    hand_say_id(&rig->main, SNAP_WIRE_ALL_SENT);
    rig_close(rig);
    rig_expect_completed(rig);
    g_usleep(50000);
    postcopy_resume(rig, 0);
    postcopy_finish(rig);
}

/* ---- what is wrong --------------------------------------------------------------------------------------- */

static void wrong_page_is_not_put_in_place(void **state) {
    Rig *rig = postcopy_begin(state, SNAP_MEMORY_ANON);
    Toucher toucher = {.first = 100, .n = 1, .generation = 2};
    toucher_start(rig, &toucher);
    SnapWireRequest request = postcopy_expect_request(rig);
    /* The right head and body, and a bulk that is not theirs. */
    g_autofree uint8_t *zeros = g_malloc0(rig->page);
    const SnapWireChunk chunk = {.chunk = request.first_page / 64,
                                 .record = {.present = UINT64_C(1) << request.first_page % 64,
                                            .length_bytes = (uint32_t)rig->page,
                                            .xxh3 = 1}};
    hand_say_chunk(&rig->urgent, &chunk, zeros);
    hand_expect_closed(&rig->main);
    postcopy_lose(rig);
    assert_int_equal(toucher_done(&toucher), 0);
    postcopy_resume(rig, POSTCOPY_PAGES);
    postcopy_serve(rig, 100);
    toucher_join(&toucher);
    postcopy_send_rest(rig);
    postcopy_finish(rig);
}

/* All is missing, and nothing of it comes: it is given up for this, and resumed. */
static void expect_given_up(Rig *rig, SnapErrorCode code, const char *part) {
    GError *error = NULL;
    hand_live_on(&rig->main, 600);
    rig_close(rig);
    bool good = snap_incoming_wait(rig->incoming, HAND_PATIENCE_MS, &error);
    expect_error(good, &error, code, part);
    postcopy_resume(rig, POSTCOPY_PAGES);
}

static void page_that_never_comes_is_a_connection_lost(void **state) {
    Toucher toucher = {.first = 1, .n = 1, .generation = 2};
    Rig *rig = *state;
    rig->hello.silence_ms = 300;
    postcopy_begin(state, SNAP_MEMORY_ANON);
    toucher_start(rig, &toucher);
    postcopy_expect_request(rig);
    expect_given_up(rig, SNAP_ERROR_IO, "a page that was asked for does not come");
    postcopy_serve(rig, 1);
    toucher_join(&toucher);
    postcopy_send_rest(rig);
    postcopy_finish(rig);
}

static void all_sent_with_pages_missing_is_a_lie(void **state) {
    Rig *rig = *state;
    rig->hello.silence_ms = 300;
    postcopy_begin(state, SNAP_MEMORY_ANON);
    hand_say_id(&rig->main, SNAP_WIRE_ALL_SENT);
    expect_given_up(rig, SNAP_ERROR_PROTOCOL, "300 pages are missing");
    postcopy_send_rest(rig);
    postcopy_finish(rig);
}

static void end_without_flag(Rig *rig) {
    postcopy_say_missing(rig, 0, 1);
    rig_end(rig, 0, 0, 0);
}

static void masks_of_no_region(Rig *rig) {
    hand_say_missing(&rig->main, &(SnapWireMissing){.region = 1, .n_masks = 1}, (const uint64_t[]){1});
}

static void masks_of_no_chunk(Rig *rig) {
    hand_say_missing(&rig->main, &(SnapWireMissing){.first_chunk = 4, .n_masks = 2}, (const uint64_t[]){1, 1});
}

static void masks_beyond_the_end(Rig *rig) {
    postcopy_say_missing(rig, POSTCOPY_PAGES / 64, UINT64_C(1) << POSTCOPY_PAGES % 64);
}

static void chunk_nobody_asked_for(Rig *rig) {
    rig_send_by(rig, &rig->urgent, (RigChunk){.present = 1});
}

static void what_is_wrong_before_the_switch_over_is_named(void **state) {
    static const struct {
        void (*act)(Rig *rig);
        const char *part;
    } lapses[] = {
        {end_without_flag, "(END): pages were said to be missing"},
        {masks_of_no_region, "(MISSING): there is no such region"},
        {masks_of_no_chunk, "(MISSING): there are no such chunks"},
        {masks_beyond_the_end, "(MISSING): pages beyond the end"},
        {chunk_nobody_asked_for, "urgent channel: record 1 (CHUNK): nothing is missing"},
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(lapses); i++) {
        Rig *rig = postcopy_greet(state, SNAP_MEMORY_ANON);
        lapses[i].act(rig);
        rig_expect_failed(rig, SNAP_ERROR_PROTOCOL, lapses[i].part);
        rig_again(state);
    }
}

/* In a child, with a rig of its own: who waits in what is missing can only end with its process. */
static bool waits_when_all_is_freed(void) {
    void *state;
    rig_new(&state);
    Rig *rig = postcopy_begin(&state, SNAP_MEMORY_ANON);
    Toucher toucher = {.first = 8, .n = 1, .generation = 2};
    toucher_start(rig, &toucher);
    postcopy_expect_request(rig);
    g_clear_pointer(&rig->incoming, snap_incoming_free);
    g_usleep(100000);
    rig_free(&state);
    return toucher_done(&toucher) == 0;
}

static void guest_that_lacks_memory_waits_when_all_is_freed(void **state) {
    int status = -1;
    pid_t child = fork();
    (void)state;
    if (child == 0)
        _exit(waits_when_all_is_freed() ? 0 : 1);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(state_that_looks_at_missing_memory_is_served_before_ready),
        TEST(connection_lost_while_the_state_is_loaded_fails),
        TEST(owner_that_ends_it_while_the_state_is_loaded_does_not_wait),
        TEST(connection_cut_before_ready_fails),
        TEST(connection_cut_after_ready_is_resumed_with_all_missing),
        TEST(connection_lost_is_resumed_with_what_was_asked_for),
        TEST(huge_page_waited_for_is_asked_for_once_on_each_connection),
        TEST(urgent_connection_lost_is_a_connection_lost),
        TEST(source_that_has_not_heard_of_the_end_is_told),
        TEST(wrong_page_is_not_put_in_place),
        TEST(page_that_never_comes_is_a_connection_lost),
        TEST(all_sent_with_pages_missing_is_a_lie),
        TEST(what_is_wrong_before_the_switch_over_is_named),
        TEST(guest_that_lacks_memory_waits_when_all_is_freed),
    };
    if (!postcopy_can_run())
        return 77;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
