/*
 * A connection of a migration, record by record: see channel.h.
 *
 * Happy path: descriptors do not block; what can be moved is moved at once, head, body and bulk in one system call
 * where the other side takes it, and only then is poll() asked. Failure modes: a call that cannot go on returns
 * -errno from the loops here: -ECANCELED was stopped, -EPIPE is closed or cut, -ETIMEDOUT silent; these are made
 * into errors in one place.
 *
 * Invariant: between two records nothing is in flight here. A record that went out in part leaves out_broken, so
 * that no FAILED is put in the middle of it.
 */
#include "channel.h"

#include "bytes.h"
#include "deadline.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    FAILED_WAIT_MS = 1000, /* for room to say why */
    /* Of a unix socket. The default has not room for one record, so that the two sides take turns; measured on a
     * socket pair, records of 256 KiB: a tenth of the context switches. TCP chooses for itself. */
    SEND_BUFFER_BYTES = 1 << 20
};

/* ---- beginning and end ----------------------------------------------------------------------------------- */

static bool is_kind(int fd, mode_t kind) {
    struct stat about;
    return fd >= 0 && fstat(fd, &about) == 0 && (about.st_mode & S_IFMT) == kind;
}

static int prepare(int fd) {
    if (fd < 0)
        return 0;
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
        return -errno;
    struct sockaddr_storage self = {.ss_family = AF_UNSPEC};
    socklen_t length = sizeof self;
    int on = 1, send_bytes = SEND_BUFFER_BYTES;
    getsockname(fd, (struct sockaddr *)&self, &length);
    if (self.ss_family == AF_UNIX)
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &send_bytes, sizeof send_bytes);
    else
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on); /* refused where it is not TCP */
    return 0;
}

bool snap_channel_init(SnapChannel *channel, SnapWireSender self, int in, int out, uint64_t silence_ms,
                       GError **error) {
    g_assert(in >= 0 || out >= 0);
    *channel = (SnapChannel){
        .in = in,
        .out = out,
        .stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
        .self = self,
        .live = true,
        .in_is_socket = is_kind(in, S_IFSOCK),
        .out_is_socket = is_kind(out, S_IFSOCK),
        .never_silent = is_kind(in, S_IFREG) || is_kind(out, S_IFREG),
        .silence_ms = silence_ms,
        .sent_us = g_get_monotonic_time(),
        .received_us = g_get_monotonic_time(),
    };
    int rc = channel->stop_fd < 0 ? -errno : prepare(in);
    if (rc == 0 && out != in)
        rc = prepare(out);
    if (rc == 0)
        return true;
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_IO, "the connection cannot be used: %s", g_strerror(-rc));
    snap_channel_clear(channel);
    return false;
}

void snap_channel_clear(SnapChannel *channel) {
    if (!channel->live)
        return;
    channel->live = false;
    if (channel->in >= 0)
        close(channel->in);
    if (channel->out >= 0 && channel->out != channel->in)
        close(channel->out);
    if (channel->stop_fd >= 0)
        close(channel->stop_fd);
}

