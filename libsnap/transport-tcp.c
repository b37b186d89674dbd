/*
 * tcp:HOST:PORT. See transport-kind.h, and transport-socket.c for what it shares with unix:.
 *
 * Happy path: the name is looked up, and its addresses are tried in the order in which they come: to listen at the
 * first that can be listened at, to connect to the first that answers. Failure modes: the last one's error is
 * told. A destination with port 0 gets one from the system, and its URI says which. It listens as soon as the name
 * is found: in new, where it is in figures.
 *
 * Without a host a destination listens at all addresses, and a source connects to this machine.
 */
#include "lookup.h"
#include "transport-kind.h"

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

G_DEFINE_AUTOPTR_CLEANUP_FUNC(SnapLookup, snap_lookup_free)

/* ---- names ----------------------------------------------------------------------------------------------- */

/* @ret_host: NULL where it is left out. */
static bool split(const char *address, char **ret_host, char **ret_port) {
    const char *colon = strrchr(address, ':');
    guint64 port = 0;
    if (!colon || !g_ascii_string_to_unsigned(colon + 1, 10, 0, UINT16_MAX, &port, NULL))
        return false;
    g_autofree char *host = g_strndup(address, (gsize)(colon - address));
    size_t length = strlen(host);
    if (length > 2 && host[0] == '[' && host[length - 1] == ']') {
        memmove(host, host + 1, length - 2);
        host[length - 2] = '\0';
    } else if (strpbrk(host, ":[]")) {
        return false;
    }
    *ret_host = host[0] ? g_steal_pointer(&host) : NULL;
    *ret_port = g_strdup(colon + 1);
    return true;
}

static gboolean check_tcp(const char *address, GError **error) {
    g_autofree char *host = NULL, *port = NULL;
    if (split(address, &host, &port))
        return TRUE;
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_USAGE,
                "HOST:PORT has to follow the colon, the port in figures, an IPv6 address in brackets");
    return FALSE;
}

/* NULL with *error set. */
static SnapLookup *begin_lookup(const SnapTransport *transport, GError **error) {
    g_autofree char *host = NULL, *port = NULL;
    split(transport->address, &host, &port);
    SnapLookup *lookup = snap_lookup_new(host, port, !transport->is_source);
    if (!lookup)
        snap_transport_fail(transport, errno, error);
    return lookup;
}

/* The addresses, when they are known; NULL with *error set. */
static const struct addrinfo *await(const SnapTransport *transport, SnapLookup *lookup, int64_t deadline_us,
                                    GError **error) {
    const char *wrong = NULL;
    int rc = snap_transport_wait(transport, snap_lookup_fd(lookup), POLLIN, deadline_us);
    if (rc == -ETIMEDOUT)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_TIMED_OUT, "%s: the name is not found in time", transport->uri);
    else if (rc < 0)
        snap_transport_fail(transport, -rc, error);
    const struct addrinfo *addresses = rc == 0 ? snap_lookup_addresses(lookup, &wrong) : NULL;
    if (rc == 0 && !addresses)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_IO, "%s: %s", transport->uri, wrong);
    return addresses;
}

/* ---- listening ------------------------------------------------------------------------------------------- */

