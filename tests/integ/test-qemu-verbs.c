/*
 * Commands to and events of an attached QEMU, beside its snapshots: its own words come back, nothing falls into a
 * pause, events are read by whoever reads, and a lost connection is made anew.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "qemu/guest.h"
#include "qemu/qemu.h"

#define PROGRAM "qemu-system-x86_64"

enum {
    SKIPPED = 77,
    TIMEOUT_MS = 10000,
    START_MS = 20000,
    SAVES = 5,
};

typedef struct {
    pid_t pid;
    char *folder;
    char *image;
    char *sockets[2]; /* the guest's, and another client's */
    SnapGuest *guest;
    Qmp *other;

    GMutex lock;
    GString *events; /* under lock: names, each followed by a space */
} Rig;

static void fail_on(const GError *error) {
    if (error) {
        fail_msg("%s", error->message);
    }
}

/* ---- the QEMU -------------------------------------------------------------------------------------------- */

static void execute(const Rig *rig) {
    g_autofree char *first = g_strdup_printf("unix:%s,server=on,wait=off", rig->sockets[0]);
    g_autofree char *second = g_strdup_printf("unix:%s,server=on,wait=off", rig->sockets[1]);
    int null = open("/dev/null", O_RDWR);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    dup2(null, STDIN_FILENO);
    dup2(null, STDOUT_FILENO);
    execlp(PROGRAM, PROGRAM, "-machine", "pc", "-accel", "tcg", "-m", "32", "-nodefaults", "-display", "none",
           "-qmp", first, "-qmp", second, (char *)NULL);
    _exit(127);
}

/* A socket has its name before it listens. */
static Qmp *connect_soon(const char *path) {
    GError *error = NULL;
    Qmp *qmp = NULL;
    for (int ms = 0; ms < START_MS && !qmp; ms += 10) {
        g_clear_error(&error);
        qmp = qmp_connect(path, QMP_TIMEOUT_MS, &error);
        if (!qmp) {
            g_usleep(10000);
        }
    }
    fail_on(error);
    return qmp;
}

static void note_event(const char *event, json_object *data, int64_t time_us, void *opaque) {
    Rig *rig = opaque;
    (void)data;
    assert_true(time_us > 0);
    g_mutex_lock(&rig->lock);
    g_string_append_printf(rig->events, "%s ", event);
    g_mutex_unlock(&rig->lock);
}

static int rig_init(void **state) {
    g_autoptr(GError) error = NULL;
    Rig *rig = g_new0(Rig, 1);
    *state = rig;
    rig->folder = g_dir_make_tmp("qemu-verbs-XXXXXX", NULL);
    rig->image = g_build_filename(rig->folder, "image", NULL);
    rig->sockets[0] = g_build_filename(rig->folder, "qmp0", NULL);
    rig->sockets[1] = g_build_filename(rig->folder, "qmp1", NULL);
    rig->events = g_string_new(NULL);
    rig->pid = fork();
    if (rig->pid == 0) {
        execute(rig);
    }
    rig->other = connect_soon(rig->sockets[1]);
    rig->guest = qemu_guest_new(rig->sockets[0], NULL, &error);
    fail_on(error);
    qemu_guest_set_event_func(rig->guest, note_event, rig);
    return 0;
}

static int rig_clear(void **state) {
    Rig *rig = *state;
    snap_guest_free(rig->guest);
    qmp_free(rig->other);
    kill(rig->pid, SIGKILL);
    waitpid(rig->pid, NULL, 0);
    unlink(rig->sockets[0]);
    unlink(rig->sockets[1]);
    (void)snap_image_delete(rig->image, NULL);
    assert_int_equal(rmdir(rig->folder), 0);
    g_string_free(rig->events, TRUE);
    g_free(rig->sockets[0]);
    g_free(rig->sockets[1]);
    g_free(rig->image);
    g_free(rig->folder);
    g_free(rig);
    return 0;
}

