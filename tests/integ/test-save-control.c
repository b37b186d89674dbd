/*
 * A running save, paused, resumed, cancelled and throttled, while the guest writes: the guest is never held up by
 * a pause, the save takes no more than the guest's writes force, and what comes out in the end is exact.
 *
 * Guests are this process, which writes an arena by itself or by threads that write the known sequence; and a
 * child, where the guest has to end.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../guest/backing.h"
#include "../guest/seqcheck.h"
#include "../guest/writers.h"
#include "../lib/own-process.h"
#include "process.h"

#define MIB (UINT64_C(1) << 20)
#define ARENA_BYTES (32 * MIB)
#define BUFFER_BYTES (4 * MIB)
#define MS UINT64_C(1000000)
#define HELD_UP_NS (500 * MS) /* a guest that a pause holds up waits until the end of it, which is longer */
#define PAUSE_US 1200000
#define BEFORE 0x11
#define AFTER 0x22

typedef struct {
    const char *name;
    SnapMemory memory;
} Kind;

static const Kind kinds[] = {
    {"anon", SNAP_MEMORY_ANON},
    {"memfd", SNAP_MEMORY_SHMEM},
    {"hugetlb", SNAP_MEMORY_HUGETLB},
};

typedef struct {
    const Kind *kind;
    Backing backing;
    Writers writers; /* threads 0: the test itself writes */
    uint64_t at;     /* their number at the point in time */
    SnapGuest *guest;
    SnapSave *save; /* atomic, where the guest's own functions look at it */
    bool pause;     /* from its point in time on */
    char folder[64];
    char *image;
    uint64_t longest_ns; /* of the test's own writes */
} Rig;

/* ---- the guest ------------------------------------------------------------------------------------------- */

static gboolean list_regions(void *opaque, gboolean paused, GPtrArray *regions, GError **error) {
    const Rig *rig = opaque;
    const Backing *b = &rig->backing;
    (void)paused;
    (void)error;
    SnapRegion *region = snap_region_new("arena", rig->kind->memory, (uintptr_t)b->arena, b->length_bytes);
    region->granule_bytes = rig->kind->memory == SNAP_MEMORY_HUGETLB ? b->granule_bytes : b->page_bytes;
    region->fd = b->fd >= 0 ? fcntl(b->fd, F_DUPFD_CLOEXEC, 0) : -1;
    g_ptr_array_add(regions, region);
    return TRUE;
}

static gboolean pause_guest(void *opaque, SnapPauseStep step, GError **error) {
    Rig *rig = opaque;
    (void)error;
    if (step == SNAP_PAUSE_STOP && rig->writers.threads > 0) {
        writers_stop(&rig->writers);
        rig->at = ((SeqHeader *)rig->backing.arena)->counter;
    }
    SnapSave *save = NULL;
    while (step == SNAP_PAUSE_STOP && rig->pause && !save) {
        save = __atomic_load_n(&rig->save, __ATOMIC_ACQUIRE); /* the job may be here before its starter has it */
    }
    if (save) {
        snap_save_pause(save);
    }
    return TRUE;
}

static gboolean resume_guest(void *opaque, uint64_t *ret_pause_ns, GError **error) {
    Rig *rig = opaque;
    (void)error;
    *ret_pause_ns = 1;
    rig->writers.stop = false;
    return rig->writers.threads == 0 || writers_start(&rig->writers) == 0;
}

static const SnapGuestOps ops = {
    .list_regions = list_regions,
    .pause = pause_guest,
    .resume = resume_guest,
};

/* ---- the rig --------------------------------------------------------------------------------------------- */

static void rig_init(Rig *rig, const Kind *kind) {
    memset(rig, 0, sizeof *rig);
    rig->kind = kind;
    if (backing_map(kind->name, ARENA_BYTES, "/dev/shm", &rig->backing) < 0) {
        print_message("%s: cannot be mapped here\n", kind->name);
        skip();
    }
    memset(rig->backing.arena, BEFORE, rig->backing.length_bytes);
    rig->guest = snap_guest_new("test", 0, &ops, rig);
    strcpy(rig->folder, "save-control-XXXXXX");
    assert_non_null(mkdtemp(rig->folder));
    rig->image = g_build_filename(rig->folder, "image", NULL);
}

