/*
 * A guest back from its image.
 *
 * Happy path: the user's QEMU is started with three descriptors more: one end of a socket that it reads the stream
 * from (-incoming fd:N), one of a socket that it speaks QMP on, and a few lines of configuration that tell it so.
 * A thread composes the stream and writes it; this thread asks for the status until the guest runs, and lets go.
 *
 * Why configuration and not -mon: a -mon in the command takes away the default monitor, which a user of -nographic
 * or -serial mon:stdio would miss. Once our end is closed, nothing of this is left but a monitor that nobody
 * speaks on.
 *
 * Failure modes: QEMU does not start, or does not take the stream (another machine, other devices, other RAM
 * sizes): it ends, and the line in which it tells the cause is ours. The image is damaged: the writer's error, and
 * QEMU is ended. It takes too long: the same. This process is killed: the stream ends early, so QEMU ends by
 * itself.
 */
#include "child.h"
#include "command-line.h"
#include "qmp.h"
#include "stream.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define POLL_MS 2 /* between two questions for the status, while nothing else happens */
#define SEND_BUFFER_BYTES (1 << 20)

/* The writer of the stream: a thread "snap-stream". */
typedef struct {
    /* set before start */
    const SnapImage *image;
    const QemuDescription *description;
    const StreamContent *contents;
    int fd;
    /* the thread's own until it is joined */
    uint64_t sent_bytes;
    GError *error;
    GThread *thread;
} Writer;

typedef struct {
    int stream[2]; /* ours, QEMU's */
    int control[2];
    int config;
    QemuProcess *process;
    Qmp *qmp;
    Writer writer;
} Restore;

static void close_fd(int *fd) {
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

/* ---- the writer ---- */

static gboolean send_all(const void *data, size_t length, void *opaque, GError **error) {
    Writer *writer = opaque;
    const char *at = data;
    while (length > 0) {
        ssize_t n = send(writer->fd, at, length, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            snap_set_errno(error, errno, "QEMU does not read the stream");
            return FALSE;
        }
        at += n;
        length -= (size_t)n;
        writer->sent_bytes += (uint64_t)n;
    }
    return TRUE;
}

static void *run_writer(void *opaque) {
    Writer *writer = opaque;
    stream_compose(writer->image, writer->description, writer->contents, send_all, writer, NULL, NULL,
                   &writer->error);
    shutdown(writer->fd, SHUT_WR);
    return NULL;
}

static void join_writer(Restore *restore) {
    Writer *writer = &restore->writer;
    if (!writer->thread)
        return;
    shutdown(writer->fd, SHUT_RDWR); /* if QEMU has not read it all, it will not */
    g_thread_join(writer->thread);
    writer->thread = NULL;
}

/* ---- start ---- */

static gboolean make_channels(Restore *restore, GError **error) {
    static const char form[] = "[chardev \"vmsnap-restore\"]\n  backend = \"socket\"\n  fd = \"%d\"\n"
                               "[mon \"vmsnap-restore\"]\n  chardev = \"vmsnap-restore\"\n  mode = \"control\"\n";
    int size = SEND_BUFFER_BYTES;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, restore->stream) < 0 ||
        socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, restore->control) < 0 ||
        (restore->config = memfd_create("vmsnap-restore", MFD_CLOEXEC)) < 0) {
        snap_set_errno(error, errno, "a channel to QEMU");
        return FALSE;
    }
    setsockopt(restore->stream[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
    g_autofree char *config = g_strdup_printf(form, restore->control[1]);
    if (pwrite(restore->config, config, strlen(config), 0) != (ssize_t)strlen(config)) {
        snap_set_errno(error, errno, "the configuration for QEMU");
        return FALSE;
    }
    return TRUE;
}

static gboolean start_qemu(Restore *restore, CommandLine *line, gboolean paused, GError **error) {
    const int keep[] = {restore->stream[1], restore->control[1], restore->config};
    g_autofree char *incoming = g_strdup_printf("fd:%d", restore->stream[1]);
    g_autofree char *config = g_strdup_printf("/proc/self/fd/%d", restore->config);
    command_line_add(line, "-incoming", incoming);
    command_line_add(line, "-readconfig", config);
    if (paused)
        command_line_add(line, "-S", NULL);
    g_ptr_array_add(line->argv, NULL);
    restore->process = child_start((char *const *)line->argv->pdata, keep, G_N_ELEMENTS(keep), error);
    close_fd(&restore->stream[1]);
    close_fd(&restore->control[1]);
    close_fd(&restore->config);
    return restore->process != NULL;
}

/* ---- until it runs ---- */

static gboolean fail_ended(Restore *restore, GError **error) {
    /* What it has written is there once it has ended. */
    child_kill(restore->process);
    const char *line = child_last_line(restore->process);
    if (*line)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "QEMU did not take the image: %s", line);
    else
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "QEMU ended with status %d before the guest ran",
                    child_status(restore->process));
    return FALSE;
}

static gboolean is_late(int64_t deadline, GError **error) {
    if (g_get_monotonic_time() < deadline)
        return FALSE;
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_TIMED_OUT, "the guest does not run yet: giving up");
    return TRUE;
}

