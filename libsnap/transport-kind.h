/*
 * The kinds of transport, as transport.c sees them: sockets (transport-socket.c, transport-tcp.c), and what is
 * there at once and once (transport-local.c). See transport.h.
 *
 * All functions of a kind are called by the thread that uses the transport. Only snap_transport_stop() comes from
 * others: it sets `stopped` and then makes stop_fd readable, and whatever waits, waits for that as well, by
 * snap_transport_wait().
 */
#pragma once

#include "transport.h"

#include <sys/socket.h>
#include <sys/types.h>

typedef struct SnapLookup SnapLookup;

typedef struct {
    const char *prefix; /* with the colon */
    bool one_way;
    bool several;
    /* Of what follows the prefix. */
    gboolean (*check)(const char *address, GError **error);
    /* In new: whatever is to be had at once. Nobody can stop it yet. */
    gboolean (*open)(SnapTransport *transport, GError **error);
    /* The next connection. @deadline_us: g_get_monotonic_time(), INT64_MAX: without limit. */
    gboolean (*connect)(SnapTransport *transport, int64_t deadline_us, int *ret_in, int *ret_out, GError **error);
    gboolean (*accept)(SnapTransport *transport, int64_t deadline_us, int *ret_in, int *ret_out, GError **error);
    gboolean (*keep)(SnapTransport *transport, GError **error); /* (nullable) */
    void (*clear)(SnapTransport *transport);
} SnapTransportKind;

extern const SnapTransportKind snap_transport_unix; /* transport-socket.c */
extern const SnapTransportKind snap_transport_tcp;  /* transport-tcp.c */
extern const SnapTransportKind snap_transport_fd, snap_transport_exec, snap_transport_file; /* transport-local.c */

struct SnapTransport {
    /* set before use */
    const SnapTransportKind *kind;
    char *uri;
    const char *address; /* the part of uri behind the prefix */
    bool is_source;
    int stop_fd;

    int stopped; /* atomic */

    /* the thread that uses it */
    bool used;          /* kinds that have one connection: it was handed out */
    SnapLookup *lookup; /* (nullable) tcp: of the name to listen at, which it does not yet */
    int fd;             /* what listens, or is not handed out yet; of a file that is written, to fsync it; -1 */
    pid_t child;        /* exec: */
    char *made;         /* a socket, or a file, that is to be removed; NULL: nothing */
    dev_t made_dev;     /* that it is still the one that was made */
    ino_t made_ino;
};

/* Until @fd is ready for @events; -1: until the deadline. 0; -ECANCELED, stopped; -ETIMEDOUT; -errno. */
int snap_transport_wait(const SnapTransport *transport, int fd, short events, int64_t deadline_us);

/* Set *error to @errnum: ECANCELED is CANCELLED, ETIMEDOUT TIMED_OUT, anything else IO. Always FALSE. */
gboolean snap_transport_fail(const SnapTransport *transport, int errnum, GError **error);

/* ---- transport-tcp.c ------------------------------------------------------------------------------------- */

/* The rest of SnapTransportKind.open, where there is a lookup; after TIMED_OUT there still is. */
gboolean snap_tcp_listen(SnapTransport *transport, int64_t deadline_us, GError **error);

/* ---- transport-socket.c ---------------------------------------------------------------------------------- */

enum { SNAP_SOCKET_BACKLOG = 16 }; /* all channels of a migration, and some that come by mistake */

/* A stream socket that does not block, or -errno. */
int snap_socket_new(int family);
/* A connected one, or -errno: -ETIMEDOUT, -ECANCELED … */
int snap_socket_connect(const SnapTransport *transport, const struct sockaddr *address, socklen_t length,
                        int64_t deadline_us);
/* SnapTransportKind.accept at transport->fd. */
gboolean snap_socket_accept(SnapTransport *transport, int64_t deadline_us, int *ret_in, int *ret_out,
                            GError **error);
/* snap_transport_fail(), with words of their own for the usual. */
gboolean snap_socket_fail_connect(const SnapTransport *transport, int errnum, GError **error);
gboolean snap_socket_fail_listen(const SnapTransport *transport, int errnum, GError **error);