static void rig_clear(Rig *rig) {
    snap_save_free(rig->save);
    snap_guest_free(rig->guest);
    munmap(rig->backing.arena, rig->backing.length_bytes);
    if (rig->backing.fd >= 0) {
        close(rig->backing.fd);
    }
    (void)snap_image_delete(rig->image, NULL);
    g_free(rig->image);
    assert_int_equal(rmdir(rig->folder), 0);
}

static void begin_with(Rig *rig, SnapSaveOptions options) {
    g_autoptr(GError) error = NULL;
    options.dir = rig->image;
    options.buffer_bytes = BUFFER_BYTES;
    SnapSave *save = snap_save_start(rig->guest, &options, &error);
    fail_on(error);
    __atomic_store_n(&rig->save, save, __ATOMIC_RELEASE);
}

static void begin(Rig *rig, uint64_t max_bandwidth_bytes) {
    begin_with(rig, (SnapSaveOptions){.max_bandwidth_bytes = max_bandwidth_bytes});
}

static SnapSaveStats stats_of(Rig *rig) {
    SnapSaveStats stats;
    snap_save_get_stats(rig->save, &stats);
    return stats;
}

static SnapSaveStats await_sweep(Rig *rig) {
    SnapSaveStats stats = stats_of(rig);
    while (stats.phase < SNAP_SAVE_SWEEPING) {
        g_usleep(1000);
        stats = stats_of(rig);
    }
    assert_int_equal(stats.phase, SNAP_SAVE_SWEEPING);
    return stats;
}

/* Paused before it has taken anything; the guest runs. */
static void begin_paused_with(Rig *rig, SnapSaveOptions options) {
    rig->pause = true;
    begin_with(rig, options);
    SnapSaveStats stats = await_sweep(rig);
    rig->pause = false;
    assert_true(stats.paused && snap_save_is_paused(rig->save));
    assert_int_equal(stats.buffer_cap_bytes, BUFFER_BYTES);
}

static void begin_paused(Rig *rig) {
    begin_paused_with(rig, (SnapSaveOptions){0});
}

/* The pages done, when they stand still. */
static uint64_t settled(Rig *rig) {
    uint64_t before = UINT64_MAX, now = stats_of(rig).pages_done;
    for (int i = 0; i < 50 && now != before; i++) {
        before = now;
        g_usleep(100000);
        now = stats_of(rig).pages_done;
    }
    assert_int_equal(now, before);
    return now;
}

static void end(Rig *rig) {
    g_autoptr(GError) error = NULL;
    snap_save_wait(rig->save, 60000, &error);
    fail_on(error);
    SnapSaveStats stats = stats_of(rig);
    assert_int_equal(stats.phase, SNAP_SAVE_DONE);
    assert_int_equal(stats.pages_done, stats.pages_total);
    assert_true(stats.buffer_bytes == 0 && stats.bytes_per_second == 0 && !stats.paused);
    assert_true(stats.peak_buffer_bytes > 0 && stats.peak_buffer_bytes <= BUFFER_BYTES);
}

static uint8_t *read_image(const Rig *rig) {
    g_autoptr(GError) error = NULL;
    g_autoptr(SnapImage) image = snap_image_open(rig->image, &error);
    fail_on(error);
    snap_image_verify(image, NULL, NULL, &error); /* of its parent as well */
    fail_on(error);
    uint8_t *copy = g_malloc(rig->backing.length_bytes);
    snap_image_read(image, 0, 0, copy, rig->backing.length_bytes, &error);
    fail_on(error);
    return copy;
}

/* All of the image is what the arena was filled with before the save. */
static void check_image_is_before(const Rig *rig) {
    g_autofree uint8_t *copy = read_image(rig);
    for (uint64_t i = 0; i < rig->backing.length_bytes; i++) {
        if (copy[i] != BEFORE) {
            fail_msg("byte %lu of the image is 0x%x", i, copy[i]);
        }
    }
}

/* One page, by this thread. */
static void write_page(Rig *rig, uint64_t offset) {
    uint64_t start_ns = clock_ns();
    memset((uint8_t *)rig->backing.arena + offset, AFTER, rig->backing.page_bytes);
    rig->longest_ns = MAX(rig->longest_ns, clock_ns() - start_ns);
}

static void write_pages(Rig *rig, uint64_t start, uint64_t end) {
    for (; start < end; start += rig->backing.page_bytes) {
        write_page(rig, start);
    }
}

/* ---- pause ----------------------------------------------------------------------------------------------- */