/* ---- steps ----------------------------------------------------------------------------------------------- */

static json_object *run(Rig *rig, const char *command, json_object *arguments) {
    g_autoptr(GError) error = NULL;
    json_object *answer = qemu_guest_command(rig->guest, command, arguments, TIMEOUT_MS, &error);
    fail_on(error);
    assert_non_null(answer);
    return answer;
}

static void run_and_drop(Rig *rig, const char *command) {
    json_object_put(run(rig, command, NULL));
}

static void check_status(Rig *rig, const char *wanted) {
    g_autoptr(json_object) status = run(rig, "query-status", NULL);
    assert_string_equal(qmp_get_string(status, "status"), wanted);
}

/* A command of the other client, which makes events. */
static void let_other_run(Rig *rig, const char *command) {
    g_autoptr(GError) error = NULL;
    qmp_command(rig->other, command, NULL, TIMEOUT_MS, NULL, &error);
    fail_on(error);
}

static gboolean is_readable(Rig *rig, int timeout_ms) {
    struct pollfd fd = {.fd = qemu_guest_fd(rig->guest), .events = POLLIN};
    return poll(&fd, 1, timeout_ms) == 1;
}

static gboolean has_event(Rig *rig, const char *name) {
    g_autofree char *word = g_strdup_printf("%s ", name);
    g_mutex_lock(&rig->lock);
    gboolean has = strstr(rig->events->str, word) != NULL;
    g_mutex_unlock(&rig->lock);
    return has;
}

static void forget_events(Rig *rig) {
    g_mutex_lock(&rig->lock);
    g_string_truncate(rig->events, 0);
    g_mutex_unlock(&rig->lock);
}

/* As a main loop does. */
static void await_event(Rig *rig, const char *name) {
    g_autoptr(GError) error = NULL;
    for (int i = 0; i < 100 && !has_event(rig, name); i++) {
        if (is_readable(rig, 100)) {
            qemu_guest_read_events(rig->guest, &error);
            fail_on(error);
        }
    }
    assert_true(has_event(rig, name));
}

static void read_rest(Rig *rig) {
    while (is_readable(rig, 200)) {
        assert_true(qemu_guest_read_events(rig->guest, NULL));
    }
}

static void take_snapshot(Rig *rig) {
    g_autoptr(GError) error = NULL;
    SnapSaveOptions options = {.dir = rig->image};
    g_autoptr(SnapSave) save = snap_save_start(rig->guest, &options, &error);
    fail_on(error);
    snap_save_wait(save, 60000, &error);
    fail_on(error);
    snap_image_delete(rig->image, &error);
    fail_on(error);
}

/* Our end of the connection, for a test that breaks it. */
static void hang_up(Rig *rig) {
    Connection *connection = qemu_guest_connection(rig->guest);
    assert_true(connection_take(connection, TIMEOUT_MS, NULL));
    shutdown(qmp_fd(connection_qmp(connection, NULL)), SHUT_RDWR);
    connection_give(connection);
}

/* ---- commands -------------------------------------------------------------------------------------------- */

static void command_returns_what_qemu_returned(void **state) {
    Rig *rig = *state;
    check_status(rig, "running");
    g_autoptr(json_object) type = run(rig, "qom-get", qmp_args("path", "/machine", "property", "type", NULL));
    assert_true(g_str_has_suffix(json_object_get_string(type), "-machine"));
    run_and_drop(rig, "stop");
    check_status(rig, "paused");
    run_and_drop(rig, "cont");
    check_status(rig, "running");
}

