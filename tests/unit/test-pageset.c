/* Pages still to be sent, as masks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <glib.h>
#include <pthread.h>

#include "../../libsnap/pageset.h"

enum { N_CHUNKS = 200, N_THREADS = 4 };

static void run_added_is_as_long_as_it_was(void **state) {
    (void)state;
    static const struct {
        uint64_t first, end, masks[3]; /* of the first three chunks */
    } cases[] = {
        {0, 1, {1, 0, 0}},
        {63, 64, {UINT64_C(1) << 63, 0, 0}},
        {63, 65, {UINT64_C(1) << 63, 1, 0}},
        {0, 64, {UINT64_MAX, 0, 0}},
        {64, 128, {0, UINT64_MAX, 0}},
        {1, 191, {UINT64_MAX - 1, UINT64_MAX, UINT64_MAX >> 1}},
        {5, 5, {0, 0, 0}},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        SnapPageSet set;
        snap_pageset_init(&set, N_CHUNKS);
        snap_pageset_add_run(&set, cases[i].first, cases[i].end);
        for (uint64_t c = 0; c < 3; c++) {
            assert_true(snap_pageset_get(&set, c) == cases[i].masks[c]);
        }
        assert_int_equal(snap_pageset_count(&set), cases[i].end - cases[i].first);
        snap_pageset_clear(&set);
    }
}

static void pages_added_twice_count_once(void **state) {
    (void)state;
    SnapPageSet set;
    snap_pageset_init(&set, N_CHUNKS);
    snap_pageset_add(&set, 7, 0xff);
    snap_pageset_add(&set, 7, 0x1fe);
    assert_int_equal(snap_pageset_count(&set), 9);
    assert_int_equal(snap_pageset_take(&set, 7, 0xf00), 0x100);
    assert_int_equal(snap_pageset_take(&set, 7, UINT64_MAX), 0xff);
    assert_int_equal(snap_pageset_take(&set, 7, UINT64_MAX), 0);
    assert_int_equal(snap_pageset_count(&set), 0);
    snap_pageset_clear(&set);
}

static void next_finds_all_and_only_those(void **state) {
    (void)state;
    SnapPageSet set;
    bool there[N_CHUNKS] = {false};
    snap_pageset_init(&set, N_CHUNKS);
    for (uint64_t i = 0; i < 40; i++) {
        uint64_t chunk = i * i * 37 % N_CHUNKS;
        snap_pageset_add(&set, chunk, UINT64_C(1) << i);
        there[chunk] = true;
    }
    uint64_t at = 0;
    for (uint64_t chunk = 0; chunk < N_CHUNKS; chunk++) {
        if (there[chunk]) {
            assert_true(snap_pageset_next(&set, at, UINT64_MAX, &at));
            assert_int_equal(at, chunk);
            assert_false(snap_pageset_next(&set, at, chunk, &at));
            at++;
        }
    }
    assert_false(snap_pageset_next(&set, at, UINT64_MAX, &at));
    snap_pageset_empty(&set);
    assert_int_equal(snap_pageset_count(&set), 0);
    assert_false(snap_pageset_next(&set, 0, UINT64_MAX, &at));
    snap_pageset_clear(&set);
}

typedef struct {
    SnapPageSet *set;
    uint64_t taken;
} Taker;

static void *take_all(void *opaque) {
    Taker *taker = opaque;
    for (uint64_t chunk = 0; chunk < N_CHUNKS * 64; chunk++) {
        /* Single pages, and whole chunks, in two orders at once. */
        uint64_t mask = chunk % 3 ? UINT64_C(1) << chunk % 64 : UINT64_MAX;
        uint64_t got = snap_pageset_take(taker->set, chunk * 7 % N_CHUNKS, mask);
        taker->taken += (uint64_t)__builtin_popcountll(got);
    }
    return NULL;
}

static void pages_taken_by_several_are_taken_once(void **state) {
    (void)state;
    SnapPageSet set;
    pthread_t threads[N_THREADS];
    Taker takers[N_THREADS];
    uint64_t taken = 0;
    snap_pageset_init(&set, N_CHUNKS);
    snap_pageset_add_run(&set, 0, N_CHUNKS * 64);
    for (int i = 0; i < N_THREADS; i++) {
        takers[i] = (Taker){.set = &set};
        assert_int_equal(pthread_create(&threads[i], NULL, take_all, &takers[i]), 0);
    }
    for (int i = 0; i < N_THREADS; i++) {
        pthread_join(threads[i], NULL);
        taken += takers[i].taken;
    }
    assert_int_equal(taken + snap_pageset_count(&set), N_CHUNKS * 64);
    snap_pageset_clear(&set);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(run_added_is_as_long_as_it_was),
        cmocka_unit_test(pages_added_twice_count_once),
        cmocka_unit_test(next_finds_all_and_only_those),
        cmocka_unit_test(pages_taken_by_several_are_taken_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
