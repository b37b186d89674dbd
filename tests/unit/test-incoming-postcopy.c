/* The destination of a post-copy against a source made by hand: who touches what is missing, and what then comes.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "incoming-rig.h"

#include "../lib/own-process.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGES = 300, WAIT_MS = 5000, QUIET_MS = 100 };

/* ---- a guest that touches its memory --------------------------------------------------------------------- */

typedef struct {
    Rig *rig;
    unsigned region;
    uint64_t first, n, step; /* pages first, first + step, … */
    unsigned generation;
    GThread *thread;
    int done;  /* atomic: how many were touched */
    int wrong; /* atomic */
} Toucher;

static gpointer touch(gpointer data) {
    Toucher *toucher = data;
    const Rig *rig = toucher->rig;
    for (uint64_t i = 0; i < toucher->n; i++) {
        uint64_t page = (toucher->first + i * toucher->step) % rig_pages(rig, toucher->region);
        bool right = toucher->generation ? rig_is(rig, toucher->region, page, toucher->generation)
                                         : rig_is_zero(rig, toucher->region, page);
        __atomic_add_fetch(&toucher->wrong, !right, __ATOMIC_SEQ_CST);
        __atomic_add_fetch(&toucher->done, 1, __ATOMIC_SEQ_CST);
    }
    return NULL;
}

static void toucher_start(Toucher *toucher) {
    toucher->thread = g_thread_new("toucher", touch, toucher);
}

static int touched(Toucher *toucher) {
    return __atomic_load_n(&toucher->done, __ATOMIC_SEQ_CST);
}

static void toucher_join(Toucher *toucher) {
    for (int ms = 0; ms < WAIT_MS && touched(toucher) < (int)toucher->n; ms++)
        g_usleep(1000);
    assert_int_equal(touched(toucher), toucher->n);
    g_thread_join(toucher->thread);
    assert_int_equal(toucher->wrong, 0);
}

/* ---- a source -------------------------------------------------------------------------------------------- */

typedef struct {
    Rig rig;
    Hand main, urgent;
} Pair;

static void pair_connect(Pair *pair) {
    hand_open(&pair->main, &pair->rig);
    hand_greet(&pair->main, &pair->rig);
    hand_join(&pair->urgent, &pair->rig, SNAP_WIRE_URGENT);
}

static void pair_init(Pair *pair, SnapMemory kind) {
    rig_init(&pair->rig, &kind, 1, PAGES);
    pair->rig.flags = SNAP_WIRE_POSTCOPY;
    rig_listen(&pair->rig);
    pair_connect(pair);
}

static void pair_close(Pair *pair) {
    hand_close(&pair->main);
    hand_close(&pair->urgent);
}

static void say_all_missing(Pair *pair) {
    uint64_t n_pages = rig_pages(&pair->rig, 0);
    for (uint64_t page = 0; page < n_pages; page += 64) {
        uint64_t mask = n_pages - page >= 64 ? UINT64_MAX : (UINT64_C(1) << (n_pages - page)) - 1;
        hand_missing(&pair->main, 0, page / 64, &mask, 1);
    }
}

static void switch_over(Pair *pair) {
    hand_end(&pair->main, 0, 0, SNAP_WIRE_PAGES_MISSING);
    hand_expect_ready(&pair->main, 0);
    hand_id(&pair->main, &pair->rig, SNAP_WIRE_GO);
    hand_expect(&pair->main, SNAP_WIRE_STARTED);
    rig_wait_phase(&pair->rig, SNAP_MIGRATION_POSTCOPY);
}

/* Everything was old, all of it is missing, and it runs. */
static void begin(Pair *pair, SnapMemory kind) {
    pair_init(pair, kind);
    hand_region(&pair->main, &pair->rig, 0, 1);
    say_all_missing(pair);
    switch_over(pair);
}

static SnapWireRequest expect_request(Pair *pair) {
    SnapWireRequest request;
    hand_expect(&pair->urgent, SNAP_WIRE_REQUEST);
    assert_null(snap_wire_decode_request(&pair->urgent.head, pair->urgent.body, &request));
    return request;
}

static void expect_quiet(Pair *pair) {
    g_usleep(QUIET_MS * 1000);
    assert_false(snap_channel_has_input(&pair->urgent.channel));
}

/* The pages of a request, and nothing else. */
static void answer(Pair *pair, const SnapWireRequest *request, unsigned generation) {
    for (uint64_t page = request->first_page; page < request->first_page + request->n_pages;) {
        uint64_t first = page % 64, n = MIN(64 - first, request->first_page + request->n_pages - page);
        hand_chunk(&pair->urgent, &pair->rig,
                   (HandChunk){.region = request->region,
                               .chunk = page / 64,
                               .present = (n == 64 ? UINT64_MAX : (UINT64_C(1) << n) - 1) << first,
                               .generation = generation});
        page += n;
    }
}

