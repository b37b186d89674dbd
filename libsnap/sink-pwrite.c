/*
 * The sink for where io_uring is not to be had: two threads that call pwrite(2) and fsync(2).
 *
 * Two, so that the disk always has a request while the other thread is between two of them. Requests start in
 * the order they came; they may finish in another.
 */
#include "lock.h"
#include "sink.h"

#include <errno.h>
#include <unistd.h>

#define N_THREADS 2

typedef struct {
    SnapSink sink;
    /* set before start */
    GThread *threads[N_THREADS];
    SnapLock lock;
    SnapCond work;     /* todo has become longer, or stop is set */
    SnapCond finished; /* done has become longer */
    /* under lock */
    SnapSinkQueue todo;
    SnapSinkQueue done;
    gboolean stop;
    /* the using thread only */
    guint under_way; /* submitted and not reaped */
} PwriteSink;

static void run(SnapSinkRequest *request) {
    ssize_t result = 0;
    do {
        result = request->op == SNAP_SINK_FSYNC
                     ? fsync(request->fd)
                     : pwrite(request->fd, request->data, request->length_bytes, (off_t)request->offset);
        if (result < 0)
            result = -errno;
    } while (snap_sink_request_again(request, result));
}

static void *serve(void *opaque) {
    PwriteSink *self = opaque;
    snap_lock(&self->lock);
    while (!self->stop) {
        SnapSinkRequest *request = snap_sink_queue_pop(&self->todo);
        if (!request) {
            snap_cond_wait(&self->work, &self->lock);
            continue;
        }
        snap_unlock(&self->lock);
        run(request);
        snap_lock(&self->lock);
        snap_sink_queue_push(&self->done, request);
        snap_cond_broadcast(&self->finished);
    }
    snap_unlock(&self->lock);
    return NULL;
}

static void pwrite_submit(SnapSink *sink, SnapSinkRequest *first) {
    PwriteSink *self = (PwriteSink *)sink;
    snap_lock(&self->lock);
    for (SnapSinkRequest *request = first, *next = NULL; request; request = next) {
        next = request->next;
        snap_sink_queue_push(&self->todo, request);
        self->under_way++;
    }
    snap_cond_broadcast(&self->work);
    snap_unlock(&self->lock);
}

static SnapSinkRequest *pwrite_reap(SnapSink *sink, int timeout_ms) {
    PwriteSink *self = (PwriteSink *)sink;
    if (self->under_way == 0)
        return NULL;
    gint64 deadline = g_get_monotonic_time() + (gint64)timeout_ms * G_TIME_SPAN_MILLISECOND;
    snap_lock(&self->lock);
    SnapSinkRequest *request = NULL;
    while (!(request = snap_sink_queue_pop(&self->done)) && timeout_ms != 0) {
        if (timeout_ms < 0)
            snap_cond_wait(&self->finished, &self->lock);
        else if (!snap_cond_wait_until(&self->finished, &self->lock, deadline))
            timeout_ms = 0; /* one last look */
    }
    snap_unlock(&self->lock);
    self->under_way -= request != NULL;
    return request;
}

static void pwrite_free(SnapSink *sink) {
    PwriteSink *self = (PwriteSink *)sink;
    snap_lock(&self->lock);
    self->stop = TRUE;
    snap_cond_broadcast(&self->work);
    snap_unlock(&self->lock);
    for (int i = 0; i < N_THREADS; i++)
        g_thread_join(self->threads[i]);
    snap_lock_clear(&self->lock);
    snap_cond_clear(&self->work);
    snap_cond_clear(&self->finished);
    g_free(self);
}

static const SnapSinkOps pwrite_ops = {
    .name = "pwrite",
    .submit = pwrite_submit,
    .reap = pwrite_reap,
    .free = pwrite_free,
};

SnapSink *snap_sink_pwrite_new(void) {
    PwriteSink *self = g_new0(PwriteSink, 1);
    self->sink.ops = &pwrite_ops;
    snap_lock_init(&self->lock);
    snap_cond_init(&self->work);
    snap_cond_init(&self->finished);
    for (int i = 0; i < N_THREADS; i++)
        self->threads[i] = g_thread_new("snap-sink", serve, self);
    return &self->sink;
}