static void command_refused_tells_qemus_words_and_class(void **state) {
    static const struct {
        const char *command;
        const char *key; /* (nullable) of an argument, whose value is "nope" */
        const char *text;
        const char *class;
    } cases[] = {
        {"nope", NULL, "The command nope has not been found", "CommandNotFound"},
        {"device_del", "id", "Device 'nope' not found", "DeviceNotFound"},
        {"balloon", NULL, "No balloon device has been activated", "DeviceNotActive"},
        {"query-status", "key", "Parameter 'key' is unexpected", "GenericError"},
    };
    Rig *rig = *state;
    for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autoptr(GError) error = NULL;
        json_object *arguments = cases[i].key ? qmp_args(cases[i].key, "nope", NULL) : NULL;
        if (g_str_equal(cases[i].command, "balloon")) {
            arguments = json_object_new_object();
            json_object_object_add(arguments, "value", json_object_new_int64(1 << 24));
        }
        assert_null(qemu_guest_command(rig->guest, cases[i].command, arguments, TIMEOUT_MS, &error));
        assert_string_equal(error->message, cases[i].text);
        assert_string_equal(qemu_error_class(error), cases[i].class);
        check_status(rig, "running");
    }
    g_autoptr(GError) error = NULL;
    assert_null(qemu_guest_command(rig->guest, "query-status", qmp_args("key", "nope", NULL), 1000, &error));
    assert_true(g_error_matches(error, SNAP_ERROR, SNAP_ERROR_FAILED));
}

static void command_to_another_kind_of_guest_is_refused(void **state) {
    static const SnapGuestOps none = {0};
    (void)state;
    g_autoptr(GError) error = NULL;
    g_autoptr(SnapGuest) guest = snap_guest_new("test", 0, &none, NULL);
    assert_null(qemu_guest_command(guest, "stop", qmp_args("a", "b", NULL), 100, &error));
    assert_true(g_error_matches(error, SNAP_ERROR, SNAP_ERROR_USAGE));
    assert_int_equal(qemu_guest_fd(guest), -1);
    assert_true(qemu_guest_read_events(guest, NULL));
    qemu_guest_set_event_func(guest, note_event, NULL);
}

/* ---- events ---------------------------------------------------------------------------------------------- */

static void events_are_told_to_a_main_loop(void **state) {
    Rig *rig = *state;
    read_rest(rig);
    forget_events(rig);
    assert_false(is_readable(rig, 100));
    let_other_run(rig, "stop");
    await_event(rig, "STOP");
    let_other_run(rig, "cont");
    await_event(rig, "RESUME");
    read_rest(rig);
    assert_false(is_readable(rig, 100));
}

static void events_are_told_while_a_command_waits(void **state) {
    Rig *rig = *state;
    forget_events(rig);
    run_and_drop(rig, "stop");
    run_and_drop(rig, "cont");
    check_status(rig, "running");
    assert_true(has_event(rig, "STOP") && has_event(rig, "RESUME"));
    qemu_guest_set_event_func(rig->guest, NULL, NULL);
    forget_events(rig);
    run_and_drop(rig, "stop");
    run_and_drop(rig, "cont");
    check_status(rig, "running");
    assert_false(has_event(rig, "STOP"));
}

/* Somebody has the turn: the main loop is not woken, and has it all as soon as the turn is given back. */
static void events_of_somebody_elses_turn_are_not_lost(void **state) {
    Rig *rig = *state;
    g_autoptr(GError) error = NULL;
    Connection *connection = qemu_guest_connection(rig->guest);
    read_rest(rig);
    forget_events(rig);
    assert_true(connection_take(connection, TIMEOUT_MS, NULL));
    let_other_run(rig, "stop");
    let_other_run(rig, "cont");
    assert_false(is_readable(rig, 100));
    assert_true(qemu_guest_read_events(rig->guest, NULL));
    assert_false(has_event(rig, "STOP"));
    assert_null(qemu_guest_command(rig->guest, "query-status", NULL, 50, &error));
    assert_true(g_error_matches(error, SNAP_ERROR, SNAP_ERROR_TIMED_OUT));
    connection_give(connection);
    await_event(rig, "RESUME");
    assert_true(has_event(rig, "STOP"));
}

/* ---- snapshots ------------------------------------------------------------------------------------------- */