static void finish(Pair *pair) {
    hand_id(&pair->main, &pair->rig, SNAP_WIRE_ALL_SENT);
    hand_expect(&pair->main, SNAP_WIRE_COMPLETE);
    pair_close(pair);
    rig_wait(&pair->rig, 0, NULL);
}

static void check_all(Pair *pair, unsigned generation) {
    for (uint64_t page = 0; page < rig_pages(&pair->rig, 0); page++)
        assert_true(rig_is(&pair->rig, 0, page, generation));
}

/* ---- by kind of memory ----------------------------------------------------------------------------------- */

/* Touchers go criss-cross, are answered out of order, and the rest comes by itself, some of it twice. */
static void touch_and_fetch(SnapMemory kind) {
    Pair pair;
    begin(&pair, kind);
    uint64_t n_pages = rig_pages(&pair.rig, 0), granule = pair.rig.regions[0].granule_bytes / pair.rig.page;
    uint64_t step = granule > 1 ? granule : 7;
    uint64_t n = granule > 1 ? n_pages / granule : 20;
    Toucher touchers[3];
    for (unsigned i = 0; i < G_N_ELEMENTS(touchers); i++) {
        touchers[i] = (Toucher){.rig = &pair.rig, .first = i * 5, .n = n, .step = step, .generation = 2};
        toucher_start(&touchers[i]);
    }
    int all = 0;
    for (int waits = 0; all < (int)(3 * n) && waits < WAIT_MS; waits++) {
        all = touched(&touchers[0]) + touched(&touchers[1]) + touched(&touchers[2]);
        if (!snap_channel_wait(&pair.urgent.channel, -1, 1))
            continue;
        SnapWireRequest request = expect_request(&pair);
        assert_true(request.n_pages == granule && request.first_page % granule == 0);
        answer(&pair, &request, 2);
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(touchers); i++)
        toucher_join(&touchers[i]);
    hand_region(&pair.main, &pair.rig, 0, 2);
    finish(&pair);
    check_all(&pair, 2);
    SnapMigrationStats stats;
    snap_incoming_get_stats(pair.rig.incoming, &stats);
    assert_int_equal(stats.remaining_bytes, 0);
    assert_true(stats.postcopy_requests > 0 && stats.postcopy_bytes > n_pages * pair.rig.page);
    rig_clear(&pair.rig, 1);
}

static void missing_anonymous_pages_come_when_touched(void **state) {
    (void)state;
    touch_and_fetch(SNAP_MEMORY_ANON);
}

static void missing_shared_pages_come_when_touched(void **state) {
    (void)state;
    touch_and_fetch(SNAP_MEMORY_SHMEM);
}

static void missing_huge_pages_come_when_touched(void **state) {
    (void)state;
    touch_and_fetch(SNAP_MEMORY_HUGETLB);
}

/* ---- what is there, and what is not ---------------------------------------------------------------------- */

static void page_that_is_there_is_not_overwritten(void **state) {
    (void)state;
    Pair pair;
    begin(&pair, SNAP_MEMORY_ANON);
    Toucher toucher = {.rig = &pair.rig, .first = 70, .n = 1, .generation = 2};
    toucher_start(&toucher);
    SnapWireRequest request = expect_request(&pair);
    assert_int_equal(request.first_page, 70);
    answer(&pair, &request, 2);
    toucher_join(&toucher);
    uint8_t *mine = pair.rig.regions[0].data + 70 * pair.rig.page;
    memset(mine, 0x77, pair.rig.page);
    answer(&pair, &request, 2);
    hand_region(&pair.main, &pair.rig, 0, 2);
    finish(&pair);
    for (uint64_t i = 0; i < pair.rig.page; i++)
        assert_int_equal(mine[i], 0x77);
    rig_clear(&pair.rig, 1);
}

static void page_that_was_not_sent_is_zeros_at_once(void **state) {
    (void)state;
    Pair pair;
    pair_init(&pair, SNAP_MEMORY_SHMEM);
    hand_chunk(&pair.main, &pair.rig, (HandChunk){.chunk = 0, .present = 1, .generation = 1});
    hand_missing(&pair.main, 0, 1, (const uint64_t[]){1}, 1);
    switch_over(&pair);
    assert_true(rig_is(&pair.rig, 0, 0, 1)); /* was good, and is */
    Toucher toucher = {.rig = &pair.rig, .first = 130, .n = 10, .step = 1};
    toucher_start(&toucher);
    toucher_join(&toucher);
    expect_quiet(&pair);
    hand_chunk(&pair.main, &pair.rig, (HandChunk){.chunk = 1, .present = 1, .zero = 1});
    finish(&pair);
    assert_true(rig_is_zero(&pair.rig, 0, 64));
    rig_clear(&pair.rig, 1);
}

static void discard(const Pair *pair, uint64_t page, uint64_t n, int advice) {
    const RigRegion *region = &pair->rig.regions[0];
    assert_int_equal(madvise(region->data + page * pair->rig.page, n * pair->rig.page, advice), 0);
}

