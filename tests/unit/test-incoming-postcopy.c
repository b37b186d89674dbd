/*
 * The destination of a post-copy against a source made by hand: who touches what is missing, and what then comes;
 * and what a guest discards. Connections that are lost: test-incoming-postcopy-lost.c.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "postcopy-fixture.h"

/* ---- by kind of memory ----------------------------------------------------------------------------------- */

/* Until the touchers have all they want. */
static void serve(Rig *rig, Toucher *touchers, unsigned n) {
    uint64_t granule = rig->regions[0].granule_pages;
    int64_t until_us = g_get_monotonic_time() + 5 * G_TIME_SPAN_SECOND;
    for (uint64_t all = 0; all < n * touchers[0].n && g_get_monotonic_time() < until_us;) {
        all = 0;
        for (unsigned i = 0; i < n; i++)
            all += (uint64_t)toucher_done(&touchers[i]);
        if (!snap_channel_wait(&rig->urgent.channel, -1, 1))
            continue;
        SnapWireRequest request = postcopy_expect_request(rig);
        assert_true(request.n_pages == granule && request.first_page % granule == 0);
        postcopy_answer(rig, &request);
    }
}

/* Touchers go criss-cross, are answered out of order, and the rest comes by itself, some of it twice. */
static void touch_and_fetch(void **state, SnapMemory kind) {
    Rig *rig = postcopy_begin(state, kind);
    uint64_t n_pages = rig->regions[0].n_pages, granule = rig->regions[0].granule_pages;
    Toucher touchers[3];
    for (unsigned i = 0; i < G_N_ELEMENTS(touchers); i++) {
        touchers[i] = (Toucher){.first = i * 5,
                                .n = granule > 1 ? n_pages / granule : 20,
                                .step = granule > 1 ? granule : 7,
                                .generation = 2};
        toucher_start(rig, &touchers[i]);
    }
    serve(rig, touchers, G_N_ELEMENTS(touchers));
    for (unsigned i = 0; i < G_N_ELEMENTS(touchers); i++)
        toucher_join(&touchers[i]);
    postcopy_send_rest(rig);
    postcopy_finish(rig);
    SnapMigrationStats stats = rig_stats(rig);
    assert_int_equal(stats.remaining_bytes, 0);
    assert_true(stats.postcopy_requests > 0 && stats.postcopy_bytes > n_pages * rig->page);
}

static void missing_anonymous_pages_come_when_touched(void **state) {
    touch_and_fetch(state, SNAP_MEMORY_ANON);
}

static void missing_shared_pages_come_when_touched(void **state) {
    touch_and_fetch(state, SNAP_MEMORY_SHMEM);
}

static void missing_huge_pages_come_when_touched(void **state) {
    touch_and_fetch(state, SNAP_MEMORY_HUGETLB);
}

/* ---- what is there, and what is not ---------------------------------------------------------------------- */

static void page_that_is_there_is_not_overwritten(void **state) {
    Rig *rig = postcopy_begin(state, SNAP_MEMORY_ANON);
    Toucher toucher = {.first = 70, .n = 1, .generation = 2};
    toucher_start(rig, &toucher);
    SnapWireRequest request = postcopy_expect_request(rig);
    assert_int_equal(request.first_page, 70);
    postcopy_answer(rig, &request);
    toucher_join(&toucher);
    rig_page(rig, 0, 70, 7, rig->regions[0].data + 70 * rig->page); /* the guest writes it */
    postcopy_answer(rig, &request);
    postcopy_send_rest(rig);
    rig_note(rig, 0, 70, 1, 7);
    postcopy_finish(rig);
}

static void page_that_was_not_sent_is_zeros_at_once(void **state) {
    Rig *rig = postcopy_greet(state, SNAP_MEMORY_SHMEM);
    rig_send(rig, (RigChunk){.chunk = 0, .present = 1, .generation = 1});
    postcopy_say_missing(rig, 1, 1);
    postcopy_switch_over(rig);
    assert_true(rig_is(rig, 0, 0, 1)); /* was good, and is */
    toucher_run(rig, (Toucher){.first = 130, .n = 10, .step = 1, .generation = 0});
    postcopy_expect_no_request(rig);
    rig_send(rig, (RigChunk){.chunk = 1, .present = 1, .zero = 1});
    postcopy_finish(rig);
}

/* A part of a huge page was sent, and is good; the rest of it is missing. */
static void huge_page_that_is_missing_in_part_keeps_the_rest(void **state) {
    Rig *rig = postcopy_greet(state, SNAP_MEMORY_HUGETLB);
    rig_send_region(rig, 0, 1);
    postcopy_say_missing(rig, 1, 0xff);
    postcopy_switch_over(rig);
    Toucher toucher = {.first = 64, .n = 1, .generation = 2};
    toucher_start(rig, &toucher);
    SnapWireRequest request = postcopy_expect_request(rig);
    assert_int_equal(request.n_pages, rig->regions[0].granule_pages);
    rig_send_by(rig, &rig->urgent, (RigChunk){.chunk = 1, .present = 0xff, .generation = 2});
    toucher_join(&toucher);
    postcopy_finish(rig);
}

