/*
 * How the two sides of a migration come to be connected: each kind of URI works, says what is wrong with it, can
 * be stopped, and leaves nothing behind: no descriptor, no file, no process.
 */
#include "transport-fixture.h"

/* ---- URIs ------------------------------------------------------------------------------------------------ */

static void uri_is_checked(void **state) {
    (void)state;
    g_autofree char *longest = g_strnfill(107, 'a'), *longer = g_strnfill(108, 'a');
    g_autofree char *unix_longest = g_strconcat("unix:", longest, NULL);
    g_autofree char *unix_longer = g_strconcat("unix:", longer, NULL);
    const struct {
        const char *uri;
        const char *wrong;
    } cases[] = {
        {"", "is none of unix:PATH, tcp:HOST:PORT, fd:N, exec:COMMAND, file:PATH"},
        {"/tmp/socket", "is none of"},
        {"rdma:host:1", "is none of"},
        {"unix", "is none of"},
        {"UNIX:/tmp/a", "is none of"},
        {"unix:", "unix:: the path of a socket"},
        {"unix:a", NULL},
        {unix_longest, NULL},
        {unix_longer, "longer than the 107 bytes"},
        {"tcp:host:1", NULL},
        {"tcp::1", NULL},
        {"tcp:127.0.0.1:65535", NULL},
        {"tcp:[::1]:0", NULL},
        {"tcp:", "HOST:PORT"},
        {"tcp:host", "HOST:PORT"},
        {"tcp:host:", "HOST:PORT"},
        {"tcp:host:65536", "HOST:PORT"},
        {"tcp:host:-1", "HOST:PORT"},
        {"tcp:host:http", "HOST:PORT"},
        {"tcp:host:1 ", "HOST:PORT"},
        {"tcp:::1:1", "IPv6 address in brackets"},
        {"tcp:[]:1", "HOST:PORT"},
        {"tcp:[::1:1", "HOST:PORT"},
        {"fd:0", NULL},
        {"fd:2147483647", NULL},
        {"fd:", "number of a descriptor"},
        {"fd:-1", "number of a descriptor"},
        {"fd:2147483648", "number of a descriptor"},
        {"fd:name", "number of a descriptor"},
        {"exec:cat", NULL},
        {"exec:", "something has to follow"},
        {"file:a", NULL},
        {"file:", "something has to follow"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        GError *error = NULL;
        bool good = snap_transport_check(cases[i].uri, &error);
        if (!cases[i].wrong) {
            expect_good(good, &error);
            continue;
        }
        expect_error(good, &error, SNAP_ERROR_USAGE, cases[i].wrong);
        expect_error(snap_transport_new_source(cases[i].uri, &error), &error, SNAP_ERROR_USAGE, cases[i].wrong);
        expect_error(snap_transport_new_destination(cases[i].uri, &error), &error, SNAP_ERROR_USAGE,
                     cases[i].wrong);
    }
}

static void kind_says_what_it_can(void **state) {
    (void)state;
    const struct {
        const char *uri;
        bool one_way, several;
    } cases[] = {
        {"unix:a", false, true}, {"tcp:h:1", false, true}, {"exec:cat", false, false}, {"file:a", true, false}};
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autoptr(SnapTransport) transport = new_source(cases[i].uri);
        assert_int_equal(snap_transport_is_one_way(transport), cases[i].one_way);
        assert_int_equal(snap_transport_can_have_several(transport), cases[i].several);
        assert_string_equal(snap_transport_uri(transport), cases[i].uri);
    }
    snap_transport_free(NULL);
}

/* ---- fd: ------------------------------------------------------------------------------------------------- */