/* Returns a socket or -errno. An address that a process has just let go of may be used again. */
static int listen_at(const struct addrinfo *address) {
    int on = 1, off = 0;
    int fd = snap_socket_new(address->ai_family);
    if (fd < 0)
        return fd;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (address->ai_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    if (bind(fd, address->ai_addr, address->ai_addrlen) == 0 && listen(fd, SNAP_SOCKET_BACKLOG) == 0)
        return fd;
    int rc = -errno;
    close(fd);
    return rc;
}

/* "Any" is IPv6's where there is one, which has IPv4's in it. */
static const struct addrinfo *any_first(const struct addrinfo *addresses) {
    for (const struct addrinfo *at = addresses; at; at = at->ai_next) {
        if (at->ai_family == AF_INET6 &&
            IN6_IS_ADDR_UNSPECIFIED(&((const struct sockaddr_in6 *)(const void *)at->ai_addr)->sin6_addr))
            return at;
    }
    return NULL;
}

static int listen_at_one(const struct addrinfo *addresses) {
    const struct addrinfo *any = any_first(addresses);
    int fd = any ? listen_at(any) : -EADDRNOTAVAIL;
    for (const struct addrinfo *at = addresses; at && fd < 0 && fd != -EADDRINUSE; at = at->ai_next)
        fd = listen_at(at);
    return fd;
}

/* The URI with the port that the system has chosen. */
static void tell_port(SnapTransport *transport) {
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } bound = {0};
    socklen_t length = sizeof bound;
    if (getsockname(transport->fd, &bound.any, &length) < 0)
        return;
    unsigned port = ntohs(bound.any.sa_family == AF_INET6 ? bound.v6.sin6_port : bound.v4.sin_port);
    int before = (int)(strrchr(transport->uri, ':') - transport->uri);
    char *uri = g_strdup_printf("%.*s:%u", before, transport->uri, port);
    g_free(transport->uri);
    transport->uri = uri;
    transport->address = uri + strlen(transport->kind->prefix);
}

gboolean snap_tcp_listen(SnapTransport *transport, int64_t deadline_us, GError **error) {
    const struct addrinfo *addresses = await(transport, transport->lookup, deadline_us, error);
    if (!addresses)
        return FALSE;
    int fd = listen_at_one(addresses);
    if (fd < 0)
        return snap_socket_fail_listen(transport, -fd, error);
    transport->fd = fd;
    tell_port(transport);
    g_clear_pointer(&transport->lookup, snap_lookup_free);
    return TRUE;
}

static gboolean open_tcp(SnapTransport *transport, GError **error) {
    if (transport->is_source)
        return TRUE;
    g_autoptr(GError) failure = NULL;
    transport->lookup = begin_lookup(transport, error);
    if (!transport->lookup)
        return FALSE;
    if (snap_tcp_listen(transport, 0, &failure) || g_error_matches(failure, SNAP_ERROR, SNAP_ERROR_TIMED_OUT))
        return TRUE;
    g_propagate_error(error, g_steal_pointer(&failure));
    return FALSE;
}

/* ---- connecting ------------------------------------------------------------------------------------------ */

/* Until when to try @at: of the time that is left as much as each of the addresses from there on gets. */
static int64_t share_of(const struct addrinfo *at, int64_t deadline_us) {
    int64_t now_us = g_get_monotonic_time(), n = 0;
    for (; at; at = at->ai_next)
        n++;
    return deadline_us == INT64_MAX ? INT64_MAX : now_us + MAX(deadline_us - now_us, 0) / n;
}

static gboolean connect_tcp(SnapTransport *transport, int64_t deadline_us, int *ret_in, int *ret_out,
                            GError **error) {
    g_autoptr(SnapLookup) lookup = begin_lookup(transport, error);
    const struct addrinfo *addresses = lookup ? await(transport, lookup, deadline_us, error) : NULL;
    int fd = -EADDRNOTAVAIL;
    if (!addresses)
        return FALSE;
    for (const struct addrinfo *at = addresses; at && fd < 0 && fd != -ECANCELED; at = at->ai_next)
        fd = snap_socket_connect(transport, at->ai_addr, at->ai_addrlen, share_of(at, deadline_us));
    if (fd < 0)
        return snap_socket_fail_connect(transport, -fd, error);
    *ret_in = *ret_out = fd;
    return TRUE;
}

static void forget_lookup(SnapTransport *transport) {
    snap_lookup_free(transport->lookup);
}

const SnapTransportKind snap_transport_tcp = {.prefix = "tcp:",
                                              .several = true,
                                              .check = check_tcp,
                                              .open = open_tcp,
                                              .connect = connect_tcp,
                                              .accept = snap_socket_accept,
                                              .clear = forget_lookup};
