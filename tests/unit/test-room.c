/* Whether a sweep that rests is told in time: by a pool that fills up, by a guest that waits, by a failure. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../../libsnap/sweep.h"
#include "../lib/own-process.h"

enum {
    POOL_PAGES = 4,
    N_CHUNKS = 4,
};

typedef struct {
    uint64_t page_bytes;
    uint8_t *arena;
    uint8_t *copy; /* one chunk */
    SnapSync *tracker;
    pthread_t writer;
    uint8_t *target; /* that the writer writes to */
    bool written;    /* atomic */
} Rig;

static void rig_init(Rig *rig) {
    g_autoptr(GError) error = NULL;
    memset(rig, 0, sizeof *rig);
    rig->page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t chunk_bytes = SNAP_CHUNK_PAGES * rig->page_bytes;
    rig->arena = mmap(NULL, N_CHUNKS * chunk_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(rig->arena, 1, N_CHUNKS * chunk_bytes);
    rig->copy = g_malloc(chunk_bytes);
    rig->tracker = snap_sync_new(getpid(), snap_uffd_open(), POOL_PAGES, SNAP_AT_CAP_BLOCK, &error);
    fail_on(error);
    snap_sync_start(rig->tracker);
    SnapRegion *region = snap_region_new("arena", SNAP_MEMORY_ANON, (uintptr_t)rig->arena, N_CHUNKS * chunk_bytes);
    snap_sync_add(rig->tracker, region, true, &error);
    fail_on(error);
    snap_sync_point(rig->tracker, &error);
    fail_on(error);
}

static void rig_clear(Rig *rig) {
    snap_sync_free(rig->tracker);
    munmap(rig->arena, N_CHUNKS * SNAP_CHUNK_PAGES * rig->page_bytes);
    g_free(rig->copy);
}

static uint8_t *page_of(const Rig *rig, unsigned chunk, unsigned page) {
    return rig->arena + (chunk * SNAP_CHUNK_PAGES + page) * rig->page_bytes;
}

static void capture(Rig *rig, uint64_t number) {
    g_autoptr(GError) error = NULL;
    SnapChunk chunk = {.data = rig->copy};
    SnapChunk *buffers[] = {&chunk};
    snap_sweep_capture(rig->tracker, (SnapUnit){.area = 0, .first = number, .n_chunks = 1}, buffers, &error);
    fail_on(error);
}

/* Whether it was told since it was asked last. */
static bool told(const Rig *rig, int timeout_ms) {
    struct pollfd fd = {.fd = rig->tracker->room_fd, .events = POLLIN};
    return poll(&fd, 1, timeout_ms) == 1;
}

static uint32_t n_waiting(const Rig *rig) {
    snap_lock(&rig->tracker->lock);
    uint32_t n = rig->tracker->n_waiting;
    snap_unlock(&rig->tracker->lock);
    return n;
}

static void *write_target(void *opaque) {
    Rig *rig = opaque;
    *rig->target = 2;
    __atomic_store_n(&rig->written, true, __ATOMIC_RELEASE);
    return NULL;
}

static void pool_half_taken_is_told(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig);
    assert_false(snap_sync_lacks_room(rig.tracker));
    *page_of(&rig, 0, 0) = 2;
    assert_false(told(&rig, 100));
    *page_of(&rig, 0, 1) = 2;
    assert_true(told(&rig, 1000));
    assert_true(snap_sync_lacks_room(rig.tracker));
    capture(&rig, 0);
    assert_false(snap_sync_lacks_room(rig.tracker));
    rig_clear(&rig);
}

static void room_not_asked_for_is_not_told(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig);
    for (unsigned i = 0; i < POOL_PAGES; i++) {
        *page_of(&rig, 0, i) = 2;
    }
    assert_false(told(&rig, 100));
    rig_clear(&rig);
}

/* The chunk whose pre-images made the pool full is captured: there is room, but a writer of another waits still.
 */
static void writer_that_waits_lacks_room_until_its_chunk_is_captured(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig);
    for (unsigned i = 0; i < POOL_PAGES; i++) {
        *page_of(&rig, 0, i) = 2;
    }
    rig.target = page_of(&rig, 1, 0);
    assert_int_equal(pthread_create(&rig.writer, NULL, write_target, &rig), 0);
    for (int i = 0; i < 1000 && n_waiting(&rig) == 0; i++) {
        g_usleep(1000);
    }
    capture(&rig, 0);
    assert_true(snap_sync_lacks_room(rig.tracker));
    assert_false(__atomic_load_n(&rig.written, __ATOMIC_ACQUIRE));
    capture(&rig, 1);
    assert_false(snap_sync_lacks_room(rig.tracker));
    pthread_join(rig.writer, NULL);
    rig_clear(&rig);
}

static void failure_is_told(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig);
    assert_false(snap_sync_lacks_room(rig.tracker));
    munmap(page_of(&rig, 3, 0), rig.page_bytes); /* before it was saved: a loss */
    assert_true(told(&rig, 1000));
    assert_true(snap_sync_failed(rig.tracker, NULL));
    rig_clear(&rig);
}

int main(void) {
    if (snap_uffd_open() < 0) {
        puts("skip: userfaultfd is not permitted here");
        return 77;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pool_half_taken_is_told),
        cmocka_unit_test(room_not_asked_for_is_not_told),
        cmocka_unit_test(writer_that_waits_lacks_room_until_its_chunk_is_captured),
        cmocka_unit_test(failure_is_told),
    };
    return cmocka_run_group_tests_name("room", tests, NULL, NULL);
}
