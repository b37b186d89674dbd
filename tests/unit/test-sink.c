/* Both kinds of sink do the same: every test runs on each that works here. */
#include "sink.h"

#include "image-fixture.h"

#include <liburing.h>
#include <limits.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>

#define BUFFER_BYTES (64u * 1024)
#define N_BUFFERS 40u /* more than are under way at once */

static SnapSinkArea area = {.buffer_bytes = BUFFER_BYTES, .n_buffers = N_BUFFERS};

static SnapSink *new_uring(void) {
    return snap_sink_uring_new(&area);
}

static SnapSink *new_pwrite(void) {
    return snap_sink_pwrite_new();
}

static SnapSink *(*const kinds[])(void) = {new_uring, new_pwrite};

static int open_new(void **state, const char *name) {
    g_autofree char *path = fix_path(state, name);
    unlink(path);
    int fd = snap_sink_open(AT_FDCWD, path, O_CREAT | O_EXCL);
    assert_true(fd >= 0);
    return fd;
}

static void expect_content(void **state, const char *name, uint64_t offset, const void *data, size_t length) {
    g_autofree char *path = fix_path(state, name);
    g_autofree uint8_t *back = g_malloc(length);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_int_equal(pread(fd, back, length, (off_t)offset), length);
    close(fd);
    assert_memory_equal(back, data, length);
}

static SnapSinkRequest write_request(int fd, const uint8_t *data, uint64_t offset, size_t length) {
    return (SnapSinkRequest){
        .op = SNAP_SINK_WRITE, .fd = fd, .data = data, .offset = offset, .length_bytes = length};
}

/* Submit one and wait for it: its result. */
static int run_one(SnapSink *sink, SnapSinkRequest request) {
    snap_sink_submit(sink, &request);
    assert_ptr_equal(snap_sink_reap(sink, -1), &request);
    assert_null(snap_sink_reap(sink, 0));
    return request.result;
}

static void write_many_all_arrive(void **state, SnapSink *sink) {
    SnapSinkRequest requests[N_BUFFERS];
    int fd = open_new(state, "many");
    for (guint i = 0; i < N_BUFFERS; i++) {
        memset(area.data + i * BUFFER_BYTES, (int)i + 1, BUFFER_BYTES);
        requests[i] = write_request(fd, area.data + i * BUFFER_BYTES, (uint64_t)(N_BUFFERS - i) * BUFFER_BYTES,
                                    BUFFER_BYTES);
        if (i > 0)
            requests[i - 1].next = &requests[i];
    }
    snap_sink_submit(sink, requests);
    for (guint i = 0; i < N_BUFFERS; i++) {
        SnapSinkRequest *done = snap_sink_reap(sink, -1);
        assert_non_null(done);
        assert_int_equal(done->result, 0);
    }
    assert_null(snap_sink_reap(sink, -1)); /* none under way: returns at once */
    close(fd);
    for (guint i = 0; i < N_BUFFERS; i++)
        expect_content(state, "many", (uint64_t)(N_BUFFERS - i) * BUFFER_BYTES, area.data + i * BUFFER_BYTES,
                       BUFFER_BYTES);
}

static void write_from_elsewhere_arrives(void **state, SnapSink *sink) {
    int fd = open_new(state, "elsewhere");
    g_autofree uint8_t *raw = g_malloc(3 * 4096);
    uint8_t *aligned = (uint8_t *)(((uintptr_t)raw + 4095) & ~(uintptr_t)4095);
    memset(aligned, 0x5A, 4096);
    assert_int_equal(run_one(sink, write_request(fd, aligned, 8192, 4096)), 0);
    close(fd);
    expect_content(state, "elsewhere", 8192, aligned, 4096);
}

/* What O_DIRECT cannot do is done without it, and the file stays without. */
static void write_unaligned_falls_back_to_buffered(void **state, SnapSink *sink) {
    int fd = open_new(state, "unaligned");
    memset(area.data, 0x33, BUFFER_BYTES);
    assert_int_equal(run_one(sink, write_request(fd, area.data + 1, 3, 1001)), 0);
    assert_int_equal(fcntl(fd, F_GETFL) & O_DIRECT, 0);
    assert_int_equal(run_one(sink, write_request(fd, area.data, 4096, 4096)), 0);
    close(fd);
    expect_content(state, "unaligned", 3, area.data, 1001);
}

