/*
 * How the two sides of a migration come to be connected: see transport.h. Here is what all kinds have in common:
 * which one a URI is of, waiting, and being stopped.
 *
 * Failure modes: whatever waits returns -ECANCELED once it was stopped, and -ETIMEDOUT when the time is over. What
 * was not handed out by then is closed, killed or removed in free.
 */
#include "transport-kind.h"

#include "deadline.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { LISTEN_MS = 30000 }; /* for the name to listen at */

static const SnapTransportKind *const kinds[] = {&snap_transport_unix, &snap_transport_tcp, &snap_transport_fd,
                                                 &snap_transport_exec, &snap_transport_file};

static const SnapTransportKind *find_kind(const char *uri, GError **error) {
    for (size_t i = 0; i < G_N_ELEMENTS(kinds); i++) {
        if (g_str_has_prefix(uri, kinds[i]->prefix)) {
            bool ok = kinds[i]->check(uri + strlen(kinds[i]->prefix), error);
            if (!ok)
                g_prefix_error(error, "%s: ", uri);
            return ok ? kinds[i] : NULL;
        }
    }
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_USAGE,
                "%s: is none of unix:PATH, tcp:HOST:PORT, fd:N, exec:COMMAND, file:PATH", uri);
    return NULL;
}

gboolean snap_transport_check(const char *uri, GError **error) {
    return find_kind(uri, error) != NULL;
}

static SnapTransport *transport_new(const char *uri, bool is_source, GError **error) {
    const SnapTransportKind *kind = find_kind(uri, error);
    if (!kind)
        return NULL;
    g_autoptr(SnapTransport) transport = g_new0(SnapTransport, 1);
    transport->kind = kind;
    transport->uri = g_strdup(uri);
    transport->address = transport->uri + strlen(kind->prefix);
    transport->is_source = is_source;
    transport->fd = -1;
    transport->stop_fd = -1;
    /* before there is a descriptor here that could be taken for that of fd: */
    if (!kind->open(transport, error))
        return NULL;
    transport->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (transport->stop_fd < 0) {
        snap_transport_fail(transport, errno, error);
        return NULL;
    }
    return g_steal_pointer(&transport);
}

SnapTransport *snap_transport_new_source(const char *uri, GError **error) {
    return transport_new(uri, true, error);
}

SnapTransport *snap_transport_prepare_destination(const char *uri, GError **error) {
    return transport_new(uri, false, error);
}

SnapTransport *snap_transport_new_destination(const char *uri, GError **error) {
    g_autoptr(SnapTransport) transport = snap_transport_prepare_destination(uri, error);
    return transport && snap_transport_listen(transport, -1, error) ? g_steal_pointer(&transport) : NULL;
}

void snap_transport_discard(const char *uri) {
    if (find_kind(uri, NULL) == &snap_transport_fd)
        snap_transport_free(transport_new(uri, false, NULL));
}

void snap_transport_free(SnapTransport *transport) {
    if (!transport)
        return;
    transport->kind->clear(transport);
    if (transport->fd >= 0)
        close(transport->fd);
    if (transport->stop_fd >= 0)
        close(transport->stop_fd);
    g_free(transport->made);
    g_free(transport->uri);
    g_free(transport);
}

void snap_transport_stop(SnapTransport *transport) {
    uint64_t one = 1;
    g_atomic_int_set(&transport->stopped, 1);
    while (write(transport->stop_fd, &one, sizeof one) < 0 && errno == EINTR)
        ; /* EAGAIN: it is readable already */
}

const char *snap_transport_uri(const SnapTransport *transport) {
    return transport->uri;
}

bool snap_transport_is_one_way(const SnapTransport *transport) {
    return transport->kind->one_way;
}

bool snap_transport_can_have_several(const SnapTransport *transport) {
    return transport->kind->several;
}

/* ---- waiting --------------------------------------------------------------------------------------------- */

int snap_transport_wait(const SnapTransport *transport, int fd, short events, int64_t deadline_us) {
    struct pollfd fds[] = {{.fd = transport->stop_fd, .events = POLLIN}, {.fd = fd, .events = events}};
    for (;;) {
        int rc = poll(fds, G_N_ELEMENTS(fds), snap_deadline_left_ms(deadline_us));
        if (rc > 0)
            return fds[0].revents != 0 ? -ECANCELED : 0;
        if (rc == 0)
            return -ETIMEDOUT;
        if (errno != EINTR)
            return -errno;
    }
}

gboolean snap_transport_fail(const SnapTransport *transport, int errnum, GError **error) {
    if (errnum == ECANCELED)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_CANCELLED, "cancelled");
    else if (errnum == ETIMEDOUT)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_TIMED_OUT, "%s: nobody came in time", transport->uri);
    else
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_IO, "%s: %s", transport->uri, g_strerror(errnum));
    return FALSE;
}

/* Stopped before it began counts as well; and a kind with one connection has no second. */
static bool may_begin(SnapTransport *transport, GError **error) {
    if (g_atomic_int_get(&transport->stopped)) {
        snap_transport_fail(transport, ECANCELED, error);
        return false;
    }
    if (transport->used && !transport->kind->several) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_IO, "%s: there is one connection, and it was used",
                    transport->uri);
        return false;
    }
    return true;
}

gboolean snap_transport_listen(SnapTransport *transport, int timeout_ms, GError **error) {
    g_assert(!transport->is_source);
    int most_ms = timeout_ms < 0 ? LISTEN_MS : timeout_ms;
    return !transport->lookup || snap_tcp_listen(transport, snap_deadline_in(most_ms), error);
}

gboolean snap_transport_connect(SnapTransport *transport, int timeout_ms, int *ret_in, int *ret_out,
                                GError **error) {
    g_assert(transport->is_source);
    if (!may_begin(transport, error) ||
        !transport->kind->connect(transport, snap_deadline_in(timeout_ms), ret_in, ret_out, error))
        return FALSE;
    transport->used = true;
    return TRUE;
}

gboolean snap_transport_accept(SnapTransport *transport, int timeout_ms, int *ret_in, int *ret_out,
                               GError **error) {
    g_assert(!transport->is_source);
    if (!may_begin(transport, error) ||
        !transport->kind->accept(transport, snap_deadline_in(timeout_ms), ret_in, ret_out, error))
        return FALSE;
    transport->used = true;
    return TRUE;
}

gboolean snap_transport_keep(SnapTransport *transport, GError **error) {
    return !transport->kind->keep || transport->kind->keep(transport, error);
}
