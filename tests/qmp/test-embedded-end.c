/*
 * How a QMP server inside a VMM begins and ends: whatever it was at, snap_qmp_free() comes back, the guest runs on
 * and is nobody's, and there is nothing left of the server: no thread, no descriptor, no file.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "client.h"
#include "vmm.h"

#include "../lib/own-process.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define MS UINT64_C(1000000)

static const char *const ways[] = {[VMM_THREAD] = "thread", [VMM_OWN_LOOP] = "own loop", [VMM_NOBODY] = "nobody"};

static VmmServing way_of(void **state) {
    const char *const *way = *state;
    return (VmmServing)(way - ways);
}

/* ---- what is left ---------------------------------------------------------------------------------------- */

static unsigned descriptors(void) {
    unsigned n = 0;
    DIR *dir = opendir("/proc/self/fd");
    while (readdir(dir))
        n++;
    closedir(dir);
    return n;
}

/* The library's threads have names; GLib keeps its own for a while. */
static bool has_thread_of_ours(void) {
    bool found = false;
    DIR *dir = opendir("/proc/self/task");
    struct dirent *entry;
    while ((entry = readdir(dir))) {
        g_autofree char *path = g_build_filename("/proc/self/task", entry->d_name, "comm", NULL);
        g_autofree char *name = NULL;
        bool known = g_file_get_contents(path, &name, NULL, NULL);
        if (known && (g_str_has_prefix(name, "snap-") || g_str_has_prefix(name, "qapi-"))) {
            print_message("thread %s", name);
            found = true;
        }
    }
    closedir(dir);
    return found;
}

/* End the server, and take the guest once more, with another. */
static void end_and_begin_again(Vmm *vmm, unsigned descriptors_before) {
    uint64_t start_ns = clock_ns();
    vmm_end_server(vmm);
    assert_true(clock_ns() - start_ns < 20000 * MS); /* what it was at would take a minute */
    assert_false(has_thread_of_ours());
    assert_int_equal(descriptors(), descriptors_before);
    assert_false(g_file_test(vmm->socket, G_FILE_TEST_EXISTS));
    vmm_await_writes(vmm, 20000);

    vmm_begin_server(vmm);
    vmm_serve(vmm, VMM_THREAD);
    Client client;
    client_open(&client, vmm->socket);
    client_run(&client, "{'execute': 'snapshot-save', 'arguments': {'job-id': 'j', 'path': 'image'}}");
    g_autofree char *states = client_follow(&client, "j");
    assert_string_equal(states, "created running waiting pending concluded");
    vmm_check_image(vmm, "image");
    client_close(&client);
}

/* A server that has been there before, so that what GLib opens once is open. */
static unsigned init(Vmm *vmm, VmmServing serving) {
    vmm_init(vmm, "memfd", serving);
    vmm_end_server(vmm);
    unsigned before = descriptors();
    vmm_begin_server(vmm);
    vmm_serve(vmm, serving);
    return before;
}

/* ---- ends ------------------------------------------------------------------------------------------------ */

static void server_ends_while_a_save_runs(void **state) {
    Vmm vmm;
    Client client;
    unsigned before = init(&vmm, way_of(state));
    client_open(&client, vmm.socket);
    client_run(&client, "{'execute': 'snapshot-save', 'arguments': {'job-id': 'j', 'path': 'image',"
                        " 'max-bandwidth': 1000000}}");
    g_usleep(200000);
    end_and_begin_again(&vmm, before + 1); /* the client's */
    while (true) {
        g_autoptr(json_object) event = client_read(&client);
        if (!event)
            break;
        assert_non_null(client_member(event, "event"));
    }
    client_close(&client);
    vmm_clear(&vmm);
}

