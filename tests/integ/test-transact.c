/*
 * Nothing is lost: a base copy, brought up to date only with what the log says, is the memory in the end.
 *
 * Writers stamp sequence numbers into random places all the time. Meanwhile, in random order: collections, two
 * watches that overlap (one bounded to a few addresses at a time), switches between all modes with the guest
 * running and stopped, snapshots, pages dropped by madvise, and writes past the page tables that are told. Each
 * consumer has a copy of its own, and copies into it what it is told. In the end writers stop, everyone collects
 * once more, and every copy must equal the memory byte for byte.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../guest/backing.h"
#include "../lib/own-process.h"

enum {
    ARENA_BYTES = 8 << 20,
    WRITERS = 4,
    FEW = 37, /* addresses a bounded watch takes at once */
    SAVE_ONE_IN = 60,
};

typedef struct {
    const char *name;
    SnapMemory memory;
    bool drops; /* MADV_DONTNEED takes its content away */
} Kind;

static const Kind kinds[] = {
    {"anon", SNAP_MEMORY_ANON, true},
    {"thp", SNAP_MEMORY_ANON, true},
    {"memfd", SNAP_MEMORY_SHMEM, false},
    {"memfd-private", SNAP_MEMORY_SHMEM_PRIVATE, false},
    {"tmpfs", SNAP_MEMORY_SHMEM, false},
    {"hugetlb", SNAP_MEMORY_HUGETLB, false},
    {"hugetlb-private", SNAP_MEMORY_HUGETLB_PRIVATE, false},
    {"file", SNAP_MEMORY_COPIED, false}, /* of an ordinary file system, shared */
    {"file-private", SNAP_MEMORY_COPIED, false},
};

/* A consumer of the log and what it has made of it. */
typedef struct {
    SnapWatch *watch;
    uint8_t *copy;
    uint64_t start; /* in the arena */
    uint64_t end;
} Consumer;

typedef struct {
    const Kind *kind;
    Backing backing;
    uint8_t *arena;
    uint64_t page_bytes;
    uint64_t granule;
    SnapGuest *guest;
    SnapTracker *tracker;
    Consumer all;
    Consumer watches[2];
    unsigned seed;
    char folder[64];
    uint64_t saves, switches, collections;

    pthread_t threads[WRITERS];
    pthread_rwlock_t gate; /* writers hold it for reading, a few writes at a time */
    uint64_t sequence;     /* atomic, relaxed */
    bool stop;             /* atomic, relaxed */
} Rig;

/* ---- the guest ------------------------------------------------------------------------------------------- */

static void *write_on(void *opaque) {
    Rig *rig = opaque;
    unsigned seed = (unsigned)(uintptr_t)pthread_self();
    while (!__atomic_load_n(&rig->stop, __ATOMIC_RELAXED)) {
        pthread_rwlock_rdlock(&rig->gate);
        for (int i = 0; i < 64; i++) {
            uint64_t at = ((uint64_t)rand_r(&seed) << 12 ^ (uint64_t)rand_r(&seed)) % (ARENA_BYTES / 8);
            uint64_t n = __atomic_add_fetch(&rig->sequence, 1, __ATOMIC_RELAXED);
            __atomic_store_n((uint64_t *)(void *)rig->arena + at, n, __ATOMIC_RELAXED);
        }
        pthread_rwlock_unlock(&rig->gate);
        usleep((unsigned)rand_r(&seed) % 300);
    }
    return NULL;
}

static gboolean list_regions(void *opaque, gboolean paused, GPtrArray *regions, GError **error) {
    const Rig *rig = opaque;
    (void)paused;
    (void)error;
    SnapRegion *region = snap_region_new("arena", rig->kind->memory, (uintptr_t)rig->arena, ARENA_BYTES);
    region->granule_bytes = rig->granule;
    if (rig->kind->memory == SNAP_MEMORY_SHMEM || rig->kind->memory == SNAP_MEMORY_HUGETLB) {
        region->fd = fcntl(rig->backing.fd, F_DUPFD_CLOEXEC, 0);
    }
    g_ptr_array_add(regions, region);
    return TRUE;
}

