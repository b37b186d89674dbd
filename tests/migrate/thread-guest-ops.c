/*
 * See thread-guest.h: what snapshots and migrations call.
 *
 * The memory is listed as one region, or as several that meet at odd places, so that a region's last chunk is cut
 * short; guest addresses are offsets in it.
 */
#include "thread-guest.h"

#include <fcntl.h>
#include <inttypes.h>
#include <string.h>

#define STATE_NAME "threads"
#define STATE_MAGIC "thrdvm01"
#define ODD_UNITS 3u /* by which a region ends before its even share */

typedef struct {
    char magic[8];
    uint64_t next;
    uint64_t errors;
    uint64_t held;
    uint64_t pages, page_bytes, touched, hot, stride;
} State;

static gboolean refuse(GError **error, const char *why) {
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_REFUSED, "thread guest: %s", why);
    return FALSE;
}

/* What no migration may do. */
static gboolean violation(ThreadGuest *guest, GError **error, const char *what) {
    journal_add(&guest->journal, "VIOLATION %s", what);
    fprintf(stderr, "thread-vm: VIOLATION: %s\n", what);
    return refuse(error, what);
}

/* ---- regions --------------------------------------------------------------------------------------------- */

static void append_region(const ThreadGuest *guest, GPtrArray *regions, size_t start, size_t end) {
    const Backing *b = &guest->backing;
    g_autofree char *name =
        guest->n_regions == 1 ? g_strdup("ram") : g_strdup_printf("ram-%u", (unsigned)regions->len);
    SnapRegion *region = snap_region_new(name, guest->memory, (uintptr_t)b->arena + start, end - start);

    region->guest_address = start;
    if (guest->memory == SNAP_MEMORY_HUGETLB || guest->memory == SNAP_MEMORY_HUGETLB_PRIVATE)
        region->granule_bytes = b->granule_bytes;
    if ((guest->memory == SNAP_MEMORY_SHMEM || guest->memory == SNAP_MEMORY_HUGETLB) && b->fd >= 0) {
        region->fd = fcntl(b->fd, F_DUPFD_CLOEXEC, 0);
        region->fd_offset = start;
    }
    g_ptr_array_add(regions, region);
}

static gboolean list_regions(void *opaque, gboolean paused, GPtrArray *regions, GError **error) {
    const ThreadGuest *guest = opaque;
    size_t unit = guest->unit_bytes, units = guest->backing.length_bytes / unit, start = 0;
    (void)paused, (void)error;

    for (unsigned i = 1; i <= guest->n_regions; i++) {
        size_t end = units * i / guest->n_regions;
        if (i < guest->n_regions && end > start + ODD_UNITS)
            end -= ODD_UNITS;
        if (end > start)
            append_region(guest, regions, start * unit, end * unit);
        start = end;
    }
    return TRUE;
}

/* ---- leaving --------------------------------------------------------------------------------------------- */

static SnapState *state_locked(const ThreadGuest *guest) {
    const SeqLayout *layout = &guest->writers.layout;
    State state = {.next = guest->writers.cursor.n,
                   .errors = guest->errors_before,
                   .held = (guest->held & HOLD_CLIENT) != 0,
                   .pages = layout->pages,
                   .page_bytes = layout->page_bytes,
                   .touched = layout->touched,
                   .hot = layout->hot,
                   .stride = layout->stride};
    memcpy(state.magic, STATE_MAGIC, sizeof(state.magic));
    return snap_state_new(STATE_NAME, g_bytes_new(&state, sizeof(state)));
}

static gboolean pause_guest(void *opaque, SnapPauseStep step, GError **error) {
    ThreadGuest *guest = opaque;
    if (step == SNAP_PAUSE_READY) {
        g_usleep(guest->ready_ms * 1000ul);
        return TRUE;
    }
    uint64_t start_ns = clock_ns();
    if (!guest_hold(guest, HOLD_PAUSE, true))
        return refuse(error, "does not stop");
    pthread_mutex_lock(&guest->lock);
    guest->paused_ns = start_ns;
    snap_state_free(guest->state);
    guest->state = state_locked(guest);
    pthread_mutex_unlock(&guest->lock);
    return TRUE;
}

static gboolean resume_guest(void *opaque, uint64_t *ret_pause_ns, GError **error) {
    ThreadGuest *guest = opaque;
    if (guest->held & HOLD_GONE)
        return violation(guest, error, "resumed after it was handed over");
    *ret_pause_ns = clock_ns() - guest->paused_ns;
    return guest_hold(guest, HOLD_PAUSE, false) ? TRUE : refuse(error, "does not run");
}

