/*
 * QEMU as a child process.
 *
 *     standard error   a pipe: passed on to ours as it comes, its last lines kept for the message of a failure
 *     signals          those that the caller has blocked (SIGINT, SIGTERM, SIGHUP) are taken from a signalfd and
 *                      sent on to QEMU: a foreground QEMU behaves as if it had been started by itself
 *     end              seen by a pidfd, so that no SIGCHLD handler is needed
 *
 * No thread of its own: all of this happens in child_poll(). Once this process has ended or let go, QEMU's
 * messages have no reader any more; it ignores SIGPIPE.
 */
#include "child.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define LINES_KEPT 4

struct QemuProcess {
    pid_t pid;
    int pidfd;
    int messages; /* its standard error; -1 once it is closed */
    int signals;  /* -1 when the caller has none blocked */
    gboolean ended;
    int status;       /* of waitpid() */
    GString *line;    /* the unfinished line of its standard error */
    GPtrArray *lines; /* the last few finished ones */
};

/* ---- in the child ---- */

/* Why exec failed goes back through a pipe that a successful exec closes. */
static G_NORETURN void run_program(char *const *argv, const int *keep, guint n_keep, int messages, int failure,
                                   const sigset_t *mask) {
    dup2(messages, STDERR_FILENO);
    for (guint i = 0; i < n_keep; i++)
        fcntl(keep[i], F_SETFD, 0);
    sigprocmask(SIG_SETMASK, mask, NULL);
    signal(SIGPIPE, SIG_DFL);
    signal(SIGXFSZ, SIG_DFL);
    execvp(argv[0], argv);
    int code = errno;
    ssize_t ignored = write(failure, &code, sizeof(code));
    (void)ignored;
    _exit(127);
}

/* ---- in the parent ---- */

/* The terminal's signals reach the whole group anyway; what is only sent to us must be sent on. */
static int open_signals(void) {
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    sigset_t blocked, wanted;
    gboolean any = FALSE;
    sigemptyset(&wanted);
    pthread_sigmask(SIG_SETMASK, NULL, &blocked);
    for (guint i = 0; i < G_N_ELEMENTS(numbers); i++) {
        if (sigismember(&blocked, numbers[i]) == 1) {
            sigaddset(&wanted, numbers[i]);
            any = TRUE;
        }
    }
    return any ? signalfd(-1, &wanted, SFD_CLOEXEC | SFD_NONBLOCK) : -1;
}

static gboolean report_exec(pid_t pid, int failure, const char *program, GError **error) {
    int code = 0;
    ssize_t n = read(failure, &code, sizeof(code));
    if (n != (ssize_t)sizeof(code))
        return TRUE;
    waitpid(pid, NULL, 0);
    if (code == ENOENT)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_FOUND, "%s: no such program", program);
    else
        snap_set_errno(error, code, "%s", program);
    return FALSE;
}

static void close_pipe(int ends[2]) {
    for (int i = 0; i < 2; i++)
        if (ends[i] >= 0)
            close(ends[i]);
}

QemuProcess *child_start(char *const *argv, const int *keep, guint n_keep, GError **error) {
    int messages[2] = {-1, -1}, failure[2] = {-1, -1};
    sigset_t none;
    sigemptyset(&none);
    if (pipe2(messages, O_CLOEXEC) < 0 || pipe2(failure, O_CLOEXEC) < 0) {
        snap_set_errno(error, errno, "a pipe for %s", argv[0]);
        close_pipe(messages);
        return NULL;
    }
    pid_t pid = fork();
    if (pid == 0)
        run_program(argv, keep, n_keep, messages[1], failure[1], &none);
    int code = errno;
    close(messages[1]);
    close(failure[1]);
    gboolean ok = pid > 0 && report_exec(pid, failure[0], argv[0], error);
    close(failure[0]);
    if (!ok) {
        if (pid < 0)
            snap_set_errno(error, code, "starting %s", argv[0]);
        close(messages[0]);
        return NULL;
    }
    fcntl(messages[0], F_SETFL, O_NONBLOCK);
    QemuProcess *process = g_new0(QemuProcess, 1);
    process->pid = pid;
    process->pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    process->messages = messages[0];
    process->signals = open_signals();
    process->line = g_string_new(NULL);
    process->lines = g_ptr_array_new_with_free_func(g_free);
    return process;
}