static void fd_is_handed_out_once(void **state) {
    (void)state;
    GError *error = NULL;
    int ends[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    g_autofree char *uri_a = g_strdup_printf("fd:%d", ends[0]), *uri_b = g_strdup_printf("fd:%d", ends[1]);
    g_autoptr(SnapTransport) source = new_source(uri_a), destination = new_destination(uri_b);
    int a = connect_one(source), b = accept_one(destination);
    assert_int_equal(a, ends[0]);
    assert_int_equal(b, ends[1]);
    expect_connected(a, b);
    expect_error(may_connect(source, SOON_MS, &error), &error, SNAP_ERROR_IO, "there is one connection");
    expect_error(may_accept(destination, SOON_MS, &error), &error, SNAP_ERROR_IO, "there is one connection");
}

static void fd_that_is_not_handed_out_is_closed(void **state) {
    (void)state;
    int ends[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    g_autofree char *uri = g_strdup_printf("fd:%d", ends[0]);
    snap_transport_free(new_source(uri));
    assert_int_equal(fcntl(ends[0], F_GETFD), -1);
    close(ends[1]);
}

static void fd_that_is_no_socket_is_refused(void **state) {
    (void)state;
    GError *error = NULL;
    int ends[2];
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    g_autofree char *uri = g_strdup_printf("fd:%d", ends[0]);
    expect_error(snap_transport_new_source(uri, &error), &error, SNAP_ERROR_USAGE, "is no socket");
    assert_true(fcntl(ends[0], F_GETFD) >= 0); /* somebody's mistake: not taken */
    close(ends[0]);
    close(ends[1]);
    expect_error(snap_transport_new_source(uri, &error), &error, SNAP_ERROR_NOT_FOUND, "no such descriptor");
}

/* ---- exec: ----------------------------------------------------------------------------------------------- */

static void exec_is_connected_by_its_standard_streams(void **state) {
    (void)state;
    g_autoptr(SnapTransport) source = new_source("exec:cat"), destination = new_destination("exec:cat");
    const int fds[] = {connect_one(source), accept_one(destination)};
    for (size_t i = 0; i < 2; i++) {
        char got[8] = "";
        assert_int_equal(write(fds[i], "hello", 5), 5);
        assert_int_equal(recv(fds[i], got, 5, MSG_WAITALL), 5);
        assert_string_equal(got, "hello");
        close(fds[i]);
    }
    GError *error = NULL;
    expect_error(may_connect(source, SOON_MS, &error), &error, SNAP_ERROR_IO, "there is one connection");
}

static void exec_that_fails_is_a_connection_that_is_closed(void **state) {
    (void)state;
    g_autoptr(SnapTransport) source = new_source("exec:exit 3");
    char got = 0;
    int fd = connect_one(source);
    assert_int_equal(recv(fd, &got, 1, MSG_WAITALL), 0);
    close(fd);
}

static bool is_gone(int pid) {
    g_autofree char *path = g_strdup_printf("/proc/%d/stat", pid);
    g_autofree char *text = NULL;
    if (!g_file_get_contents(path, &text, NULL, NULL))
        return true;
    const char *end = strrchr(text, ')');
    return end && end[1] == ' ' && end[2] == 'Z'; /* for another to be reaped */
}

static void exec_is_killed_with_all_it_started(void **state) {
    (void)state;
    g_autoptr(SnapTransport) source = new_source("exec:sleep 1000 & echo $$ $! .; sleep 1000");
    char got[64] = "";
    int fd = connect_one(source), shell = 0, child = 0;
    for (size_t at = 0; !strchr(got, '.') && at < sizeof got - 1; at++)
        assert_int_equal(recv(fd, got + at, 1, MSG_WAITALL), 1);
    assert_int_equal(sscanf(got, "%d %d", &shell, &child), 2);
    assert_false(is_gone(shell) || is_gone(child));
    g_clear_pointer(&source, snap_transport_free);
    close(fd);
    for (int i = 0; i < 100 && !is_gone(child); i++)
        g_usleep(10000);
    assert_true(is_gone(shell) && is_gone(child));
}

/* Whoever embeds the library may ignore SIGPIPE; a command that is to end by it is not to inherit that. */
static void exec_has_signals_as_by_default(void **state) {
    (void)state;
    struct sigaction ignore = {.sa_handler = SIG_IGN}, before;
    sigset_t sigterm, mask;
    sigemptyset(&sigterm);
    sigaddset(&sigterm, SIGTERM);
    sigaction(SIGPIPE, &ignore, &before);
    pthread_sigmask(SIG_BLOCK, &sigterm, &mask);
    const char *const uris[] = {"exec:kill -PIPE $$; echo alive", "exec:kill -TERM $$; echo alive"};
    for (size_t i = 0; i < 2; i++) {
        g_autoptr(SnapTransport) source = new_source(uris[i]);
        char got = 0;
        int fd = connect_one(source);
        assert_int_equal(recv(fd, &got, 1, MSG_WAITALL), 0);
        close(fd);
    }
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
    sigaction(SIGPIPE, &before, NULL);
}

/* ---- in the place of libc's ------------------------------------------------------------------------------ */

static int n_syncs;
static off_t synced_bytes; /* the length of the file that was synced last */
static int sync_errno;     /* not 0: it fails */

static int note_sync(int fd) {
    struct stat about;
    n_syncs++;
    if (fstat(fd, &about) == 0 && S_ISREG(about.st_mode))
        synced_bytes = about.st_size;
    errno = sync_errno;
    return sync_errno != 0 ? -1 : 0;
}

int __real_fsync(int fd);
int __wrap_fsync(int fd);
int __wrap_fsync(int fd) {
    return note_sync(fd) < 0 ? -1 : __real_fsync(fd);
}

int __real_fdatasync(int fd);
int __wrap_fdatasync(int fd);
int __wrap_fdatasync(int fd) {
    return note_sync(fd) < 0 ? -1 : __real_fdatasync(fd);
}

/* ---- file: ----------------------------------------------------------------------------------------------- */

static int open_to_write(SnapTransport *source) {
    GError *error = NULL;
    int in = -2, out = -2;
    expect_good(snap_transport_connect(source, SOON_MS, &in, &out, &error), &error);
    assert_int_equal(in, -1);
    return out;
}

static void file_that_is_kept_can_be_read(void **state) {
    g_autofree char *uri = uri_in(state, "file:", "f");
    g_autoptr(SnapTransport) source = new_source(uri);
    GError *error = NULL;
    struct stat about;
    char got[8] = "";
    int in = -2, out = open_to_write(source);
    assert_int_equal(write(out, "hello", 5), 5);
    assert_int_equal(access(uri + 5, F_OK), -1); /* not before it is complete */
    close(out);
    expect_good(snap_transport_keep(source, &error), &error);
    g_clear_pointer(&source, snap_transport_free);
    assert_int_equal(stat(uri + 5, &about), 0);
    assert_int_equal(about.st_mode, S_IFREG | 0600);

    g_autoptr(SnapTransport) destination = new_destination(uri);
    expect_good(snap_transport_accept(destination, SOON_MS, &in, &out, &error), &error);
    assert_int_equal(out, -1);
    assert_int_equal(read(in, got, sizeof got), 5);
    assert_string_equal(got, "hello");
    close(in);
    expect_error(may_accept(destination, SOON_MS, &error), &error, SNAP_ERROR_IO, "there is one connection");
    expect_good(snap_transport_keep(destination, &error), &error); /* nothing */
    unlink(uri + 5);
}

/* teardown() sees that nothing is left of it. */
static void file_that_is_not_kept_leaves_the_old_one(void **state) {
    g_autofree char *uri = uri_in(state, "file:", "f"), *text = NULL;
    assert_true(g_file_set_contents(uri + 5, "old", -1, NULL));
    g_autoptr(SnapTransport) source = new_source(uri);
    int out = open_to_write(source);
    assert_int_equal(write(out, "hello", 5), 5);
    close(out);
    g_clear_pointer(&source, snap_transport_free);
    assert_true(g_file_get_contents(uri + 5, &text, NULL, NULL));
    assert_string_equal(text, "old");
    unlink(uri + 5);
}

static void file_that_is_kept_replaces_the_old_one(void **state) {
    g_autofree char *uri = uri_in(state, "file:", "f"), *text = NULL;
    GError *error = NULL;
    assert_true(g_file_set_contents(uri + 5, "old", -1, NULL));
    g_autoptr(SnapTransport) source = new_source(uri);
    int out = open_to_write(source);
    assert_int_equal(write(out, "new", 3), 3);
    expect_good(snap_transport_keep(source, &error), &error);
    close(out);
    assert_true(g_file_get_contents(uri + 5, &text, NULL, NULL));
    assert_string_equal(text, "new");
    unlink(uri + 5);
}

/* Each time it is put on the disk, and that it cannot be is told. */
static void file_that_is_kept_again_is_synced_again(void **state) {
    g_autofree char *uri = uri_in(state, "file:", "f"), *text = NULL;
    GError *error = NULL;
    g_autoptr(SnapTransport) source = new_source(uri);
    expect_good(snap_transport_keep(source, &error), &error); /* nothing was written yet */
    int out = open_to_write(source);
    n_syncs = 0;
    for (int i = 1; i <= 3; i++) {
        assert_int_equal(write(out, "once", 4), 4);
        expect_good(snap_transport_keep(source, &error), &error);
        assert_int_equal(n_syncs, i + 1); /* and the folder, for the name */
        assert_int_equal(synced_bytes, 4 * i);
    }
    sync_errno = ENOSPC;
    expect_error(snap_transport_keep(source, &error), &error, SNAP_ERROR_IO, "No space");
    sync_errno = 0;
    close(out);
    g_clear_pointer(&source, snap_transport_free);
    assert_true(g_file_get_contents(uri + 5, &text, NULL, NULL));
    assert_string_equal(text, "onceonceonce");
    unlink(uri + 5);
}

static void file_that_cannot_be_is_refused(void **state) {
    const Rig *rig = *state;
    g_autofree char *none = uri_in(state, "file:", "none/f"), *pipe = uri_in(state, "file:", "p");
    g_autofree char *folder = g_strconcat("file:", rig->folder, NULL);
    GError *error = NULL;
    expect_error(snap_transport_new_destination(none, &error), &error, SNAP_ERROR_NOT_FOUND, "No such file");
    expect_error(snap_transport_new_destination(folder, &error), &error, SNAP_ERROR_IO, "is no regular file");
    assert_int_equal(mkfifo(pipe + 5, 0600), 0);
    expect_error(snap_transport_new_destination(pipe, &error), &error, SNAP_ERROR_IO, "is no regular file");
    const char *const uris[] = {none, pipe, folder};
    for (size_t i = 0; i < G_N_ELEMENTS(uris); i++) {
        g_autoptr(SnapTransport) source = new_source(uris[i]);
        expect_error(may_connect(source, SOON_MS, &error), &error, SNAP_ERROR_IO,
                     i == 0 ? "No such file" : "no regular file");
    }
    unlink(pipe + 5);
}

/* The name was taken by a folder while the file was written. */
static void file_that_cannot_be_named_is_told(void **state) {
    g_autofree char *uri = uri_in(state, "file:", "f");
    GError *error = NULL;
    g_autoptr(SnapTransport) source = new_source(uri);
    close(open_to_write(source));
    assert_int_equal(mkdir(uri + 5, 0700), 0);
    expect_error(snap_transport_keep(source, &error), &error, SNAP_ERROR_IO, "directory");
    assert_int_equal(rmdir(uri + 5), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(uri_is_checked),
        TEST(kind_says_what_it_can),
        TEST(fd_is_handed_out_once),
        TEST(fd_that_is_not_handed_out_is_closed),
        TEST(fd_that_is_no_socket_is_refused),
        TEST(exec_is_connected_by_its_standard_streams),
        TEST(exec_that_fails_is_a_connection_that_is_closed),
        TEST(exec_is_killed_with_all_it_started),
        TEST(exec_has_signals_as_by_default),
        TEST(file_that_is_kept_can_be_read),
        TEST(file_that_is_not_kept_leaves_the_old_one),
        TEST(file_that_is_kept_replaces_the_old_one),
        TEST(file_that_is_kept_again_is_synced_again),
        TEST(file_that_cannot_be_is_refused),
        TEST(file_that_cannot_be_named_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
