/*
 * How the two sides of a migration come to be connected by unix: and tcp:; whatever waits ends when it should, and
 * nothing is left behind.
 */
#include "transport-fixture.h"

/* ---- unix: ----------------------------------------------------------------------------------------------- */

static void unix_connects_several_times(void **state) {
    g_autofree char *uri = uri_in(state, "unix:", "s");
    g_autoptr(SnapTransport) destination = new_destination(uri), source = new_source(uri);
    for (int i = 0; i < 3; i++) {
        int a = connect_one(source);
        expect_connected(a, accept_one(destination));
    }
}

static void unix_socket_is_its_owners_alone(void **state) {
    g_autofree char *uri = uri_in(state, "unix:", "s");
    struct stat about;
    mode_t before = umask(0);
    g_autoptr(SnapTransport) destination = new_destination(uri);
    umask(before);
    assert_int_equal(stat(uri + 5, &about), 0);
    assert_int_equal(about.st_mode, S_IFSOCK | 0600);
    g_clear_pointer(&destination, snap_transport_free);
    assert_int_equal(stat(uri + 5, &about), -1);
}

static int bind_socket(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    g_strlcpy(address.sun_path, path, sizeof address.sun_path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    return fd;
}

static void unix_stale_socket_is_replaced(void **state) {
    g_autofree char *uri = uri_in(state, "unix:", "s");
    GError *error = NULL;
    close(bind_socket(uri + 5));
    g_autoptr(SnapTransport) source = new_source(uri);
    expect_error(may_connect(source, SOON_MS, &error), &error, SNAP_ERROR_IO, "nobody listens there");
    g_autoptr(SnapTransport) destination = new_destination(uri);
    int a = connect_one(source);
    expect_connected(a, accept_one(destination));
}

static void unix_path_that_is_taken_is_refused(void **state) {
    g_autofree char *uri = uri_in(state, "unix:", "s");
    GError *error = NULL;
    assert_true(g_file_set_contents(uri + 5, "precious", -1, NULL));
    expect_error(snap_transport_new_destination(uri, &error), &error, SNAP_ERROR_EXISTS,
                 "is there, and no socket");
    assert_int_equal(unlink(uri + 5), 0);
    g_autoptr(SnapTransport) destination = new_destination(uri);
    expect_error(snap_transport_new_destination(uri, &error), &error, SNAP_ERROR_EXISTS, "somebody listens there");
    g_autoptr(SnapTransport) source = new_source(uri);
    close(accept_one((close(connect_one(source)), destination))); /* the question whether it listens came first */
    close(accept_one(destination));
}

static void unix_socket_of_another_is_not_removed(void **state) {
    g_autofree char *uri = uri_in(state, "unix:", "s");
    g_autoptr(SnapTransport) destination = new_destination(uri);
    assert_int_equal(unlink(uri + 5), 0);
    int fd = bind_socket(uri + 5);
    g_clear_pointer(&destination, snap_transport_free);
    assert_int_equal(access(uri + 5, F_OK), 0);
    close(fd);
    assert_int_equal(unlink(uri + 5), 0);
}

static void unix_without_a_folder_is_refused(void **state) {
    g_autofree char *uri = uri_in(state, "unix:", "none/s");
    GError *error = NULL;
    expect_error(snap_transport_new_destination(uri, &error), &error, SNAP_ERROR_IO, "No such file");
    g_autoptr(SnapTransport) source = new_source(uri);
    expect_error(may_connect(source, SOON_MS, &error), &error, SNAP_ERROR_IO, "nobody listens there");
}

/* ---- waits end ------------------------------------------------------------------------------------------- */

typedef bool (*Work)(SnapTransport *transport, int timeout_ms, GError **error);

static void *stop_soon(void *opaque) {
    g_usleep(20000);
    snap_transport_stop(opaque);
    return NULL;
}

/* @work, which would wait, ends when its time is over, and when it is stopped. */
static void expect_ends(SnapTransport *transport, Work work) {
    GError *error = NULL;
    int64_t start_ms = now_ms();
    expect_error(work(transport, LATE_MS, &error), &error, SNAP_ERROR_TIMED_OUT, "in time");
    assert_in_range(now_ms() - start_ms, LATE_MS, SOON_MS);
    start_ms = now_ms();
    GThread *thread = g_thread_new("stop", stop_soon, transport);
    bool good = work(transport, -1, &error);
    g_thread_join(thread);
    expect_error(good, &error, SNAP_ERROR_CANCELLED, "cancelled");
    assert_true(now_ms() - start_ms < SOON_MS);
    expect_error(work(transport, -1, &error), &error, SNAP_ERROR_CANCELLED, "cancelled");
}

static void accepting_ends(void **state) {
    g_autofree char *uri = uri_in(state, "unix:", "s");
    g_autoptr(SnapTransport) local = new_destination(uri), tcp = new_destination("tcp:127.0.0.1:0");
    expect_ends(local, may_accept);
    expect_ends(tcp, may_accept);
}

/* A listener whose backlog is full: it takes no connection, and does not refuse one. */
static void connecting_to_a_full_unix_socket_ends(void **state) {
    g_autofree char *uri = uri_in(state, "unix:", "s");
    g_autoptr(SnapTransport) source = new_source(uri);
    int listener = bind_socket(uri + 5);
    assert_int_equal(listen(listener, 0), 0);
    int first = connect_one(source);
    GError *error = NULL;
    expect_error(snap_transport_new_destination(uri, &error), &error, SNAP_ERROR_EXISTS, "somebody listens there");
    expect_ends(source, may_connect);
    close(first);
    close(listener);
    unlink(uri + 5);
}

static void connecting_to_a_full_tcp_socket_ends(void **state) {
    (void)state;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), taken[4];
    assert_int_equal(bind(listener, (struct sockaddr *)&address, length), 0);
    assert_int_equal(listen(listener, 0), 0);
    assert_int_equal(getsockname(listener, (struct sockaddr *)&address, &length), 0);
    for (size_t i = 0; i < G_N_ELEMENTS(taken); i++) {
        taken[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        (void)connect(taken[i], (struct sockaddr *)&address, length);
    }
    g_autofree char *uri = g_strdup_printf("tcp:127.0.0.1:%u", ntohs(address.sin_port));
    g_autoptr(SnapTransport) source = new_source(uri);
    expect_ends(source, may_connect);
    for (size_t i = 0; i < G_N_ELEMENTS(taken); i++)
        close(taken[i]);
    close(listener);
}

/* ---- tcp: ------------------------------------------------------------------------------------------------ */

static void tcp_with_port_0_says_which(void **state) {
    (void)state;
    const char *const uris[] = {"tcp:127.0.0.1:0", "tcp:localhost:0", "tcp::0"};
    for (size_t i = 0; i < G_N_ELEMENTS(uris); i++) {
        g_autoptr(SnapTransport) destination = new_destination(uris[i]);
        const char *uri = snap_transport_uri(destination);
        assert_true(g_str_has_prefix(uri, "tcp:") && !g_str_has_suffix(uri, ":0"));
        g_autoptr(SnapTransport) source = new_source(uri);
        for (int j = 0; j < 2; j++) {
            int a = connect_one(source);
            expect_connected(a, accept_one(destination));
        }
    }
}

static void tcp_ipv6_is_in_brackets(void **state) {
    (void)state;
    GError *error = NULL;
    g_autoptr(SnapTransport) destination = snap_transport_new_destination("tcp:[::1]:0", &error);
    if (!destination) {
        expect_error(false, &error, SNAP_ERROR_IO, "tcp:[::1]:0");
        print_message("no IPv6 here: not tested\n");
        return;
    }
    assert_true(g_str_has_prefix(snap_transport_uri(destination), "tcp:[::1]:"));
    g_autoptr(SnapTransport) source = new_source(snap_transport_uri(destination));
    int a = connect_one(source);
    expect_connected(a, accept_one(destination));
}

static void tcp_port_that_is_taken_is_refused(void **state) {
    (void)state;
    GError *error = NULL;
    g_autoptr(SnapTransport) destination = new_destination("tcp:127.0.0.1:0");
    expect_error(snap_transport_new_destination(snap_transport_uri(destination), &error), &error,
                 SNAP_ERROR_EXISTS, "somebody listens there");
}

static void tcp_where_nobody_listens_is_refused(void **state) {
    (void)state;
    GError *error = NULL;
    g_autoptr(SnapTransport) destination = new_destination("tcp:127.0.0.1:0");
    g_autoptr(SnapTransport) source = new_source(snap_transport_uri(destination));
    g_clear_pointer(&destination, snap_transport_free);
    expect_error(may_connect(source, SOON_MS, &error), &error, SNAP_ERROR_IO, "nobody listens there");
}

/* However long a name server takes to say that there is no such name. */
static void tcp_host_that_is_not_known_ends(void **state) {
    (void)state;
    GError *error = NULL;
    g_autoptr(SnapTransport) source = new_source("tcp:no-such-host.invalid:1");
    int64_t start_ms = now_ms();
    assert_false(may_connect(source, LATE_MS, &error));
    assert_true(now_ms() - start_ms < SOON_MS);
    assert_true(g_error_matches(error, SNAP_ERROR, SNAP_ERROR_IO) ||
                g_error_matches(error, SNAP_ERROR, SNAP_ERROR_TIMED_OUT));
    g_clear_error(&error);
    snap_transport_stop(source);
    expect_error(may_connect(source, -1, &error), &error, SNAP_ERROR_CANCELLED, "cancelled");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(unix_connects_several_times),
        TEST(unix_socket_is_its_owners_alone),
        TEST(unix_stale_socket_is_replaced),
        TEST(unix_path_that_is_taken_is_refused),
        TEST(unix_socket_of_another_is_not_removed),
        TEST(unix_without_a_folder_is_refused),
        TEST(accepting_ends),
        TEST(connecting_to_a_full_unix_socket_ends),
        TEST(connecting_to_a_full_tcp_socket_ends),
        TEST(tcp_with_port_0_says_which),
        TEST(tcp_ipv6_is_in_brackets),
        TEST(tcp_port_that_is_taken_is_refused),
        TEST(tcp_where_nobody_listens_is_refused),
        /* the last one: a thread that looks the name up may outlive it, with descriptors of its own */
        cmocka_unit_test(tcp_host_that_is_not_known_ends),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
