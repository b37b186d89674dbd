/* See postcopy-fixture.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "postcopy-fixture.h"

#include "../../libsnap/chunk.h"

#include <sys/mman.h>
#include <unistd.h>

enum { WAIT_MS = 5000, QUIET_MS = 100 };

/* ---- who touches ----------------------------------------------------------------------------------------- */

static gpointer touch(gpointer data) {
    Toucher *toucher = data;
    for (uint64_t i = 0; i < toucher->n; i++) {
        uint64_t page = (toucher->first + i * toucher->step) % toucher->rig->regions[0].n_pages;
        bool right = rig_is(toucher->rig, 0, page, toucher->generation);
        __atomic_add_fetch(&toucher->wrong, !right, __ATOMIC_SEQ_CST);
        __atomic_add_fetch(&toucher->done, 1, __ATOMIC_SEQ_CST);
    }
    return NULL;
}

void toucher_start(Rig *rig, Toucher *toucher) {
    rig->n_touching++;
    toucher->rig = rig;
    toucher->thread = g_thread_new("toucher", touch, toucher);
}

int toucher_done(Toucher *toucher) {
    return __atomic_load_n(&toucher->done, __ATOMIC_SEQ_CST);
}

void toucher_join(Toucher *toucher) {
    for (int ms = 0; ms < WAIT_MS && toucher_done(toucher) < (int)toucher->n; ms++)
        g_usleep(1000);
    assert_int_equal(toucher_done(toucher), toucher->n);
    g_thread_join(toucher->thread);
    toucher->rig->n_touching--;
    assert_int_equal(toucher->wrong, 0);
}

void toucher_run(Rig *rig, Toucher toucher) {
    toucher_start(rig, &toucher);
    toucher_join(&toucher);
}

/* ---- up to the switch-over ------------------------------------------------------------------------------- */

bool postcopy_can_run(void) {
    int fd = snap_uffd_open();
    if (fd < 0)
        print_message("skip: no userfaultfd: run as root, or set vm.unprivileged_userfaultfd to 1\n");
    else
        close(fd);
    return fd >= 0;
}

Rig *postcopy_greet(void **state, SnapMemory kind) {
    Rig *rig = *state;
    rig_map(rig, 1, &kind, POSTCOPY_PAGES);
    rig->flags = SNAP_WIRE_POSTCOPY;
    rig_listen(rig);
    rig_greet(rig);
    rig_join(rig, SNAP_WIRE_URGENT);
    rig_join_all(rig);
    return rig;
}

Rig *postcopy_begin(void **state, SnapMemory kind) {
    Rig *rig = postcopy_greet(state, kind);
    rig_send_region(rig, 0, 1);
    postcopy_say_all_missing(rig);
    postcopy_switch_over(rig);
    return rig;
}

void postcopy_say_missing(Rig *rig, uint64_t chunk, uint64_t mask) {
    hand_say_missing(&rig->main, &(SnapWireMissing){.first_chunk = chunk, .n_masks = 1}, &mask);
}

void postcopy_say_all_missing(Rig *rig) {
    uint64_t length_bytes = rig->regions[0].length_bytes;
    for (uint64_t chunk = 0; chunk < snap_chunk_count(length_bytes, rig->page); chunk++)
        postcopy_say_missing(rig, chunk, snap_chunk_pages(length_bytes, rig->page, chunk));
}

void postcopy_end(Rig *rig) {
    rig_end(rig, 0, 0, SNAP_WIRE_PAGES_MISSING);
}

void postcopy_switch_over(Rig *rig) {
    postcopy_end(rig);
    hand_expect_ready(&rig->main, 0);
    rig_go(rig);
    rig_expect_phase(rig, SNAP_MIGRATION_POSTCOPY);
}

/* ---- requests -------------------------------------------------------------------------------------------- */

SnapWireRequest postcopy_expect_request(Rig *rig) {
    SnapWireRequest request;
    hand_expect(&rig->urgent, SNAP_WIRE_REQUEST);
    assert_null(snap_wire_decode_request(&rig->urgent.head, rig->urgent.body, &request));
    return request;
}

void postcopy_expect_no_request(Rig *rig) {
    g_usleep(QUIET_MS * 1000);
    assert_false(snap_channel_has_input(&rig->urgent.channel));
}

void postcopy_answer(Rig *rig, const SnapWireRequest *request) {
    for (uint64_t page = request->first_page, end = page + request->n_pages; page < end;) {
        uint64_t first = page % 64, n = MIN(64 - first, end - page);
        rig_send_by(rig, &rig->urgent,
                    (RigChunk){.region = request->region,
                               .chunk = page / 64,
                               .present = UINT64_MAX >> (64 - n) << first,
                               .generation = 2});
        page += n;
    }
}

void postcopy_serve(Rig *rig, uint64_t page) {
    SnapWireRequest request = postcopy_expect_request(rig);
    assert_int_equal(request.first_page, page);
    postcopy_answer(rig, &request);
}

bool postcopy_discard(const Rig *rig, uint64_t page, uint64_t n) {
    const RigRegion *region = &rig->regions[0];
    int advice = region->memory == SNAP_MEMORY_ANON ? MADV_DONTNEED : MADV_REMOVE;
    return madvise(region->data + page * rig->page, n * rig->page, advice) == 0;
}

/* ---- connections, and the end ---------------------------------------------------------------------------- */

void postcopy_lose(Rig *rig) {
    rig_close(rig);
    rig_expect_lost(rig, SNAP_MIGRATION_POSTCOPY);
}

static uint64_t expect_missing(Rig *rig) {
    g_autofree uint64_t *masks = g_new(uint64_t, SNAP_WIRE_MAX_MASKS);
    SnapWireMissing missing;
    uint64_t n = 0;
    hand_expect(&rig->main, SNAP_WIRE_MISSING);
    assert_null(snap_wire_decode_missing(&rig->main.head, rig->main.body, &missing, masks));
    for (uint32_t i = 0; i < missing.n_masks; i++)
        n += (uint64_t)__builtin_popcountll(masks[i]);
    return n;
}

void postcopy_resume(Rig *rig, uint64_t n_missing) {
    uint64_t n = 0;
    rig_recover(rig);
    for (uint64_t left = rig_resume(rig, SNAP_WIRE_AT_STARTED); left > 0; left--)
        n += expect_missing(rig);
    assert_int_equal(n, n_missing);
    rig_join(rig, SNAP_WIRE_URGENT);
    hand_expect(&rig->main, SNAP_WIRE_STARTED);
}

void postcopy_send_rest(Rig *rig) {
    rig_send_region(rig, 0, 2);
}

void postcopy_finish(Rig *rig) {
    hand_say_id(&rig->main, SNAP_WIRE_ALL_SENT);
    hand_expect(&rig->main, SNAP_WIRE_COMPLETE);
    rig_close(rig);
    rig_expect_completed(rig);
    rig_check(rig);
}