static void server_ends_in_a_point_in_time(void **state) {
    Vmm vmm;
    Client client;
    unsigned before = init(&vmm, way_of(state));
    for (unsigned i = 0; i < 10; i++) {
        client_open(&client, vmm.socket);
        client_run(&client, "{'execute': 'snapshot-save', 'arguments': {'job-id': 'j', 'path': 'image'}}");
        g_usleep(i * 3000);
        vmm_end_server(&vmm);
        assert_false(has_thread_of_ours());
        client_close(&client);
        assert_int_equal(descriptors(), before);
        g_autofree char *dir = g_build_filename(vmm.folder, "image", NULL);
        if (g_file_test(dir, G_FILE_TEST_EXISTS)) /* it was quicker */
            vmm_check_image(&vmm, "image");
        vmm_await_writes(&vmm, 1000);
        vmm_begin_server(&vmm);
        vmm_serve(&vmm, way_of(state));
    }
    vmm_clear(&vmm);
}

/* By a client, and by a measurement. */
static void server_ends_while_the_guest_is_logged(void **state) {
    static const char *const commands[] = {
        "{'execute': 'dirty-log-start', 'arguments': {'mode': 'sync'}}",
        "{'execute': 'calc-dirty-rate', 'arguments': {'calc-time': 60}}",
    };
    for (guint i = 0; i < G_N_ELEMENTS(commands); i++) {
        Vmm vmm;
        Client client;
        unsigned before = init(&vmm, way_of(state));
        client_open(&client, vmm.socket);
        client_ask(&client, "%s", commands[i]);
        end_and_begin_again(&vmm, before + 1);
        assert_true(client_is_closed(&client));
        client_close(&client);
        vmm_clear(&vmm);
    }
}

/* One does not read, one is in the middle of a word, one waits for a stop that takes a second. */
static void server_ends_while_clients_wait(void **state) {
    Vmm vmm;
    Client clients[3];
    unsigned before = init(&vmm, way_of(state));
    for (unsigned i = 0; i < G_N_ELEMENTS(clients); i++)
        client_open(&clients[i], vmm.socket);
    for (int i = 0; i < 50; i++)
        client_send(&clients[0], "{\"execute\":\"query-qmp-schema\"}");
    client_send(&clients[1], "{\"execute\":\"query-st");
    vmm.slow_ms = 1000;
    client_send(&clients[2], "{\"execute\":\"stop\"}{\"execute\":\"cont\"}{\"execute\":\"query-version\"}");
    g_usleep(200000);
    vmm_end_server(&vmm);
    vmm.slow_ms = 0;
    assert_int_equal(descriptors(), before + G_N_ELEMENTS(clients));
    assert_false(has_thread_of_ours());
    for (unsigned i = 0; i < G_N_ELEMENTS(clients); i++)
        client_close(&clients[i]);
    vmm_begin_server(&vmm);
    vmm_clear(&vmm);
}

static void server_ends_that_nobody_has_called(void **state) {
    (void)state;
    Vmm vmm;
    unsigned before = init(&vmm, VMM_NOBODY);
    int fd = client_connect(vmm.socket);
    end_and_begin_again(&vmm, before + 1);
    close(fd);
    vmm_clear(&vmm);
}

/* Another place may call, from time to time, what the thread serves. */
static void process_beside_the_thread_does_nothing(void **state) {
    (void)state;
    Vmm vmm;
    Client client;
    vmm_init(&vmm, "anon", VMM_THREAD);
    client_open(&client, vmm.socket);
    struct pollfd ready = {.fd = snap_qmp_get_fd(vmm.qmp), .events = snap_qmp_get_events(vmm.qmp)};
    for (int i = 0; i < 100; i++) {
        snap_qmp_process(vmm.qmp);
        client_ask(&client, "{'execute': 'query-version'}");
        assert_int_equal(poll(&ready, 1, 0), 0);
    }
    client_close(&client);
    vmm_clear(&vmm);
}

/* ---- signals --------------------------------------------------------------------------------------------- */