static void save_paused_takes_nothing(void **state) {
    Rig rig;
    rig_init(&rig, *state);
    begin_paused(&rig);
    uint64_t done = settled(&rig);
    assert_int_equal(done, 0);
    g_usleep(1100000);
    assert_int_equal(stats_of(&rig).pages_done, 0);
    assert_int_equal(stats_of(&rig).bytes_per_second, 0);
    snap_save_resume(rig.save);
    assert_false(snap_save_is_paused(rig.save));
    end(&rig);
    check_image_is_before(&rig);
    rig_clear(&rig);
}

/*
 * The test writes less than fills half the buffer: nothing is swept. Then more: as much is swept as makes room,
 * and no more when the writing ends.
 */
static void save_paused_takes_what_writes_force(void **state) {
    Rig rig;
    rig_init(&rig, *state);
    bool huge = rig.kind->memory == SNAP_MEMORY_HUGETLB;
    begin_paused(&rig);
    uint64_t few = huge ? 0 : BUFFER_BYTES / 8;
    write_pages(&rig, 0, few);
    assert_int_equal(settled(&rig), 0);
    assert_int_equal(stats_of(&rig).buffer_bytes, few);
    write_pages(&rig, few, 3 * BUFFER_BYTES);
    uint64_t done = settled(&rig);
    assert_true(done > 0 && done <= 3 * BUFFER_BYTES / rig.backing.page_bytes);
    assert_true(stats_of(&rig).buffer_bytes <= BUFFER_BYTES);
    assert_int_equal(settled(&rig), done);
    print_message("%s: %lu of %lu pages done, longest write %lu us\n", rig.kind->name, done,
                  stats_of(&rig).pages_total, rig.longest_ns / 1000);
    assert_true(rig.longest_ns < HELD_UP_NS);
    snap_save_resume(rig.save);
    end(&rig);
    check_image_is_before(&rig);
    rig_clear(&rig);
}

static void start_writers(Rig *rig, unsigned threads) {
    uint32_t pages = (uint32_t)(rig->backing.length_bytes / rig->backing.page_bytes - 1);
    SeqLayout layout = {.pages = pages,
                        .page_bytes = (uint32_t)rig->backing.page_bytes,
                        .touched = pages,
                        .hot = pages,
                        .stride = seq_scatter_stride(pages)};
    memset(rig->backing.arena, 0, rig->backing.length_bytes);
    rig->writers = (Writers){.layout = layout, .arena = rig->backing.arena, .threads = threads, .batch = 64};
    seq_header_init(rig->backing.arena, &layout, threads, 64);
    seq_start(&layout, &rig->writers.cursor);
    writers_prefill(&rig->writers);
    assert_int_equal(writers_start(&rig->writers), 0);
}

static uint64_t writes_of(const Rig *rig) {
    return __atomic_load_n(&((SeqHeader *)rig->backing.arena)->counter, __ATOMIC_RELAXED);
}

static void check_image_is_one_write(const Rig *rig) {
    g_autofree uint8_t *copy = read_image(rig);
    SeqReport report;
    if (!seq_check(copy, rig->backing.length_bytes, &rig->writers.layout, &report)) {
        seq_print_report(stderr, &report);
        fail_msg("the image is not the arena at one write");
    }
    assert_int_equal(report.n, rig->at);
}

/* Pauses that come and go while the guest writes as fast as it can, with a buffer of a fraction of its memory. */
static void save_paused_does_not_hold_up_a_fast_guest(void **state) {
    Rig rig;
    rig_init(&rig, *state);
    start_writers(&rig, 2);
    begin_paused(&rig);
    uint64_t n = writes_of(&rig);
    g_usleep(PAUSE_US);
    uint64_t written = writes_of(&rig) - n;
    for (int i = 0; i < 20; i++) {
        snap_save_resume(rig.save);
        g_usleep(500);
        snap_save_pause(rig.save);
        g_usleep(5000);
    }
    SnapSaveStats stats = stats_of(&rig);
    snap_save_resume(rig.save);
    end(&rig);
    writers_stop(&rig.writers);
    print_message("%s: %lu writes and %lu faults while paused, longest write %lu us\n", rig.kind->name, written,
                  stats.faults, rig.writers.stall.max_ns / 1000);
    assert_true(stats.faults > 0);
    assert_true(written > rig.writers.layout.pages); /* all of it, and again */
    assert_true(rig.writers.stall.max_ns < HELD_UP_NS);
    assert_int_equal(((SeqHeader *)rig.backing.arena)->errors, 0);
    check_image_is_one_write(&rig);
    rig_clear(&rig);
}