static gboolean pause_guest(void *opaque, SnapPauseStep step, GError **error) {
    Rig *rig = opaque;
    (void)error;
    if (step == SNAP_PAUSE_STOP) {
        pthread_rwlock_wrlock(&rig->gate);
    }
    return TRUE;
}

static gboolean resume_guest(void *opaque, uint64_t *ret_pause_ns, GError **error) {
    Rig *rig = opaque;
    (void)error;
    *ret_pause_ns = 1;
    pthread_rwlock_unlock(&rig->gate);
    return TRUE;
}

static const SnapGuestOps ops = {
    .list_regions = list_regions,
    .pause = pause_guest,
    .resume = resume_guest,
};

/* ---- the rig --------------------------------------------------------------------------------------------- */

static bool map_file(Rig *rig) {
    char path[] = "transact-XXXXXX";
    int flags = g_str_has_suffix(rig->kind->name, "private") ? MAP_PRIVATE : MAP_SHARED;
    int fd = mkstemp(path);
    if (fd < 0 || unlink(path) < 0 || ftruncate(fd, ARENA_BYTES) < 0) {
        return false;
    }
    void *arena = mmap(NULL, ARENA_BYTES, PROT_READ | PROT_WRITE, flags, fd, 0);
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    rig->backing = (Backing){
        .arena = arena, .length_bytes = ARENA_BYTES, .page_bytes = page, .granule_bytes = page, .fd = fd};
    return arena != MAP_FAILED;
}

