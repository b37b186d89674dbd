/*
 * Sink: positioned writes and fsyncs that go on in the background.
 *
 * Two kinds behind one interface: io_uring (sink-uring.c), and a pair of threads that call pwrite(2) where
 * io_uring is switched off or filtered (sink-pwrite.c). A request belongs to the sink from submit to reap, and
 * the bytes it points to must stay. A sink is used by one thread at a time.
 *
 *     new → (submit … reap)… → free
 *
 * What the kernel may refuse is mended here, for both kinds: a short write goes on where it stopped, a file
 * system that takes O_DIRECT at open and refuses it at write gets buffered writes from then on. What remains is
 * the caller's: request->result is 0 or -errno.
 */
#pragma once

#include <glib.h>
#include <stddef.h>
#include <stdint.h>

typedef enum {
    SNAP_SINK_WRITE,
    SNAP_SINK_FSYNC,
} SnapSinkOp;

typedef struct SnapSinkRequest {
    SnapSinkOp op;
    int fd;
    const uint8_t *data; /* WRITE only, as are offset and length_bytes; all three advance with short writes */
    uint64_t offset;
    size_t length_bytes;
    void *opaque; /* the caller's */
    int result;   /* after reap: 0 or -errno */
    struct SnapSinkRequest *next;
} SnapSinkRequest;

typedef struct SnapSink SnapSink;

/* Called in the thread that uses the sink. */
typedef struct {
    const char *name;
    /* Start the requests of a list linked by ->next. Never waits for the disk. */
    void (*submit)(SnapSink *sink, SnapSinkRequest *first);
    /* A finished request; NULL when none finished within @timeout_ms (-1: no limit), or none is under way. */
    SnapSinkRequest *(*reap)(SnapSink *sink, int timeout_ms);
    /* Drop what has not begun, wait for what has, free. Dropped requests are not reported. */
    void (*free)(SnapSink *sink);
} SnapSinkOps;

struct SnapSink {
    const SnapSinkOps *ops;
};

/* The area that most writes come from, @n_buffers buffers side by side; the sink may pin it for speed. */
typedef struct {
    uint8_t *data;
    size_t buffer_bytes;
    guint n_buffers;
} SnapSinkArea;

/* io_uring where it works, otherwise threads. Never NULL. */
SnapSink *snap_sink_new(const SnapSinkArea *area);
/* NULL where io_uring does not work. */
SnapSink *snap_sink_uring_new(const SnapSinkArea *area);
SnapSink *snap_sink_pwrite_new(void);

void snap_sink_submit(SnapSink *sink, SnapSinkRequest *first);
SnapSinkRequest *snap_sink_reap(SnapSink *sink, int timeout_ms);
void snap_sink_free(SnapSink *sink); /* NULL is allowed */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SnapSink, snap_sink_free)

/*
 * Open for writing with O_DIRECT, or without where the file system refuses. @flags: O_CREAT and the like.
 * Returns a descriptor or -errno.
 */
int snap_sink_open(int dir_fd, const char *path, int flags);

/* ---- for the two kinds ----------------------------------------------------------------------------------- */

/*
 * A request's system call returned @result (bytes, or -errno). TRUE: it has been adjusted and is to be started
 * again; FALSE: it is finished, request->result is set.
 */
gboolean snap_sink_request_again(SnapSinkRequest *request, ssize_t result);

/* A first-in first-out list of requests. */
typedef struct {
    SnapSinkRequest *head;
    SnapSinkRequest *tail;
} SnapSinkQueue;

void snap_sink_queue_push(SnapSinkQueue *queue, SnapSinkRequest *request);
SnapSinkRequest *snap_sink_queue_pop(SnapSinkQueue *queue); /* NULL when empty */
