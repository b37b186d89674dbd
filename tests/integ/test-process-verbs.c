/*
 * Stop and continue of a process guest: it stands and runs when the call says so, it is never another process, and
 * snapshots of it, before, after and meanwhile, are none the wiser.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "libsnap.h"
#include "process-target.h"
#include "process.h"

enum { SKIPPED = 77, N_THREADS = 3 };

static void fail_on(const GError *error) {
    if (error) {
        fail_msg("%s", error->message);
    }
}

static void expect(GError **error, int code) {
    if (!g_error_matches(*error, SNAP_ERROR, code)) {
        fail_msg("error %d was expected, not: %s", code, *error ? (*error)->message : "none");
    }
    g_clear_error(error);
}

/* ---- the process ----------------------------------------------------------------------------------------- */

static void *count_up(void *opaque) {
    TargetShared *shared = opaque;
    for (;;) {
        __atomic_add_fetch(&shared->steps, 1, __ATOMIC_RELAXED);
        usleep(50);
    }
    return NULL;
}

static void counting_threads(TargetShared *shared) {
    pthread_t thread;
    for (int i = 1; i < N_THREADS; i++) {
        pthread_create(&thread, NULL, count_up, shared);
    }
    shared->ready = 1;
    count_up(shared);
}

static void sleeping(TargetShared *shared) {
    shared->ready = 1;
    pause();
}

typedef struct {
    Target *target;
    SnapGuest *guest;
    char folder[64];
} Rig;

static void rig_init(Rig *rig, void (*body)(TargetShared *)) {
    g_autoptr(GError) error = NULL;
    rig->target = target_start(body);
    rig->guest = process_guest_new(rig->target->pid, &error);
    fail_on(error);
    strcpy(rig->folder, "process-verbs-XXXXXX");
    assert_non_null(mkdtemp(rig->folder));
}

static void rig_clear(Rig *rig) {
    snap_guest_free(rig->guest);
    target_end(rig->target);
    assert_int_equal(rmdir(rig->folder), 0);
}

static void stop(Rig *rig) {
    g_autoptr(GError) error = NULL;
    process_guest_stop(rig->guest, &error);
    fail_on(error);
}

static void cont(Rig *rig) {
    g_autoptr(GError) error = NULL;
    process_guest_cont(rig->guest, &error);
    fail_on(error);
}

static gboolean is_stopped(Rig *rig) {
    g_autoptr(GError) error = NULL;
    gboolean stopped = FALSE;
    process_guest_is_stopped(rig->guest, &stopped, &error);
    fail_on(error);
    return stopped;
}

static void check_stands(const Rig *rig) {
    uint64_t steps = rig->target->shared->steps;
    target_sleep_ms(20);
    assert_int_equal(rig->target->shared->steps, steps);
    assert_int_equal(target_state(rig->target->pid), 'T');
}

static void check_runs(const Rig *rig) {
    assert_true(target_await(&rig->target->shared->steps, rig->target->shared->steps + 10, 2000));
}

/* ---- stop and go ----------------------------------------------------------------------------------------- */

static void process_stopped_stands_until_it_is_continued(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig, counting_threads);
    assert_false(is_stopped(&rig));
    for (int i = 0; i < 20; i++) {
        stop(&rig);
        check_stands(&rig);
        assert_true(is_stopped(&rig));
        cont(&rig);
        assert_false(is_stopped(&rig));
        check_runs(&rig);
    }
    rig_clear(&rig);
}

static void process_stopped_twice_is_continued_by_once(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig, counting_threads);
    stop(&rig);
    stop(&rig);
    check_stands(&rig);
    cont(&rig);
    cont(&rig);
    check_runs(&rig);
    rig_clear(&rig);
}

static void process_stopped_by_somebody_else_is_seen(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig, sleeping);
    kill(rig.target->pid, SIGSTOP);
    assert_true(target_await_state(rig.target->pid, 'T'));
    assert_true(is_stopped(&rig));
    kill(rig.target->pid, SIGCONT);
    assert_true(target_await_state(rig.target->pid, 'S'));
    assert_false(is_stopped(&rig));
    rig_clear(&rig);
}

static void process_stopped_stays_so_without_us(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig, counting_threads);
    stop(&rig);
    g_clear_pointer(&rig.guest, snap_guest_free);
    check_stands(&rig);
    rig_clear(&rig);
}

/* ---- gone ------------------------------------------------------------------------------------------------ */

static void check_gone(Rig *rig) {
    g_autoptr(GError) error = NULL;
    gboolean stopped;
    assert_false(process_guest_stop(rig->guest, &error));
    expect(&error, SNAP_ERROR_GUEST_GONE);
    assert_false(process_guest_cont(rig->guest, &error));
    expect(&error, SNAP_ERROR_GUEST_GONE);
    assert_false(process_guest_is_stopped(rig->guest, &stopped, &error));
    expect(&error, SNAP_ERROR_GUEST_GONE);
}

static void process_ended_is_gone(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig, sleeping);
    kill(rig.target->pid, SIGKILL);
    assert_true(target_await_state(rig.target->pid, 'Z'));
    check_gone(&rig);
    waitpid(rig.target->pid, NULL, 0);
    check_gone(&rig);
    rig_clear(&rig);
}

