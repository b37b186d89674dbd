/*
 * Transports that are there at once and once: a descriptor of this process, a command, a file. See
 * transport-kind.h.
 *
 * Happy path: fd: is looked at and taken in new; exec: starts its command when the connection is asked for; file:
 * is opened in new by who reads it, and made under another name when who writes it asks. Failure modes: a command
 * that cannot do what it should is seen as a connection that was closed. What is not kept is removed, what still
 * runs is killed.
 */
#include "transport-kind.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static gboolean check_not_empty(const char *address, GError **error) {
    if (address[0])
        return TRUE;
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_USAGE, "something has to follow the colon");
    return FALSE;
}

static gboolean open_nothing(SnapTransport *transport, GError **error) {
    (void)transport, (void)error;
    return TRUE;
}

static void clear_nothing(SnapTransport *transport) {
    (void)transport;
}

/* What is in transport->fd becomes the caller's. */
static gboolean hand_out(SnapTransport *transport, int64_t deadline_us, int *ret_in, int *ret_out,
                         GError **error) {
    (void)deadline_us, (void)error;
    *ret_in = *ret_out = transport->fd;
    transport->fd = -1;
    return TRUE;
}

/* ---- fd: ------------------------------------------------------------------------------------------------- */

static gboolean check_number(const char *address, GError **error) {
    guint64 number = 0;
    if (g_ascii_string_to_unsigned(address, 10, 0, INT_MAX, &number, NULL))
        return TRUE;
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_USAGE, "the number of a descriptor has to follow the colon");
    return FALSE;
}

/* What is no socket is somebody's mistake, and stays open. */
static gboolean open_descriptor(SnapTransport *transport, GError **error) {
    struct stat about;
    int fd = (int)g_ascii_strtoull(transport->address, NULL, 10);
    if (fstat(fd, &about) < 0) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_FOUND, "%s: there is no such descriptor", transport->uri);
        return FALSE;
    }
    if (!S_ISSOCK(about.st_mode)) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_USAGE, "%s: is no socket", transport->uri);
        return FALSE;
    }
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    transport->fd = fd;
    return TRUE;
}

const SnapTransportKind snap_transport_fd = {.prefix = "fd:",
                                             .check = check_number,
                                             .open = open_descriptor,
                                             .connect = hand_out,
                                             .accept = hand_out,
                                             .clear = clear_nothing};

/* ---- exec: ----------------------------------------------------------------------------------------------- */

/* In a process group of its own, so that all of a pipeline can be killed; with signals as they are by default. */
static int spawn(const char *command, int connection, pid_t *ret_child) {
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none, sigpipe;
    sigemptyset(&none);
    sigemptyset(&sigpipe);
    sigaddset(&sigpipe, SIGPIPE); /* which whoever writes to sockets likes to ignore */
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, connection, STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions, connection, STDOUT_FILENO);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &sigpipe);
    char *const argv[] = {(char *)"sh", (char *)"-c", (char *)(uintptr_t)command, NULL};
    int errnum = posix_spawn(ret_child, "/bin/sh", &actions, &attributes, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    return -errnum;
}

static gboolean run_command(SnapTransport *transport, int64_t deadline_us, int *ret_in, int *ret_out,
                            GError **error) {
    (void)deadline_us;
    int ends[2];
    pid_t child = 0;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
        return snap_transport_fail(transport, errno, error);
    int rc = spawn(transport->address, ends[1], &child);
    close(ends[1]);
    if (rc < 0) {
        close(ends[0]);
        return snap_transport_fail(transport, -rc, error);
    }
    transport->child = child;
    *ret_in = *ret_out = ends[0];
    return TRUE;
}

/* Not reaped before, so the number is still its own. */
static void kill_command(SnapTransport *transport) {
    if (transport->child <= 0)
        return;
    kill(-transport->child, SIGKILL);
    while (waitpid(transport->child, NULL, 0) < 0 && errno == EINTR)
        ;
}

const SnapTransportKind snap_transport_exec = {.prefix = "exec:",
                                               .check = check_not_empty,
                                               .open = open_nothing,
                                               .connect = run_command,
                                               .accept = run_command,
                                               .clear = kill_command};

/* ---- file: ----------------------------------------------------------------------------------------------- */

/* A named pipe must not hold up who opens it, and is no file. */
static gboolean open_file(SnapTransport *transport, GError **error) {
    struct stat about;
    if (transport->is_source)
        return TRUE;
    transport->fd = open(transport->address, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (transport->fd < 0) {
        snap_set_errno(error, errno, "%s", transport->uri);
        return FALSE;
    }
    if (fstat(transport->fd, &about) == 0 && S_ISREG(about.st_mode))
        return TRUE;
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_IO, "%s: is no regular file", transport->uri);
    return FALSE;
}

static gboolean read_file(SnapTransport *transport, int64_t deadline_us, int *ret_in, int *ret_out,
                          GError **error) {
    int fd = -1;
    hand_out(transport, deadline_us, ret_in, &fd, error);
    *ret_out = -1;
    return TRUE;
}

/* The transport keeps a second descriptor: by the time of keep the first one may be closed. */
static gboolean make_file(SnapTransport *transport, int64_t deadline_us, int *ret_in, int *ret_out,
                          GError **error) {
    (void)deadline_us;
    struct stat about;
    if (stat(transport->address, &about) == 0 && !S_ISREG(about.st_mode)) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_IO, "%s: is there, and no regular file", transport->uri);
        return FALSE;
    }
    g_autofree char *path = g_strdup_printf("%s.part-XXXXXX", transport->address);
    int fd = g_mkstemp_full(path, O_WRONLY | O_CLOEXEC, S_IRUSR | S_IWUSR);
    if (fd < 0)
        return snap_transport_fail(transport, errno, error);
    int out = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (out < 0) {
        snap_transport_fail(transport, errno, error);
        close(fd);
        unlink(path);
        return FALSE;
    }
    transport->fd = fd;
    transport->made = g_steal_pointer(&path);
    *ret_in = -1;
    *ret_out = out;
    return TRUE;
}

static int sync_folder_of(const char *path) {
    g_autofree char *folder = g_path_get_dirname(path);
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int rc = fsync(fd) < 0 ? -errno : 0;
    close(fd);
    return rc;
}

/* It has its name: what was written since is kept as well. */
static gboolean keep_more(SnapTransport *transport, GError **error) {
    if (transport->fd < 0 || fdatasync(transport->fd) == 0)
        return TRUE;
    return snap_transport_fail(transport, errno, error);
}

static gboolean keep_file(SnapTransport *transport, GError **error) {
    if (!transport->made)
        return keep_more(transport, error);
    if (fsync(transport->fd) < 0 || rename(transport->made, transport->address) < 0)
        return snap_transport_fail(transport, errno, error);
    g_clear_pointer(&transport->made, g_free);
    int rc = sync_folder_of(transport->address);
    if (rc < 0)
        unlink(transport->address); /* who is told of a failure keeps the guest: nobody is to load it */
    return rc == 0 || snap_transport_fail(transport, -rc, error);
}

static void remove_file(SnapTransport *transport) {
    if (transport->made)
        unlink(transport->made);
}

const SnapTransportKind snap_transport_file = {.prefix = "file:",
                                               .one_way = true,
                                               .check = check_not_empty,
                                               .open = open_file,
                                               .connect = make_file,
                                               .accept = read_file,
                                               .keep = keep_file,
                                               .clear = remove_file};