typedef struct {
    Rig *rig;
    bool stop; /* atomic */
    uint64_t answers;
    GError *error;
    gboolean paused; /* seen so, which it is in a snapshot's pause only */
} Asker;

static void *ask_on(void *opaque) {
    Asker *asker = opaque;
    while (!asker->error && !__atomic_load_n(&asker->stop, __ATOMIC_RELAXED)) {
        g_autoptr(json_object) status =
            qemu_guest_command(asker->rig->guest, "query-status", NULL, TIMEOUT_MS, &asker->error);
        asker->paused |= status && !qmp_get_bool(status, "running");
        asker->answers++;
    }
    return NULL;
}

static void *read_on(void *opaque) {
    Asker *asker = opaque;
    while (!asker->error && !__atomic_load_n(&asker->stop, __ATOMIC_RELAXED)) {
        if (is_readable(asker->rig, 10)) {
            qemu_guest_read_events(asker->rig->guest, &asker->error);
            asker->answers++;
        }
    }
    return NULL;
}

static void need_root(void) {
    if (geteuid() != 0) {
        print_message("needs root\n");
        skip();
    }
}

static void commands_never_fall_into_a_pause(void **state) {
    Asker askers[] = {{.rig = *state}, {.rig = *state}, {.rig = *state}};
    pthread_t threads[G_N_ELEMENTS(askers)];
    need_root();
    forget_events(*state);
    for (guint i = 0; i < G_N_ELEMENTS(askers); i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, i == 0 ? read_on : ask_on, &askers[i]), 0);
    }
    for (int i = 0; i < SAVES; i++) {
        take_snapshot(*state);
    }
    for (guint i = 0; i < G_N_ELEMENTS(askers); i++) {
        __atomic_store_n(&askers[i].stop, true, __ATOMIC_RELAXED);
        pthread_join(threads[i], NULL);
    }
    for (guint i = 0; i < G_N_ELEMENTS(askers); i++) {
        fail_on(askers[i].error);
        assert_false(askers[i].paused);
    }
    print_message("%lu answers during %d snapshots, %lu readings\n", askers[1].answers + askers[2].answers, SAVES,
                  askers[0].answers);
    assert_true(askers[1].answers > SAVES && askers[2].answers > SAVES);
    assert_true(has_event(*state, "STOP") && has_event(*state, "RESUME"));
    check_status(*state, "running");
}

static void *stop_and_go(void *opaque) {
    Asker *asker = opaque;
    while (!asker->error && !__atomic_load_n(&asker->stop, __ATOMIC_RELAXED)) {
        const char *command = asker->answers++ % 2 ? "cont" : "stop";
        json_object_put(qemu_guest_command(asker->rig->guest, command, NULL, TIMEOUT_MS, &asker->error));
        g_usleep(3000);
    }
    return NULL;
}

/* Whichever comes first, a snapshot leaves the guest as it was told to be. */
static void stop_and_cont_meanwhile_are_obeyed(void **state) {
    Asker asker = {.rig = *state};
    pthread_t thread;
    need_root();
    assert_int_equal(pthread_create(&thread, NULL, stop_and_go, &asker), 0);
    for (int i = 0; i < SAVES; i++) {
        take_snapshot(*state);
    }
    __atomic_store_n(&asker.stop, true, __ATOMIC_RELAXED);
    pthread_join(thread, NULL);
    fail_on(asker.error);
    check_status(*state, asker.answers % 2 ? "paused" : "running");
    run_and_drop(*state, "stop");
    take_snapshot(*state);
    check_status(*state, "paused");
}

/* ---- a connection that is lost --------------------------------------------------------------------------- */

static void connection_lost_is_told_once_and_made_anew(void **state) {
    Rig *rig = *state;
    g_autoptr(GError) error = NULL;
    int fd = qemu_guest_fd(rig->guest);
    read_rest(rig);
    hang_up(rig);
    assert_true(is_readable(rig, 1000));
    assert_false(qemu_guest_read_events(rig->guest, &error));
    assert_true(g_error_matches(error, SNAP_ERROR, SNAP_ERROR_GUEST_GONE));
    assert_false(is_readable(rig, 100));
    assert_true(qemu_guest_read_events(rig->guest, NULL));
    check_status(rig, "running");
    assert_int_equal(qemu_guest_fd(rig->guest), fd);
    forget_events(rig);
    let_other_run(rig, "stop");
    await_event(rig, "STOP");
}

