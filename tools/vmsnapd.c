/*
 * vmsnapd: the helper. A QMP server for guests that are not its children.
 *
 * Happy path: options; a socket, one that systemd has passed, or standard input and output; then the main loop, in
 * whose thread all input is read, until SIGTERM, SIGINT, the command quit, or the end of standard input.
 *
 * At the end saves are cancelled, which removes what they made, and guests run on. When it is killed instead, each
 * guest's guard process lets it run on; sockets that are left behind are replaced by the next helper.
 */
#include "libsnap.h"
#include "qapi/incoming.h"
#include "qapi/scratch-image.h"
#include "qapi/server.h"

#include <errno.h>
#include <fcntl.h>
#include <glib-unix.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

enum { STATUS_DONE = 0, STATUS_FAILED = 1, STATUS_USAGE = 2 };

enum { FIRST_PASSED_FD = 3 }; /* of sd_listen_fds(3) */

typedef struct {
    char **qmp; /* addresses */
    char *snapshot_dir;
    char *handoff;
    char *incoming;
    int incoming_keep;
    gboolean version;
} Options;

typedef struct {
    GMainLoop *loop;
    QapiHelper *helper;
    QapiServer *server;
    const char *reason; /* of the SHUTDOWN event */
} Daemon;

static int complain(int status, const char *format, ...) G_GNUC_PRINTF(2, 3);
static int complain(int status, const char *format, ...) {
    va_list args;
    va_start(args, format);
    g_autofree char *text = g_strdup_vprintf(format, args);
    va_end(args);
    fprintf(stderr, "vmsnapd: %s%s\n", text, status == STATUS_USAGE ? " (see vmsnapd --help)" : "");
    return status;
}

/* ---- the end --------------------------------------------------------------------------------------------- */

static gboolean end_by_signal(gpointer opaque) {
    Daemon *daemon = opaque;
    daemon->reason = "host-signal";
    g_main_loop_quit(daemon->loop);
    return G_SOURCE_CONTINUE;
}

static gboolean quit_loop(gpointer opaque) {
    Daemon *daemon = opaque;
    daemon->reason = "host-qmp-quit";
    g_main_loop_quit(daemon->loop);
    return G_SOURCE_REMOVE;
}

/* In any thread. */
static void on_quit(void *opaque) {
    g_idle_add_full(G_PRIORITY_LOW, quit_loop, opaque, NULL);
}

/* Whoever spoke through a pipe has gone: nobody will come after it. */
static void on_stdio_end(void *opaque) {
    Daemon *daemon = opaque;
    g_main_loop_quit(daemon->loop);
}

static void announce_end(Daemon *daemon) {
    if (!daemon->reason)
        return;
    json_object *data = json_object_new_object();
    qapi_json_add_bool(data, "guest", FALSE);
    qapi_json_add_string(data, "reason", daemon->reason);
    qapi_emit(daemon->helper, "SHUTDOWN", data);
}

/* ---- where clients come from ----------------------------------------------------------------------------- */

/*
 * Programs that a client has started (a restored QEMU, exec:) must not speak in the place of the server.
 */
static gboolean serve_stdio(Daemon *daemon, GError **error) {
    int in_fd = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, FIRST_PASSED_FD);
    int out_fd = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, FIRST_PASSED_FD);
    int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (in_fd < 0 || out_fd < 0 || null_fd < 0 || dup2(null_fd, STDIN_FILENO) < 0 ||
        dup2(STDERR_FILENO, STDOUT_FILENO) < 0) {
        snap_set_errno(error, errno, "standard input and output");
        return FALSE;
    }
    close(null_fd);
    qapi_server_add_client(daemon->server, in_fd, out_fd, on_stdio_end, daemon);
    return TRUE;
}

static gboolean serve(Daemon *daemon, const char *address, GError **error) {
    if (g_str_equal(address, "stdio"))
        return serve_stdio(daemon, error);
    if (g_str_has_prefix(address, "unix:") && address[strlen("unix:")])
        return qapi_server_listen(daemon->server, address + strlen("unix:"), error);
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_USAGE, "--qmp %s: unix:PATH or stdio", address);
    return FALSE;
}

/* Sockets that systemd has opened for us, by sd_listen_fds(3). Return: how many there are. */
static guint passed_sockets(void) {
    guint64 pid = 0, n = 0;
    const char *for_pid = g_getenv("LISTEN_PID"), *fds = g_getenv("LISTEN_FDS");
    gboolean ours = for_pid && fds && g_ascii_string_to_unsigned(for_pid, 10, 1, G_MAXINT, &pid, NULL) &&
                    pid == (guint64)getpid() && g_ascii_string_to_unsigned(fds, 10, 1, 64, &n, NULL);
    g_unsetenv("LISTEN_PID");
    g_unsetenv("LISTEN_FDS");
    g_unsetenv("LISTEN_FDNAMES");
    return ours ? (guint)n : 0;
}

static gboolean open_all(Daemon *daemon, const Options *options, guint n_passed, GError **error) {
    for (guint i = 0; i < n_passed; i++) {
        int fd = FIRST_PASSED_FD + (int)i;
        fcntl(fd, F_SETFD, FD_CLOEXEC);
        if (!qapi_server_listen_fd(daemon->server, fd, error))
            return FALSE;
    }
    for (char **address = options->qmp; address && *address; address++)
        if (!serve(daemon, *address, error))
            return FALSE;
    return !options->incoming ||
           qapi_incoming_into_images(daemon->helper, options->incoming, (guint)options->incoming_keep, error);
}

