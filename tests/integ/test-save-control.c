/*
 * A running save, paused, resumed and cancelled while the guest writes: the guest is never held up by a pause, the
 * save takes no more than the guest's writes force, and what comes out in the end is exact. One that is throttled:
 * test-save-bandwidth.c.
 *
 * Guests are this process, which writes an arena by itself or by threads that write the known sequence; and a
 * child, where the guest has to end.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "save-control-fixture.h"

#include "process.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAUSE_US 1200000

/* ---- pause ----------------------------------------------------------------------------------------------- */

static void save_paused_takes_nothing(void **state) {
    Rig rig;
    rig_init(&rig, *state);
    rig_begin_paused(&rig);
    uint64_t done = rig_settled(&rig);
    assert_int_equal(done, 0);
    g_usleep(1100000);
    assert_int_equal(rig_stats(&rig).pages_done, 0);
    assert_int_equal(rig_stats(&rig).bytes_per_second, 0);
    snap_save_resume(rig.save);
    assert_false(snap_save_is_paused(rig.save));
    rig_end(&rig);
    rig_check_image_is_before(&rig);
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
    rig_begin_paused(&rig);
    uint64_t few = huge ? 0 : BUFFER_BYTES / 8;
    rig_write_pages(&rig, 0, few);
    assert_int_equal(rig_settled(&rig), 0);
    assert_int_equal(rig_stats(&rig).buffer_bytes, few);
    rig_write_pages(&rig, few, 3 * BUFFER_BYTES);
    uint64_t done = rig_settled(&rig);
    assert_true(done > 0 && done <= 3 * BUFFER_BYTES / rig.backing.page_bytes);
    assert_true(rig_stats(&rig).buffer_bytes <= BUFFER_BYTES);
    assert_int_equal(rig_settled(&rig), done);
    print_message("%s: %lu of %lu pages done, longest write %lu us\n", rig.kind->name, done,
                  rig_stats(&rig).pages_total, rig.longest_ns / 1000);
    assert_true(rig.longest_ns < HELD_UP_NS);
    snap_save_resume(rig.save);
    rig_end(&rig);
    rig_check_image_is_before(&rig);
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
    g_autofree uint8_t *copy = rig_read_image(rig);
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
    rig_begin_paused(&rig);
    uint64_t n = writes_of(&rig);
    g_usleep(PAUSE_US);
    uint64_t written = writes_of(&rig) - n;
    for (int i = 0; i < 20; i++) {
        snap_save_resume(rig.save);
        g_usleep(500);
        snap_save_pause(rig.save);
        g_usleep(5000);
    }
    SnapSaveStats stats = rig_stats(&rig);
    snap_save_resume(rig.save);
    rig_end(&rig);
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
    rig_begin_paused(&rig);
    uint64_t start_ns = clock_ns();
    assert_int_equal(madvise(rig.backing.arena, 3 * BUFFER_BYTES, MADV_DONTNEED), 0);
    uint64_t took_ns = clock_ns() - start_ns;
    print_message("madvise took %lu us\n", took_ns / 1000);
    assert_true(took_ns < 4 * HELD_UP_NS);
    uint64_t done = rig_settled(&rig);
    assert_true(done > 0 && done < 4 * BUFFER_BYTES / rig.backing.page_bytes);
    snap_save_resume(rig.save);
    rig_end(&rig);
    rig_check_image_is_before(&rig);
    rig_clear(&rig);
}

/* An incremental snapshot that knows by the log what has changed: writes of what has not force nothing. */
static void save_paused_of_a_chain_is_exact(void **state) {
    Rig rig;
    rig_init(&rig, *state);
    g_autofree char *parent = g_build_filename(rig.folder, "parent", NULL);
    g_autofree char *child = g_steal_pointer(&rig.image);
    rig.image = g_strdup(parent);
    rig_begin_with(&rig, (SnapSaveOptions){.keep_log = TRUE});
    rig_end(&rig);
    g_clear_pointer(&rig.save, snap_save_free);
    g_free(rig.image);
    rig.image = g_steal_pointer(&child);
    rig_write_pages(&rig, 0, 3 * BUFFER_BYTES);
    g_autofree uint8_t *wanted = g_memdup2(rig.backing.arena, rig.backing.length_bytes);
    rig_begin_paused_with(&rig, (SnapSaveOptions){.keep_log = TRUE, .parent_dir = parent});
    rig_write_pages(&rig, 4 * BUFFER_BYTES, 7 * BUFFER_BYTES);
    assert_int_equal(rig_settled(&rig), 0);
    memset(rig.backing.arena, BEFORE, 2 * BUFFER_BYTES);
    uint64_t done = rig_settled(&rig);
    assert_true(done > 0 && done < rig.backing.length_bytes / rig.backing.page_bytes);
    snap_save_resume(rig.save);
    rig_end(&rig);
    assert_int_equal(rig_stats(&rig).pages_unchanged,
                     (rig.backing.length_bytes - 3 * BUFFER_BYTES) / rig.backing.page_bytes);
    g_autofree uint8_t *copy = rig_read_image(&rig);
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
    rig_begin_paused(&rig);
    assert_int_equal(rig_settled(&rig), 0);
    snap_save_resume(rig.save);
    g_autoptr(GError) error = NULL;
    snap_save_wait(rig.save, 10000, &error);
    fail_on(error);
    rig_check_image_is_before(&rig);
    rig_clear(&rig);
}

/* ---- the end --------------------------------------------------------------------------------------------- */

static void save_cancelled_while_paused_releases_the_guest(void **state) {
    Rig rig;
    rig_init(&rig, *state);
    rig_begin_paused(&rig);
    rig_write_pages(&rig, 0, BUFFER_BYTES / 8);
    g_autoptr(GError) error = NULL;
    uint64_t start_ns = clock_ns();
    snap_save_cancel(rig.save);
    assert_false(snap_save_wait(rig.save, 10000, &error));
    assert_true(g_error_matches(error, SNAP_ERROR, SNAP_ERROR_CANCELLED));
    assert_true(clock_ns() - start_ns < HELD_UP_NS);
    assert_false(snap_save_is_paused(rig.save));
    assert_false(g_file_test(rig.image, G_FILE_TEST_EXISTS));
    rig_write_pages(&rig, 0, rig.backing.length_bytes);
    assert_true(rig.longest_ns < HELD_UP_NS);
    /* Another userfaultfd can have the memory. */
    g_clear_pointer(&rig.save, snap_save_free);
    memset(rig.backing.arena, BEFORE, rig.backing.length_bytes);
    rig_begin(&rig, 0);
    rig_end(&rig);
    rig_check_image_is_before(&rig);
    rig_clear(&rig);
}

static void save_freed_while_paused_ends(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig, &kinds[0]);
    rig_begin_paused(&rig);
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
    rig_await_sweep(&rig);
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
