/*
 * A QMP server inside a VMM: see libsnap-qmp.h.
 *
 * The server is made of GLib sources in a context of its own. For a loop that is not GLib's, what the context
 * waits for is put into an epoll descriptor: its descriptors, and a timer for its next timeout. Another thread
 * that adds a source wakes the context by an eventfd, which is one of these.
 *
 * Happy path: new → listen → poll → process: what is ready is done, and what to wait for next is put in → free.
 *
 * Failure modes: no descriptors left: new says so; later, clients wait until there are some (server.c). GLib ends
 * the program where memory or threads are not to be had.
 *
 * Invariant: descriptors are closed only in process and free, so that between two calls `watched` is what is in.
 */
#include "libsnap-qmp.h"

#include "embedded.h"
#include "incoming.h"
#include "server.h"
#include "targets.h"

#include <errno.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

enum { ITERATIONS_MAX = 8 }; /* in one call of process: the VMM has other things to do */

struct SnapQmp {
    /* set before start */
    GMainContext *context;
    QapiHelper *helper;
    QapiServer *server;
    QapiEmbedded *embedded;
    int epoll_fd;
    int timer_fd;

    /* who serves */
    GMainLoop *loop; /* (nullable) the thread's */
    GThread *thread;
    GArray *watched; /* of int: descriptors in epoll_fd */
};

/* ---- the context as one descriptor ----------------------------------------------------------------------- */

static void set_timer(const SnapQmp *qmp, gint timeout_ms) {
    struct itimerspec at = {0};
    if (timeout_ms == 0)
        at.it_value.tv_nsec = 1;
    else if (timeout_ms > 0)
        at.it_value = (struct timespec){timeout_ms / 1000, (long)(timeout_ms % 1000) * 1000000};
    timerfd_settime(qmp->timer_fd, 0, &at, NULL);
}

/*
 * Before anything is done, as descriptors may be closed then. A closed one does not leave the epoll descriptor as
 * long as a child of the VMM has a copy; it could be ready for ever, and not be taken out any more.
 */
static void forget(SnapQmp *qmp) {
    for (guint i = 0; i < qmp->watched->len; i++)
        epoll_ctl(qmp->epoll_fd, EPOLL_CTL_DEL, g_array_index(qmp->watched, int, i), NULL);
    g_array_set_size(qmp->watched, 0);
    set_timer(qmp, -1);
}

/* The context has joined those that are the same. */
static void watch(SnapQmp *qmp, const GPollFD *fds, gint n) {
    for (gint i = 0; i < n; i++) {
        struct epoll_event event = {.events = fds[i].events, .data.fd = fds[i].fd};
        if (epoll_ctl(qmp->epoll_fd, EPOLL_CTL_ADD, fds[i].fd, &event) == 0)
            g_array_append_val(qmp->watched, fds[i].fd);
    }
}

static void rearm(SnapQmp *qmp) {
    gint priority = 0, timeout_ms = -1, n = 0;
    g_autofree GPollFD *fds = NULL;
    g_main_context_prepare(qmp->context, &priority);
    for (gint room = 16;; room = n) {
        fds = g_renew(GPollFD, fds, (gsize)room);
        n = g_main_context_query(qmp->context, priority, &timeout_ms, fds, room);
        if (n <= room)
            break;
    }
    watch(qmp, fds, n);
    set_timer(qmp, timeout_ms);
}

void snap_qmp_process(SnapQmp *qmp) {
    if (!g_main_context_acquire(qmp->context))
        return; /* the thread serves */
    forget(qmp);
    for (int i = 0; i < ITERATIONS_MAX && g_main_context_iteration(qmp->context, FALSE); i++)
        continue;
    rearm(qmp);
    g_main_context_release(qmp->context);
}

int snap_qmp_get_fd(const SnapQmp *qmp) {
    return qmp->epoll_fd;
}

short snap_qmp_get_events(const SnapQmp *qmp) {
    (void)qmp;
    return POLLIN;
}