static void discarded_pages_are_zeros_and_stay_so(SnapMemory kind, int advice) {
    Pair pair;
    begin(&pair, kind);
    uint64_t granule = pair.rig.regions[0].granule_bytes / pair.rig.page, n = granule > 1 ? granule : 10;
    Toucher first = {.rig = &pair.rig, .first = 0, .n = 1, .generation = 2};
    toucher_start(&first);
    SnapWireRequest request = expect_request(&pair);
    answer(&pair, &request, 2);
    toucher_join(&first);
    discard(&pair, 0, n, advice); /* one that was there, and others that never were */
    Toucher again = {.rig = &pair.rig, .first = 0, .n = n, .step = 1};
    toucher_start(&again);
    toucher_join(&again);
    expect_quiet(&pair);
    hand_region(&pair.main, &pair.rig, 0, 2);
    finish(&pair);
    for (uint64_t page = 0; page < rig_pages(&pair.rig, 0); page++)
        assert_true(page < n ? rig_is_zero(&pair.rig, 0, page) : rig_is(&pair.rig, 0, page, 2));
    rig_clear(&pair.rig, 1);
}

static void discarded_anonymous_pages_are_zeros(void **state) {
    (void)state;
    discarded_pages_are_zeros_and_stay_so(SNAP_MEMORY_ANON, MADV_DONTNEED);
}

static void discarded_shared_pages_are_zeros(void **state) {
    (void)state;
    discarded_pages_are_zeros_and_stay_so(SNAP_MEMORY_SHMEM, MADV_REMOVE);
}

static void discarded_huge_pages_are_zeros(void **state) {
    (void)state;
    discarded_pages_are_zeros_and_stay_so(SNAP_MEMORY_HUGETLB, MADV_REMOVE);
}

/* Who waits for a page that another discards meanwhile finds zeros, and not the page that comes later. */
static void page_discarded_while_it_is_waited_for_is_zeros(void **state) {
    (void)state;
    Pair pair;
    begin(&pair, SNAP_MEMORY_ANON);
    Toucher toucher = {.rig = &pair.rig, .first = 3, .n = 1};
    toucher_start(&toucher);
    SnapWireRequest request = expect_request(&pair);
    assert_int_equal(touched(&toucher), 0);
    discard(&pair, 3, 1, MADV_DONTNEED);
    toucher_join(&toucher);
    answer(&pair, &request, 2);
    hand_region(&pair.main, &pair.rig, 0, 2);
    finish(&pair);
    assert_true(rig_is_zero(&pair.rig, 0, 3));
    assert_true(rig_is(&pair.rig, 0, 4, 2));
    rig_clear(&pair.rig, 1);
}

/* A part of a huge page was sent, and is good; the rest of it is missing. */
static void huge_page_that_is_missing_in_part_keeps_the_rest(void **state) {
    (void)state;
    Pair pair;
    pair_init(&pair, SNAP_MEMORY_HUGETLB);
    hand_region(&pair.main, &pair.rig, 0, 1);
    hand_missing(&pair.main, 0, 1, (const uint64_t[]){0xff}, 1);
    switch_over(&pair);
    Toucher toucher = {.rig = &pair.rig, .first = 64, .n = 1, .generation = 2};
    toucher_start(&toucher);
    SnapWireRequest request = expect_request(&pair);
    assert_int_equal(request.n_pages, pair.rig.regions[0].granule_bytes / pair.rig.page);
    hand_chunk(&pair.urgent, &pair.rig, (HandChunk){.chunk = 1, .present = 0xff, .generation = 2});
    toucher_join(&toucher);
    finish(&pair);
    for (uint64_t page = 0; page < rig_pages(&pair.rig, 0); page++)
        assert_true(rig_is(&pair.rig, 0, page, page >= 64 && page < 72 ? 2 : 1));
    rig_clear(&pair.rig, 1);
}

static void touch_one(void *opaque) {
    const Rig *rig = opaque;
    assert_true(rig_is(rig, 0, 10, 2));
}

static void state_that_looks_at_missing_memory_is_served_before_ready(void **state) {
    (void)state;
    Pair pair;
    pair_init(&pair, SNAP_MEMORY_ANON);
    pair.rig.on_load = touch_one;
    pair.rig.opaque = &pair.rig;
    say_all_missing(&pair);
    hand_end(&pair.main, 0, 0, SNAP_WIRE_PAGES_MISSING);
    SnapWireRequest request = expect_request(&pair);
    assert_int_equal(request.first_page, 10);
    answer(&pair, &request, 2);
    hand_expect_ready(&pair.main, 0);
    hand_id(&pair.main, &pair.rig, SNAP_WIRE_GO);
    hand_expect(&pair.main, SNAP_WIRE_STARTED);
    hand_region(&pair.main, &pair.rig, 0, 2);
    finish(&pair);
    rig_clear(&pair.rig, 1);
}