/* ---- options --------------------------------------------------------------------------------------------- */

static gboolean parse(int argc, char **argv, Options *options, int *ret_status) {
    const GOptionEntry entries[] = {
        {"qmp", 0, 0, G_OPTION_ARG_FILENAME_ARRAY, &options->qmp,
         "Speak QMP to clients at a socket that is made there, or to one at standard input and output; may be "
         "given "
         "several times",
         "unix:PATH|stdio"},
        {"snapshot-dir", 0, 0, G_OPTION_ARG_FILENAME, &options->snapshot_dir,
         "Where relative paths of clients begin (the current directory)", "DIR"},
        {"handoff", 0, G_OPTION_FLAG_HIDDEN, G_OPTION_ARG_FILENAME, &options->handoff, NULL, NULL},
        {"incoming", 0, 0, G_OPTION_ARG_FILENAME, &options->incoming,
         "Take replications in there, one after another, each as images in a folder DIR/incoming-NUMBER",
         "unix:PATH|tcp:HOST:PORT|..."},
        {"incoming-keep", 0, 0, G_OPTION_ARG_INT, &options->incoming_keep,
         "Keep so many images of each; what is older is merged into the oldest (all)", "N"},
        {"version", 0, 0, G_OPTION_ARG_NONE, &options->version, "Show the version", NULL},
        G_OPTION_ENTRY_NULL,
    };
    g_autoptr(GOptionContext) context = g_option_context_new(NULL);
    g_option_context_add_main_entries(context, entries, NULL);
    g_option_context_set_summary(context, "The helper of vmsnap: snapshots of running guests, by QMP.");
    g_option_context_set_description(
        context, "It speaks as QEMU does; docs/qmp-reference.md has all commands. A first walk:\n"
                 "  vmsnapd --qmp unix:/run/vmsnap.sock &\n"
                 "  vmsnap --connect /run/vmsnap.sock save --pid PID /var/tmp/snap\n"
                 "  vmsnap --connect /run/vmsnap.sock top\n\n"
                 "Sockets of systemd (LISTEN_FDS) are served as well. Exit status: 0 ended as asked, 1 failed,\n"
                 "2 wrong usage.");
    g_autoptr(GError) error = NULL;
    *ret_status = STATUS_DONE;
    if (!g_option_context_parse(context, &argc, &argv, &error))
        *ret_status = complain(STATUS_USAGE, "%s", error->message);
    else if (argc > 1)
        *ret_status = complain(STATUS_USAGE, "what is '%s' for?", argv[1]);
    else if (options->incoming_keep < 0 || (options->incoming_keep && !options->incoming))
        *ret_status = complain(STATUS_USAGE, "--incoming-keep: a number of images, with --incoming");
    else if (options->handoff)
        *ret_status = complain(STATUS_USAGE, "--handoff: not built yet");
    else if (options->version)
        puts("vmsnapd " VMSNAP_VERSION);
    else
        return TRUE;
    return FALSE;
}

/* A guest has a descriptor for each shared region. */
static void raise_descriptor_limit(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static int run(const Options *options) {
    guint n_passed = passed_sockets();
    if (!options->qmp && n_passed == 0)
        return complain(STATUS_USAGE, "--qmp is missing: where are clients to come from?");
    if (options->snapshot_dir && !g_file_test(options->snapshot_dir, G_FILE_TEST_IS_DIR))
        return complain(STATUS_FAILED, "--snapshot-dir %s: no such directory", options->snapshot_dir);
    Daemon daemon = {.loop = g_main_loop_new(NULL, FALSE)};
    daemon.helper = qapi_helper_new(options->snapshot_dir ? options->snapshot_dir : ".");
    qapi_scratch_clean(daemon.helper);
    daemon.server = qapi_server_new(daemon.helper, NULL, on_quit, &daemon);
    guint sigterm = g_unix_signal_add(SIGTERM, end_by_signal, &daemon);
    guint sigint = g_unix_signal_add(SIGINT, end_by_signal, &daemon);
    g_autoptr(GError) error = NULL;
    int status = STATUS_DONE;
    if (open_all(&daemon, options, n_passed, &error))
        g_main_loop_run(daemon.loop);
    else
        status = complain(g_error_matches(error, SNAP_ERROR, SNAP_ERROR_USAGE) ? STATUS_USAGE : STATUS_FAILED,
                          "%s", error->message);
    announce_end(&daemon);
    qapi_server_free(daemon.server);
    qapi_helper_free(daemon.helper);
    g_source_remove(sigterm);
    g_source_remove(sigint);
    g_main_loop_unref(daemon.loop);
    return status;
}

int main(int argc, char **argv) {
    raise_descriptor_limit();
    /* A reader that goes away and a file that may not grow are errors like others, with a guest to be released. */
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    g_set_prgname("vmsnapd");
    Options options = {0};
    int status = STATUS_DONE;
    if (parse(argc, argv, &options, &status))
        status = run(&options);
    g_strfreev(options.qmp);
    g_free(options.snapshot_dir);
    g_free(options.handoff);
    g_free(options.incoming);
    return status;
}