/* Nothing to read from a process that has ended means that it ended; a QEMU that daemonizes ends and goes on. */
static gboolean wait_control(Restore *restore, int64_t deadline, GError **error) {
    for (;;) {
        char byte;
        child_poll(restore->process, restore->control[0], 100);
        ssize_t n = recv(restore->control[0], &byte, 1, MSG_PEEK | MSG_DONTWAIT);
        if (n > 0)
            return TRUE;
        if (n == 0)
            return fail_ended(restore, error);
        if (is_late(deadline, error))
            return FALSE;
    }
}

static gboolean connect_control(Restore *restore, int64_t deadline, GError **error) {
    g_autoptr(GError) why = NULL;
    if (!wait_control(restore, deadline, error))
        return FALSE;
    restore->qmp = qmp_new(restore->control[0], "the QEMU being restored", QMP_TIMEOUT_MS, &why);
    restore->control[0] = -1;
    if (!restore->qmp && g_error_matches(why, SNAP_ERROR, SNAP_ERROR_GUEST_GONE))
        return fail_ended(restore, error);
    if (!restore->qmp)
        g_propagate_error(error, g_steal_pointer(&why));
    return restore->qmp != NULL;
}

/* While it loads, QEMU may answer late: it is waited for without a limit of its own. */
static gboolean ask_status(Restore *restore, int64_t deadline, json_object **ret, GError **error) {
    g_autoptr(GError) why = NULL;
    *ret = NULL;
    gboolean ok = qmp_send(restore->qmp, "query-status", NULL, -1, &why);
    while (ok && !*ret) {
        child_poll(restore->process, qmp_fd(restore->qmp), 100);
        ok = qmp_poll(restore->qmp, 0, ret, &why);
        if (ok && !*ret && is_late(deadline, error))
            return FALSE;
    }
    if (ok)
        return TRUE;
    if (g_error_matches(why, SNAP_ERROR, SNAP_ERROR_GUEST_GONE))
        return fail_ended(restore, error);
    g_propagate_error(error, g_steal_pointer(&why));
    return FALSE;
}

static gboolean wait_loaded(Restore *restore, int64_t deadline, gboolean *ret_running, GError **error) {
    for (;;) {
        g_autoptr(json_object) status = NULL;
        if (!ask_status(restore, deadline, &status, error))
            return FALSE;
        *ret_running = qmp_get_bool(status, "running");
        if (*ret_running || !g_str_equal(qmp_get_string(status, "status"), "inmigrate"))
            return TRUE;
        child_poll(restore->process, qmp_fd(restore->qmp), POLL_MS);
    }
}

/* ---- the whole ---- */

static void clear_restore(Restore *restore) {
    join_writer(restore);
    qmp_free(restore->qmp);
    for (int i = 0; i < 2; i++) {
        close_fd(&restore->stream[i]);
        close_fd(&restore->control[i]);
    }
    close_fd(&restore->config);
    g_clear_error(&restore->writer.error);
}

static gboolean run_restore(Restore *restore, CommandLine *line, const QemuRestoreOptions *options,
                            gboolean paused, QemuRestoreStats *stats, GError **error) {
    int64_t start_us = g_get_real_time();
    int64_t deadline =
        options->timeout_ms > 0 ? g_get_monotonic_time() + options->timeout_ms * INT64_C(1000) : INT64_MAX;
    if (!make_channels(restore, error) || !start_qemu(restore, line, paused, error))
        return FALSE;
    restore->writer.fd = restore->stream[0];
    restore->writer.thread = g_thread_new("snap-stream", run_writer, &restore->writer);
    if (!connect_control(restore, deadline, error))
        return FALSE;
    stats->launch_ns = (uint64_t)MAX(g_get_real_time() - start_us, 0) * 1000;
    if (!wait_loaded(restore, deadline, &stats->running, error))
        return FALSE;
    int64_t ran_us = qmp_event_us(restore->qmp, "RESUME");
    stats->ready_ns = (uint64_t)MAX((ran_us ? ran_us : g_get_real_time()) - start_us, 0) * 1000;
    return TRUE;
}

QemuProcess *qemu_restore(const SnapImage *image, char *const *argv, const QemuRestoreOptions *options,
                          QemuRestoreStats *ret_stats, GError **error) {
    static const QemuRestoreOptions defaults;
    options = options ? options : &defaults;
    g_autoptr(QemuDescription) description = description_of_image(image, error);
    if (!description)
        return NULL;
    g_autoptr(CommandLine) line = command_line_new(argv, image, description, options->map, error);
    if (!line)
        return NULL;
    Restore restore = {.stream = {-1, -1}, .control = {-1, -1}, .config = -1};
    restore.writer.image = image;
    restore.writer.description = description;
    restore.writer.contents = line->contents;
    QemuRestoreStats stats = {0};
    GError *why = NULL;
    gboolean ok = run_restore(&restore, line, options, !description->running, &stats, &why);
    join_writer(&restore);
    /* A damaged image is the cause, a QEMU that ends for want of the rest the consequence. */
    GError *written = restore.writer.error;
    if (!ok && written && !g_error_matches(written, SNAP_ERROR, SNAP_ERROR_IO)) {
        g_clear_error(&why);
        why = g_steal_pointer(&restore.writer.error);
    }
    if (!ok) {
        if (restore.process)
            child_kill(restore.process);
        g_clear_pointer(&restore.process, qemu_process_free);
        g_propagate_error(error, why);
    }
    stats.stream_bytes = restore.writer.sent_bytes;
    stats.mapped_bytes = line->mapped_bytes;
    clear_restore(&restore);
    if (ok && ret_stats)
        *ret_stats = stats;
    return restore.process;
}
