/*
 * The guard process.
 *
 *     parent                       guard                                   worker (one for each injection)
 *     guard_new      ── fork ──>   waits for a message
 *     open_uffd      ── INJECT ─>  forks a worker, waits for its end  ──>  injects, sends descriptor and result
 *     on_death       ── ORDER ──>  keeps descriptor and bytes
 *     clear          ── CLEAR ──>  drops them
 *     guard_free     ── QUIT ───>  ends
 *     killed         ── EOF ────>  writes the bytes, ends
 *
 * Failure modes: the guard dies (OOM): sends fail with EPIPE, the answer to INJECT is EOF, and the operation
 * fails. The worker dies: the guard answers in its place. A thread of the target that could not be stopped stays
 * seized until the worker ends, which is why there is a worker at all: its end makes the kernel let go.
 *
 * Invariants: in guard and worker only async-signal-safe calls are made, since the parent may have had threads
 * that held any lock when it forked. Messages are handled in the order sent, and all of them before EOF.
 */
#include "guard.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "inject.h"
#include "libsnap.h"
#include "pace.h"

enum { GUARD_SOCKET = 3, LAST_WORDS_TIMEOUT_MS = 5000, ANSWER_TIMEOUT_MS = 120000 };

struct Guard {
    pid_t pid;
    int sock; /* -1 once it does not answer any more */
};

typedef enum { OP_INJECT, OP_ORDER, OP_CLEAR, OP_QUIT } GuardOp;

typedef struct {
    GuardOp op;
    union {
        InjectRequest inject;
        struct {
            size_t length;
            char bytes[GUARD_BYTES_MAX];
        } order;
    } u;
} GuardMessage;

typedef struct {
    int fd; /* -1: nothing to do */
    size_t length;
    char bytes[GUARD_BYTES_MAX];
} LastWords;

/* ---- messages with a descriptor -------------------------------------------------------------------------- */

typedef union {
    struct cmsghdr head; /* for its alignment */
    char bytes[CMSG_SPACE(sizeof(int))];
} Control;

static int send_message(int sock, const void *data, size_t length, int fd) {
    Control control = {
        .head = {.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int))}};
    struct iovec part = {(void *)(uintptr_t)data, length};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (fd >= 0) {
        memcpy(CMSG_DATA(&control.head), &fd, sizeof(fd));
        message.msg_control = control.bytes;
        message.msg_controllen = sizeof(control.bytes);
    }
    ssize_t n = 0;
    do {
        n = sendmsg(sock, &message, MSG_NOSIGNAL);
    } while (n < 0 && errno == EINTR);
    return n == (ssize_t)length ? 0 : -errno;
}

/* Bytes received, 0 at the end, or -errno; *ret_fd is -1 when none came with it. */
static ssize_t receive_message(int sock, void *data, size_t length, int *ret_fd) {
    Control control;
    struct iovec part = {data, length};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof(control.bytes)};
    ssize_t n = 0;
    *ret_fd = -1;
    do {
        n = recvmsg(sock, &message, MSG_CMSG_CLOEXEC);
    } while (n < 0 && errno == EINTR);
    if (n < 0) {
        return -errno;
    }
    const struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    if (head && head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS) {
        memcpy(ret_fd, CMSG_DATA(head), sizeof(*ret_fd));
    }
    return n;
}

/* ---- in the guard ---------------------------------------------------------------------------------------- */

static G_NORETURN void run_worker(const InjectRequest *request) {
    InjectResult result;
    Pace before; /* is not put back: this process ends */
    prctl(PR_SET_NAME, "vmsnap-inject", 0, 0, 0);
    pace_hurry(&before);
    int fd = inject_open_uffd(request, &result);
    (void)send_message(GUARD_SOCKET, &result, sizeof(result), fd);
    _exit(0); /* an undeliverable descriptor is closed here; a thread that never stopped is let go */
}

static gboolean parent_is_gone(void) {
    struct pollfd look = {.fd = GUARD_SOCKET};
    return poll(&look, 1, 0) == 1 && (look.revents & POLLHUP);
}

static void answer_injection(const InjectRequest *request) {
    int status = 0;
    if (parent_is_gone()) {
        return;
    }
    pid_t worker = _Fork();
    if (worker == 0) {
        run_worker(request);
    }
    InjectResult result = {.step = INJECT_STEP_SEIZE, .errnum = worker < 0 ? errno : EIO, .tid = request->pid};
    while (worker > 0 && waitpid(worker, &status, 0) < 0 && errno == EINTR) {
    }
    if (worker < 0 || !WIFEXITED(status)) {
        (void)send_message(GUARD_SOCKET, &result, sizeof(result), -1);
    }
}

static void drop_words(LastWords *words) {
    if (words->fd >= 0) {
        close(words->fd);
    }
    words->fd = -1;
}

static void keep_words(LastWords *words, const GuardMessage *message, int fd) {
    drop_words(words);
    words->fd = fd;
    words->length = MIN(message->u.order.length, sizeof(words->bytes));
    memcpy(words->bytes, message->u.order.bytes, words->length);
}

