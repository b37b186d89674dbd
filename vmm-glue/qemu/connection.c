/*
 * The shared QMP connection; see connection.h.
 *
 * Happy path: take → qmp → commands and answers → give. A main loop polls one descriptor, and reads events when
 * nobody has the turn.
 *
 * That descriptor is an epoll instance, and the socket is in it only while nobody has the turn: otherwise the main
 * loop would be woken by every answer to somebody else, in the pause of a snapshot too, or spin on one. What came
 * meanwhile and was not read shows as soon as the socket is back.
 *
 * Failure modes: the socket closes, or what comes is no QMP: the client is thrown away, and made anew by the next
 * turn that needs it. Another QEMU answers then: GUEST_GONE.
 *
 * Invariant: `qmp` is touched only by who has the turn.
 */
#include "connection.h"

#include "peer.h"

#include <poll.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Somebody who waits, under lock. */
typedef struct {
    gboolean has_turn;
} Waiter;

struct Connection {
    /* set before it is shared */
    char *path;
    int epoll_fd;
    int pid;
    int pidfd; /* -1 where it cannot be had */

    GMutex lock;
    /* under lock */
    GCond given;
    gboolean taken;
    GQueue waiting; /* of Waiter: the turn goes to the one that waits longest, not to who is quickest */

    /* who has the turn */
    Qmp *qmp;      /* (nullable) its socket is watched while nobody has */
    GQueue events; /* of Event: told when the turn is given back, as a pause of the guest may be part of it */

    GRecMutex event_lock; /* held while the function runs, which may set another */
    QmpEventFunc event_func;
    void *event_opaque;
};

/* ---- the client ------------------------------------------------------------------------------------------ */

typedef struct {
    char *name;
    json_object *data; /* (nullable) */
    int64_t time_us;
} Event;

static void event_free(gpointer data) {
    Event *event = data;
    json_object_put(event->data);
    g_free(event->name);
    g_free(event);
}

static void keep_event(const char *name, json_object *data, int64_t time_us, void *opaque) {
    Connection *connection = opaque;
    Event *event = g_new(Event, 1);
    *event = (Event){.name = g_strdup(name), .data = json_object_get(data), .time_us = time_us};
    g_queue_push_tail(&connection->events, event);
}

static void tell_events(Connection *connection) {
    Event *event;
    g_rec_mutex_lock(&connection->event_lock);
    while ((event = g_queue_pop_head(&connection->events))) {
        if (connection->event_func)
            connection->event_func(event->name, event->data, event->time_us, connection->event_opaque);
        event_free(event);
    }
    g_rec_mutex_unlock(&connection->event_lock);
}

static gboolean has_ended(const Connection *connection) {
    struct pollfd end = {.fd = connection->pidfd, .events = POLLIN};
    return connection->pidfd >= 0 && poll(&end, 1, 0) > 0;
}

static gboolean check_pid(const Connection *connection, int pid, GError **error) {
    if (connection->pid == 0 || (pid == connection->pid && !has_ended(connection)))
        return TRUE;
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_GUEST_GONE,
                "QMP socket %s: process %d has ended, another one is there", connection->path, connection->pid);
    return FALSE;
}

static gboolean connect_anew(Connection *connection, GError **error) {
    g_clear_pointer(&connection->qmp, qmp_free);
    g_autoptr(Qmp) qmp = qmp_connect(connection->path, QMP_TIMEOUT_MS, error);
    if (!qmp) {
        if (has_ended(connection)) {
            g_clear_error(error);
            g_set_error(error, SNAP_ERROR, SNAP_ERROR_GUEST_GONE, "QMP socket %s: process %d has ended",
                        connection->path, connection->pid);
        }
        return FALSE;
    }
    int pid = peer_find_pid(qmp_fd(qmp), error);
    if (pid < 0) {
        g_prefix_error(error, "QMP socket %s: ", connection->path);
        return FALSE;
    }
    if (!check_pid(connection, pid, error))
        return FALSE;
    connection->pid = pid;
    qmp_set_event_func(qmp, keep_event, connection);
    connection->qmp = g_steal_pointer(&qmp);
    return TRUE;
}

Qmp *connection_qmp(Connection *connection, GError **error) {
    /* What was closed since the last look is noticed before a command is sent into it. */
    if (connection->qmp && !qmp_is_broken(connection->qmp) && qmp_read_events(connection->qmp, NULL))
        return connection->qmp;
    return connect_anew(connection, error) ? connection->qmp : NULL;
}

