/* The QMP server: see server.h. */
#include "server.h"

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

struct QapiServer {
    /* set before start */
    QapiHelper *helper;
    GMainContext *context;
    void (*on_quit)(void *opaque);
    void *quit_opaque;
    GThreadPool *pool;

    /* the context's thread only */
    GPtrArray *listeners; /* of GSource */
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
    if (server->on_quit)
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

static void source_free(gpointer source) {
    g_source_destroy(source);
    g_source_unref(source);
}

QapiServer *qapi_server_new(QapiHelper *helper, GMainContext *context, void (*quit)(void *opaque), void *opaque) {
    static const QapiListener listener = {.event = on_event, .quit = on_quit};
    QapiServer *server = g_new0(QapiServer, 1);
    server->helper = helper;
    server->context = context;
    server->on_quit = quit;
    server->quit_opaque = opaque;
    server->pool = g_thread_pool_new(work, server, -1, FALSE, NULL);
    server->listeners = g_ptr_array_new_with_free_func(source_free);
    server->paths = g_ptr_array_new_with_free_func(g_free);
    server->sessions = g_ptr_array_new();
    server->rate = qapi_event_rate_new(context, &helper->lock, send_event, server);
    g_mutex_init(&server->lock);
    qapi_helper_listen(helper, &listener, server);
    return server;
}

void qapi_server_remove(QapiServer *server, QapiSession *session) {
    g_mutex_lock(&server->lock);
    gboolean ours = g_ptr_array_remove(server->sessions, session);
    g_mutex_unlock(&server->lock);
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

static gboolean on_client(GSocket *listener, GIOCondition condition, gpointer opaque) {
    (void)condition;
    QapiServer *server = opaque;
    int fd = accept4(g_socket_get_fd(listener), NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0) {
        if (errno == EMFILE || errno == ENFILE) /* it stays in the queue, and would be reported again at once */
            g_usleep(10000);
        return G_SOURCE_CONTINUE;
    }
    if (server->sessions->len >= QAPI_CLIENTS_MAX)
        close(fd);
    else
        qapi_server_add_client(server, fd, fd, NULL, NULL);
    return G_SOURCE_CONTINUE;
}

static void listen_on(QapiServer *server, GSocket *socket) {
    GSource *source = g_socket_create_source(socket, G_IO_IN, NULL);
    g_source_set_callback(source, G_SOURCE_FUNC(on_client), server, NULL);
    g_source_attach(source, server->context);
    g_ptr_array_add(server->listeners, source);
}

gboolean qapi_server_listen_fd(QapiServer *server, int fd, GError **error) {
    g_autoptr(GError) failure = NULL;
    g_autoptr(GSocket) socket = g_socket_new_from_fd(fd, &failure);
    if (!socket || g_socket_get_socket_type(socket) != G_SOCKET_TYPE_STREAM) {
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
    mode_t before = umask(0177);
    gboolean ok = g_socket_bind(socket, address, TRUE, error) && g_socket_listen(socket, error);
    umask(before);
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