static void pass_descriptor(Client *client, int fd, const char *text) {
    union {
        struct cmsghdr head;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct iovec part = {(void *)text, strlen(text)};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof(control.bytes)};
    control.head =
        (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(&control.head), &fd, sizeof(int));
    assert_int_equal(sendmsg(client->fd, &message, 0), (ssize_t)part.iov_len);
    close(fd);
    g_autoptr(json_object) answer = client_read(client);
    assert_non_null(client_member(answer, "return"));
}

/* A VMM need not ignore SIGPIPE: it is as it was when the program began. */
static void reader_that_goes_away_does_not_end_the_vmm(void **state) {
    (void)state;
    if (geteuid() != 0) {
        print_message("attaching to a process needs root\n");
        skip();
    }
    Vmm vmm;
    Client client;
    int ends[2];
    signal(SIGPIPE, SIG_DFL); /* whoever has started the test may have ignored it */
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        execlp("sleep", "sleep", "60", (char *)NULL);
        _exit(1);
    }
    vmm_init(&vmm, "anon", VMM_THREAD);
    client_open(&client, vmm.socket);
    client_run(&client, "{'execute': 'target-add', 'arguments': {'id': 'p', 'driver': 'process', 'pid': %d}}",
               pid);
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    close(ends[0]);
    pass_descriptor(&client, ends[1], "{\"execute\": \"getfd\", \"arguments\": {\"fdname\": \"pipe\"}}");
    g_autofree char *failure =
        client_fail(&client, "{'execute': 'dump-guest-memory', 'arguments': {'target': 'p', 'paging': false,"
                             " 'protocol': 'fd:pipe'}}");
    print_message("%s\n", failure);
    client_close(&client);
    vmm_clear(&vmm);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

/* ---- beginnings ------------------------------------------------------------------------------------------ */

static void free_counts(void *opaque) {
    ++*(unsigned *)opaque;
}

/* Nothing is asked of it. */
static SnapGuest *guest_that_counts(unsigned *n_freed) {
    static const SnapGuestOps ops = {.free = free_counts};
    return snap_guest_new("embedded", 0, &ops, n_freed);
}

static void server_without_options_answers(void **state) {
    (void)state;
    unsigned n_freed = 0;
    int ends[2];
    Client client;
    g_autoptr(GError) error = NULL;
    SnapQmp *qmp = snap_qmp_new(guest_that_counts(&n_freed), NULL, &error);
    fail_on(error);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    snap_qmp_add_client(qmp, ends[0]);
    snap_qmp_start_thread(qmp);
    client_open_fd(&client, ends[1]);
    static const char *const refused[] = {"stop", "cont", "query-status", "quit"};
    for (guint i = 0; i < G_N_ELEMENTS(refused); i++) {
        g_autofree char *failure = client_fail(&client, "{'execute': '%s'}", refused[i]);
        assert_string_equal(failure, "GenericError: this VMM has not told its server how to do that");
    }
    g_autoptr(json_object) name = client_call(&client, "{'execute': 'query-name'}");
    assert_null(client_member(name, "name"));
    snap_qmp_free(qmp);
    assert_int_equal(n_freed, 1);
    client_close(&client);
    snap_qmp_free(NULL);
}

static void server_without_descriptors_is_refused(void **state) {
    (void)state;
    unsigned n_freed = 0, tries = 0;
    struct rlimit limit, few;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    int next = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 0);
    close(next);
    for (rlim_t more = 0; more < 3; more++) {
        g_autoptr(GError) error = NULL;
        few = (struct rlimit){.rlim_cur = (rlim_t)next + more, .rlim_max = limit.rlim_max};
        assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
        SnapQmp *qmp = snap_qmp_new(guest_that_counts(&n_freed), NULL, &error);
        assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
        assert_null(qmp);
        assert_true(g_error_matches(error, SNAP_ERROR, SNAP_ERROR_IO));
        assert_int_equal(n_freed, ++tries);
    }
    int after = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 0);
    close(after);
    assert_int_equal(after, next);
}