/* ---- life ------------------------------------------------------------------------------------------------ */

/* GLib aborts where it finds no descriptor for a new context: so one is looked for before. */
static gboolean open_descriptors(SnapQmp *qmp, GError **error) {
    qmp->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    qmp->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    int spare = eventfd(0, EFD_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = qmp->timer_fd};
    gboolean ok = spare >= 0 && epoll_ctl(qmp->epoll_fd, EPOLL_CTL_ADD, qmp->timer_fd, &event) == 0;
    if (!ok)
        snap_set_errno(error, errno, "the QMP server");
    if (spare >= 0)
        close(spare);
    return ok;
}

static void close_descriptors(const SnapQmp *qmp) {
    if (qmp->epoll_fd >= 0)
        close(qmp->epoll_fd);
    if (qmp->timer_fd >= 0)
        close(qmp->timer_fd);
}

SnapQmp *snap_qmp_new(SnapGuest *guest, const SnapQmpOptions *options, GError **error) {
    static const SnapQmpOptions none = {0};
    options = options ? options : &none;
    SnapQmp *qmp = g_new0(SnapQmp, 1);
    if (!open_descriptors(qmp, error)) {
        close_descriptors(qmp);
        snap_guest_free(guest);
        g_free(qmp);
        return NULL;
    }
    qmp->watched = g_array_new(FALSE, FALSE, sizeof(int));
    qmp->context = g_main_context_new_with_flags(G_MAIN_CONTEXT_FLAGS_OWNERLESS_POLLING);
    qmp->helper = qapi_helper_new(options->snapshot_dir ? options->snapshot_dir : ".");
    qmp->server = qapi_server_new(qmp->helper, qmp->context, options->on_quit, options->quit_opaque);
    qmp->embedded = qapi_embed(qmp->helper, guest, options->name, options->vm, options->vm_opaque);
    if (!qapi_incoming_set_up(qmp->helper, options, error)) {
        snap_qmp_free(qmp);
        return NULL;
    }
    snap_qmp_process(qmp);
    return qmp;
}

static gboolean quit_loop(gpointer loop) {
    g_main_loop_quit(loop);
    return G_SOURCE_REMOVE;
}

static void end_thread(SnapQmp *qmp) {
    g_autoptr(GSource) source = g_idle_source_new();
    g_source_set_callback(source, quit_loop, qmp->loop, NULL);
    g_source_attach(source, qmp->context);
    g_thread_join(qmp->thread);
    g_main_loop_unref(qmp->loop);
}

void snap_qmp_free(SnapQmp *qmp) {
    if (!qmp)
        return;
    if (qmp->thread)
        end_thread(qmp);
    qapi_server_free(qmp->server);
    qapi_helper_free(qmp->helper);
    qapi_embedded_free(qmp->embedded);
    g_main_context_unref(qmp->context);
    close_descriptors(qmp);
    g_array_unref(qmp->watched);
    g_free(qmp);
}

gboolean snap_qmp_listen(SnapQmp *qmp, const char *path, GError **error) {
    g_assert(!qmp->thread);
    gboolean ok = qapi_server_listen(qmp->server, path, error);
    snap_qmp_process(qmp);
    return ok;
}

void snap_qmp_add_client(SnapQmp *qmp, int fd) {
    g_assert(!qmp->thread);
    qapi_server_add_client(qmp->server, fd, fd, NULL, NULL);
    snap_qmp_process(qmp);
}

static gpointer serve(gpointer loop) {
    g_main_loop_run(loop);
    return NULL;
}

void snap_qmp_start_thread(SnapQmp *qmp) {
    g_assert(!qmp->thread);
    forget(qmp); /* whoever polls nevertheless is not woken */
    qmp->loop = g_main_loop_new(qmp->context, FALSE);
    qmp->thread = g_thread_new("snap-qmp", serve, qmp->loop);
}