/* What is discarded has to be saved first, more of it than the buffer holds; only then madvise() goes on. */
static void save_paused_lets_the_guest_discard(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig, &kinds[0]);
    begin_paused(&rig);
    uint64_t start_ns = clock_ns();
    assert_int_equal(madvise(rig.backing.arena, 3 * BUFFER_BYTES, MADV_DONTNEED), 0);
    uint64_t took_ns = clock_ns() - start_ns;
    print_message("madvise took %lu us\n", took_ns / 1000);
    assert_true(took_ns < 4 * HELD_UP_NS);
    uint64_t done = settled(&rig);
    assert_true(done > 0 && done < 4 * BUFFER_BYTES / rig.backing.page_bytes);
    snap_save_resume(rig.save);
    end(&rig);
    check_image_is_before(&rig);
    rig_clear(&rig);
}

/* An incremental snapshot that knows by the log what has changed: writes of what has not force nothing. */
static void save_paused_of_a_chain_is_exact(void **state) {
    Rig rig;
    rig_init(&rig, *state);
    g_autofree char *parent = g_build_filename(rig.folder, "parent", NULL);
    g_autofree char *child = g_steal_pointer(&rig.image);
    rig.image = g_strdup(parent);
    begin_with(&rig, (SnapSaveOptions){.keep_log = TRUE});
    end(&rig);
    g_clear_pointer(&rig.save, snap_save_free);
    g_free(rig.image);
    rig.image = g_steal_pointer(&child);
    write_pages(&rig, 0, 3 * BUFFER_BYTES);
    g_autofree uint8_t *wanted = g_memdup2(rig.backing.arena, rig.backing.length_bytes);
    begin_paused_with(&rig, (SnapSaveOptions){.keep_log = TRUE, .parent_dir = parent});
    write_pages(&rig, 4 * BUFFER_BYTES, 7 * BUFFER_BYTES);
    assert_int_equal(settled(&rig), 0);
    memset(rig.backing.arena, BEFORE, 2 * BUFFER_BYTES);
    uint64_t done = settled(&rig);
    assert_true(done > 0 && done < rig.backing.length_bytes / rig.backing.page_bytes);
    snap_save_resume(rig.save);
    end(&rig);
    assert_int_equal(stats_of(&rig).pages_unchanged,
                     (rig.backing.length_bytes - 3 * BUFFER_BYTES) / rig.backing.page_bytes);
    g_autofree uint8_t *copy = read_image(&rig);
    assert_memory_equal(copy, wanted, rig.backing.length_bytes);
    (void)snap_image_delete(rig.image, NULL);
    (void)snap_image_delete(parent, NULL);
    rig_clear(&rig);
}

/* Memory that was copied in the pause holds up nobody, and rests with the others. */
static void save_paused_rests_with_copied_memory(void **state) {
    static const Kind copied = {"anon", SNAP_MEMORY_COPIED};
    (void)state;
    Rig rig;
    rig_init(&rig, &copied);
    begin_paused(&rig);
    assert_int_equal(settled(&rig), 0);
    snap_save_resume(rig.save);
    g_autoptr(GError) error = NULL;
    snap_save_wait(rig.save, 10000, &error);
    fail_on(error);
    check_image_is_before(&rig);
    rig_clear(&rig);
}

/* ---- the end --------------------------------------------------------------------------------------------- */

static void save_cancelled_while_paused_releases_the_guest(void **state) {
    Rig rig;
    rig_init(&rig, *state);
    begin_paused(&rig);
    write_pages(&rig, 0, BUFFER_BYTES / 8);
    g_autoptr(GError) error = NULL;
    uint64_t start_ns = clock_ns();
    snap_save_cancel(rig.save);
    assert_false(snap_save_wait(rig.save, 10000, &error));
    assert_true(g_error_matches(error, SNAP_ERROR, SNAP_ERROR_CANCELLED));
    assert_true(clock_ns() - start_ns < HELD_UP_NS);
    assert_false(snap_save_is_paused(rig.save));
    assert_false(g_file_test(rig.image, G_FILE_TEST_EXISTS));
    write_pages(&rig, 0, rig.backing.length_bytes);
    assert_true(rig.longest_ns < HELD_UP_NS);
    /* Another userfaultfd can have the memory. */
    g_clear_pointer(&rig.save, snap_save_free);
    memset(rig.backing.arena, BEFORE, rig.backing.length_bytes);
    begin(&rig, 0);
    end(&rig);
    check_image_is_before(&rig);
    rig_clear(&rig);
}