static void fsync_succeeds_and_bad_descriptor_fails(void **state, SnapSink *sink) {
    int fd = open_new(state, "sync");
    assert_int_equal(run_one(sink, (SnapSinkRequest){.op = SNAP_SINK_FSYNC, .fd = fd}), 0);
    close(fd);
    assert_int_equal(run_one(sink, (SnapSinkRequest){.op = SNAP_SINK_FSYNC, .fd = -1}), -EBADF);
    assert_int_equal(run_one(sink, write_request(-1, area.data, 0, 4096)), -EBADF);
}

/* The limit cuts the first write short; its rest is refused. */
static void write_beyond_the_size_limit_is_efbig(void **state, SnapSink *sink) {
    struct rlimit old, limit;
    int fd = open_new(state, "limit");
    getrlimit(RLIMIT_FSIZE, &old);
    limit = old;
    limit.rlim_cur = 8192;
    setrlimit(RLIMIT_FSIZE, &limit);
    memset(area.data, 0x77, BUFFER_BYTES);
    int result = run_one(sink, write_request(fd, area.data, 4096, 3 * 4096));
    setrlimit(RLIMIT_FSIZE, &old);
    close(fd);
    assert_int_equal(result, -EFBIG);
    expect_content(state, "limit", 4096, area.data, 4096);
}

static void write_to_a_full_disk_is_enospc(void **state, SnapSink *sink) {
    g_autofree char *point = fix_path(state, "full");
    mkdir(point, 0700);
    if (mount("none", point, "tmpfs", 0, "size=128k") != 0) {
        print_message("no disk to fill: mounting a tmpfs: %s\n", strerror(errno));
        return;
    }
    int fd = open_new(state, "full/file"), result = 0;
    for (guint i = 0; i < N_BUFFERS && result == 0; i++)
        result = run_one(sink, write_request(fd, area.data, (uint64_t)i * BUFFER_BYTES, BUFFER_BYTES));
    close(fd);
    umount2(point, MNT_DETACH);
    assert_int_equal(result, -ENOSPC);
}

static void reap_waits_no_longer_than_asked(void **state, SnapSink *sink) {
    /* A pipe that is full keeps a write waiting for as long as we like. */
    int ends[2];
    (void)state;
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    fcntl(ends[1], F_SETPIPE_SZ, 4096);
    assert_int_equal(write(ends[1], area.data, 4096), 4096);
    /* Position -1 means "as it comes" to io_uring only; pwrite refuses a pipe, and so returns at once. */
    SnapSinkRequest request = write_request(ends[1], area.data, UINT64_MAX, 4096);
    snap_sink_submit(sink, &request);
    gint64 start = g_get_monotonic_time();
    SnapSinkRequest *done = snap_sink_reap(sink, 20);
    gint64 waited_us = g_get_monotonic_time() - start;
    assert_in_range(waited_us, 0, 2000000);
    if (!done) {
        assert_true(waited_us >= 19000);
        assert_int_equal(read(ends[0], area.data + BUFFER_BYTES, 4096), 4096);
        assert_ptr_equal(snap_sink_reap(sink, -1), &request);
    }
    close(ends[0]);
    close(ends[1]);
}

static void free_drops_what_has_not_begun(void **state, SnapSink *sink) {
    static SnapSinkRequest requests[N_BUFFERS];
    (void)sink;
    for (guint kind = 0; kind < G_N_ELEMENTS(kinds); kind++) {
        SnapSink *own = kinds[kind]();
        if (!own)
            continue;
        int fd = open_new(state, "dropped");
        for (guint i = 0; i < N_BUFFERS; i++) {
            requests[i] =
                write_request(fd, area.data + i * BUFFER_BYTES, (uint64_t)i * BUFFER_BYTES, BUFFER_BYTES);
            requests[i].next = i + 1 < N_BUFFERS ? &requests[i + 1] : NULL;
        }
        snap_sink_submit(own, requests);
        snap_sink_free(own); /* returns only when nothing reads our buffers any more */
        close(fd);
    }
}

/* ---- a kernel that has no memory for requests, for a while or for good (--wrap puts this before liburing) ----
 */

static int refusals; /* of the next submissions */

int __real_io_uring_submit(struct io_uring *ring);
int __wrap_io_uring_submit(struct io_uring *ring);
int __wrap_io_uring_submit(struct io_uring *ring) {
    if (refusals == 0)
        return __real_io_uring_submit(ring);
    refusals--;
    return -ENOMEM;
}