static void touch_in_vain(void *opaque) {
    const Rig *rig = opaque;
    assert_false(rig_is(rig, 0, 10, 2));
}

static void connection_lost_while_the_state_is_loaded_fails(void **state) {
    (void)state;
    Pair pair;
    pair_init(&pair, SNAP_MEMORY_ANON);
    pair.rig.on_load = touch_in_vain;
    pair.rig.opaque = &pair.rig;
    say_all_missing(&pair);
    hand_end(&pair.main, 0, 0, SNAP_WIRE_PAGES_MISSING);
    expect_request(&pair);
    pair_close(&pair);
    rig_wait(&pair.rig, SNAP_ERROR_IO, "");
    rig_clear(&pair.rig, 0);
}

static void owner_that_ends_it_while_the_state_is_loaded_does_not_wait(void **state) {
    (void)state;
    Pair pair;
    pair_init(&pair, SNAP_MEMORY_ANON);
    pair.rig.on_load = touch_in_vain;
    pair.rig.opaque = &pair.rig;
    say_all_missing(&pair);
    hand_end(&pair.main, 0, 0, SNAP_WIRE_PAGES_MISSING);
    expect_request(&pair);
    int64_t begun_us = g_get_monotonic_time();
    assert_true(snap_incoming_cancel(pair.rig.incoming, NULL));
    hand_expect_failed(&pair.main, "");
    pair_close(&pair);
    rig_clear(&pair.rig, 0);
    assert_true(g_get_monotonic_time() - begun_us < RIG_SILENCE_MS * 500);
}

/* ---- connections ----------------------------------------------------------------------------------------- */

static void resume(Pair *pair, uint64_t expected_missing) {
    g_autoptr(GError) error = NULL;
    g_autofree uint64_t *masks = g_new(uint64_t, SNAP_WIRE_MAX_MASKS);
    SnapWireWelcome welcome;
    SnapWireMissing missing;
    uint64_t n = 0;
    snap_incoming_recover(pair->rig.incoming, pair->rig.uri, &error);
    fail_on(error);
    pair->rig.flags = SNAP_WIRE_RESUME | SNAP_WIRE_POSTCOPY;
    hand_open(&pair->main, &pair->rig);
    hand_say_hello(&pair->main, &pair->rig, 0);
    hand_expect(&pair->main, SNAP_WIRE_WELCOME);
    assert_null(snap_wire_decode_welcome(&pair->main.head, pair->main.body, &welcome));
    assert_int_equal(welcome.at, SNAP_WIRE_AT_STARTED);
    for (uint64_t i = 0; i < welcome.n_missing; i++) {
        hand_expect(&pair->main, SNAP_WIRE_MISSING);
        assert_null(snap_wire_decode_missing(&pair->main.head, pair->main.body, &missing, masks));
        for (uint32_t j = 0; j < missing.n_masks; j++)
            n += (uint64_t)__builtin_popcountll(masks[j]);
    }
    assert_int_equal(n, expected_missing);
    hand_join(&pair->urgent, &pair->rig, SNAP_WIRE_URGENT);
    hand_expect(&pair->main, SNAP_WIRE_STARTED);
}

static void connection_lost_is_resumed_with_what_was_asked_for(void **state) {
    (void)state;
    Pair pair;
    begin(&pair, SNAP_MEMORY_SHMEM);
    Toucher first = {.rig = &pair.rig, .first = 100, .n = 1, .generation = 2};
    Toucher second = {.rig = &pair.rig, .first = 200, .n = 1, .generation = 2};
    toucher_start(&first);
    SnapWireRequest request = expect_request(&pair);
    answer(&pair, &request, 2);
    toucher_join(&first);
    first = (Toucher){.rig = &pair.rig, .first = 101, .n = 1, .generation = 2};
    toucher_start(&first);
    expect_request(&pair);
    pair_close(&pair);
    rig_wait_lost(&pair.rig, SNAP_MIGRATION_POSTCOPY);
    toucher_start(&second);
    Toucher there = {.rig = &pair.rig, .first = 100, .n = 1, .generation = 2};
    toucher_start(&there);
    toucher_join(&there);                 /* runs on where nothing is missing */
    discard(&pair, 250, 10, MADV_REMOVE); /* which waits for nobody either */
    g_usleep(QUIET_MS * 1000);
    assert_int_equal(touched(&first) + touched(&second), 0);
    resume(&pair, PAGES - 1 - 10);
    for (unsigned i = 0; i < 2; i++) {
        request = expect_request(&pair);
        assert_true(request.first_page == 101 || request.first_page == 200);
        answer(&pair, &request, 2);
    }
    toucher_join(&first);
    toucher_join(&second);
    hand_region(&pair.main, &pair.rig, 0, 2);
    finish(&pair);
    for (uint64_t page = 0; page < PAGES; page++)
        assert_true(page >= 250 && page < 260 ? rig_is_zero(&pair.rig, 0, page) : rig_is(&pair.rig, 0, page, 2));
    rig_clear(&pair.rig, 1);
}