/* The source has base pages, and answers for one at a time. */
static void huge_page_is_asked_for_in_the_pages_of_the_source(void **state) {
    static const SnapMemory kind = SNAP_MEMORY_HUGETLB;
    static const uint64_t expected[] = {1, 2, 64};
    Rig *rig = *state;
    rig_map(rig, 1, &kind, POSTCOPY_PAGES);
    rig->flags = SNAP_WIRE_POSTCOPY;
    rig_listen(rig);
    rig_connect(rig, &rig->main);
    rig_say_hello(rig, &rig->main, 0);
    RigRegion said = rig->regions[0];
    said.granule_pages = 1;
    rig_say_region(&rig->main, &said, rig->page);
    hand_expect(&rig->main, SNAP_WIRE_WELCOME);
    rig_join(rig, SNAP_WIRE_URGENT);
    rig_send_region(rig, 0, 1);
    hand_say_missing(&rig->main, &(SnapWireMissing){.n_masks = 2}, (const uint64_t[]){6, 1});
    postcopy_switch_over(rig);
    Toucher toucher = {.first = 2, .n = 1, .generation = 2};
    toucher_start(rig, &toucher);
    for (unsigned i = 0; i < G_N_ELEMENTS(expected); i++) {
        SnapWireRequest request = postcopy_expect_request(rig);
        assert_int_equal(request.n_pages, 1);
        assert_int_equal(request.first_page, expected[i]);
        postcopy_answer(rig, &request);
    }
    toucher_join(&toucher);
    postcopy_finish(rig);
}

static void data_channels_carry_the_rest_as_well(void **state) {
    Rig *rig = *state;
    rig->hello.n_channels = 2;
    postcopy_greet(state, SNAP_MEMORY_ANON);
    rig_send(rig, (RigChunk){.chunk = 1, .present = 0xff, .generation = 1});
    postcopy_say_all_missing(rig);
    postcopy_switch_over(rig);
    postcopy_send_rest(rig);
    hand_say_id(&rig->main, SNAP_WIRE_ALL_SENT);
    g_usleep(50000);
    rig_expect_phase(rig, SNAP_MIGRATION_POSTCOPY); /* one channel is not at its END */
    hand_say_end(&rig->channels[1], 0, 0, 0);
    hand_expect(&rig->main, SNAP_WIRE_COMPLETE);
    rig_close(rig);
    rig_expect_completed(rig);
    rig_check(rig);
}

/* ---- what the guest discards ----------------------------------------------------------------------------- */

static void discarded_pages_are_zeros_and_stay_so(void **state, SnapMemory kind) {
    Rig *rig = postcopy_begin(state, kind);
    uint64_t granule = rig->regions[0].granule_pages, n = granule > 1 ? granule : 10;
    Toucher toucher = {.first = 0, .n = 1, .generation = 2};
    toucher_start(rig, &toucher);
    postcopy_serve(rig, 0);
    toucher_join(&toucher);
    assert_true(postcopy_discard(rig, 0, n)); /* one that was there, and others that never were */
    toucher_run(rig, (Toucher){.first = 0, .n = n, .step = 1, .generation = 0});
    postcopy_expect_no_request(rig);
    postcopy_send_rest(rig);
    rig_note(rig, 0, 0, n, 0);
    postcopy_finish(rig);
}

static void discarded_anonymous_pages_are_zeros(void **state) {
    discarded_pages_are_zeros_and_stay_so(state, SNAP_MEMORY_ANON);
}

static void discarded_shared_pages_are_zeros(void **state) {
    discarded_pages_are_zeros_and_stay_so(state, SNAP_MEMORY_SHMEM);
}

static void discarded_huge_pages_are_zeros(void **state) {
    discarded_pages_are_zeros_and_stay_so(state, SNAP_MEMORY_HUGETLB);
}

/* Who waits for a page that another discards meanwhile finds zeros, and not the page that comes later. */
static void page_discarded_while_it_is_waited_for_is_zeros(void **state) {
    Rig *rig = postcopy_begin(state, SNAP_MEMORY_ANON);
    Toucher toucher = {.first = 3, .n = 1, .generation = 0};
    toucher_start(rig, &toucher);
    SnapWireRequest request = postcopy_expect_request(rig);
    assert_int_equal(toucher_done(&toucher), 0);
    assert_true(postcopy_discard(rig, 3, 1));
    toucher_join(&toucher);
    postcopy_answer(rig, &request);
    postcopy_send_rest(rig);
    rig_note(rig, 0, 3, 1, 0);
    postcopy_finish(rig);
}

typedef struct {
    const Rig *rig;
    bool gone[POSTCOPY_PAGES]; /* discarded */
    int wrong;
    int stop; /* atomic */
} Discarder;

