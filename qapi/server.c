/* The QMP server: see server.h. */
#include "server.h"

#include "descriptors.h"
#include "event-rate.h"
#include "session.h"
#include "stream.h"

#include <errno.h>
#include <gio/gio.h>
#include <gio/gunixsocketaddress.h>
#include <glib/gstdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { AGAIN_MS = 100 }; /* when no descriptor was left for a client */

/* Where clients come from. In the context's thread only. */
typedef struct {
    QapiServer *server;
    GSocket *socket;
    GSource *source; /* what is waited for: a client, or the time to look again */
} Listener;

struct QapiServer {
    /* set before start */
    QapiHelper *helper;
    GMainContext *context;
    void (*on_quit)(void *opaque);
    void *quit_opaque;
    GThreadPool *pool;

    /* the context's thread only */
    GPtrArray *listeners; /* of Listener */
    GPtrArray *paths;     /* of char *: sockets to be removed */
    QapiEventRate *rate;  /* under the helper's lock */

    GMutex lock;

    /* under lock */
    GPtrArray *sessions; /* of QapiSession */
};

QapiHelper *qapi_server_helper(QapiServer *server) {
    return server->helper;
}

GMainContext *qapi_server_context(QapiServer *server) {
    return server->context;
}

/* ---- events ---------------------------------------------------------------------------------------------- */

/* Under the helper's lock. */
static void send_event(json_object *event, void *opaque) {
    QapiServer *server = opaque;
    g_autoptr(GString) text = g_string_new(NULL);
    qapi_json_write(event, text);
    g_string_append(text, "\r\n");
    g_mutex_lock(&server->lock);
    for (guint i = 0; i < server->sessions->len; i++)
        qapi_session_event(server->sessions->pdata[i], text);
    g_mutex_unlock(&server->lock);
}

static void on_event(json_object *event, void *opaque) {
    QapiServer *server = opaque;
    qapi_event_rate_put(server->rate, event);
}

static void on_quit(void *opaque) {
    QapiServer *server = opaque;
    server->on_quit(server->quit_opaque);
}

/* ---- life ------------------------------------------------------------------------------------------------ */

static void work(gpointer session, gpointer server) {
    (void)server;
    qapi_session_work(session);
    qapi_session_unref(session);
}

void qapi_server_run(QapiServer *server, QapiSession *session) {
    g_thread_pool_push(server->pool, qapi_session_ref(session), NULL);
}

static void listener_free(gpointer listener);

QapiServer *qapi_server_new(QapiHelper *helper, GMainContext *context, void (*quit)(void *opaque), void *opaque) {
    static const QapiListener listener = {.event = on_event, .quit = on_quit};
    static const QapiListener without_quit = {.event = on_event};
    QapiServer *server = g_new0(QapiServer, 1);
    server->helper = helper;
    server->context = context;
    server->on_quit = quit;
    server->quit_opaque = opaque;
    server->pool = g_thread_pool_new(work, server, -1, FALSE, NULL);
    server->listeners = g_ptr_array_new_with_free_func(listener_free);
    server->paths = g_ptr_array_new_with_free_func(g_free);
    server->sessions = g_ptr_array_new();
    server->rate = qapi_event_rate_new(context, &helper->lock, send_event, server);
    g_mutex_init(&server->lock);
    qapi_helper_listen(helper, quit ? &listener : &without_quit, server);
    return server;
}

void qapi_server_remove(QapiServer *server, QapiSession *session) {
    g_mutex_lock(&server->lock);
    gboolean ours = g_ptr_array_remove(server->sessions, session);
    gboolean last = server->sessions->len == 0;
    g_mutex_unlock(&server->lock);
    if (last)
        qapi_fdsets_clear(server->helper);
    if (ours)
        qapi_session_unref(session);
}

void qapi_server_free(QapiServer *server) {
    if (!server)
        return;
    g_ptr_array_unref(server->listeners);
    qapi_helper_close(server->helper); /* some commands wait for the end of a job */
    g_thread_pool_free(server->pool, FALSE, TRUE);
    g_mutex_lock(&server->helper->lock);
    qapi_helper_listen(server->helper, NULL, NULL);
    g_mutex_unlock(&server->helper->lock);
    while (server->sessions->len > 0)
        qapi_session_close(server->sessions->pdata[0]);
    for (guint i = 0; i < server->paths->len; i++)
        unlink(server->paths->pdata[i]);
    g_ptr_array_unref(server->paths);
    g_ptr_array_unref(server->sessions);
    qapi_event_rate_free(server->rate);
    g_mutex_clear(&server->lock);
    g_free(server);
}

void qapi_server_add_client(QapiServer *server, int in_fd, int out_fd, void (*on_end)(void *opaque),
                            void *opaque) {
    QapiSession *session = qapi_session_new(server, in_fd, out_fd, on_end, opaque);
    g_mutex_lock(&server->lock);
    g_ptr_array_add(server->sessions, session);
    g_mutex_unlock(&server->lock);
}

/* ---- listening ------------------------------------------------------------------------------------------- */

static gboolean on_client(GSocket *socket, GIOCondition condition, gpointer opaque);