static bool rig_init(Rig *rig, const Kind *kind) {
    memset(rig, 0, sizeof *rig);
    rig->kind = kind;
    rig->seed = (unsigned)getpid();
    bool mapped = g_str_has_prefix(kind->name, "file")
                      ? map_file(rig)
                      : backing_map(kind->name, ARENA_BYTES, "/dev/shm", &rig->backing) == 0;
    if (!mapped) {
        return false;
    }
    rig->arena = rig->backing.arena;
    rig->page_bytes = rig->backing.page_bytes;
    rig->granule = strstr(kind->name, "hugetlb") ? rig->backing.granule_bytes : rig->page_bytes;
    memset(rig->arena, 1, ARENA_BYTES / 2); /* the rest is filled as it is written */
    pthread_rwlockattr_t attributes;
    pthread_rwlockattr_init(&attributes);
    pthread_rwlockattr_setkind_np(&attributes, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(&rig->gate, &attributes);
    rig->guest = snap_guest_new("test", 0, &ops, rig);
    rig->tracker = snap_tracker_new(rig->guest, NULL);
    snprintf(rig->folder, sizeof rig->folder, "transact-images-XXXXXX");
    assert_non_null(mkdtemp(rig->folder));
    return true;
}

static void rig_clear(Rig *rig) {
    for (int i = 0; i < 2; i++) {
        snap_watch_free(rig->watches[i].watch);
        free(rig->watches[i].copy);
    }
    free(rig->all.copy);
    snap_tracker_free(rig->tracker);
    snap_guest_free(rig->guest);
    munmap(rig->arena, rig->backing.length_bytes);
    if (rig->backing.fd >= 0) {
        close(rig->backing.fd);
    }
    rmdir(rig->folder);
}

/* ---- consumers ------------------------------------------------------------------------------------------- */

static void take(const SnapRegion *region, uint64_t offset, uint64_t length, void *opaque) {
    Rig *rig = opaque;
    (void)region;
    memcpy(rig->all.copy + offset, rig->arena + offset, length);
}

static void collect(Rig *rig) {
    g_autoptr(GError) error = NULL;
    snap_tracker_collect(rig->tracker, take, rig, NULL, &error);
    fail_on(error);
    rig->collections++;
}

static void get_watch(Rig *rig, Consumer *consumer, gsize at_once) {
    uint64_t base = (uintptr_t)rig->arena, at = base + consumer->start, end = base + consumer->end;
    g_autofree uint64_t *addresses = g_new(uint64_t, at_once);
    g_autoptr(GError) error = NULL;
    while (at < end) {
        gsize n = 0;
        uint64_t granule = 0;
        snap_watch_get(consumer->watch, SNAP_WATCH_RESET, at, addresses, at_once, &n, &at, &granule, &error);
        fail_on(error);
        assert_true(n <= at_once);
        for (gsize i = 0; i < n; i++) {
            uint64_t offset = addresses[i] - base;
            assert_true(offset >= consumer->start && offset < consumer->end);
            memcpy(consumer->copy + offset, rig->arena + offset, granule);
        }
    }
}

static uint64_t whole(const Rig *rig, uint64_t bytes) {
    return bytes / rig->granule * rig->granule;
}

static void consumer_init(Rig *rig, Consumer *consumer, uint64_t start, uint64_t end) {
    consumer->start = start;
    consumer->end = end;
    consumer->copy = malloc(ARENA_BYTES);
    memcpy(consumer->copy, rig->arena, ARENA_BYTES);
}

static void begin(Rig *rig, SnapTrackMode mode) {
    g_autoptr(GError) error = NULL;
    snap_tracker_set_mode(rig->tracker, mode, TRUE, &error);
    fail_on(error);
    consumer_init(rig, &rig->all, 0, ARENA_BYTES);
    consumer_init(rig, &rig->watches[0], 0, whole(rig, ARENA_BYTES / 4 * 3));
    consumer_init(rig, &rig->watches[1], whole(rig, ARENA_BYTES / 4), ARENA_BYTES);
    for (int i = 0; i < 2; i++) {
        Consumer *c = &rig->watches[i];
        c->watch = snap_watch_new(rig->tracker, (uintptr_t)rig->arena + c->start, c->end - c->start, &error);
        fail_on(error);
    }
    for (int i = 0; i < WRITERS; i++) {
        assert_int_equal(pthread_create(&rig->threads[i], NULL, write_on, rig), 0);
    }
}

/* Nobody writes: everyone is brought up to date, and must have the memory. */
static void compare(Rig *rig) {
    collect(rig);
    get_watch(rig, &rig->watches[0], 4096);
    get_watch(rig, &rig->watches[1], FEW);
    Consumer *all[] = {&rig->all, &rig->watches[0], &rig->watches[1]};
    for (int i = 0; i < 3; i++) {
        for (uint64_t page = all[i]->start; page < all[i]->end; page += rig->page_bytes) {
            if (memcmp(all[i]->copy + page, rig->arena + page, rig->page_bytes) != 0) {
                fail_msg("%s, consumer %d: page %lu is not what it was told", rig->kind->name, i,
                         page / rig->page_bytes);
            }
        }
    }
}

static void end(Rig *rig) {
    rig->stop = true;
    for (int i = 0; i < WRITERS; i++) {
        pthread_join(rig->threads[i], NULL);
    }
    compare(rig);
}

/* ---- what happens to it ---------------------------------------------------------------------------------- */

static void switch_mode(Rig *rig) {
    g_autoptr(GError) error = NULL;
    SnapTrackMode to = rand_r(&rig->seed) % 2 ? SNAP_TRACK_ASYNC : SNAP_TRACK_SYNC;
    bool stands = rand_r(&rig->seed) % 2;
    if (stands) {
        pthread_rwlock_wrlock(&rig->gate);
    }
    snap_tracker_set_mode(rig->tracker, to, stands, &error);
    if (stands) {
        pthread_rwlock_unlock(&rig->gate);
    }
    fail_on(error);
    assert_int_equal(snap_tracker_mode(rig->tracker), to);
    rig->switches++;
    if (rand_r(&rig->seed) % 2) {
        pthread_rwlock_wrlock(&rig->gate);
        compare(rig);
        pthread_rwlock_unlock(&rig->gate);
    }
}

/* A write, or a drop, that the gate keeps apart from what copies: page tables see the second, nobody the first. */
static void change_behind_the_back(Rig *rig) {
    uint64_t at = (uint64_t)rand_r(&rig->seed) % (ARENA_BYTES / rig->page_bytes) * rig->page_bytes;
    if (rig->kind->drops) {
        assert_int_equal(madvise(rig->arena + at, rig->page_bytes, MADV_DONTNEED), 0);
    } else if (rig->kind->memory == SNAP_MEMORY_SHMEM) {
        uint64_t word = ~rig->sequence;
        assert_int_equal(pwrite(rig->backing.fd, &word, sizeof word, (off_t)at), sizeof word);
        snap_tracker_mark_dirty(rig->tracker, (uintptr_t)rig->arena + at, sizeof word);
    }
}

static void *watch_on(void *opaque) {
    Rig *rig = opaque;
    for (int i = 0; i < 5; i++) {
        get_watch(rig, &rig->watches[1], FEW);
    }
    return NULL;
}

/* While a watch goes on looking. */
static void save(Rig *rig) {
    g_autoptr(GError) error = NULL;
    g_autofree char *dir = g_strdup_printf("%s/image", rig->folder);
    SnapSaveOptions options = {.dir = dir};
    pthread_t other;
    assert_int_equal(pthread_create(&other, NULL, watch_on, rig), 0);
    g_autoptr(SnapSave) job = snap_save_start(rig->guest, &options, &error);
    fail_on(error);
    snap_save_wait(job, -1, &error);
    fail_on(error);
    pthread_join(other, NULL);
    assert_true(snap_image_delete(dir, &error));
    rig->saves++;
}

static void step(Rig *rig) {
    unsigned what = (unsigned)rand_r(&rig->seed) % 100;
    if (what < 10) {
        /* Now, since what is lost is soon written again, and told then. */
        pthread_rwlock_wrlock(&rig->gate);
        compare(rig);
        pthread_rwlock_unlock(&rig->gate);
    } else if (what < 30) {
        collect(rig);
    } else if (what < 50) {
        get_watch(rig, &rig->watches[0], 4096);
    } else if (what < 70) {
        get_watch(rig, &rig->watches[1], FEW);
    } else if (what < 85) {
        switch_mode(rig);
    } else if (what < 100 - 100 / SAVE_ONE_IN) {
        change_behind_the_back(rig);
    } else if (rig->kind->memory != SNAP_MEMORY_COPIED) {
        save(rig);
    }
}

static int steps(void) {
    const char *text = getenv("SNAP_TEST_STEPS");
    return text ? atoi(text) : 1000;
}

static void told_pages_make_the_memory(void **state) {
    static Rig rig;
    if (!rig_init(&rig, *state)) {
        print_message("%s: cannot be mapped here\n", ((const Kind *)*state)->name);
        skip();
        return; /* skip() does not say of itself that it does not return */
    }
    begin(&rig, SNAP_TRACK_ASYNC);
    for (int i = 0; i < steps(); i++) {
        step(&rig);
    }
    end(&rig);
    print_message("%s: %lu writes, %lu collections, %lu switches, %lu snapshots\n", rig.kind->name, rig.sequence,
                  rig.collections, rig.switches, rig.saves);
    assert_true(rig.sequence > 0 && rig.collections > 0);
    rig_clear(&rig);
}

int main(void) {
    struct CMUnitTest tests[G_N_ELEMENTS(kinds)];
    for (guint i = 0; i < G_N_ELEMENTS(kinds); i++) {
        tests[i] = (struct CMUnitTest){
            .name = kinds[i].name, .test_func = told_pages_make_the_memory, .initial_state = (void *)&kinds[i]};
    }
    return cmocka_run_group_tests_name("told_pages_make_the_memory", tests, NULL, NULL);
}