static void save_freed_while_paused_ends(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig, &kinds[0]);
    begin_paused(&rig);
    uint64_t start_ns = clock_ns();
    g_clear_pointer(&rig.save, snap_save_free);
    assert_true(clock_ns() - start_ns < HELD_UP_NS);
    rig_clear(&rig);
}

/* ---- a guest that ends ----------------------------------------------------------------------------------- */

static pid_t start_child(void) {
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        sigset_t wanted;
        sigemptyset(&wanted);
        sigaddset(&wanted, SIGUSR1);
        sigprocmask(SIG_BLOCK, &wanted, NULL);
        sigwaitinfo(&wanted, NULL);
        execlp("sleep", "sleep", "60", (char *)NULL);
        _exit(1);
    }
    g_usleep(50000);
    return pid;
}

/* A paused save of a child, to which @signum is sent then. */
static void check_end_is_noticed(int signum) {
    if (geteuid() != 0) {
        print_message("needs root\n");
        skip();
    }
    g_autoptr(GError) error = NULL;
    Rig rig;
    rig_init(&rig, &kinds[0]);
    pid_t pid = start_child();
    g_autoptr(SnapGuest) child = process_guest_new(pid, &error);
    fail_on(error);
    SnapSaveOptions options = {.dir = rig.image, .max_bandwidth_bytes = 1000};
    rig.save = snap_save_start(child, &options, &error);
    snap_save_pause(rig.save);
    await_sweep(&rig);
    kill(pid, signum);
    uint64_t start_ns = clock_ns();
    assert_false(snap_save_wait(rig.save, 10000, &error));
    print_message("noticed after %lu ms: %s\n", (clock_ns() - start_ns) / MS, error->message);
    assert_true(g_error_matches(error, SNAP_ERROR, SNAP_ERROR_GUEST_GONE));
    assert_true(clock_ns() - start_ns < 3000 * MS);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    g_clear_pointer(&rig.save, snap_save_free);
    rig_clear(&rig);
}

static void guest_killed_while_paused_is_noticed(void **state) {
    (void)state;
    check_end_is_noticed(SIGKILL);
}

static void guest_that_executes_while_paused_is_noticed(void **state) {
    (void)state;
    check_end_is_noticed(SIGUSR1);
}

/* ---- bandwidth ------------------------------------------------------------------------------------------- */

static void save_limited_is_slow_and_says_so(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig, &kinds[0]);
    begin(&rig, 4 * MIB);
    await_sweep(&rig);
    g_usleep(1500000);
    SnapSaveStats stats = stats_of(&rig);
    print_message("%lu bytes after 1.5 s, %lu a second\n", stats.bytes_written, stats.bytes_per_second);
    assert_in_range(stats.bytes_written, 4 * MIB, 8 * MIB);
    assert_in_range(stats.bytes_per_second, 2 * MIB, 6 * MIB);
    snap_save_set_max_bandwidth(rig.save, 0);
    end(&rig);
    check_image_is_before(&rig);
    rig_clear(&rig);
}

/* At 1000 bytes a second the second chunk would come after minutes. */
static void save_waiting_for_bandwidth_sees_a_new_limit_at_once(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig, &kinds[0]);
    begin(&rig, 1000);
    await_sweep(&rig);
    assert_true(settled(&rig) < stats_of(&rig).pages_total);
    uint64_t start_ns = clock_ns();
    snap_save_set_max_bandwidth(rig.save, 0);
    end(&rig);
    print_message("%lu ms from 1000 bytes a second to the end without a limit\n", (clock_ns() - start_ns) / MS);
    assert_true(clock_ns() - start_ns < 5000 * MS);
    check_image_is_before(&rig);
    rig_clear(&rig);
}

/* Not by looking now and then. */
static void save_waiting_for_bandwidth_is_woken(void **state) {
    enum { TIMES = 6 };
    (void)state;
    Rig rig;
    rig_init(&rig, &kinds[0]);
    begin(&rig, 1000);
    await_sweep(&rig);
    int quick = 0;
    for (int i = 0; i < TIMES; i++) {
        uint64_t done = settled(&rig), start_ns = clock_ns();
        snap_save_set_max_bandwidth(rig.save, 64 * MIB);
        while (stats_of(&rig).pages_done == done && clock_ns() - start_ns < 1000 * MS) {
            g_usleep(500);
        }
        quick += clock_ns() - start_ns < 60 * MS;
        snap_save_set_max_bandwidth(rig.save, 1000);
    }
    assert_true(quick >= TIMES - 1);
    rig_clear(&rig);
}