/* Discards here and there, and finds zeros from then on, however often the page comes. */
static gpointer discard_and_look(gpointer data) {
    Discarder *discarder = data;
    for (uint64_t n = 1; !__atomic_load_n(&discarder->stop, __ATOMIC_SEQ_CST); n++) {
        uint64_t page = n * 37 % (POSTCOPY_PAGES - 3), count = 1 + n % 3;
        discarder->wrong += !postcopy_discard(discarder->rig, page, count);
        for (uint64_t i = page; i < page + count; i++)
            discarder->gone[i] = true;
        for (uint64_t look = 0; look < POSTCOPY_PAGES; look += 5)
            discarder->wrong += discarder->gone[look] && !rig_is(discarder->rig, 0, look, 0);
        if (n % 256 == 0)
            g_usleep(100);
    }
    return NULL;
}

/* Everything that comes is wanted only where it was not discarded: in whatever order these meet. */
static void discards_race_with_pages(void **state, SnapMemory kind) {
    Rig *rig = postcopy_begin(state, kind);
    Discarder discarder = {.rig = rig};
    GThread *thread = g_thread_new("discarder", discard_and_look, &discarder);
    for (unsigned i = 0; i < 40; i++) {
        while (snap_channel_has_input(&rig->urgent.channel)) {
            SnapWireRequest request = postcopy_expect_request(rig);
            postcopy_answer(rig, &request);
        }
        rig_send(rig, (RigChunk){
                          .chunk = i % 4, .present = UINT64_C(0x0f0f0f0f0f0f0f0f) << i / 4 % 5, .generation = 2});
        g_usleep(1000);
    }
    for (uint64_t page = 0; page < POSTCOPY_PAGES; page++) /* one by one: none of it may be passed over */
        rig_send(rig, (RigChunk){.chunk = page / 64, .present = UINT64_C(1) << page % 64, .generation = 2});
    hand_say_number(&rig->main, SNAP_WIRE_ALIVE, 0);
    g_usleep(20000);
    __atomic_store_n(&discarder.stop, 1, __ATOMIC_SEQ_CST);
    g_thread_join(thread);
    assert_int_equal(discarder.wrong, 0);
    for (uint64_t page = 0; page < POSTCOPY_PAGES; page++)
        rig_note(rig, 0, page, 1, discarder.gone[page] ? 0 : 2);
    postcopy_finish(rig);
}

static void anonymous_pages_that_are_discarded_while_they_come_stay_zeros(void **state) {
    discards_race_with_pages(state, SNAP_MEMORY_ANON);
}

static void shared_pages_that_are_discarded_while_they_come_stay_zeros(void **state) {
    discards_race_with_pages(state, SNAP_MEMORY_SHMEM);
}

/* ---- it is not needed ------------------------------------------------------------------------------------ */

static unsigned count_uffds(void) {
    unsigned n = 0;
    g_autoptr(GDir) folder = g_dir_open("/proc/self/fd", 0, NULL);
    for (const char *name; (name = g_dir_read_name(folder));) {
        g_autofree char *path = g_build_filename("/proc/self/fd", name, NULL);
        g_autofree char *about = g_file_read_link(path, NULL);
        n += about && strstr(about, "userfaultfd");
    }
    return n;
}

/* It was agreed on; then everything came before the guest ran. Its source may still ask, with both connections. */
static void guest_that_lacked_nothing_keeps_no_userfaultfd(void **state) {
    Rig *rig = postcopy_greet(state, SNAP_MEMORY_ANON);
    assert_int_equal(count_uffds(), 1);
    rig_send_region(rig, 0, 1);
    rig_end(rig, 0, 0, 0);
    hand_expect_ready(&rig->main, 0);
    rig_hand_over(rig);
    for (int ms = 0; ms < HAND_PATIENCE_MS && count_uffds() > 0; ms++)
        g_usleep(1000);
    assert_int_equal(count_uffds(), 0);
    postcopy_resume(rig, 0);
    rig_close(rig);
    rig_expect_completed(rig);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(missing_anonymous_pages_come_when_touched),
        TEST(missing_shared_pages_come_when_touched),
        TEST(missing_huge_pages_come_when_touched),
        TEST(page_that_is_there_is_not_overwritten),
        TEST(page_that_was_not_sent_is_zeros_at_once),
        TEST(huge_page_that_is_missing_in_part_keeps_the_rest),
        TEST(huge_page_is_asked_for_in_the_pages_of_the_source),
        TEST(data_channels_carry_the_rest_as_well),
        TEST(discarded_anonymous_pages_are_zeros),
        TEST(discarded_shared_pages_are_zeros),
        TEST(discarded_huge_pages_are_zeros),
        TEST(page_discarded_while_it_is_waited_for_is_zeros),
        TEST(anonymous_pages_that_are_discarded_while_they_come_stay_zeros),
        TEST(shared_pages_that_are_discarded_while_they_come_stay_zeros),
        TEST(guest_that_lacked_nothing_keeps_no_userfaultfd),
    };
    if (!postcopy_can_run())
        return 77;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