static void say_words(const LastWords *words) {
    size_t done = 0;
    while (words->fd >= 0 && done < words->length) {
        struct pollfd wait = {.fd = words->fd, .events = POLLOUT};
        ssize_t n = poll(&wait, 1, LAST_WORDS_TIMEOUT_MS) == 1
                        ? write(words->fd, words->bytes + done, words->length - done)
                        : -1;
        if (n <= 0) {
            return;
        }
        done += (size_t)n;
    }
}

/* Alone in its session, without any descriptor of the parent's, deaf to signals. */
static void become_guard(int sock) {
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    setsid();
    prctl(PR_SET_NAME, "vmsnap-guard", 0, 0, 0);
    if (sock != GUARD_SOCKET) {
        dup2(sock, GUARD_SOCKET);
    }
    close_range(0, GUARD_SOCKET - 1, 0);
    close_range(GUARD_SOCKET + 1, ~0u, 0);
}

static G_NORETURN void run_guard(int sock) {
    LastWords words = {.fd = -1};
    GuardMessage message;
    become_guard(sock);
    for (;;) {
        int fd = -1;
        ssize_t n = receive_message(GUARD_SOCKET, &message, sizeof(message), &fd);
        if (n <= 0) {
            say_words(&words);
            _exit(0);
        }
        switch (message.op) {
        case OP_INJECT:
            answer_injection(&message.u.inject);
            break;
        case OP_ORDER:
            keep_words(&words, &message, fd);
            break;
        case OP_CLEAR:
            drop_words(&words);
            break;
        case OP_QUIT:
            _exit(0);
        }
    }
}

/* ---- in the parent --------------------------------------------------------------------------------------- */

Guard *guard_new(GError **error) {
    int sockets[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) < 0) {
        snap_set_errno(error, errno, "cannot make a socket for the guard process");
        return NULL;
    }
    pid_t pid = fork();
    if (pid == 0) {
        run_guard(sockets[1]);
    }
    int errnum = errno;
    close(sockets[1]);
    if (pid < 0) {
        close(sockets[0]);
        snap_set_errno(error, errnum, "cannot fork the guard process");
        return NULL;
    }
    Guard *guard = g_new0(Guard, 1);
    guard->pid = pid;
    guard->sock = sockets[0];
    return guard;
}

static void hang_up(Guard *guard) {
    if (guard->sock >= 0) {
        close(guard->sock);
    }
    guard->sock = -1;
}

void guard_free(Guard *guard) {
    if (!guard) {
        return;
    }
    const GuardMessage quit = {.op = OP_QUIT};
    if (guard->sock >= 0) {
        (void)send_message(guard->sock, &quit, sizeof(quit), -1);
    }
    hang_up(guard);
    while (waitpid(guard->pid, NULL, 0) < 0 && errno == EINTR) {
    }
    g_free(guard);
}

int guard_pid(const Guard *guard) {
    return guard->pid;
}

static gboolean tell(Guard *guard, const GuardMessage *message, int fd, GError **error) {
    int r = guard->sock < 0 ? -EPIPE : send_message(guard->sock, message, sizeof(*message), fd);
    if (r < 0) {
        hang_up(guard);
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "the guard process %d is gone: %s", guard->pid,
                    g_strerror(-r));
        return FALSE;
    }
    return TRUE;
}

static gboolean receive_answer(Guard *guard, InjectResult *ret_result, int *ret_fd, GError **error) {
    struct pollfd wait = {.fd = guard->sock, .events = POLLIN};
    int ready = 0;
    do {
        ready = poll(&wait, 1, ANSWER_TIMEOUT_MS);
    } while (ready < 0 && errno == EINTR);
    ssize_t n = ready == 1 ? receive_message(guard->sock, ret_result, sizeof(*ret_result), ret_fd) : 0;
    if (n != (ssize_t)sizeof(*ret_result)) {
        hang_up(guard);
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "the guard process %d gave no answer", guard->pid);
        return FALSE;
    }
    return TRUE;
}

int guard_open_uffd(Guard *guard, int pid, GError **error) {
    GuardMessage message = {.op = OP_INJECT};
    InjectResult result;
    int fd = -1;
    if (!inject_prepare(pid, &message.u.inject, error) || !tell(guard, &message, -1, error) ||
        !receive_answer(guard, &result, &fd, error)) {
        return -1;
    }
    if (result.step != INJECT_STEP_DONE) {
        inject_set_error(error, pid, &result);
        return -1;
    }
    return fd;
}

gboolean guard_on_death(Guard *guard, int fd, const void *bytes, size_t length_bytes, GError **error) {
    g_assert(length_bytes <= GUARD_BYTES_MAX && fd >= 0);
    GuardMessage message = {.op = OP_ORDER, .u.order.length = length_bytes};
    memcpy(message.u.order.bytes, bytes, length_bytes);
    return tell(guard, &message, fd, error);
}

void guard_clear_on_death(Guard *guard) {
    const GuardMessage message = {.op = OP_CLEAR};
    (void)tell(guard, &message, -1, NULL);
}
