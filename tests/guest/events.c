/*
 * See events.h. Happy path, for ever: fill every area with its next generation → wait → drop every area, each in
 * its own way → wait.
 *
 * Invariants: the fields of SeqEventArea are stored one by one, in an order in which the area is in a legal state
 * of what is recorded after each store: an area is announced as being filled before its first word changes, and as
 * full after its last. Every word is looked at before it is overwritten and before it is dropped.
 */
#include "events.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

typedef struct {
    const char *name;
    SeqEventKind kind;
    int (*prepare)(Events *events, unsigned index); /* make it be there before it is filled; -errno */
    void (*drop)(Events *events, unsigned index);   /* FULL → EMPTY, or FULL: filled over next time */
} EventOps;

static const EventOps *ops_of(const SeqEventArea *area);

static SeqEventArea *area_of(Events *events, unsigned index) {
    return &events->header->events[index];
}

static uint64_t *words_of(const SeqEventArea *area) {
    return (uint64_t *)(uintptr_t)area->address;
}

static void set_phase(SeqEventArea *area, SeqPhase phase) {
    seq_store(&area->phase, phase);
}

static void count_wrong(Events *events) {
    seq_store(&events->header->event_errors, events->header->event_errors + 1);
}

static bool stopping(const Events *events) {
    return __atomic_load_n(&events->stop, __ATOMIC_RELAXED);
}

static void wait_step(const Events *events) {
    struct timespec step = {(time_t)(events->interval_ns / 1000000000u),
                            (long)(events->interval_ns % 1000000000u)};
    nanosleep(&step, NULL);
}

/* ---- filling ---------------------------------------------------------------------------------------------- */

static int map_anonymous(Events *events, unsigned index) {
    SeqEventArea *area = area_of(events, index);
    void *map;

    if (area->address)
        return 0;
    map = mmap(NULL, area->length_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED)
        return -errno;
    madvise(map, area->length_bytes, MADV_NOHUGEPAGE);
    seq_store(&area->address, (uint64_t)(uintptr_t)map);
    return 0;
}

static int map_memfd(Events *events, unsigned index) {
    SeqEventArea *area = area_of(events, index);
    void *map;

    if (area->address)
        return 0;
    events->fds[index] = memfd_create("memguest-punch", MFD_CLOEXEC);
    if (events->fds[index] < 0 || ftruncate(events->fds[index], (off_t)area->length_bytes) < 0)
        return -errno;
    map = mmap(NULL, area->length_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, events->fds[index], 0);
    if (map == MAP_FAILED)
        return -errno;
    seq_store(&area->address, (uint64_t)(uintptr_t)map);
    return 0;
}

/* EMPTY or FULL → FULL of the next generation. */
static int fill(Events *events, unsigned index) {
    SeqEventArea *area = area_of(events, index);
    uint64_t before = area->phase == SEQ_PHASE_FULL ? area->generation : 0, next = area->generation + 1;
    uint32_t n_words = (uint32_t)(area->length_bytes / SEQ_WORD_BYTES);
    int result = ops_of(area)->prepare(events, index);

    if (result < 0)
        return result;
    seq_store(&area->under, before);
    if (!before)
        seq_store(&area->generation, next); /* means nothing while it is empty */
    set_phase(area, SEQ_PHASE_FILLING);
    seq_store(&area->generation, next);
    for (uint32_t i = 0; i < n_words; i++) {
        if (words_of(area)[i] != seq_event_word(before, i))
            count_wrong(events);
        seq_store(&words_of(area)[i], seq_event_word(next, i));
    }
    set_phase(area, SEQ_PHASE_FULL);
    return 0;
}

static void check_full(Events *events, const SeqEventArea *area) {
    uint32_t n_words = (uint32_t)(area->length_bytes / SEQ_WORD_BYTES);

    for (uint32_t i = 0; i < n_words; i++)
        if (words_of(area)[i] != seq_event_word(area->generation, i))
            count_wrong(events);
}

/* ---- dropping --------------------------------------------------------------------------------------------- */

static void drop_fork(Events *events, unsigned index) {
    SeqEventArea *area = area_of(events, index);
    pid_t child = fork();

    if (child == 0) {
        memset(words_of(area), 0xff, area->length_bytes);
        _exit(0);
    }
    if (child < 0 || waitpid(child, NULL, 0) < 0)
        count_wrong(events);
}

