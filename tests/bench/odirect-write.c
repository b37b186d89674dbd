/*
 * The floor of writing an image: so many bytes into a new file, in order, by O_DIRECT, and fsync().
 *
 *     odirect-write FILE SIZE [DEPTH]
 *
 * 1 MiB blocks; DEPTH of them at a time by io_uring, or one by one by pwrite(2) when DEPTH is 1 (the default is
 * 16). Prints "seconds=… bytes-per-second=…", fsync() included, and removes FILE.
 * Exit status 1 when the file system does not do O_DIRECT, or the write fails.
 */
#include "floor.h"

#include <fcntl.h>
#include <liburing.h>
#include <stdbool.h>
#include <unistd.h>

#define PROGRAM "odirect-write"
#define BLOCK_BYTES (UINT64_C(1) << 20)
#define DEPTH_MAX 256u

typedef struct {
    const char *path;
    uint64_t size_bytes;
    unsigned depth;
    int fd;
    char *block; /* the same bytes again and again: the disk cannot tell */
} Job;

static void write_one_by_one(const Job *job) {
    for (uint64_t at = 0; at < job->size_bytes;) {
        uint64_t length = job->size_bytes - at < BLOCK_BYTES ? job->size_bytes - at : BLOCK_BYTES;
        ssize_t n = pwrite(job->fd, job->block, length, (off_t)at);
        if (n <= 0)
            die(PROGRAM, job->path);
        at += (uint64_t)n;
    }
}

static void reap(struct io_uring *ring, const Job *job) {
    struct io_uring_cqe *cqe;
    int result = io_uring_wait_cqe(ring, &cqe);

    if (result == 0 && cqe->res != (int)cqe->user_data)
        result = cqe->res < 0 ? cqe->res : -EIO;
    if (result < 0) {
        errno = -result;
        die(PROGRAM, job->path);
    }
    io_uring_cqe_seen(ring, cqe);
}

static void write_in_parallel(const Job *job) {
    struct io_uring ring;
    unsigned in_flight = 0;

    if ((errno = -io_uring_queue_init(job->depth, &ring, 0)) != 0)
        die(PROGRAM, "io_uring");
    for (uint64_t at = 0; at < job->size_bytes; at += BLOCK_BYTES) {
        unsigned length = (unsigned)(job->size_bytes - at < BLOCK_BYTES ? job->size_bytes - at : BLOCK_BYTES);
        struct io_uring_sqe *sqe;
        if (in_flight == job->depth) {
            reap(&ring, job);
            in_flight--;
        }
        sqe = io_uring_get_sqe(&ring);
        io_uring_prep_write(sqe, job->fd, job->block, length, at);
        io_uring_sqe_set_data64(sqe, length);
        io_uring_submit(&ring);
        in_flight++;
    }
    while (in_flight-- > 0)
        reap(&ring, job);
    io_uring_queue_exit(&ring);
}

static uint64_t run_ns(Job *job) {
    uint64_t start_ns = now_ns();

    job->fd = open(job->path, O_WRONLY | O_CREAT | O_EXCL | O_DIRECT | O_CLOEXEC, 0600);
    if (job->fd < 0)
        die(PROGRAM, job->path);
    if (job->depth > 1)
        write_in_parallel(job);
    else
        write_one_by_one(job);
    if (fsync(job->fd) < 0)
        die(PROGRAM, job->path);
    close(job->fd);
    return now_ns() - start_ns;
}

int main(int argc, char **argv) {
    Job job = {.path = argc > 1 ? argv[1] : NULL,
               .size_bytes = argc > 2 ? parse_size(argv[2]) : 0,
               .depth = argc > 3 ? (unsigned)parse_size(argv[3]) : 16};
    double seconds;

    if (argc > 4 || job.size_bytes == 0 || job.depth == 0 || job.depth > DEPTH_MAX) {
        fprintf(stderr, "usage: " PROGRAM " FILE SIZE [DEPTH 1..%u]\n", DEPTH_MAX);
        return 2;
    }
    job.block = aligned_alloc(BLOCK_BYTES, BLOCK_BYTES);
    if (!job.block)
        die(PROGRAM, "memory");
    memset(job.block, 0x5a, BLOCK_BYTES);
    seconds = (double)run_ns(&job) / (double)NS_PER_SECOND;
    printf("seconds=%.6f bytes-per-second=%.0f\n", seconds, (double)job.size_bytes / seconds);
    return unlink(job.path) < 0 ? 1 : 0;
}
