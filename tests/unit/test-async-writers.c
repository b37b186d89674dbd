/*
 * The async log under fire: threads stamp numbers into pages, fill new ones and drop others, while rounds are
 * collected, in all sizes. A copy that gets only what was collected, read after each collect, must be the memory,
 * byte for byte, each time the writers stand still.
 */
#include "async-rig.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum {
    AREA_BYTES = 10 << 20,
    WRITERS = 4,
    ROUNDS = 1000,
    ROUNDS_A_CHECK = 40,
    FIRST_PAGES = 64,
};

typedef struct {
    Rig *rig;
    bool drop; /* MADV_DONTNEED, where the log tells of it */
    /* atomic: how much of the memory is in use, what the writers shall do, and how many of them rest */
    _Atomic size_t pages;
    atomic_bool rest, stop;
    atomic_int resting;
    /* atomic: writes so far */
    _Atomic uint64_t writes;
} Field;

typedef struct {
    Field *field;
    unsigned number;
    uint64_t sequence;
    uint64_t random;
    pthread_t thread;
} Writer;

/* Every page has one writer. Its number goes to both ends of the page, so that half a page shows. */
static void stamp(Writer *writer) {
    const Rig *rig = writer->field->rig;
    size_t pages = atomic_load(&writer->field->pages), i = rig_random(&writer->random) % pages;
    i = i / WRITERS * WRITERS + writer->number;
    uint64_t *page = (uint64_t *)(void *)(rig->memory + i * rig->page);
    unsigned what = (unsigned)(rig_random(&writer->random) % 64);
    if (what == 0 && writer->field->drop) {
        madvise(page, rig->page, MADV_DONTNEED);
    } else if (what < 4) {
        (void)*(volatile uint64_t *)page;
    } else {
        writer->sequence++;
        ((volatile uint64_t *)page)[0] = writer->sequence;
        ((volatile uint64_t *)page)[rig->page / sizeof(uint64_t) - 1] = writer->sequence;
    }
}

static void *write_on(void *opaque) {
    Writer *writer = opaque;
    Field *field = writer->field;
    while (!atomic_load(&field->stop)) {
        if (atomic_load(&field->rest)) {
            atomic_fetch_add(&field->resting, 1);
            while (atomic_load(&field->rest)) {
                sched_yield();
            }
            atomic_fetch_sub(&field->resting, 1);
        }
        for (int i = 0; i < 16; i++) {
            stamp(writer);
        }
        atomic_fetch_add(&field->writes, 16);
        sched_yield();
    }
    return NULL;
}

static void let_rest(Field *field, bool rest) {
    atomic_store(&field->rest, rest);
    while (atomic_load(&field->resting) != (rest ? WRITERS : 0)) {
        sched_yield();
    }
}

/* ---- the copy -------------------------------------------------------------------------------------------- */

static void copy_seen(Rig *rig, uint8_t *copy) {
    for (size_t i = 0; i < rig->length / rig->page; i++) {
        assert_true(rig->seen[i] <= 1);
        if (rig->seen[i]) {
            memcpy(copy + i * rig->page, rig->memory + i * rig->page, rig->page);
        }
    }
    rig_forget(rig);
}

/* One round, all at once or in bounded pieces, of which each is copied before the next. */
static void collect_round(Rig *rig, uint8_t *copy, uint64_t *random) {
    const unsigned vectors[] = {1, 2, 3, 64, 512, 1024, 512, 512};
    uint64_t bound = rig_random(random) % 4 ? 0 : 1 + rig_random(random) % 3000, at = 0;
    snap_async_set_vector(&rig->async, vectors[rig_random(random) % 8]);
    while (at < rig->length) {
        assert_int_equal(rig_collect_some(rig, at, rig->length, SNAP_COLLECT_CLEAR, bound, &at), 0);
        copy_seen(rig, copy);
    }
}

static void compare(Field *field, uint8_t *copy, uint64_t *random, unsigned round) {
    Rig *rig = field->rig;
    let_rest(field, true);
    collect_round(rig, copy, random);
    for (size_t i = 0; i < rig->length / rig->page; i++) {
        if (memcmp(copy + i * rig->page, rig->memory + i * rig->page, rig->page) != 0) {
            fail_msg("%s: page %zu was lost before round %u", rig->kind->name, i, round);
        }
    }
    /* The comparison filled holes of files. That is new, and nothing else is. */
    if (rig->kind->memory != SNAP_MEMORY_SHMEM && rig->kind->memory != SNAP_MEMORY_SHMEM_PRIVATE) {
        assert_int_equal(rig_collect(rig, SNAP_COLLECT_PEEK), 0);
        assert_int_equal(rig->pages, 0);
    }
    let_rest(field, false);
}

/* What was armed, as it is now; what was not is holes, whatever has been put there since. */
static uint8_t *copy_base(const Rig *rig) {
    uint8_t *copy = g_malloc0(rig->length);
    for (guint i = 0; i < rig->area->armed->len; i++) {
        SnapBytes run = snap_async_armed_units(rig->area, i);
        memcpy(copy + run.start, rig->memory + run.start, run.end - run.start);
    }
    return copy;
}

static void nothing_is_lost(Rig *rig) {
    uint64_t random = 88172645463325252u;
    size_t pages = rig->length / rig->page;
    Field field = {
        .rig = rig,
        .pages = MIN(FIRST_PAGES * rig_pages(rig), pages),
        .drop = rig->kind->memory == SNAP_MEMORY_ANON ||
                (rig->kind->file != RIG_HUGETLB && ((rig->kind->flags & MAP_SHARED) || rig->kind->watched))};
    rig_fill(rig, 0, field.pages);
    assert_int_equal(snap_async_arm(&rig->async, rig->area), 0);
    Writer writers[WRITERS];
    for (unsigned i = 0; i < WRITERS; i++) {
        writers[i] = (Writer){.field = &field, .number = i, .random = random + i};
        assert_int_equal(pthread_create(&writers[i].thread, NULL, write_on, &writers[i]), 0);
    }
    g_autofree uint8_t *copy = copy_base(rig);
    for (unsigned round = 0; round < ROUNDS; round++) {
        atomic_store(&field.pages, MIN(pages, FIRST_PAGES * rig_pages(rig) + pages * round / ROUNDS));
        collect_round(rig, copy, &random);
        if (round % ROUNDS_A_CHECK == ROUNDS_A_CHECK - 1) {
            compare(&field, copy, &random, round);
        }
        sched_yield();
    }
    atomic_store(&field.stop, true);
    for (unsigned i = 0; i < WRITERS; i++) {
        pthread_join(writers[i].thread, NULL);
    }
    print_message("%s: %lu writes\n", rig->kind->name, (unsigned long)atomic_load(&field.writes));
}

static void each_nothing_is_lost(void **state) {
    (void)state;
    rig_each_kind(AREA_BYTES, nothing_is_lost);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(each_nothing_is_lost)};
    return rig_skip() ?: cmocka_run_group_tests_name("async-writers", tests, NULL, NULL);
}
