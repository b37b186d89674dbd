/*
 * A process that reads into buffers it has registered with io_uring: written past its page tables.
 *
 *     ring-guest FILE KIB       FILE: of pages that are filled with their number; KIB: how large its buffer is
 *
 * Says "ready ADDRESS", and does a step for each line it reads: "read N" fills the buffer with page N of the file,
 * over and over; "end". Says "done" to each.
 */
#include <fcntl.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { LINE_BYTES = 64 };
#define BALLAST_BYTES ((size_t)16 << 20) /* in front of it, so that a save comes to it last */

typedef struct {
    struct io_uring ring;
    char *buffer;
    size_t length, page;
    int file;
} Guest;

static void need(int ok, const char *what) {
    if (!ok) {
        perror(what);
        exit(2);
    }
}

static void read_page(Guest *guest, char *to, off_t from) {
    struct io_uring_cqe *done = NULL;
    io_uring_prep_read_fixed(io_uring_get_sqe(&guest->ring), guest->file, to, (unsigned)guest->page, (__u64)from,
                             0);
    need(io_uring_submit_and_wait(&guest->ring, 1) == 1, "io_uring_submit");
    need(io_uring_wait_cqe(&guest->ring, &done) == 0 && done->res == (int)guest->page, "read");
    io_uring_cqe_seen(&guest->ring, done);
}

int main(int argc, char **argv) {
    Guest guest = {.page = (size_t)sysconf(_SC_PAGESIZE)};
    need(argc == 3, "ring-guest FILE KIB");
    guest.length = (size_t)atoi(argv[2]) << 10;
    guest.file = open(argv[1], O_RDONLY | O_DIRECT | O_CLOEXEC);
    need(guest.file >= 0, argv[1]);
    char *memory =
        mmap(NULL, BALLAST_BYTES + guest.length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    need(memory != MAP_FAILED, "mmap");
    memset(memory, 1, BALLAST_BYTES + guest.length);
    guest.buffer = memory + BALLAST_BYTES;
    struct iovec buffer = {guest.buffer, guest.length};
    need(io_uring_queue_init(8, &guest.ring, 0) == 0, "io_uring_setup");
    need(io_uring_register_buffers(&guest.ring, &buffer, 1) == 0, "io_uring_register");
    printf("ready %p\n", (void *)guest.buffer);
    fflush(stdout);
    char line[LINE_BYTES];
    int number = 0;
    while (fgets(line, sizeof(line), stdin) && sscanf(line, "read %d", &number) == 1) {
        for (size_t at = 0; at < guest.length; at += guest.page) {
            read_page(&guest, guest.buffer + at, (off_t)((size_t)number * guest.page));
        }
        printf("done\n");
        fflush(stdout);
    }
    return 0;
}
