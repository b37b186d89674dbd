/*
 * Names to addresses: see lookup.h.
 *
 * The record is shared by who asks and the thread, counted; whoever lets go last frees it. The thread writes
 * `found` and `failure`, makes `fd` readable and ends; who asks joins it, and reads them after that.
 */
#include "lookup.h"

#include <errno.h>
#include <glib.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <unistd.h>

struct SnapLookup {
    /* set before start */
    char *host;
    char *port;
    struct addrinfo hints;
    int fd; /* eventfd: it is done */
    /* who asks */
    GThread *thread; /* NULL: none was needed, or it has been joined */
    /* by the thread, until it is done */
    struct addrinfo *found;
    int failure; /* of getaddrinfo() */
};

static void clear(void *opaque) {
    SnapLookup *lookup = opaque;
    if (lookup->found)
        freeaddrinfo(lookup->found);
    if (lookup->fd >= 0)
        close(lookup->fd);
    g_free(lookup->host);
    g_free(lookup->port);
}

/* A thread that is still at it is left to itself. */
void snap_lookup_free(SnapLookup *lookup) {
    if (!lookup)
        return;
    if (lookup->thread)
        g_thread_unref(lookup->thread);
    g_atomic_rc_box_release_full(lookup, clear);
}

static void look_up(SnapLookup *lookup) {
    lookup->failure = getaddrinfo(lookup->host, lookup->port, &lookup->hints, &lookup->found);
}

static void tell(const SnapLookup *lookup) {
    uint64_t one = 1;
    while (write(lookup->fd, &one, sizeof one) < 0 && errno == EINTR)
        ;
}

static void *run(void *opaque) {
    SnapLookup *lookup = opaque;
    look_up(lookup);
    tell(lookup);
    g_atomic_rc_box_release_full(lookup, clear);
    return NULL;
}

static bool start_thread(SnapLookup *lookup) {
    lookup->thread = g_thread_try_new("snap-lookup", run, g_atomic_rc_box_acquire(lookup), NULL);
    if (lookup->thread)
        return true;
    g_atomic_rc_box_release(lookup); /* the thread's, which it has not got */
    errno = EAGAIN;
    return false;
}

/* Without a host there is nothing that a name server would be asked for. */
SnapLookup *snap_lookup_new(const char *host, const char *port, bool to_listen) {
    SnapLookup *lookup = g_atomic_rc_box_new0(SnapLookup);
    lookup->host = g_strdup(host);
    lookup->port = g_strdup(port);
    lookup->hints = (struct addrinfo){.ai_family = AF_UNSPEC,
                                      .ai_socktype = SOCK_STREAM,
                                      .ai_flags = AI_NUMERICSERV | AI_NUMERICHOST | (to_listen ? AI_PASSIVE : 0)};
    lookup->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    bool ok = lookup->fd >= 0;
    if (ok) {
        look_up(lookup);
        if (lookup->failure == EAI_NONAME) {
            lookup->hints.ai_flags &= ~AI_NUMERICHOST;
            ok = start_thread(lookup);
        } else {
            tell(lookup);
        }
    }
    if (!ok)
        g_clear_pointer(&lookup, snap_lookup_free);
    return lookup;
}

int snap_lookup_fd(const SnapLookup *lookup) {
    return lookup->fd;
}

const struct addrinfo *snap_lookup_addresses(SnapLookup *lookup, const char **ret_wrong) {
    if (lookup->thread)
        g_thread_join(g_steal_pointer(&lookup->thread)); /* it has nothing left to do */
    if (lookup->failure == 0)
        return lookup->found;
    *ret_wrong = gai_strerror(lookup->failure);
    return NULL;
}