static void drop_remap(Events *events, unsigned index) {
    SeqEventArea *area = area_of(events, index);
    void *target = mmap(NULL, area->length_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (target == MAP_FAILED)
        return;
    seq_store(&area->target, (uint64_t)(uintptr_t)target);
    set_phase(area, SEQ_PHASE_MOVING);
    if (mremap(words_of(area), area->length_bytes, area->length_bytes, MREMAP_MAYMOVE | MREMAP_FIXED, target) ==
        MAP_FAILED)
        count_wrong(events);
    else
        seq_store(&area->address, area->target);
    set_phase(area, SEQ_PHASE_FULL);
}

static void drop_unmap(Events *events, unsigned index) {
    SeqEventArea *area = area_of(events, index);

    set_phase(area, SEQ_PHASE_DROPPING);
    if (munmap(words_of(area), area->length_bytes) < 0)
        count_wrong(events);
    seq_store(&area->address, 0);
    set_phase(area, SEQ_PHASE_EMPTY);
}

static void discard(Events *events, SeqEventArea *area, int advice) {
    set_phase(area, SEQ_PHASE_DROPPING);
    if (madvise(words_of(area), area->length_bytes, advice) < 0)
        count_wrong(events);
}

static void drop_dontneed(Events *events, unsigned index) {
    SeqEventArea *area = area_of(events, index);

    discard(events, area, MADV_DONTNEED);
    set_phase(area, SEQ_PHASE_EMPTY);
}

static void drop_free(Events *events, unsigned index) {
    SeqEventArea *area = area_of(events, index);

    /* Each page goes when the kernel likes; only after the second call it is known to be zero. */
    discard(events, area, MADV_FREE);
    wait_step(events);
    discard(events, area, MADV_DONTNEED);
    set_phase(area, SEQ_PHASE_EMPTY);
}

static void drop_punch(Events *events, unsigned index) {
    SeqEventArea *area = area_of(events, index);

    set_phase(area, SEQ_PHASE_DROPPING);
    if (fallocate(events->fds[index], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)area->length_bytes) <
        0)
        count_wrong(events);
    set_phase(area, SEQ_PHASE_EMPTY);
}

/* ---- the thread ------------------------------------------------------------------------------------------- */

static const EventOps operations[] = {
    {"fork", SEQ_EVENT_FORK, map_anonymous, drop_fork},
    {"remap", SEQ_EVENT_REMAP, map_anonymous, drop_remap},
    {"unmap", SEQ_EVENT_UNMAP, map_anonymous, drop_unmap},
    {"dontneed", SEQ_EVENT_DONTNEED, map_anonymous, drop_dontneed},
    {"free", SEQ_EVENT_FREE, map_anonymous, drop_free},
    {"punch", SEQ_EVENT_PUNCH, map_memfd, drop_punch},
};
_Static_assert(sizeof(operations) / sizeof(*operations) == SEQ_EVENT_MAX - 1, "a row for each kind but none");

static const EventOps *ops_of(const SeqEventArea *area) {
    return &operations[area->kind - 1];
}

const char *events_names(void) {
    return "fork,remap,unmap,dontneed,free,punch";
}

int events_add(Events *events, const char *name) {
    for (unsigned i = 0; i < SEQ_EVENT_MAX - 1; i++) {
        SeqEventArea *area = &events->header->events[events->n_areas];
        if (strcmp(operations[i].name, name) != 0)
            continue;
        if (events->n_areas == SEQ_EVENTS_MAX)
            return -ENOSPC;
        *area = (SeqEventArea){.kind = operations[i].kind,
                               .length_bytes = events->length_bytes,
                               .page_bytes = (uint64_t)sysconf(_SC_PAGESIZE)};
        events->n_areas++;
        return 0;
    }
    return -EINVAL;
}

static void *events_main(void *opaque) {
    Events *events = opaque;

    while (!stopping(events)) {
        for (unsigned i = 0; i < events->n_areas; i++)
            if (fill(events, i) < 0)
                count_wrong(events);
        wait_step(events);
        for (unsigned i = 0; i < events->n_areas && !stopping(events); i++) {
            check_full(events, area_of(events, i));
            ops_of(area_of(events, i))->drop(events, i);
        }
        wait_step(events);
    }
    return NULL;
}

int events_start(Events *events) {
    int result = -pthread_create(&events->id, NULL, events_main, events);

    if (result == 0)
        pthread_setname_np(events->id, "events");
    return result;
}

void events_stop(Events *events) {
    __atomic_store_n(&events->stop, true, __ATOMIC_RELAXED);
    pthread_join(events->id, NULL);
}