static void urgent_connection_lost_is_a_connection_lost(void **state) {
    (void)state;
    Pair pair;
    begin(&pair, SNAP_MEMORY_ANON);
    hand_close(&pair.urgent);
    hand_expect_end(&pair.main);
    hand_close(&pair.main);
    rig_wait_lost(&pair.rig, SNAP_MIGRATION_POSTCOPY);
    resume(&pair, PAGES);
    hand_region(&pair.main, &pair.rig, 0, 2);
    finish(&pair);
    rig_clear(&pair.rig, 1);
}

static void source_that_has_not_heard_of_the_end_is_told(void **state) {
    (void)state;
    Pair pair;
    begin(&pair, SNAP_MEMORY_ANON);
    hand_region(&pair.main, &pair.rig, 0, 2);
    hand_id(&pair.main, &pair.rig, SNAP_WIRE_ALL_SENT);
    pair_close(&pair);
    rig_wait(&pair.rig, 0, NULL);
    g_usleep(50000);
    resume(&pair, 0);
    finish(&pair);
    rig_clear(&pair.rig, 1);
}

static void wrong_page_is_not_put_in_place(void **state) {
    (void)state;
    Pair pair;
    begin(&pair, SNAP_MEMORY_ANON);
    Toucher toucher = {.rig = &pair.rig, .first = 100, .n = 1, .generation = 2};
    toucher_start(&toucher);
    SnapWireRequest request = expect_request(&pair);
    /* The right head and body, and a bulk that is not theirs. */
    g_autofree uint8_t *zeros = g_malloc0(pair.rig.page);
    g_autoptr(GError) error = NULL;
    uint8_t body[64];
    const SnapWireChunk chunk = {.chunk = request.first_page / 64,
                                 .record = {.present = UINT64_C(1) << request.first_page % 64,
                                            .length_bytes = (uint32_t)pair.rig.page,
                                            .xxh3 = 1}};
    const struct iovec bulk = {zeros, pair.rig.page};
    snap_channel_send(&pair.urgent.channel, SNAP_WIRE_CHUNK, 0, body, snap_wire_encode_chunk(&chunk, body), &bulk,
                      1, &error);
    fail_on(error);
    hand_expect_end(&pair.main);
    pair_close(&pair);
    rig_wait_lost(&pair.rig, SNAP_MIGRATION_POSTCOPY);
    assert_int_equal(touched(&toucher), 0);
    resume(&pair, PAGES);
    request = expect_request(&pair);
    answer(&pair, &request, 2);
    toucher_join(&toucher);
    hand_region(&pair.main, &pair.rig, 0, 2);
    finish(&pair);
    check_all(&pair, 2);
    rig_clear(&pair.rig, 1);
}

static void page_that_never_comes_is_a_connection_lost(void **state) {
    (void)state;
    Pair pair;
    rig_init(&pair.rig, (const SnapMemory[]){SNAP_MEMORY_ANON}, 1, PAGES);
    pair.rig.flags = SNAP_WIRE_POSTCOPY;
    pair.rig.hello.silence_ms = 300;
    rig_listen(&pair.rig);
    pair_connect(&pair);
    say_all_missing(&pair);
    switch_over(&pair);
    Toucher toucher = {.rig = &pair.rig, .first = 1, .n = 1, .generation = 2};
    toucher_start(&toucher);
    expect_request(&pair);
    uint8_t body[16];
    for (unsigned i = 0; i < 6; i++) {
        g_autoptr(GError) gone = NULL;
        g_usleep(100000);
        snap_channel_send(&pair.main.channel, SNAP_WIRE_ALIVE, 0, body, snap_wire_encode_number(0, body), NULL, 0,
                          &gone);
    }
    pair_close(&pair);
    g_autoptr(GError) error = NULL;
    assert_false(snap_incoming_wait(pair.rig.incoming, RIG_TIMEOUT_MS, &error));
    assert_non_null(strstr(error->message, "a page that was asked for does not come"));
    resume(&pair, PAGES);
    SnapWireRequest request = expect_request(&pair);
    answer(&pair, &request, 2);
    toucher_join(&toucher);
    hand_region(&pair.main, &pair.rig, 0, 2);
    finish(&pair);
    rig_clear(&pair.rig, 1);
}

