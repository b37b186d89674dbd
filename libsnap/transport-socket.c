/*
 * Transports that listen and connect: what unix: and tcp: have in common, and unix:. See transport-kind.h.
 *
 * Happy path: a destination binds and listens in new; each connection is a socket that does not block. Failure
 * modes: a socket file that nobody listens at is what a killed process leaves, and is replaced; one that is in use
 * is not. A backlog that is full makes connecting to a unix socket fail at once: it is tried again until the time
 * is over.
 */
#include "transport-kind.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { BACKLOG_RETRY_MS = 10 }; /* where it is full */

/* ---- both ------------------------------------------------------------------------------------------------ */

int snap_socket_new(int family) {
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    return fd < 0 ? -errno : fd;
}

gboolean snap_socket_accept(SnapTransport *transport, int64_t deadline_us, int *ret_in, int *ret_out,
                            GError **error) {
    for (;;) {
        int rc = snap_transport_wait(transport, transport->fd, POLLIN, deadline_us);
        if (rc < 0)
            return snap_transport_fail(transport, -rc, error);
        int fd = accept4(transport->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd >= 0) {
            *ret_in = *ret_out = fd;
            return TRUE;
        }
        if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
            return snap_transport_fail(transport, errno, error);
    }
}

/* Returns 0 or -errno. */
static int finish_connecting(const SnapTransport *transport, int fd, int64_t deadline_us) {
    int errnum = 0;
    socklen_t length = sizeof errnum;
    int rc = snap_transport_wait(transport, fd, POLLOUT, deadline_us);
    if (rc == 0 && getsockopt(fd, SOL_SOCKET, SO_ERROR, &errnum, &length) < 0)
        rc = -errno;
    return rc < 0 ? rc : -errnum;
}

int snap_socket_connect(const SnapTransport *transport, const struct sockaddr *address, socklen_t length,
                        int64_t deadline_us) {
    int fd = snap_socket_new(address->sa_family);
    int rc = fd < 0 ? fd : -EAGAIN;
    while (rc == -EAGAIN || rc == -EINTR) {
        rc = connect(fd, address, length) < 0 ? -errno : 0;
        if (rc == -EINPROGRESS)
            rc = finish_connecting(transport, fd, deadline_us);
        if (rc != -EAGAIN)
            continue;
        int64_t soon_us = g_get_monotonic_time() + BACKLOG_RETRY_MS * 1000;
        int wait = snap_transport_wait(transport, -1, 0, MIN(soon_us, deadline_us));
        if (wait != -ETIMEDOUT || soon_us >= deadline_us)
            rc = wait;
    }
    if (rc == 0)
        return fd;
    if (fd >= 0)
        close(fd);
    return rc;
}

gboolean snap_socket_fail_connect(const SnapTransport *transport, int errnum, GError **error) {
    if (errnum != ECONNREFUSED && errnum != ENOENT)
        return snap_transport_fail(transport, errnum, error);
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_IO, "%s: nobody listens there", transport->uri);
    return FALSE;
}

gboolean snap_socket_fail_listen(const SnapTransport *transport, int errnum, GError **error) {
    if (errnum != EADDRINUSE)
        return snap_transport_fail(transport, errnum, error);
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_EXISTS, "%s: somebody listens there", transport->uri);
    return FALSE;
}

/* ---- unix: ----------------------------------------------------------------------------------------------- */

static gboolean check_unix(const char *path, GError **error) {
    size_t most = sizeof(((struct sockaddr_un *)NULL)->sun_path) - 1;
    if (!path[0])
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_USAGE, "the path of a socket has to follow the colon");
    else if (strlen(path) > most)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_USAGE, "the path is longer than the %zu bytes of a socket's",
                    most);
    return path[0] && strlen(path) <= most;
}

static struct sockaddr_un unix_address(const SnapTransport *transport) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    g_strlcpy(address.sun_path, transport->address, sizeof address.sun_path);
    return address;
}

static gboolean connect_unix(SnapTransport *transport, int64_t deadline_us, int *ret_in, int *ret_out,
                             GError **error) {
    struct sockaddr_un address = unix_address(transport);
    int fd = snap_socket_connect(transport, (struct sockaddr *)&address, sizeof address, deadline_us);
    if (fd < 0)
        return snap_socket_fail_connect(transport, -fd, error);
    *ret_in = *ret_out = fd;
    return TRUE;
}

/* Remove what a process that is gone has left. */
static gboolean remove_stale(const SnapTransport *transport, GError **error) {
    struct stat about;
    if (lstat(transport->address, &about) < 0)
        return TRUE;
    if (!S_ISSOCK(about.st_mode)) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_EXISTS, "%s: is there, and no socket", transport->uri);
        return FALSE;
    }
    struct sockaddr_un address = unix_address(transport);
    int fd = snap_socket_new(AF_UNIX);
    bool dead = fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) < 0 && errno == ECONNREFUSED;
    if (fd >= 0)
        close(fd);
    if (!dead)
        return snap_socket_fail_listen(transport, EADDRINUSE, error);
    if (unlink(transport->address) == 0)
        return TRUE;
    return snap_transport_fail(transport, errno, error);
}

/*
 * A socket file gets the mode that the socket has when it is bound, less the umask, which is the whole process's
 * and not to be changed: so there is no moment at which others may connect.
 */
static int bind_unix(SnapTransport *transport) {
    struct sockaddr_un address = unix_address(transport);
    struct stat about;
    int fd = transport->fd = snap_socket_new(AF_UNIX);
    if (fd < 0)
        return fd;
    if (fchmod(fd, S_IRUSR | S_IWUSR) < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0)
        return -errno;
    transport->made = g_strdup(transport->address);
    if (lstat(transport->made, &about) < 0)
        return -errno;
    transport->made_dev = about.st_dev;
    transport->made_ino = about.st_ino;
    return listen(fd, SNAP_SOCKET_BACKLOG) < 0 ? -errno : 0;
}

static gboolean listen_unix(SnapTransport *transport, GError **error) {
    if (transport->is_source)
        return TRUE;
    if (!remove_stale(transport, error))
        return FALSE;
    int rc = bind_unix(transport);
    return rc == 0 || snap_socket_fail_listen(transport, -rc, error);
}

/* Unless it is another's by now. */
static void remove_socket(SnapTransport *transport) {
    struct stat about;
    if (transport->made && lstat(transport->made, &about) == 0 && about.st_dev == transport->made_dev &&
        about.st_ino == transport->made_ino)
        unlink(transport->made);
}

const SnapTransportKind snap_transport_unix = {.prefix = "unix:",
                                               .several = true,
                                               .check = check_unix,
                                               .open = listen_unix,
                                               .connect = connect_unix,
                                               .accept = snap_socket_accept,
                                               .clear = remove_socket};