static void wait_for(Listener *listener, GSource *source, GSourceFunc func) {
    if (listener->source)
        g_source_destroy(listener->source);
    g_clear_pointer(&listener->source, g_source_unref);
    listener->source = source;
    g_source_set_callback(source, func, listener, NULL);
    g_source_attach(source, listener->server->context);
}

static gboolean wait_for_client(gpointer opaque) {
    Listener *listener = opaque;
    wait_for(listener, g_socket_create_source(listener->socket, G_IO_IN, NULL), G_SOURCE_FUNC(on_client));
    return G_SOURCE_REMOVE;
}

static gboolean on_client(GSocket *socket, GIOCondition condition, gpointer opaque) {
    (void)condition;
    Listener *listener = opaque;
    QapiServer *server = listener->server;
    int fd = accept4(g_socket_get_fd(socket), NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0 && errno == EINVAL) {
        g_warning("a listening socket was shut down: nobody comes from there any more");
        return G_SOURCE_REMOVE;
    }
    if (fd < 0 && errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) {
        /* The client stays in the queue, and would be reported again at once. */
        wait_for(listener, g_timeout_source_new(AGAIN_MS), wait_for_client);
        return G_SOURCE_REMOVE;
    }
    if (fd < 0)
        return G_SOURCE_CONTINUE;
    if (server->sessions->len >= QAPI_CLIENTS_MAX)
        close(fd);
    else
        qapi_server_add_client(server, fd, fd, NULL, NULL);
    return G_SOURCE_CONTINUE;
}

static void listen_on(QapiServer *server, GSocket *socket) {
    Listener *listener = g_new0(Listener, 1);
    listener->server = server;
    listener->socket = g_object_ref(socket);
    g_ptr_array_add(server->listeners, listener);
    wait_for_client(listener);
}

static void listener_free(gpointer opaque) {
    Listener *listener = opaque;
    g_source_destroy(listener->source);
    g_source_unref(listener->source);
    g_object_unref(listener->socket);
    g_free(listener);
}

gboolean qapi_server_listen_fd(QapiServer *server, int fd, GError **error) {
    g_autoptr(GError) failure = NULL;
    g_autoptr(GSocket) socket = g_socket_new_from_fd(fd, &failure);
    int listens = 0;
    if (!socket || g_socket_get_socket_type(socket) != G_SOCKET_TYPE_STREAM ||
        !g_socket_get_option(socket, SOL_SOCKET, SO_ACCEPTCONN, &listens, NULL) || !listens) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_USAGE, "descriptor %d is no listening stream socket%s%s", fd,
                    failure ? ": " : "", failure ? failure->message : "");
        if (!socket)
            close(fd);
        return FALSE;
    }
    g_socket_set_blocking(socket, FALSE);
    listen_on(server, socket);
    return TRUE;
}

/* A socket file that nobody listens at any more is what a killed server leaves. */
static gboolean remove_stale(const char *path, GError **error) {
    struct stat about;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (lstat(path, &about) < 0)
        return TRUE;
    if (!S_ISSOCK(about.st_mode)) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_EXISTS, "%s: is there, and no socket; choose another path",
                    path);
        return FALSE;
    }
    g_strlcpy(address.sun_path, path, sizeof(address.sun_path));
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    gboolean dead =
        fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0 && errno == ECONNREFUSED;
    if (fd >= 0)
        close(fd);
    if (!dead)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_EXISTS, "%s: another server is there", path);
    return dead && unlink(path) == 0;
}

static GSocket *bind_unix(const char *path, GError **error) {
    g_autoptr(GSocketAddress) address = g_unix_socket_address_new(path);
    g_autoptr(GSocket) socket =
        g_socket_new(G_SOCKET_FAMILY_UNIX, G_SOCKET_TYPE_STREAM, G_SOCKET_PROTOCOL_DEFAULT, error);
    if (!socket)
        return NULL;
    g_socket_set_blocking(socket, FALSE);
    /* A bound socket gets the mode it has here, less the umask, which is the whole process's and not to be
     * changed. */
    if (fchmod(g_socket_get_fd(socket), 0600) < 0) {
        snap_set_errno(error, errno, "fchmod");
        return NULL;
    }
    g_socket_set_listen_backlog(socket, QAPI_CLIENTS_MAX);
    gboolean ok = g_socket_bind(socket, address, TRUE, error) && g_socket_listen(socket, error);
    return ok ? g_steal_pointer(&socket) : NULL;
}

gboolean qapi_server_listen(QapiServer *server, const char *path, GError **error) {
    g_autoptr(GError) failure = NULL;
    if (strlen(path) >= sizeof(((struct sockaddr_un *)NULL)->sun_path)) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_USAGE, "%s: too long for a socket, which may have %zu bytes",
                    path, sizeof(((struct sockaddr_un *)NULL)->sun_path) - 1);
        return FALSE;
    }
    if (!remove_stale(path, error))
        return FALSE;
    g_autoptr(GSocket) socket = bind_unix(path, &failure);
    if (!socket) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_IO, "%s: %s", path, failure->message);
        return FALSE;
    }
    g_ptr_array_add(server->paths, g_strdup(path));
    listen_on(server, socket);
    return TRUE;
}
