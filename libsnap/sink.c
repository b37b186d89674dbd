/* What both kinds of sink share: opening, mending refused and short writes, queues. See sink.h. */
#include "sink.h"

#include <errno.h>
#include <fcntl.h>

SnapSink *snap_sink_new(const SnapSinkArea *area) {
    SnapSink *sink = snap_sink_uring_new(area);
    return sink ? sink : snap_sink_pwrite_new();
}

void snap_sink_submit(SnapSink *sink, SnapSinkRequest *first) {
    sink->ops->submit(sink, first);
}

SnapSinkRequest *snap_sink_reap(SnapSink *sink, int timeout_ms) {
    return sink->ops->reap(sink, timeout_ms);
}

void snap_sink_free(SnapSink *sink) {
    if (sink)
        sink->ops->free(sink);
}

int snap_sink_open(int dir_fd, const char *path, int flags) {
    int with = O_WRONLY | O_CLOEXEC | O_NOFOLLOW | flags;
    int fd = openat(dir_fd, path, with | O_DIRECT, 0600);
    /* A refused O_DIRECT may have created the file already: O_EXCL must not trip over our own. */
    if (fd < 0 && errno == EINVAL)
        fd = openat(dir_fd, path, with & ~O_EXCL, 0600);
    return fd < 0 ? -errno : fd;
}

/* TRUE when @fd had O_DIRECT and has it no longer. */
static gboolean make_buffered(int fd) {
    int flags = fcntl(fd, F_GETFL);
    return flags >= 0 && (flags & O_DIRECT) != 0 && fcntl(fd, F_SETFL, flags & ~O_DIRECT) == 0;
}

gboolean snap_sink_request_again(SnapSinkRequest *request, ssize_t result) {
    if (result == -EINTR || result == -EAGAIN)
        return TRUE;
    if (request->op == SNAP_SINK_FSYNC || result < 0) {
        gboolean refused = request->op == SNAP_SINK_WRITE && result == -EINVAL;
        if (refused && make_buffered(request->fd))
            return TRUE;
        request->result = result < 0 ? (int)result : 0;
        return FALSE;
    }
    if (result == 0 && request->length_bytes > 0) {
        request->result = -ENOSPC; /* a regular file that takes nothing more */
        return FALSE;
    }
    request->data += result;
    request->offset += (uint64_t)result;
    request->length_bytes -= (size_t)result;
    request->result = 0;
    return request->length_bytes > 0;
}

void snap_sink_queue_push(SnapSinkQueue *queue, SnapSinkRequest *request) {
    request->next = NULL;
    if (queue->tail)
        queue->tail->next = request;
    else
        queue->head = request;
    queue->tail = request;
}

SnapSinkRequest *snap_sink_queue_pop(SnapSinkQueue *queue) {
    SnapSinkRequest *request = queue->head;
    if (!request)
        return NULL;
    queue->head = request->next;
    if (!queue->head)
        queue->tail = NULL;
    request->next = NULL;
    return request;
}