static void all_sent_with_pages_missing_is_a_lie(void **state) {
    (void)state;
    Pair pair;
    rig_init(&pair.rig, (const SnapMemory[]){SNAP_MEMORY_ANON}, 1, PAGES);
    pair.rig.flags = SNAP_WIRE_POSTCOPY;
    pair.rig.hello.silence_ms = 300;
    rig_listen(&pair.rig);
    pair_connect(&pair);
    say_all_missing(&pair);
    switch_over(&pair);
    hand_id(&pair.main, &pair.rig, SNAP_WIRE_ALL_SENT);
    uint8_t body[16];
    for (unsigned i = 0; i < 6; i++) {
        g_autoptr(GError) gone = NULL;
        g_usleep(100000);
        snap_channel_send(&pair.main.channel, SNAP_WIRE_ALIVE, 0, body, snap_wire_encode_number(0, body), NULL, 0,
                          &gone);
    }
    pair_close(&pair);
    g_autoptr(GError) error = NULL;
    assert_false(snap_incoming_wait(pair.rig.incoming, RIG_TIMEOUT_MS, &error));
    assert_non_null(strstr(error->message, "300 pages are missing"));
    resume(&pair, PAGES);
    hand_region(&pair.main, &pair.rig, 0, 2);
    finish(&pair);
    rig_clear(&pair.rig, 1);
}

/* ---- several channels, other granules, races -------------------------------------------------------------- */

static void data_channels_carry_the_rest_as_well(void **state) {
    (void)state;
    Pair pair;
    Hand data;
    const SnapMemory kind = SNAP_MEMORY_ANON;
    rig_init(&pair.rig, &kind, 1, PAGES);
    pair.rig.flags = SNAP_WIRE_POSTCOPY;
    pair.rig.hello.n_channels = 2;
    rig_listen(&pair.rig);
    hand_open(&pair.main, &pair.rig);
    hand_greet(&pair.main, &pair.rig);
    hand_join(&pair.urgent, &pair.rig, SNAP_WIRE_URGENT);
    hand_join(&data, &pair.rig, 1);
    hand_chunk(&data, &pair.rig, (HandChunk){.chunk = 1, .present = 0xff, .generation = 1});
    say_all_missing(&pair);
    hand_end(&data, 0, 0, 0);
    switch_over(&pair);
    for (uint64_t chunk = 0; chunk < 5; chunk++)
        hand_chunk(chunk % 2 ? &data : &pair.main, &pair.rig,
                   (HandChunk){.chunk = chunk,
                               .present = chunk < 4 ? UINT64_MAX : (UINT64_C(1) << PAGES % 64) - 1,
                               .generation = 2});
    hand_id(&pair.main, &pair.rig, SNAP_WIRE_ALL_SENT);
    g_usleep(50000);
    rig_wait_phase(&pair.rig, SNAP_MIGRATION_POSTCOPY); /* one channel is not at its END */
    hand_end(&data, 0, 0, 0);
    hand_expect(&pair.main, SNAP_WIRE_COMPLETE);
    hand_close(&data);
    pair_close(&pair);
    rig_wait(&pair.rig, 0, NULL);
    check_all(&pair, 2);
    rig_clear(&pair.rig, 1);
}

/* The source has base pages, and answers for one at a time. */
static void huge_page_is_asked_for_in_the_pages_of_the_source(void **state) {
    (void)state;
    Pair pair;
    const SnapMemory kind = SNAP_MEMORY_HUGETLB;
    rig_init(&pair.rig, &kind, 1, PAGES);
    pair.rig.flags = SNAP_WIRE_POSTCOPY;
    rig_listen(&pair.rig);
    hand_open(&pair.main, &pair.rig);
    hand_say_hello(&pair.main, &pair.rig, 0);
    RigRegion said = pair.rig.regions[0];
    said.granule_bytes = pair.rig.page;
    hand_say_region(&pair.main, &said, pair.rig.page);
    hand_expect(&pair.main, SNAP_WIRE_WELCOME);
    hand_join(&pair.urgent, &pair.rig, SNAP_WIRE_URGENT);
    hand_region(&pair.main, &pair.rig, 0, 1);
    hand_missing(&pair.main, 0, 0, (const uint64_t[]){6, 1}, 2);
    switch_over(&pair);
    Toucher toucher = {.rig = &pair.rig, .first = 2, .n = 1, .generation = 2};
    toucher_start(&toucher);
    const uint64_t expected[] = {1, 2, 64};
    for (unsigned i = 0; i < G_N_ELEMENTS(expected); i++) {
        SnapWireRequest request = expect_request(&pair);
        assert_int_equal(request.n_pages, 1);
        assert_int_equal(request.first_page, expected[i]);
        answer(&pair, &request, 2);
    }
    toucher_join(&toucher);
    finish(&pair);
    for (uint64_t page = 0; page < rig_pages(&pair.rig, 0); page++)
        assert_true(rig_is(&pair.rig, 0, page, page == 1 || page == 2 || page == 64 ? 2 : 1));
    rig_clear(&pair.rig, 1);
}

typedef struct {
    Rig *rig;
    int advice;
    bool gone[PAGES]; /* discarded */
    int wrong;
    int stop; /* atomic */
} Discarder;