static void keep_lines(QemuProcess *process, const char *bytes, size_t length) {
    for (size_t i = 0; i < length; i++) {
        if (bytes[i] != '\n') {
            g_string_append_c(process->line, bytes[i]);
            continue;
        }
        g_strchomp(process->line->str);
        if (process->lines->len == LINES_KEPT)
            g_ptr_array_remove_index(process->lines, 0);
        if (*process->line->str)
            g_ptr_array_add(process->lines, g_strdup(process->line->str));
        g_string_truncate(process->line, 0);
    }
}

static void pass_messages(QemuProcess *process) {
    char bytes[4096];
    while (process->messages >= 0) {
        ssize_t n = read(process->messages, bytes, sizeof(bytes));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return;
        if (n <= 0) {
            close(process->messages);
            process->messages = -1;
            return;
        }
        ssize_t ignored = write(STDERR_FILENO, bytes, (size_t)n);
        (void)ignored;
        keep_lines(process, bytes, (size_t)n);
    }
}

static void pass_signals(QemuProcess *process) {
    struct signalfd_siginfo info;
    while (process->signals >= 0 && read(process->signals, &info, sizeof(info)) == (ssize_t)sizeof(info))
        kill(process->pid, (int)info.ssi_signo);
}

gboolean child_poll(QemuProcess *process, int other_fd, int timeout_ms) {
    struct pollfd ready[] = {{.fd = process->messages, .events = POLLIN},
                             {.fd = process->signals, .events = POLLIN},
                             {.fd = process->pidfd, .events = POLLIN},
                             {.fd = other_fd, .events = POLLIN}};
    if (process->ended)
        return TRUE;
    poll(ready, G_N_ELEMENTS(ready), timeout_ms);
    pass_signals(process);
    process->ended = waitpid(process->pid, &process->status, WNOHANG) == process->pid;
    pass_messages(process);
    return process->ended;
}

/*
 * QEMU tells about one failure in several lines, from the cause ("Size mismatch: pc.ram …") to what it led to
 * ("load of migration failed: Invalid argument"). The first of those is the one to know.
 */
const char *child_last_line(const QemuProcess *process) {
    const char *found = "";
    for (guint i = process->lines->len; i > 0; i--) {
        const char *line = g_ptr_array_index(process->lines, i - 1);
        const char *colon = strstr(line, ": ");
        if (*found && (!colon || !g_str_has_prefix(found, "qemu") || !g_str_has_prefix(line, "qemu") ||
                       strstr(line, "warning:") || strstr(line, "failed to initialize module")))
            break;
        found = line;
    }
    return found;
}

int child_status(const QemuProcess *process) {
    return WIFSIGNALED(process->status) ? 128 + WTERMSIG(process->status) : WEXITSTATUS(process->status);
}

void child_kill(QemuProcess *process) {
    if (!process->ended) {
        kill(process->pid, SIGKILL);
        while (waitpid(process->pid, &process->status, 0) < 0 && errno == EINTR)
            continue;
        process->ended = TRUE;
    }
    pass_messages(process);
}

int qemu_process_pid(const QemuProcess *process) {
    return process->pid;
}

int qemu_process_wait(QemuProcess *process) {
    while (!child_poll(process, -1, -1))
        continue;
    return child_status(process);
}

void qemu_process_free(QemuProcess *process) {
    if (!process)
        return;
    if (process->pidfd >= 0)
        close(process->pidfd);
    if (process->messages >= 0)
        close(process->messages);
    if (process->signals >= 0)
        close(process->signals);
    g_string_free(process->line, TRUE);
    g_ptr_array_unref(process->lines);
    g_free(process);
}

void qemu_process_kill(QemuProcess *process) {
    child_kill(process);
}
