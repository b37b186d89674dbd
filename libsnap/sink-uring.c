/*
 * The io_uring sink.
 *
 * Happy path: submit fills entries up to DEPTH under way, the rest waits in a queue of ours; reap takes
 * completions and refills. Writes from the staging area use registered buffers, which spares the kernel the
 * pinning of 64 pages a write (measured on ext4: a third more throughput); each buffer is registered at its first
 * write, so that the area takes memory only as it is used.
 *
 * Failure modes: registering is refused (RLIMIT_MEMLOCK, a kernel before 5.19): plain writes. Submitting is
 * refused for want of memory: tried again while completions come in, and for at most GIVE_UP_MS, then everything
 * not begun fails with that error.
 *
 * Invariant: under_way never exceeds DEPTH, so the completion queue cannot overflow. Ring features that tie the
 * ring to the thread that made it are not used: a writer may be made in one thread and used in another.
 */
#include "sink.h"

#include <errno.h>
#include <liburing.h>
#include <string.h>

/*
 * Chunks measure alike from 8 on. Single pages do not: 5243 of them, scattered over a sparse file of 2 GiB on
 * ext4, take 70 ms with 16 under way, 62 with 64, 53 with 256 (medians of 7).
 */
#define DEPTH 256u
#define GIVE_UP_MS 1000u

typedef struct {
    SnapSink sink;
    struct io_uring ring;
    SnapSinkArea area;
    gboolean can_register;
    uint8_t *registered;    /* per buffer of the area */
    guint under_way;        /* entries the kernel has or will get */
    SnapSinkQueue waiting;  /* no entry yet */
    SnapSinkQueue prepared; /* has an entry that the kernel has not taken */
    SnapSinkQueue failed;   /* finished without the kernel */
    int broken;             /* 0 or -errno: nothing can be submitted any more */
} UringSink;

/* The registered buffer that holds all of a request's bytes, or -1. */
static int find_buffer(UringSink *self, const SnapSinkRequest *request) {
    size_t offset = (size_t)(request->data - self->area.data);
    if (!self->can_register || request->data < self->area.data ||
        offset >= self->area.buffer_bytes * self->area.n_buffers)
        return -1;
    guint buffer = (guint)(offset / self->area.buffer_bytes);
    if (self->registered[buffer])
        return (int)buffer;
    struct iovec vec = {self->area.data + buffer * self->area.buffer_bytes, self->area.buffer_bytes};
    __u64 tag = 0;
    if (io_uring_register_buffers_update_tag(&self->ring, buffer, &vec, &tag, 1) != 1) {
        self->can_register = FALSE;
        return -1;
    }
    self->registered[buffer] = 1;
    return (int)buffer;
}

static void prepare(UringSink *self, struct io_uring_sqe *entry, const SnapSinkRequest *request) {
    if (request->op == SNAP_SINK_FSYNC) {
        io_uring_prep_fsync(entry, request->fd, 0);
        return;
    }
    int buffer = find_buffer(self, request);
    if (buffer >= 0)
        io_uring_prep_write_fixed(entry, request->fd, request->data, (unsigned)request->length_bytes,
                                  request->offset, buffer);
    else
        io_uring_prep_write(entry, request->fd, request->data, (unsigned)request->length_bytes, request->offset);
}

static void fail_queue(UringSink *self, SnapSinkQueue *queue, gboolean counted) {
    for (SnapSinkRequest *request; (request = snap_sink_queue_pop(queue));) {
        request->result = self->broken;
        self->under_way -= counted ? 1u : 0u;
        snap_sink_queue_push(&self->failed, request);
    }
}

/* Fill entries from the waiting queue and hand them to the kernel; 0, or why it took none of them. */
static int pump(UringSink *self) {
    while (!self->broken && self->under_way < DEPTH && self->waiting.head) {
        struct io_uring_sqe *entry = io_uring_get_sqe(&self->ring);
        if (!entry)
            break;
        SnapSinkRequest *request = snap_sink_queue_pop(&self->waiting);
        prepare(self, entry, request);
        io_uring_sqe_set_data(entry, request);
        snap_sink_queue_push(&self->prepared, request);
        self->under_way++;
    }
    if (!self->prepared.head)
        return 0;
    int taken = io_uring_submit(&self->ring);
    for (int i = 0; i < taken; i++)
        snap_sink_queue_pop(&self->prepared);
    return taken < 0 ? taken : 0;
}