static gboolean get_state(void *opaque, GPtrArray *states, GError **error) {
    ThreadGuest *guest = opaque;
    (void)error;
    pthread_mutex_lock(&guest->lock);
    if (guest->state)
        g_ptr_array_add(states, g_steal_pointer(&guest->state));
    pthread_mutex_unlock(&guest->lock);
    return TRUE;
}

static void hand_over(void *opaque) {
    ThreadGuest *guest = opaque;
    if (guest->writing)
        violation(guest, NULL, "handed over while it runs");
    guest_hold(guest, HOLD_GONE, true);
    journal_add(&guest->journal, "hand-over");
}

static void throttle(void *opaque, unsigned percent) {
    ThreadGuest *guest = opaque;
    __atomic_store_n(&guest->writers.throttle_percent, percent, __ATOMIC_RELAXED);
    journal_add(&guest->journal, "throttle percent=%u", percent);
}

/* ---- arriving -------------------------------------------------------------------------------------------- */

static gboolean check_state(const ThreadGuest *guest, const State *state, GError **error) {
    const SeqLayout *layout = &guest->writers.layout;

    if (memcmp(state->magic, STATE_MAGIC, sizeof(state->magic)) != 0 || state->next < 1)
        return refuse(error, "this is not its state");
    if (state->pages != layout->pages || state->page_bytes != layout->page_bytes ||
        state->touched != layout->touched || state->hot != layout->hot || state->stride != layout->stride)
        return refuse(error, "the state is of another layout");
    return TRUE;
}

static const SnapState *find_state(const GPtrArray *states) {
    for (guint i = 0; i < states->len; i++) {
        const SnapState *state = g_ptr_array_index(states, i);
        if (strcmp(state->name, STATE_NAME) == 0 && g_bytes_get_size(state->data) == sizeof(State))
            return state;
    }
    return NULL;
}

/* As devices do that look at what the guest has left for them: in a post-copy each of these pages is fetched
 * first. */
static void peek(const ThreadGuest *guest) {
    const Backing *b = &guest->backing;
    size_t pages = b->length_bytes / b->page_bytes;
    for (unsigned i = 0; i < guest->n_peeks; i++)
        (void)__atomic_load_n((char *)b->arena + pages * i / guest->n_peeks * b->page_bytes, __ATOMIC_RELAXED);
}

static gboolean load_state(void *opaque, GPtrArray *states, GError **error) {
    ThreadGuest *guest = opaque;
    const SnapState *found = find_state(states);
    State state;

    if (!(guest->held & HOLD_INCOMING))
        return violation(guest, error, "a state is loaded into a guest that has run");
    if (!found)
        return refuse(error, "there is no state of it");
    memcpy(&state, g_bytes_get_data(found->data, NULL), sizeof(state));
    if (!check_state(guest, &state, error))
        return FALSE;
    peek(guest);
    pthread_mutex_lock(&guest->lock);
    seq_seek(&guest->writers.layout, &guest->writers.cursor, state.next);
    guest->held = HOLD_INCOMING | (state.held ? HOLD_CLIENT : 0u);
    guest->errors_before = state.errors;
    guest->reported_n = state.next - 1;
    guest->loaded = true;
    pthread_mutex_unlock(&guest->lock);
    journal_add(&guest->journal, "load n=%" PRIu64, state.next);
    return TRUE;
}

/* Every byte of it, before it runs. What is wrong is told and kept; the guest runs nevertheless, and meets it. */
static void verify_memory(ThreadGuest *guest) {
    const Backing *b = &guest->backing;
    uint64_t next = guest->writers.cursor.n;
    SeqReport report;

    if (seq_check(b->arena, b->length_bytes, &guest->writers.layout, &report) && report.n == next - 1) {
        journal_add(&guest->journal, "exact n=%" PRIu64, next);
        return;
    }
    journal_add(&guest->journal, "WRONG pages=%" PRIu64 " n=%" PRIu64 " instead of %" PRIu64 " %s",
                report.wrong_pages, report.n, next - 1, report.problem);
    seq_print_report(stderr, &report);
}

static gboolean start(void *opaque, GError **error) {
    ThreadGuest *guest = opaque;

    if (!guest->loaded || !(guest->held & HOLD_INCOMING))
        return violation(guest, error, "started twice, or without its state");
    if (guest->verify)
        verify_memory(guest);
    journal_add(&guest->journal, "start");
    return guest_hold(guest, HOLD_INCOMING, false) ? TRUE : refuse(error, "does not run");
}

const SnapGuestOps thread_guest_ops = {
    .list_regions = list_regions, .pause = pause_guest, .resume = resume_guest, .get_state = get_state};

const SnapMoveOps thread_guest_move_ops = {
    .hand_over = hand_over, .throttle = throttle, .load_state = load_state, .start = start};