static void listen_says_why_it_cannot(void **state) {
    (void)state;
    Vmm vmm;
    vmm_init(&vmm, "anon", VMM_NOBODY);
    g_autofree char *file = g_build_filename(vmm.folder, "file", NULL);
    g_autofree char *nowhere = g_build_filename(vmm.folder, "none", "s", NULL);
    g_autofree char *longer = g_strnfill(200, 'x');
    assert_true(g_file_set_contents(file, "", 0, NULL));
    const struct {
        const char *path;
        int code;
    } cases[] = {
        {vmm.socket, SNAP_ERROR_EXISTS}, /* it is ours, and lives */
        {file, SNAP_ERROR_EXISTS},
        {nowhere, SNAP_ERROR_IO},
        {longer, SNAP_ERROR_USAGE},
    };
    for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autoptr(GError) error = NULL;
        assert_false(snap_qmp_listen(vmm.qmp, cases[i].path, &error));
        if (!g_error_matches(error, SNAP_ERROR, cases[i].code))
            fail_msg("%s", error->message);
    }
    assert_int_equal(unlink(file), 0);
    vmm_clear(&vmm);
}

/* Other threads of the VMM make files meanwhile, whose modes are not ours to change. */
static void *make_files(void *opaque) {
    bool *end = opaque;
    uintptr_t wrong = 0;
    while (!__atomic_load_n(end, __ATOMIC_RELAXED)) {
        struct stat about = {0};
        int fd = open(".", O_TMPFILE | O_WRONLY | O_CLOEXEC, 0666);
        if (fd < 0 || fstat(fd, &about) < 0)
            return NULL; /* not on this file system */
        wrong += (about.st_mode & 0777) != 0666;
        close(fd);
    }
    return (void *)wrong;
}

static void socket_is_its_owners_and_the_umask_is_left_alone(void **state) {
    (void)state;
    Vmm vmm;
    pthread_t thread;
    bool end = false;
    void *wrong = NULL;
    mode_t before = umask(0);
    vmm_init(&vmm, "anon", VMM_NOBODY);
    assert_int_equal(pthread_create(&thread, NULL, make_files, &end), 0);
    for (int i = 0; i < 200; i++) {
        struct stat about;
        vmm_end_server(&vmm);
        vmm_begin_server(&vmm);
        assert_int_equal(stat(vmm.socket, &about), 0);
        assert_int_equal(about.st_mode & 0777, 0600);
    }
    __atomic_store_n(&end, true, __ATOMIC_RELAXED);
    pthread_join(thread, &wrong);
    assert_null(wrong);
    assert_int_equal(umask(before), 0);
    vmm_clear(&vmm);
}

int main(void) {
    if (!vmm_can_run())
        return 77;
    int failed = 0;
    for (int i = VMM_THREAD; i <= VMM_OWN_LOOP; i++) {
#define CASE(function) cmocka_unit_test_prestate(function, (void *)&ways[i])
        const struct CMUnitTest tests[] = {
            CASE(server_ends_while_a_save_runs),
            CASE(server_ends_in_a_point_in_time),
            CASE(server_ends_while_the_guest_is_logged),
            CASE(server_ends_while_clients_wait),
        };
#undef CASE
        failed += cmocka_run_group_tests_name(ways[i], tests, NULL, NULL);
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(server_ends_that_nobody_has_called),
        cmocka_unit_test(process_beside_the_thread_does_nothing),
        cmocka_unit_test(reader_that_goes_away_does_not_end_the_vmm),
        cmocka_unit_test(server_without_options_answers),
        cmocka_unit_test(server_without_descriptors_is_refused),
        cmocka_unit_test(listen_says_why_it_cannot),
        cmocka_unit_test(socket_is_its_owners_and_the_umask_is_left_alone),
    };
    return failed + cmocka_run_group_tests_name("embedded-end", tests, NULL, NULL);
}
