/*
 * What the transport tests share: a folder for each test, and a look at whether anything is left behind by it.
 */
#pragma once

#include "expect.h"
#include "transport.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { SOON_MS = 5000, LATE_MS = 100 };

/* A folder of its own for each test, and how many descriptors there were before it. */
typedef struct {
    char *folder;
    guint n_descriptors;
} Rig;

static inline guint count_entries(const char *folder) {
    guint n = 0;
    DIR *dir = opendir(folder);
    assert_non_null(dir);
    while (readdir(dir))
        n++;
    closedir(dir);
    return n;
}

static inline int setup(void **state) {
    Rig *rig = g_new0(Rig, 1);
    rig->folder = g_dir_make_tmp("transport-XXXXXX", NULL);
    rig->n_descriptors = count_entries("/proc/self/fd");
    *state = rig;
    return 0;
}

/* Whatever a transport makes it removes, but a file that is kept; those the tests remove. */
static inline int teardown(void **state) {
    Rig *rig = *state;
    guint n_descriptors = count_entries("/proc/self/fd"), n_left = count_entries(rig->folder);
    if (n_descriptors != rig->n_descriptors || n_left != 2) {
        print_error("%u descriptors instead of %u, %u files left\n", n_descriptors, rig->n_descriptors,
                    n_left - 2);
        return -1;
    }
    rmdir(rig->folder);
    g_free(rig->folder);
    g_free(rig);
    return 0;
}

static inline char *uri_in(void **state, const char *prefix, const char *name) {
    const Rig *rig = *state;
    return g_strconcat(prefix, rig->folder, "/", name, NULL);
}

static inline SnapTransport *new_source(const char *uri) {
    GError *error = NULL;
    SnapTransport *transport = snap_transport_new_source(uri, &error);
    expect_good(transport != NULL, &error);
    return transport;
}

static inline SnapTransport *new_destination(const char *uri) {
    GError *error = NULL;
    SnapTransport *transport = snap_transport_new_destination(uri, &error);
    expect_good(transport != NULL, &error);
    return transport;
}

static inline int connect_one(SnapTransport *transport) {
    GError *error = NULL;
    int in = -2, out = -2;
    expect_good(snap_transport_connect(transport, SOON_MS, &in, &out, &error), &error);
    assert_int_equal(in, out);
    return in;
}

static inline int accept_one(SnapTransport *transport) {
    GError *error = NULL;
    int in = -2, out = -2;
    expect_good(snap_transport_accept(transport, SOON_MS, &in, &out, &error), &error);
    assert_int_equal(in, out);
    return in;
}

static inline bool may_connect(SnapTransport *transport, int timeout_ms, GError **error) {
    int in = -2, out = -2;
    bool good = snap_transport_connect(transport, timeout_ms, &in, &out, error);
    assert_true(good || (in == -2 && out == -2));
    return good;
}

static inline bool may_accept(SnapTransport *transport, int timeout_ms, GError **error) {
    int in = -2, out = -2;
    bool good = snap_transport_accept(transport, timeout_ms, &in, &out, error);
    assert_true(good || (in == -2 && out == -2));
    return good;
}

static inline int64_t now_ms(void) {
    return g_get_monotonic_time() / 1000;
}

/* What is written at one end is read at the other, both ways; both are closed. */
static inline void expect_connected(int a, int b) {
    const int ends[][2] = {{a, b}, {b, a}};
    for (size_t i = 0; i < 2; i++) {
        char got[8] = "";
        assert_int_equal(write(ends[i][0], "hello", 5), 5);
        assert_int_equal(recv(ends[i][1], got, 5, MSG_WAITALL), 5);
        assert_string_equal(got, "hello");
    }
    assert_true(fcntl(a, F_GETFD) & FD_CLOEXEC && fcntl(b, F_GETFD) & FD_CLOEXEC);
    close(a);
    close(b);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