static void sink_uring_submit_refused_for_a_while_goes_on(void **state) {
    SnapSink *sink = new_uring();
    if (!sink)
        skip();
    refusals = 20;
    write_many_all_arrive(state, sink);
    assert_int_equal(refusals, 0);
    snap_sink_free(sink);
}

static void sink_uring_submit_refused_for_good_fails_all(void **state) {
    static SnapSinkRequest requests[N_BUFFERS];
    SnapSink *sink = new_uring();
    if (!sink)
        skip();
    int fd = open_new(state, "refused");
    for (guint i = 0; i < N_BUFFERS; i++) {
        requests[i] = write_request(fd, area.data, (uint64_t)i * BUFFER_BYTES, BUFFER_BYTES);
        requests[i].next = i + 1 < N_BUFFERS ? &requests[i + 1] : NULL;
    }
    refusals = INT_MAX;
    snap_sink_submit(sink, requests);
    for (guint i = 0; i < N_BUFFERS; i++) {
        SnapSinkRequest *done = snap_sink_reap(sink, -1);
        assert_non_null(done);
        assert_int_equal(done->result, -ENOMEM);
    }
    refusals = 0;
    assert_int_equal(run_one(sink, write_request(fd, area.data, 0, BUFFER_BYTES)), -ENOMEM);
    snap_sink_free(sink);
    close(fd);
}

typedef void (*SinkTest)(void **state, SnapSink *sink);

static void on_each_kind(void **state, SinkTest test) {
    for (guint i = 0; i < G_N_ELEMENTS(kinds); i++) {
        SnapSink *sink = kinds[i]();
        if (!sink) {
            print_message("io_uring does not work here: not tested\n");
            continue;
        }
        test(state, sink);
        snap_sink_free(sink);
    }
}

#define SINK_TEST(name)                                                                                           \
    static void sink_##name(void **state) {                                                                       \
        on_each_kind(state, name);                                                                                \
    }
SINK_TEST(write_many_all_arrive)
SINK_TEST(write_from_elsewhere_arrives)
SINK_TEST(write_unaligned_falls_back_to_buffered)
SINK_TEST(fsync_succeeds_and_bad_descriptor_fails)
SINK_TEST(write_beyond_the_size_limit_is_efbig)
SINK_TEST(write_to_a_full_disk_is_enospc)
SINK_TEST(reap_waits_no_longer_than_asked)
SINK_TEST(free_drops_what_has_not_begun)

static void sink_open_refused_direct_is_buffered(void **state) {
    (void)state;
    /* /proc takes no O_DIRECT. */
    int fd = snap_sink_open(AT_FDCWD, "/proc/self/comm", 0);
    assert_true(fd >= 0);
    assert_int_equal(fcntl(fd, F_GETFL) & O_DIRECT, 0);
    close(fd);
    assert_int_equal(snap_sink_open(AT_FDCWD, "/nonexistent/file", 0), -ENOENT);
}

static void sink_new_gives_one_that_works(void **state) {
    g_autoptr(SnapSink) sink = snap_sink_new(&area);
    write_many_all_arrive(state, sink);
}

int main(void) {
    signal(SIGXFSZ, SIG_IGN);
    area.data =
        mmap(NULL, (size_t)BUFFER_BYTES * N_BUFFERS, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    const struct CMUnitTest tests[] = {
        FIX_TEST(sink_write_many_all_arrive),
        FIX_TEST(sink_write_from_elsewhere_arrives),
        FIX_TEST(sink_write_unaligned_falls_back_to_buffered),
        FIX_TEST(sink_fsync_succeeds_and_bad_descriptor_fails),
        FIX_TEST(sink_write_beyond_the_size_limit_is_efbig),
        FIX_TEST(sink_write_to_a_full_disk_is_enospc),
        FIX_TEST(sink_reap_waits_no_longer_than_asked),
        FIX_TEST(sink_free_drops_what_has_not_begun),
        FIX_TEST(sink_uring_submit_refused_for_a_while_goes_on),
        FIX_TEST(sink_uring_submit_refused_for_good_fails_all),
        FIX_TEST(sink_open_refused_direct_is_buffered),
        FIX_TEST(sink_new_gives_one_that_works),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