/* Discards here and there, and finds zeros from then on, however often the page comes. */
static gpointer discard_and_look(gpointer data) {
    Discarder *discarder = data;
    const Rig *rig = discarder->rig;
    for (uint64_t n = 1; !__atomic_load_n(&discarder->stop, __ATOMIC_SEQ_CST); n++) {
        uint64_t page = n * 37 % (PAGES - 3), count = 1 + n % 3;
        if (madvise(rig->regions[0].data + page * rig->page, count * rig->page, discarder->advice) != 0)
            discarder->wrong++;
        for (uint64_t i = page; i < page + count; i++)
            discarder->gone[i] = true;
        for (uint64_t look = 0; look < PAGES; look += 5)
            discarder->wrong += discarder->gone[look] && !rig_is_zero(rig, 0, look);
        if (n % 256 == 0)
            g_usleep(100);
    }
    return NULL;
}

/* Everything that comes is wanted only where it was not discarded: in whatever order these meet. */
static void discards_race_with_pages(SnapMemory kind, int advice) {
    Pair pair;
    begin(&pair, kind);
    Discarder discarder = {.rig = &pair.rig, .advice = advice};
    GThread *thread = g_thread_new("discarder", discard_and_look, &discarder);
    for (unsigned i = 0; i < 40; i++) {
        while (snap_channel_has_input(&pair.urgent.channel)) {
            SnapWireRequest request = expect_request(&pair);
            answer(&pair, &request, 2);
        }
        hand_chunk(
            &pair.main, &pair.rig,
            (HandChunk){.chunk = i % 4, .present = UINT64_C(0x0f0f0f0f0f0f0f0f) << i / 4 % 5, .generation = 2});
        g_usleep(1000);
    }
    for (uint64_t page = 0; page < PAGES; page++) /* once, and one by one: none of it may be passed over */
        hand_chunk(&pair.main, &pair.rig,
                   (HandChunk){.chunk = page / 64, .present = UINT64_C(1) << page % 64, .generation = 2});
    uint8_t body[16];
    hand_send(&pair.main, SNAP_WIRE_ALIVE, 0, body, snap_wire_encode_number(0, body));
    g_usleep(20000);
    __atomic_store_n(&discarder.stop, 1, __ATOMIC_SEQ_CST);
    g_thread_join(thread);
    finish(&pair);
    assert_int_equal(discarder.wrong, 0);
    for (uint64_t page = 0; page < PAGES; page++)
        assert_true(discarder.gone[page] ? rig_is_zero(&pair.rig, 0, page) : rig_is(&pair.rig, 0, page, 2));
    rig_clear(&pair.rig, 1);
}

static void anonymous_pages_that_are_discarded_while_they_come_stay_zeros(void **state) {
    (void)state;
    discards_race_with_pages(SNAP_MEMORY_ANON, MADV_DONTNEED);
}

static void shared_pages_that_are_discarded_while_they_come_stay_zeros(void **state) {
    (void)state;
    discards_race_with_pages(SNAP_MEMORY_SHMEM, MADV_REMOVE);
}

/* ---- around the switch-over ------------------------------------------------------------------------------ */

static void connection_cut_before_ready_fails(void **state) {
    (void)state;
    for (unsigned urgent = 0; urgent < 2; urgent++) {
        Pair pair;
        pair_init(&pair, SNAP_MEMORY_ANON);
        say_all_missing(&pair);
        if (urgent)
            hand_close(&pair.urgent);
        else
            hand_close(&pair.main);
        rig_wait(&pair.rig, SNAP_ERROR_IO, "closed");
        pair_close(&pair);
        rig_clear(&pair.rig, 0);
    }
}

static void connection_cut_after_ready_is_resumed_with_all_missing(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    Pair pair;
    pair_init(&pair, SNAP_MEMORY_ANON);
    hand_region(&pair.main, &pair.rig, 0, 1);
    say_all_missing(&pair);
    hand_end(&pair.main, 0, 0, SNAP_WIRE_PAGES_MISSING);
    hand_expect_ready(&pair.main, 0);
    pair_close(&pair);
    rig_wait_lost(&pair.rig, SNAP_MIGRATION_DEVICE);
    assert_true(snap_incoming_recover(pair.rig.incoming, pair.rig.uri, &error));
    pair.rig.flags = SNAP_WIRE_RESUME | SNAP_WIRE_POSTCOPY;
    hand_open(&pair.main, &pair.rig);
    hand_say_hello(&pair.main, &pair.rig, 0);
    hand_expect(&pair.main, SNAP_WIRE_WELCOME);
    hand_join(&pair.urgent, &pair.rig, SNAP_WIRE_URGENT);
    assert_int_equal(pair.rig.starts, 0);
    hand_id(&pair.main, &pair.rig, SNAP_WIRE_GO);
    hand_expect(&pair.main, SNAP_WIRE_STARTED);
    hand_region(&pair.main, &pair.rig, 0, 2);
    finish(&pair);
    check_all(&pair, 2);
    rig_clear(&pair.rig, 1);
}

/* ---- what is wrong --------------------------------------------------------------------------------------- */

static void end_without_flag(Pair *pair) {
    hand_missing(&pair->main, 0, 0, (const uint64_t[]){1}, 1);
    hand_end(&pair->main, 0, 0, 0);
}

