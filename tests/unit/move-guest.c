/* See move-guest.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "move-guest.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

unsigned move_count(const unsigned *counter) {
    return __atomic_load_n(counter, __ATOMIC_ACQUIRE);
}

static void count(unsigned *counter) {
    __atomic_add_fetch(counter, 1, __ATOMIC_RELEASE);
}

uint64_t move_written(const MoveGuest *guest) {
    return __atomic_load_n(&((SeqHeader *)guest->backing.arena)->counter, __ATOMIC_ACQUIRE);
}

/* ---- running --------------------------------------------------------------------------------------------- */

static void run(MoveGuest *guest) {
    guest->writers.stop = false;
    assert_int_equal(writers_start(&guest->writers), 0);
    guest->writing = true;
}

static void stand(MoveGuest *guest) {
    if (guest->writing) {
        writers_stop(&guest->writers);
    }
    guest->writing = false;
}

/* ---- the guest of the library ---------------------------------------------------------------------------- */

static gboolean list_regions(void *opaque, gboolean paused, GPtrArray *regions, GError **error) {
    const MoveGuest *guest = opaque;
    const Backing *b = &guest->backing;
    (void)error;
    SnapRegion *region = snap_region_new("ram", guest->memory, (uintptr_t)b->arena, b->length_bytes);
    region->guest_address = 0;
    region->granule_bytes = guest->memory == SNAP_MEMORY_HUGETLB ? b->granule_bytes : b->page_bytes;
    region->fd = b->fd >= 0 ? fcntl(b->fd, F_DUPFD_CLOEXEC, 0) : -1;
    if (paused && guest->other_shape) {
        region->length_bytes -= region->granule_bytes;
    }
    g_ptr_array_add(regions, region);
    return TRUE;
}

static gboolean pause_guest(void *opaque, SnapPauseStep step, GError **error) {
    MoveGuest *guest = opaque;
    if (step == SNAP_PAUSE_READY) {
        count(&guest->pauses);
        g_usleep(guest->slow_ms * 1000);
        return TRUE;
    }
    if (guest->fails_to_pause) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "the lid is open");
        return FALSE;
    }
    stand(guest);
    guest->at = guest->writers.cursor;
    return TRUE;
}

static gboolean resume_guest(void *opaque, uint64_t *ret_pause_ns, GError **error) {
    MoveGuest *guest = opaque;
    (void)error;
    assert_true(guest->lives);
    *ret_pause_ns = 1;
    if (!guest->writing) {
        run(guest);
    }
    count(&guest->resumes);
    return TRUE;
}

static gboolean get_state(void *opaque, GPtrArray *states, GError **error) {
    MoveGuest *guest = opaque;
    (void)error;
    g_ptr_array_add(states, snap_state_new("cursor", g_bytes_new(&guest->at, sizeof guest->at)));
    g_ptr_array_add(states, snap_state_new("nothing", g_bytes_new(NULL, 0)));
    return TRUE;
}

static const SnapGuestOps ops = {
    .list_regions = list_regions, .pause = pause_guest, .resume = resume_guest, .get_state = get_state};

/* ---- moving ---------------------------------------------------------------------------------------------- */

static void hand_over(void *opaque) {
    MoveGuest *guest = opaque;
    assert_true(guest->lives);
    assert_false(guest->writing);
    guest->lives = false;
    count(&guest->hand_overs);
}

static void throttle(void *opaque, unsigned percent) {
    MoveGuest *guest = opaque;
    count(&guest->throttles);
    __atomic_store_n(&guest->throttle, percent, __ATOMIC_RELEASE);
    guest->throttle_max = MAX(guest->throttle_max, percent);
}