/* Let the next process be number @pid, if nobody else comes in between. */
static gboolean set_next_pid(pid_t pid) {
    FILE *file = fopen("/proc/sys/kernel/ns_last_pid", "w");
    gboolean ok = file && fprintf(file, "%d", (int)pid - 1) > 0;
    return file && fclose(file) == 0 && ok;
}

static void process_that_got_the_number_since_is_left_alone(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig, sleeping);
    pid_t pid = rig.target->pid, other = 0;
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    for (int i = 0; i < 50 && other != pid; i++) {
        if (other > 0) {
            kill(other, SIGKILL);
            waitpid(other, NULL, 0);
        }
        if (!set_next_pid(pid)) {
            break;
        }
        other = fork();
        if (other == 0) {
            pause();
            _exit(0);
        }
    }
    if (other != pid) {
        print_message("no process can be given number %d here\n", (int)pid);
        rig_clear(&rig);
        skip();
    }
    check_gone(&rig);
    assert_int_not_equal(target_state(other), 'T');
    rig_clear(&rig); /* ends it: it has the number */
}

static void guest_of_another_kind_is_refused(void **state) {
    static const SnapGuestOps none = {0};
    (void)state;
    g_autoptr(GError) error = NULL;
    g_autoptr(SnapGuest) guest = snap_guest_new("test", 0, &none, NULL);
    gboolean stopped;
    assert_false(process_guest_stop(guest, &error));
    expect(&error, SNAP_ERROR_USAGE);
    assert_false(process_guest_cont(guest, &error));
    expect(&error, SNAP_ERROR_USAGE);
    assert_false(process_guest_is_stopped(guest, &stopped, &error));
    expect(&error, SNAP_ERROR_USAGE);
}

/* ---- with snapshots -------------------------------------------------------------------------------------- */

static void take_snapshot(Rig *rig) {
    g_autoptr(GError) error = NULL;
    g_autofree char *dir = g_build_filename(rig->folder, "image", NULL);
    SnapSaveOptions options = {.dir = dir, .region_glob = "anon@*"}; /* not what it shares with us */
    g_autoptr(SnapSave) save = snap_save_start(rig->guest, &options, &error);
    fail_on(error);
    snap_save_wait(save, 30000, &error);
    fail_on(error);
    g_autoptr(SnapImage) image = snap_image_open(dir, &error);
    fail_on(error);
    snap_image_verify(image, NULL, NULL, &error);
    fail_on(error);
    snap_image_delete(dir, &error);
    fail_on(error);
}

static void snapshot_of_a_stopped_process_leaves_it_stopped(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig, counting_threads);
    stop(&rig);
    uint64_t steps = rig.target->shared->steps;
    for (int i = 0; i < 3; i++) {
        take_snapshot(&rig);
        assert_true(is_stopped(&rig));
        check_stands(&rig);
    }
    assert_int_equal(rig.target->shared->steps, steps);
    cont(&rig);
    check_runs(&rig);
    take_snapshot(&rig);
    check_runs(&rig);
    rig_clear(&rig);
}

/* Return: what went wrong, or NULL. */
static void *stop_and_go(void *opaque) {
    Rig *rig = opaque;
    for (int i = 0; i < 800; i++) {
        GError *error = NULL;
        gboolean stopped = FALSE, wanted = i % 2 == 0;
        if (!(wanted ? process_guest_stop : process_guest_cont)(rig->guest, &error) ||
            !process_guest_is_stopped(rig->guest, &stopped, &error)) {
            return error;
        }
        if (stopped != wanted) {
            g_set_error(&error, SNAP_ERROR, SNAP_ERROR_FAILED, "after %d calls it %s", i + 1,
                        stopped ? "stands" : "runs");
            return error;
        }
        usleep(1000);
    }
    return NULL;
}

/* The pause of a snapshot is not mistaken for a stop, nor the other way round. */
static void process_stopped_and_continued_while_saved_does_as_told(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig, counting_threads);
    pthread_t other;
    void *problem = NULL;
    assert_int_equal(pthread_create(&other, NULL, stop_and_go, &rig), 0);
    int saves = 0;
    while (pthread_tryjoin_np(other, &problem) != 0) {
        take_snapshot(&rig);
        saves++;
    }
    print_message("%d snapshots meanwhile\n", saves);
    fail_on(problem);
    check_runs(&rig);
    stop(&rig);
    check_stands(&rig);
    rig_clear(&rig);
}

int main(void) {
    if (geteuid() != 0) {
        print_message("needs root\n");
        return SKIPPED;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(process_stopped_stands_until_it_is_continued),
        cmocka_unit_test(process_stopped_twice_is_continued_by_once),
        cmocka_unit_test(process_stopped_by_somebody_else_is_seen),
        cmocka_unit_test(process_stopped_stays_so_without_us),
        cmocka_unit_test(process_ended_is_gone),
        cmocka_unit_test(process_that_got_the_number_since_is_left_alone),
        cmocka_unit_test(guest_of_another_kind_is_refused),
        cmocka_unit_test(snapshot_of_a_stopped_process_leaves_it_stopped),
        cmocka_unit_test(process_stopped_and_continued_while_saved_does_as_told),
    };
    return cmocka_run_group_tests_name("process-verbs", tests, NULL, NULL);
}