static void connection_lost_unnoticed_is_made_anew(void **state) {
    Rig *rig = *state;
    for (int i = 0; i < 3; i++) {
        hang_up(rig);
        check_status(rig, "running");
    }
    hang_up(rig);
    if (geteuid() == 0) {
        take_snapshot(rig);
    }
}

static void command_out_of_time_leaves_a_good_connection(void **state) {
    Rig *rig = *state;
    g_autoptr(GError) error = NULL;
    kill(rig->pid, SIGSTOP);
    gint64 start_us = g_get_monotonic_time();
    assert_null(qemu_guest_command(rig->guest, "query-status", NULL, 300, &error));
    assert_true(g_error_matches(error, SNAP_ERROR, SNAP_ERROR_TIMED_OUT));
    assert_true(g_get_monotonic_time() - start_us < 2 * G_USEC_PER_SEC);
    kill(rig->pid, SIGCONT);
    check_status(rig, "running");
    read_rest(rig);
    check_status(rig, "running");
}

static void qemu_that_ended_is_gone(void **state) {
    Rig *rig = *state;
    g_autoptr(GError) error = NULL;
    kill(rig->pid, SIGKILL);
    assert_true(is_readable(rig, 2000));
    assert_false(qemu_guest_read_events(rig->guest, &error));
    assert_true(g_error_matches(error, SNAP_ERROR, SNAP_ERROR_GUEST_GONE));
    assert_false(is_readable(rig, 100));
    for (int i = 0; i < 2; i++) {
        g_clear_error(&error);
        assert_null(qemu_guest_command(rig->guest, "cont", NULL, 1000, &error));
        assert_true(g_error_matches(error, SNAP_ERROR, SNAP_ERROR_GUEST_GONE));
    }
}

static void qemu_that_ends_in_a_command_is_gone(void **state) {
    Rig *rig = *state;
    kill(rig->pid, SIGSTOP);
    Asker asker = {.rig = rig};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, ask_on, &asker), 0);
    g_usleep(100000);
    kill(rig->pid, SIGKILL);
    pthread_join(thread, NULL);
    assert_true(g_error_matches(asker.error, SNAP_ERROR, SNAP_ERROR_GUEST_GONE));
    g_clear_error(&asker.error);
}

#define with_qemu(test) cmocka_unit_test_setup_teardown(test, rig_init, rig_clear)

int main(void) {
    g_autofree char *program = g_find_program_in_path(PROGRAM);
    if (!program) {
        puts("skip: " PROGRAM " is not installed");
        return SKIPPED;
    }
    const struct CMUnitTest tests[] = {
        with_qemu(command_returns_what_qemu_returned),
        with_qemu(command_refused_tells_qemus_words_and_class),
        cmocka_unit_test(command_to_another_kind_of_guest_is_refused),
        with_qemu(events_are_told_to_a_main_loop),
        with_qemu(events_are_told_while_a_command_waits),
        with_qemu(events_of_somebody_elses_turn_are_not_lost),
        with_qemu(commands_never_fall_into_a_pause),
        with_qemu(stop_and_cont_meanwhile_are_obeyed),
        with_qemu(connection_lost_is_told_once_and_made_anew),
        with_qemu(connection_lost_unnoticed_is_made_anew),
        with_qemu(command_out_of_time_leaves_a_good_connection),
        with_qemu(qemu_that_ended_is_gone),
        with_qemu(qemu_that_ends_in_a_command_is_gone),
    };
    return cmocka_run_group_tests_name("qemu-verbs", tests, NULL, NULL);
}