static gboolean load_state(void *opaque, GPtrArray *states, GError **error) {
    MoveGuest *guest = opaque;
    count(&guest->loads);
    if (guest->fails_to_load) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "the disk is not there");
        return FALSE;
    }
    assert_int_equal(states->len, 2);
    const SnapState *state = g_ptr_array_index(states, 0);
    assert_string_equal(state->name, "cursor");
    assert_int_equal(g_bytes_get_size(state->data), sizeof(SeqCursor));
    memcpy(&guest->writers.cursor, g_bytes_get_data(state->data, NULL), sizeof(SeqCursor));
    return TRUE;
}

static gboolean start(void *opaque, GError **error) {
    MoveGuest *guest = opaque;
    assert_false(guest->lives);
    count(&guest->starts);
    if (guest->fails_to_start) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "the key does not fit");
        return FALSE;
    }
    guest->lives = true;
    run(guest);
    return TRUE;
}

static const SnapMoveOps move_ops = {
    .hand_over = hand_over, .throttle = throttle, .load_state = load_state, .start = start};

/* ---- life ------------------------------------------------------------------------------------------------ */

static SnapMemory memory_of(const char *kind) {
    return g_str_equal(kind, "memfd") || g_str_equal(kind, "shared") ? SNAP_MEMORY_SHMEM
           : g_str_equal(kind, "hugetlb")                            ? SNAP_MEMORY_HUGETLB
                                                                     : SNAP_MEMORY_ANON;
}

bool move_guest_init_empty(MoveGuest *guest, const char *kind, size_t length_bytes, uint64_t period_ns) {
    *guest = (MoveGuest){.memory = memory_of(kind)};
    if (backing_map(kind, length_bytes, NULL, &guest->backing) < 0) {
        return false;
    }
    uint32_t pages = (uint32_t)(guest->backing.length_bytes / guest->backing.page_bytes - 1);
    SeqLayout layout = {.pages = pages,
                        .page_bytes = (uint32_t)guest->backing.page_bytes,
                        .touched = pages,
                        .hot = pages,
                        .stride = seq_scatter_stride(pages)};
    guest->writers = (Writers){
        .layout = layout, .arena = guest->backing.arena, .threads = 2, .batch = 16, .period_ns = period_ns};
    guest->guest = snap_guest_new("test", 0, &ops, guest);
    snap_guest_set_move_ops(guest->guest, &move_ops);
    return true;
}

bool move_guest_init(MoveGuest *guest, const char *kind, size_t length_bytes, uint64_t period_ns) {
    if (!move_guest_init_empty(guest, kind, length_bytes, period_ns)) {
        return false;
    }
    seq_header_init(guest->backing.arena, &guest->writers.layout, 2, 16);
    seq_start(&guest->writers.layout, &guest->writers.cursor);
    writers_prefill(&guest->writers);
    guest->lives = true;
    run(guest);
    return true;
}

void move_guest_check_runs(MoveGuest *guest) {
    uint64_t before = move_written(guest);
    assert_true(guest->lives);
    for (int i = 0; i < 5000 && move_written(guest) < before + 100; i++) {
        g_usleep(1000);
    }
    assert_true(move_written(guest) >= before + 100);
}

void move_guest_check_stands(MoveGuest *guest) {
    uint64_t before = move_written(guest);
    g_usleep(20000);
    assert_int_equal(move_written(guest), before);
}

void move_guest_check(MoveGuest *guest) {
    SeqReport report;
    stand(guest);
    assert_int_equal(((SeqHeader *)guest->backing.arena)->errors, 0);
    if (!seq_check(guest->backing.arena, guest->backing.length_bytes, &guest->writers.layout, &report)) {
        seq_print_report(stderr, &report);
        fail_msg("the memory is not the state after one write");
    }
}

void move_guest_clear(MoveGuest *guest) {
    stand(guest);
    snap_guest_free(guest->guest);
    munmap(guest->backing.arena, guest->backing.length_bytes);
    if (guest->backing.fd >= 0) {
        close(guest->backing.fd);
    }
}

bool move_can_run(void) {
    int fd = snap_uffd_open();
    if (fd < 0) {
        puts("skip: userfaultfd is not permitted here");
    } else {
        close(fd);
    }
    return fd >= 0;
}