static void end_with(SnapChannel *channel, SnapChannelEnd end) {
    int errnum = errno; /* may be a signal handler */
    int open = SNAP_CHANNEL_OPEN, now = (int)end;
    uint64_t one = 1;
    if (end == SNAP_CHANNEL_STOPPED)
        __atomic_store_n(&channel->ended, now, __ATOMIC_RELAXED);
    else
        __atomic_compare_exchange_n(&channel->ended, &open, now, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    if (write(channel->stop_fd, &one, sizeof one) < 0)
        errno = errnum; /* it is readable already */
    errno = errnum;
}

void snap_channel_stop(SnapChannel *channel) {
    if (channel->live)
        end_with(channel, SNAP_CHANNEL_STOPPED);
}

void snap_channel_shutdown(SnapChannel *channel) {
    if (!channel->live)
        return;
    end_with(channel, SNAP_CHANNEL_CUT);
    if (channel->in_is_socket)
        shutdown(channel->in, SHUT_RDWR);
    if (channel->out_is_socket && channel->out != channel->in)
        shutdown(channel->out, SHUT_RDWR);
}

/* 0, or why nothing goes on. */
static int ended(const SnapChannel *channel) {
    switch (__atomic_load_n(&channel->ended, __ATOMIC_RELAXED)) {
    case SNAP_CHANNEL_STOPPED:
        return -ECANCELED;
    case SNAP_CHANNEL_CUT:
        return -EPIPE;
    default:
        return 0;
    }
}

/* ---- waiting --------------------------------------------------------------------------------------------- */

static int patience_ms(const SnapChannel *channel) {
    if (channel->never_silent)
        return -1;
    int ms = (int)MIN(channel->silence_ms, INT_MAX);
    return channel->until_us ? MIN(ms, snap_deadline_left_ms(channel->until_us)) : ms;
}

/* poll(), over signals. @fds[0] is stop_fd. Returns how many are ready, 0 when the time is over, or -errno. */
static int poll_until(const SnapChannel *channel, struct pollfd *fds, nfds_t n, int64_t deadline_us) {
    for (;;) {
        int rc = ended(channel);
        if (rc != 0)
            return rc;
        rc = poll(fds, n, snap_deadline_left_ms(deadline_us));
        if (rc < 0 && errno != EINTR)
            return -errno;
        if (rc >= 0 && fds[0].revents == 0)
            return rc;
    }
}

/* 0 when @fd is ready, -errno. */
static int wait_for(const SnapChannel *channel, int fd, short events, int64_t deadline_us) {
    struct pollfd fds[] = {{.fd = channel->stop_fd, .events = POLLIN}, {.fd = fd, .events = events}};
    int rc = poll_until(channel, fds, G_N_ELEMENTS(fds), deadline_us);
    return rc > 0 ? 0 : rc == 0 ? -ETIMEDOUT : rc;
}

bool snap_channel_has_input(const SnapChannel *channel) {
    struct pollfd in = {.fd = channel->in, .events = POLLIN};
    return poll(&in, 1, 0) > 0;
}

bool snap_channel_wait(SnapChannel *channel, int other_fd, int timeout_ms) {
    struct pollfd fds[] = {{.fd = channel->stop_fd, .events = POLLIN},
                           {.fd = channel->in, .events = POLLIN},
                           {.fd = other_fd, .events = POLLIN}};
    return poll_until(channel, fds, G_N_ELEMENTS(fds), snap_deadline_in(timeout_ms)) > 0 && fds[1].revents != 0;
}

/* ---- bytes ----------------------------------------------------------------------------------------------- */

/* Forget the first @bytes of what *@parts describe. */
static void advance(struct iovec **parts, int *n, size_t bytes) {
    while (*n > 0 && bytes >= (*parts)->iov_len) {
        bytes -= (*parts)->iov_len;
        (*parts)++;
        (*n)--;
    }
    if (*n > 0) {
        (*parts)->iov_base = (uint8_t *)(*parts)->iov_base + bytes;
        (*parts)->iov_len -= bytes;
    }
}

/* No SIGPIPE where nobody reads any more: it is held back, and taken away if it was not there before. */
static ssize_t write_quietly(int fd, const struct iovec *parts, int n) {
    sigset_t sigpipe, before, pending;
    sigemptyset(&sigpipe);
    sigaddset(&sigpipe, SIGPIPE);
    sigpending(&pending);
    pthread_sigmask(SIG_BLOCK, &sigpipe, &before);
    ssize_t written = writev(fd, parts, n);
    int errnum = errno;
    if (written < 0 && errnum == EPIPE && !sigismember(&pending, SIGPIPE)) {
        const struct timespec now = {0};
        sigtimedwait(&sigpipe, NULL, &now);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    errno = errnum;
    return written;
}

static ssize_t write_some(const SnapChannel *channel, struct iovec *parts, int n) {
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = (size_t)n};
    return channel->out_is_socket ? sendmsg(channel->out, &message, MSG_NOSIGNAL)
                                  : write_quietly(channel->out, parts, n);
}

static ssize_t read_some(const SnapChannel *channel, struct iovec *parts, int n) {
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = (size_t)n};
    return channel->in_is_socket ? recvmsg(channel->in, &message, 0) : readv(channel->in, parts, n);
}

static void count(uint64_t *bytes, int64_t *when_us, size_t more) {
    __atomic_store_n(bytes, *bytes + more, __ATOMIC_RELAXED); /* only this thread writes them */
    __atomic_store_n(when_us, g_get_monotonic_time(), __ATOMIC_RELAXED);
}