static void save_limited_while_it_runs_becomes_slow(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig, &kinds[0]);
    begin_paused(&rig);
    snap_save_set_max_bandwidth(rig.save, MIB);
    snap_save_resume(rig.save);
    g_usleep(1000000);
    assert_in_range(stats_of(&rig).bytes_written, MIB / 4, 2 * MIB);
    uint64_t start_ns = clock_ns();
    snap_save_cancel(rig.save);
    g_autoptr(GError) error = NULL;
    assert_false(snap_save_wait(rig.save, 10000, &error));
    assert_true(clock_ns() - start_ns < HELD_UP_NS);
    rig_clear(&rig);
}

/* ---- what is told ---------------------------------------------------------------------------------------- */

static uint64_t faults_in_histogram(Rig *rig) {
    SnapHistogram histogram;
    snap_save_get_histogram(rig->save, &histogram);
    uint64_t sum = 0;
    for (guint i = 0; i < SNAP_HISTOGRAM_BUCKETS; i++) {
        sum += histogram.buckets[i].count;
    }
    return sum;
}

static void histogram_has_every_fault(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig, &kinds[0]);
    begin_paused(&rig);
    assert_int_equal(faults_in_histogram(&rig), 0);
    write_pages(&rig, 0, 100 * rig.backing.page_bytes);
    assert_int_equal(faults_in_histogram(&rig), 100);
    assert_int_equal(stats_of(&rig).faults, 100);
    snap_save_resume(rig.save);
    end(&rig);
    assert_int_equal(faults_in_histogram(&rig), stats_of(&rig).faults);
    rig_clear(&rig);
}

int main(void) {
    if (snap_uffd_open() < 0) {
        puts("skip: userfaultfd is not permitted here");
        return 77;
    }
    static const struct {
        const char *name;
        CMUnitTestFunction function;
    } of_each_kind[] = {
        {"save_paused_takes_nothing", save_paused_takes_nothing},
        {"save_paused_takes_what_writes_force", save_paused_takes_what_writes_force},
        {"save_paused_does_not_hold_up_a_fast_guest", save_paused_does_not_hold_up_a_fast_guest},
        {"save_paused_of_a_chain_is_exact", save_paused_of_a_chain_is_exact},
        {"save_cancelled_while_paused_releases_the_guest", save_cancelled_while_paused_releases_the_guest},
    };
    const struct CMUnitTest of_one_kind[] = {
        cmocka_unit_test(save_paused_lets_the_guest_discard),
        cmocka_unit_test(save_paused_rests_with_copied_memory),
        cmocka_unit_test(save_freed_while_paused_ends),
        cmocka_unit_test(guest_killed_while_paused_is_noticed),
        cmocka_unit_test(guest_that_executes_while_paused_is_noticed),
        cmocka_unit_test(save_limited_is_slow_and_says_so),
        cmocka_unit_test(save_waiting_for_bandwidth_sees_a_new_limit_at_once),
        cmocka_unit_test(save_waiting_for_bandwidth_is_woken),
        cmocka_unit_test(save_limited_while_it_runs_becomes_slow),
        cmocka_unit_test(histogram_has_every_fault),
    };
    struct CMUnitTest tests[G_N_ELEMENTS(of_each_kind) * G_N_ELEMENTS(kinds)];
    char names[G_N_ELEMENTS(tests)][96];
    for (guint i = 0; i < G_N_ELEMENTS(tests); i++) {
        const Kind *kind = &kinds[i / G_N_ELEMENTS(of_each_kind)];
        guint which = i % G_N_ELEMENTS(of_each_kind);
        g_snprintf(names[i], sizeof names[i], "%s/%s", kind->name, of_each_kind[which].name);
        tests[i] = (struct CMUnitTest){
            .name = names[i], .test_func = of_each_kind[which].function, .initial_state = (void *)kind};
    }
    int failed = cmocka_run_group_tests_name("save-control, each kind of memory", tests, NULL, NULL);
    return failed + cmocka_run_group_tests_name("save-control", of_one_kind, NULL, NULL);
}