static void masks_of_no_region(Pair *pair) {
    hand_missing(&pair->main, 1, 0, (const uint64_t[]){1}, 1);
}

static void masks_of_no_chunk(Pair *pair) {
    hand_missing(&pair->main, 0, 4, (const uint64_t[]){1, 1}, 2);
}

static void masks_beyond_the_end(Pair *pair) {
    hand_missing(&pair->main, 0, PAGES / 64, (const uint64_t[]){UINT64_C(1) << PAGES % 64}, 1);
}

static void chunk_nobody_asked_for(Pair *pair) {
    hand_chunk(&pair->urgent, &pair->rig, (HandChunk){.present = 1});
}

static void what_is_wrong_before_the_switch_over_is_named(void **state) {
    (void)state;
    const struct {
        void (*act)(Pair *pair);
        const char *part;
    } lapses[] = {
        {end_without_flag, "(END): pages were said to be missing"},
        {masks_of_no_region, "(MISSING): there is no such region"},
        {masks_of_no_chunk, "(MISSING): there are no such chunks"},
        {masks_beyond_the_end, "(MISSING): pages beyond the end"},
        {chunk_nobody_asked_for, "urgent channel: record 1 (CHUNK): nothing is missing"},
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(lapses); i++) {
        Pair pair;
        pair_init(&pair, SNAP_MEMORY_ANON);
        lapses[i].act(&pair);
        hand_expect_failed(&pair.main, lapses[i].part);
        pair_close(&pair);
        rig_wait(&pair.rig, SNAP_ERROR_PROTOCOL, lapses[i].part);
        rig_clear(&pair.rig, 0);
    }
}

/* In a child: who waits in what is missing can only end with its process. */
static int lack_memory(void) {
    Pair pair;
    begin(&pair, SNAP_MEMORY_ANON);
    Toucher toucher = {.rig = &pair.rig, .first = 8, .n = 1, .generation = 2};
    toucher_start(&toucher);
    expect_request(&pair);
    snap_incoming_free(pair.rig.incoming);
    g_usleep(QUIET_MS * 1000);
    g_autofree char *socket = g_build_filename(pair.rig.dir, "socket", NULL);
    unlink(socket);
    rmdir(pair.rig.dir);
    return touched(&toucher);
}

static void guest_that_lacks_memory_waits_when_all_is_freed(void **state) {
    (void)state;
    int status = -1;
    pid_t child = fork();
    if (child == 0)
        _exit(lack_memory() == 0 ? 0 : 1);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(missing_anonymous_pages_come_when_touched),
        cmocka_unit_test(missing_shared_pages_come_when_touched),
        cmocka_unit_test(missing_huge_pages_come_when_touched),
        cmocka_unit_test(page_that_is_there_is_not_overwritten),
        cmocka_unit_test(page_that_was_not_sent_is_zeros_at_once),
        cmocka_unit_test(discarded_anonymous_pages_are_zeros),
        cmocka_unit_test(discarded_shared_pages_are_zeros),
        cmocka_unit_test(discarded_huge_pages_are_zeros),
        cmocka_unit_test(page_discarded_while_it_is_waited_for_is_zeros),
        cmocka_unit_test(huge_page_that_is_missing_in_part_keeps_the_rest),
        cmocka_unit_test(state_that_looks_at_missing_memory_is_served_before_ready),
        cmocka_unit_test(connection_lost_while_the_state_is_loaded_fails),
        cmocka_unit_test(owner_that_ends_it_while_the_state_is_loaded_does_not_wait),
        cmocka_unit_test(connection_lost_is_resumed_with_what_was_asked_for),
        cmocka_unit_test(urgent_connection_lost_is_a_connection_lost),
        cmocka_unit_test(source_that_has_not_heard_of_the_end_is_told),
        cmocka_unit_test(wrong_page_is_not_put_in_place),
        cmocka_unit_test(page_that_never_comes_is_a_connection_lost),
        cmocka_unit_test(all_sent_with_pages_missing_is_a_lie),
        cmocka_unit_test(data_channels_carry_the_rest_as_well),
        cmocka_unit_test(huge_page_is_asked_for_in_the_pages_of_the_source),
        cmocka_unit_test(anonymous_pages_that_are_discarded_while_they_come_stay_zeros),
        cmocka_unit_test(shared_pages_that_are_discarded_while_they_come_stay_zeros),
        cmocka_unit_test(connection_cut_before_ready_fails),
        cmocka_unit_test(connection_cut_after_ready_is_resumed_with_all_missing),
        cmocka_unit_test(what_is_wrong_before_the_switch_over_is_named),
        cmocka_unit_test(guest_that_lacks_memory_waits_when_all_is_freed),
    };
    int uffd = snap_uffd_open();
    if (uffd < 0) {
        print_message("skip: no userfaultfd: run as root, or set vm.unprivileged_userfaultfd to 1\n");
        return 77;
    }
    close(uffd);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