/* All of @parts, which are used up. Returns 0 or -errno. */
static int write_all(SnapChannel *channel, struct iovec *parts, int n) {
    int64_t deadline_us = snap_deadline_in(patience_ms(channel));
    bool begun = false;
    int rc = ended(channel);
    if (rc == 0 && channel->out_broken)
        rc = -EPIPE;
    advance(&parts, &n, 0);
    while (rc == 0 && n > 0 && (rc = ended(channel)) == 0) {
        ssize_t written = write_some(channel, parts, n);
        if (written >= 0) {
            begun = true;
            count(&channel->sent_bytes, &channel->sent_us, (size_t)written);
            advance(&parts, &n, (size_t)written);
            deadline_us = snap_deadline_in(patience_ms(channel));
        } else if (errno == EAGAIN) {
            rc = wait_for(channel, channel->out, POLLOUT, deadline_us);
        } else if (errno != EINTR) {
            rc = -errno;
        }
    }
    channel->out_broken |= rc != 0 && begun;
    return rc;
}

/* All of @parts, which are used up. @first_ms: how long to wait for the first byte. Returns 0 or -errno. */
static int read_all(SnapChannel *channel, struct iovec *parts, int n, int first_ms) {
    int64_t deadline_us = snap_deadline_in(first_ms);
    int rc = 0;
    advance(&parts, &n, 0);
    while (rc == 0 && n > 0 && (rc = ended(channel)) == 0) {
        ssize_t got = read_some(channel, parts, n);
        if (got > 0) {
            count(&channel->received_bytes, &channel->received_us, (size_t)got);
            advance(&parts, &n, (size_t)got);
            deadline_us = snap_deadline_in(patience_ms(channel));
        } else if (got == 0) {
            rc = -EPIPE;
        } else if (errno == EAGAIN) {
            rc = wait_for(channel, channel->in, POLLIN, deadline_us);
        } else if (errno != EINTR) {
            rc = -errno;
        }
    }
    return rc;
}

static bool fail(int rc, GError **error) {
    switch (-rc) {
    case ECANCELED:
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_CANCELLED, "cancelled");
        break;
    case ETIMEDOUT:
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_TIMED_OUT, "the other side is silent");
        break;
    case EPIPE:
    case ECONNRESET:
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_IO, "the connection was closed");
        break;
    default:
        snap_set_errno(error, -rc, "the connection");
    }
    return false;
}

/* ---- records --------------------------------------------------------------------------------------------- */

static uint32_t total_bytes(const struct iovec *parts, int n) {
    size_t total = 0;
    for (int i = 0; i < n; i++)
        total += parts[i].iov_len;
    g_assert(total <= UINT32_MAX);
    return (uint32_t)total;
}

bool snap_channel_send(SnapChannel *channel, SnapWireType type, uint16_t flags, const void *body,
                       uint32_t body_bytes, const struct iovec *bulk, int n_bulk, GError **error) {
    const SnapWireHead head = {
        .type = type,
        .flags = flags,
        .body_bytes = body_bytes,
        .bulk_bytes = total_bytes(bulk, n_bulk),
        .number = channel->n_sent,
    };
    uint8_t bytes[SNAP_WIRE_HEAD_BYTES];
    struct iovec parts[IOV_MAX];
    g_assert(channel->out >= 0 && n_bulk <= IOV_MAX - 2);
    snap_wire_seal(&head, body, bytes);
    parts[0] = (struct iovec){.iov_base = bytes, .iov_len = sizeof bytes};
    parts[1] = (struct iovec){.iov_base = (void *)(uintptr_t)body, .iov_len = body_bytes};
    if (n_bulk > 0)
        memcpy(parts + 2, bulk, (size_t)n_bulk * sizeof *bulk);
    int rc = write_all(channel, parts, n_bulk + 2);
    if (rc != 0)
        return fail(rc, error);
    channel->n_sent++;
    return true;
}

static bool fail_protocol(uint64_t number, SnapWireType type, const char *wrong, GError **error) {
    const char *name = snap_wire_name(type);
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_PROTOCOL, "record %" G_GUINT64_FORMAT " (%s): %s", number,
                name ? name : "unknown", wrong);
    return false;
}