/* pump(), with patience: the kernel may be short of memory for a moment. */
static void pump_patiently(UringSink *self) {
    int result = pump(self);
    for (guint ms = 0; result < 0 && ms < GIVE_UP_MS && !io_uring_cq_ready(&self->ring); ms++) {
        g_usleep(1000);
        result = pump(self);
    }
    if (result < 0 && !io_uring_cq_ready(&self->ring)) {
        self->broken = result;
        fail_queue(self, &self->prepared, TRUE);
    }
    if (self->broken)
        fail_queue(self, &self->waiting, FALSE);
}

static void uring_submit(SnapSink *sink, SnapSinkRequest *first) {
    UringSink *self = (UringSink *)sink;
    for (SnapSinkRequest *request = first, *next = NULL; request; request = next) {
        next = request->next;
        snap_sink_queue_push(&self->waiting, request);
    }
    pump_patiently(self);
}

/* Wait for a completion until @deadline_us (monotonic; -1: without limit). FALSE: none came. */
static gboolean wait_completion(UringSink *self, gint64 deadline_us, struct io_uring_cqe **ret_cqe) {
    for (;;) {
        int result = 0;
        if (deadline_us < 0) {
            result = io_uring_wait_cqe(&self->ring, ret_cqe);
        } else {
            gint64 left_us = MAX(deadline_us - g_get_monotonic_time(), 0);
            struct __kernel_timespec limit = {left_us / G_USEC_PER_SEC, left_us % G_USEC_PER_SEC * 1000};
            result = io_uring_wait_cqe_timeout(&self->ring, ret_cqe, &limit);
        }
        if (result == 0)
            return TRUE;
        if (result != -EINTR && result != -EAGAIN)
            return FALSE;
    }
}

static SnapSinkRequest *uring_reap(SnapSink *sink, int timeout_ms) {
    UringSink *self = (UringSink *)sink;
    gint64 deadline_us =
        timeout_ms < 0 ? -1 : g_get_monotonic_time() + (gint64)timeout_ms * G_TIME_SPAN_MILLISECOND;
    for (;;) {
        SnapSinkRequest *request = snap_sink_queue_pop(&self->failed);
        if (request || self->under_way == 0)
            return request;
        struct io_uring_cqe *cqe = NULL;
        if (io_uring_peek_cqe(&self->ring, &cqe) != 0 &&
            (timeout_ms == 0 || !wait_completion(self, deadline_us, &cqe)))
            return NULL;
        request = io_uring_cqe_get_data(cqe);
        int result = cqe->res;
        io_uring_cqe_seen(&self->ring, cqe);
        self->under_way--;
        gboolean again = snap_sink_request_again(request, result);
        if (again)
            snap_sink_queue_push(&self->waiting, request);
        pump_patiently(self);
        if (!again)
            return request;
    }
}

static void uring_free(SnapSink *sink) {
    UringSink *self = (UringSink *)sink;
    struct io_uring_cqe *cqe = NULL;
    /* Leaving the ring cancels nothing that a disk already has, and the buffers go away after us. */
    fail_queue(self, &self->prepared, TRUE);
    while (self->under_way > 0 && wait_completion(self, -1, &cqe)) {
        io_uring_cqe_seen(&self->ring, cqe);
        self->under_way--;
    }
    io_uring_queue_exit(&self->ring);
    g_free(self->registered);
    g_free(self);
}

static const SnapSinkOps uring_ops = {
    .name = "io_uring",
    .submit = uring_submit,
    .reap = uring_reap,
    .free = uring_free,
};

SnapSink *snap_sink_uring_new(const SnapSinkArea *area) {
    UringSink *self = g_new0(UringSink, 1);
    if (io_uring_queue_init(DEPTH, &self->ring, 0) != 0) {
        g_free(self);
        return NULL;
    }
    self->sink.ops = &uring_ops;
    self->area = *area;
    self->registered = g_new0(uint8_t, area->n_buffers + 1);
    self->can_register =
        area->n_buffers > 0 && io_uring_register_buffers_sparse(&self->ring, area->n_buffers) == 0;
    return &self->sink;
}