/* ---- turns ----------------------------------------------------------------------------------------------- */

static void watch_socket(const Connection *connection) {
    struct epoll_event event = {.events = EPOLLIN};
    if (connection->qmp)
        epoll_ctl(connection->epoll_fd, EPOLL_CTL_ADD, qmp_fd(connection->qmp), &event);
}

static void unwatch_socket(const Connection *connection) {
    if (connection->qmp)
        epoll_ctl(connection->epoll_fd, EPOLL_CTL_DEL, qmp_fd(connection->qmp), NULL);
}

/* With the lock. */
static gboolean wait_for_turn(Connection *connection, int timeout_ms) {
    int64_t deadline = g_get_monotonic_time() + (int64_t)timeout_ms * 1000;
    gboolean in_time = TRUE;
    Waiter self = {FALSE};
    g_queue_push_tail(&connection->waiting, &self);
    while (!self.has_turn && in_time) {
        if (timeout_ms < 0)
            g_cond_wait(&connection->given, &connection->lock);
        else
            in_time = g_cond_wait_until(&connection->given, &connection->lock, deadline);
    }
    if (!self.has_turn)
        g_queue_remove(&connection->waiting, &self);
    return self.has_turn;
}

/* As connection_take(), without the error. */
static gboolean take(Connection *connection, int timeout_ms) {
    g_mutex_lock(&connection->lock);
    gboolean mine = !connection->taken;
    if (mine)
        unwatch_socket(connection);
    else if (timeout_ms != 0)
        mine = wait_for_turn(connection, timeout_ms);
    connection->taken = TRUE;
    g_mutex_unlock(&connection->lock);
    return mine;
}

gboolean connection_take(Connection *connection, int timeout_ms, GError **error) {
    if (take(connection, timeout_ms))
        return TRUE;
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_TIMED_OUT,
                "QMP socket %s: another command, or a snapshot, is not done with it yet", connection->path);
    return FALSE;
}

void connection_give(Connection *connection) {
    tell_events(connection);
    g_mutex_lock(&connection->lock);
    Waiter *next = g_queue_pop_head(&connection->waiting);
    if (next) {
        next->has_turn = TRUE;
        g_cond_broadcast(&connection->given);
    } else {
        watch_socket(connection);
        connection->taken = FALSE;
    }
    g_mutex_unlock(&connection->lock);
}

/* ---- events ---------------------------------------------------------------------------------------------- */

gboolean connection_read_events(Connection *connection, GError **error) {
    if (!take(connection, 0))
        return TRUE;
    gboolean ok = TRUE;
    if (connection->qmp && !qmp_is_broken(connection->qmp))
        ok = qmp_read_events(connection->qmp, error);
    if (connection->qmp && qmp_is_broken(connection->qmp))
        g_clear_pointer(&connection->qmp, qmp_free); /* or it would be readable for ever */
    connection_give(connection);
    return ok;
}

void connection_set_event_func(Connection *connection, QmpEventFunc func, void *opaque) {
    g_rec_mutex_lock(&connection->event_lock);
    connection->event_func = func;
    connection->event_opaque = opaque;
    g_rec_mutex_unlock(&connection->event_lock);
}

/* ---- life ------------------------------------------------------------------------------------------------ */

int connection_pid(const Connection *connection) {
    return connection->pid;
}

int connection_fd(const Connection *connection) {
    return connection->epoll_fd;
}

Connection *connection_new(const char *path, GError **error) {
    g_autoptr(Connection) connection = g_new0(Connection, 1);
    connection->path = g_strdup(path);
    connection->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    connection->pidfd = -1;
    g_mutex_init(&connection->lock);
    g_cond_init(&connection->given);
    g_queue_init(&connection->waiting);
    g_rec_mutex_init(&connection->event_lock);
    if (!connect_anew(connection, error))
        return NULL;
    connection->pidfd = (int)syscall(SYS_pidfd_open, connection->pid, 0);
    watch_socket(connection);
    return g_steal_pointer(&connection);
}

void connection_free(Connection *connection) {
    if (!connection)
        return;
    g_assert(!connection->taken);
    qmp_free(connection->qmp);
    g_queue_clear_full(&connection->events, event_free);
    close(connection->epoll_fd);
    if (connection->pidfd >= 0)
        close(connection->pidfd);
    g_rec_mutex_clear(&connection->event_lock);
    g_cond_clear(&connection->given);
    g_mutex_clear(&connection->lock);
    g_free(connection->path);
    g_free(connection);
}