bool snap_channel_receive(SnapChannel *channel, int timeout_ms, SnapWireHead *ret_head, uint8_t *ret_body,
                          GError **error) {
    const SnapWireSender other =
        channel->self == SNAP_WIRE_FROM_SOURCE ? SNAP_WIRE_FROM_DESTINATION : SNAP_WIRE_FROM_SOURCE;
    uint8_t bytes[SNAP_WIRE_HEAD_BYTES];
    SnapWireHead head;
    g_assert(channel->in >= 0);
    if (channel->bulk_due_bytes > 0)
        return fail_protocol(channel->n_received - 1, SNAP_WIRE_CHUNK, "its bulk has no place to go", error);
    struct iovec part = {.iov_base = bytes, .iov_len = sizeof bytes};
    int rc = read_all(channel, &part, 1, timeout_ms < 0 ? patience_ms(channel) : timeout_ms);
    if (rc != 0)
        return fail(rc, error);
    const char *wrong = snap_wire_open(bytes, other, channel->n_received, &head);
    if (wrong)
        return fail_protocol(channel->n_received, get16(bytes + 4), wrong, error);
    part = (struct iovec){.iov_base = ret_body, .iov_len = head.body_bytes};
    rc = read_all(channel, &part, 1, patience_ms(channel));
    if (rc != 0)
        return fail(rc, error);
    wrong = snap_wire_check(bytes, ret_body, head.body_bytes);
    if (wrong)
        return fail_protocol(channel->n_received, head.type, wrong, error);
    channel->n_received++;
    channel->bulk_due_bytes = head.bulk_bytes;
    *ret_head = head;
    return true;
}

bool snap_channel_receive_bulk(SnapChannel *channel, const struct iovec *parts, int n_parts, GError **error) {
    struct iovec left[IOV_MAX];
    g_assert(n_parts <= IOV_MAX && total_bytes(parts, n_parts) == channel->bulk_due_bytes);
    memcpy(left, parts, (size_t)n_parts * sizeof *parts);
    int rc = read_all(channel, left, n_parts, patience_ms(channel));
    if (rc != 0)
        return fail(rc, error);
    channel->bulk_due_bytes = 0;
    return true;
}

bool snap_channel_fail_as_told(const SnapWireHead *head, const uint8_t *body, GError **error) {
    g_autofree char *text = snap_wire_decode_failed(head, body);
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_REFUSED, "the other side: %s", text);
    return false;
}

bool snap_channel_expect(SnapChannel *channel, SnapWireType type, int timeout_ms, SnapWireHead *ret_head,
                         uint8_t *ret_body, GError **error) {
    int64_t deadline_us = snap_deadline_in(timeout_ms);
    do {
        if (!snap_channel_receive(channel, snap_deadline_left_ms(deadline_us), ret_head, ret_body, error))
            return false;
        if (ret_head->type == type)
            return true;
        if (ret_head->type == SNAP_WIRE_ALIVE && snap_deadline_left_ms(deadline_us) == 0)
            return fail(-ETIMEDOUT, error);
    } while (ret_head->type == SNAP_WIRE_ALIVE);
    if (ret_head->type == SNAP_WIRE_FAILED)
        return snap_channel_fail_as_told(ret_head, ret_body, error);
    g_autofree char *wrong = g_strdup_printf("%s was to come", snap_wire_name(type));
    return fail_protocol(ret_head->number, ret_head->type, wrong, error);
}

/* There is room for all of it where there is room for anything, so it is tried once, and no second record waits.
 */
void snap_channel_send_failed(SnapChannel *channel, const char *text) {
    uint8_t body[SNAP_WIRE_MAX_TEXT];
    SnapWireHead head = {.type = SNAP_WIRE_FAILED, .number = channel->n_sent};
    uint8_t bytes[SNAP_WIRE_HEAD_BYTES];
    if (!channel->live || channel->out < 0 || channel->out_broken)
        return;
    head.body_bytes = snap_wire_encode_failed(text, body);
    snap_wire_seal(&head, body, bytes);
    struct iovec parts[] = {{.iov_base = bytes, .iov_len = sizeof bytes},
                            {.iov_base = body, .iov_len = head.body_bytes}};
    wait_for(channel, channel->out, POLLOUT, snap_deadline_in(FAILED_WAIT_MS));
    if (write_some(channel, parts, G_N_ELEMENTS(parts)) > 0)
        channel->n_sent++;
    channel->out_broken = true; /* it is the last record */
}
