/* See thread-guest.h: running and standing, and what it prints. thread-guest-ops.c is what a migration calls. */
#include "thread-guest.h"

#include <inttypes.h>
#include <stdio.h>

#define NS_PER_SECOND UINT64_C(1000000000)

static SeqHeader *header_of(const ThreadGuest *guest) {
    return guest->backing.arena;
}

static uint64_t count(const uint64_t *number) {
    return __atomic_load_n(number, __ATOMIC_RELAXED);
}

/* ---- what it prints -------------------------------------------------------------------------------------- */

/* The lines of guest.bin. @errors is given: the page that holds it may not have come yet. */
static void print_report(ThreadGuest *guest, uint64_t errors) {
    uint64_t now_ns = clock_ns(), n = count(&guest->writers.cursor.n) - 1;
    uint64_t took_ns = now_ns - guest->reported_ns + 1;
    Stall window;
    uint64_t stall_ns = stall_take(&guest->writers.stall, &guest->reported, &window);
    uint64_t written = n >= guest->reported_n ? n - guest->reported_n : 0;

    if (!guest->serial)
        return;
    fprintf(guest->serial, "N=%" PRIu64 " errors=%" PRIu64 " rate=%.0f stall-us=%.1f\n", n, errors,
            (double)written * (double)NS_PER_SECOND / (double)took_ns, (double)stall_ns / 1000);
    fflush(guest->serial);
    guest->reported_n = n;
    guest->reported_ns = now_ns;
}

static void print_ready(const ThreadGuest *guest) {
    const SeqLayout *layout = &guest->writers.layout;

    if (!guest->serial)
        return;
    fprintf(guest->serial,
            "ready arena=0x%" PRIxPTR " size=%zu memory=%s pages=%" PRIu32 " page-size=%" PRIu32
            " touched=%" PRIu32 " hot=%" PRIu32 " stride=%" PRIu32 " threads=%u\n",
            (uintptr_t)guest->backing.arena, guest->backing.length_bytes, guest->backing.kind, layout->pages,
            layout->page_bytes, layout->touched, layout->hot, layout->stride, guest->writers.threads);
    fflush(guest->serial);
}

/* Until it ends, or a second is over. Return: whether it goes on. */
static bool wait_second_locked(ThreadGuest *guest) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec++;
    while (!guest->end && pthread_cond_timedwait(&guest->changed, &guest->lock, &until) == 0)
        ;
    return !guest->end;
}

/*
 * The header is read without the lock: its page may be one that a post-copy still owes, and then who reads it
 * waits for the other side, which must keep nobody from stopping the guest.
 */
static void *printer_main(void *opaque) {
    ThreadGuest *guest = opaque;

    pthread_mutex_lock(&guest->lock);
    while (wait_second_locked(guest)) {
        bool writing = guest->writing;
        pthread_mutex_unlock(&guest->lock);
        uint64_t errors = writing ? count(&header_of(guest)->errors) : 0;
        pthread_mutex_lock(&guest->lock);
        if (writing && guest->writing)
            print_report(guest, errors);
    }
    pthread_mutex_unlock(&guest->lock);
    return NULL;
}

/* ---- running and standing -------------------------------------------------------------------------------- */

static bool run_locked(ThreadGuest *guest) {
    Writers *writers = &guest->writers;

    journal_add(&guest->journal, "run n=%" PRIu64, writers->cursor.n);
    print_report(guest, guest->errors_before);
    writers->stop = false;
    guest->writing = writers_start(writers) == 0;
    return guest->writing;
}

static void stand_locked(ThreadGuest *guest) {
    writers_stop(&guest->writers);
    guest->writing = false;
    guest->errors_before = header_of(guest)->errors;
    journal_add(&guest->journal, "stand n=%" PRIu64 " errors=%" PRIu64, guest->writers.cursor.n,
                guest->errors_before);
    print_report(guest, guest->errors_before);
}

static bool settle_locked(ThreadGuest *guest) {
    if (!guest->held && !guest->writing)
        return run_locked(guest);
    if (guest->held && guest->writing)
        stand_locked(guest);
    return true;
}

bool guest_hold(ThreadGuest *guest, Hold hold, bool on) {
    pthread_mutex_lock(&guest->lock);
    guest->held = on ? guest->held | hold : guest->held & ~(unsigned)hold;
    bool ok = settle_locked(guest);
    pthread_mutex_unlock(&guest->lock);
    return ok;
}

bool guest_runs(ThreadGuest *guest) {
    pthread_mutex_lock(&guest->lock);
    bool runs = !(guest->held & ~(unsigned)HOLD_PAUSE);
    pthread_mutex_unlock(&guest->lock);
    return runs;
}

/* ---- life ------------------------------------------------------------------------------------------------ */

void guest_lay_out(ThreadGuest *guest, const SeqLayout *layout, unsigned threads, uint32_t batch) {
    Writers *writers = &guest->writers;

    writers->layout = *layout;
    writers->arena = guest->backing.arena;
    writers->threads = threads;
    writers->batch = batch;
    seq_start(layout, &writers->cursor);
    if (!(guest->held & HOLD_INCOMING))
        seq_header_init(guest->backing.arena, layout, threads, batch);
}

void guest_start(ThreadGuest *guest) {
    pthread_mutex_init(&guest->lock, NULL);
    pthread_cond_init(&guest->changed, NULL);
    guest->reported_ns = clock_ns();
    print_ready(guest);
    pthread_create(&guest->printer, NULL, printer_main, guest);
    guest_hold(guest, HOLD_PAUSE, false);
}

uint64_t guest_end(ThreadGuest *guest) {
    pthread_mutex_lock(&guest->lock);
    guest->held |= HOLD_CLIENT;
    settle_locked(guest);
    guest->end = true;
    pthread_cond_signal(&guest->changed);
    pthread_mutex_unlock(&guest->lock);
    pthread_join(guest->printer, NULL);
    journal_add(&guest->journal, "end");
    snap_state_free(guest->state);
    return guest->errors_before;
}
