/* Where a migration stream goes: see stream-output.h. */
#include "stream-output.h"

#include "descriptors.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

enum { LOOK_MS = 100 }; /* whether to wait for a command any longer */

struct QapiStreamOutput {
    QapiOutput *file; /* file: */
    int fd;           /* fd:, exec:; -1 */
    pid_t child;      /* exec:; 0 */
    uint64_t sent_bytes;
};

/* ---- exec: ----------------------------------------------------------------------------------------------- */

static gboolean spawn(QapiStreamOutput *output, const char *command, GError **error) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0) {
        snap_set_errno(error, errno, "exec:%s", command);
        return FALSE;
    }
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none, pipe_only;
    sigemptyset(&none);
    sigemptyset(&pipe_only);
    sigaddset(&pipe_only, SIGPIPE); /* which is ignored here */
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[0], STDIN_FILENO);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &pipe_only);
    char *const argv[] = {(char *)"sh", (char *)"-c", (char *)command, NULL};
    int errnum = posix_spawn(&output->child, "/bin/sh", &actions, &attributes, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    close(ends[0]);
    output->fd = ends[1];
    if (errnum != 0) {
        output->child = 0;
        snap_set_errno(error, errnum, "exec:%s", command);
    }
    return errnum == 0;
}

/* Return: FALSE when it still runs, and @progress does not want to wait any longer. */
static gboolean wait_for_child(QapiStreamOutput *output, uint64_t total_bytes, SnapProgressFunc progress,
                               void *opaque, int *ret_status) {
    int pidfd = (int)syscall(SYS_pidfd_open, output->child, 0);
    struct pollfd ended = {.fd = pidfd, .events = POLLIN};
    pid_t pid = 0;
    while ((pid = waitpid(output->child, ret_status, WNOHANG)) == 0 || (pid < 0 && errno == EINTR)) {
        if (progress && !progress(total_bytes, total_bytes, opaque))
            break;
        poll(&ended, 1, LOOK_MS);
    }
    close(pidfd);
    if (pid > 0)
        output->child = 0;
    return pid > 0;
}

static gboolean check_status(int status, GError **error) {
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return TRUE;
    if (WIFEXITED(status))
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "the command of exec: ended with status %d",
                    WEXITSTATUS(status));
    else
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "the command of exec: was killed by signal %d",
                    WTERMSIG(status));
    return FALSE;
}

/* ---------------------------------------------------------------------------------------------------------- */

/* A reader that does not read must not keep a cancelled migration. */
static void unblock(int fd) {
    int flags = fcntl(fd, F_GETFL);
    if (flags >= 0)
        fcntl(fd, F_SETFL, flags | O_NONBLOCK);
}

static gboolean open_uri(QapiStreamOutput *output, QapiCall *call, const char *uri, GError **error) {
    if (g_str_has_prefix(uri, "exec:"))
        return spawn(output, uri + strlen("exec:"), error);
    if (g_str_has_prefix(uri, "fd:")) {
        output->fd = qapi_descriptors_take(call->descriptors, uri + strlen("fd:"), error);
        return output->fd >= 0;
    }
    if (g_str_has_prefix(uri, "file:")) {
        output->file = qapi_open_file(call->helper, uri + strlen("file:"), error);
        return output->file != NULL;
    }
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "Parameter 'uri' expects a valid migration protocol");
    return FALSE;
}

QapiStreamOutput *qapi_stream_output_open(QapiCall *call, const char *uri, GError **error) {
    QapiStreamOutput *output = g_new0(QapiStreamOutput, 1);
    output->fd = -1;
    if (open_uri(output, call, uri, error)) {
        unblock(output->fd);
        return output;
    }
    qapi_stream_output_free(output);
    return NULL;
}

int qapi_stream_output_fd(const QapiStreamOutput *output) {
    return output->file ? output->file->fd : output->fd;
}

uint64_t *qapi_stream_output_sent_bytes(QapiStreamOutput *output) {
    return &output->sent_bytes;
}

gboolean qapi_stream_output_end(QapiStreamOutput *output, uint64_t total_bytes, SnapProgressFunc progress,
                                void *opaque, GError **error) {
    int status = 0, fd = output->fd;
    output->fd = -1;
    if (fd >= 0 && close(fd) < 0) {
        snap_set_errno(error, errno, "close");
        return FALSE;
    }
    if (output->child == 0)
        return TRUE;
    if (wait_for_child(output, total_bytes, progress, opaque, &status))
        return check_status(status, error);
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_CANCELLED, "cancelled");
    return FALSE;
}

gboolean qapi_stream_output_keep(QapiStreamOutput *output, GError **error) {
    return !output->file || qapi_output_commit(output->file, error);
}

void qapi_stream_output_free(QapiStreamOutput *output) {
    if (!output)
        return;
    qapi_output_free(output->file);
    if (output->fd >= 0)
        close(output->fd);
    if (output->child > 0) {
        int status = 0;
        kill(-output->child, SIGKILL);
        wait_for_child(output, 0, NULL, NULL, &status);
    }
    g_free(output);
}
