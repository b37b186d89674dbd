/*
 * A system call that touches a missing page waits for it as the program itself does, when the descriptor is a full
 * one: read(2) into it succeeds once the page has come. With UFFD_USER_MODE_ONLY it is EFAULT at once.
 *
 * Relied on by post-copy: a VMM's own I/O threads, vhost and KVM touch guest memory by the kernel.
 */
#include "missing.h"

static int source = -1;

static void task_receive(Task *task) {
    *(ssize_t *)task->argument = read(source, task->address, task->length);
}

static int open_full(void) {
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        end(77, "no userfaultfd for faults of the kernel: %s; run as root", strerror(errno));
    uffd_api(fd, 0);
    return fd;
}

int main(void) {
    const size_t page = page_bytes();
    char *memory = map_anon(2), *from = map_anon(1);
    int ends[2];
    ssize_t got = 0;
    memset(from, 'n', page);
    CHECK(pipe(ends) == 0 && write(ends[1], "abcdefgh", 8) == 8);
    source = ends[0];

    int fd = open_full();
    CHECK(missing_register(fd, memory, page) == 0);
    Task reader = {.body = task_receive, .address = memory + 16, .length = 4, .argument = &got};
    task_start(&reader);
    missing_expect(fd, &reader, memory, page);
    CHECK(missing_copy(fd, memory, from, page, NULL) == 0);
    CHECK(task_wait(&reader, WAIT_MS));
    pthread_join(reader.thread, NULL);
    CHECK(got == 4 && memcmp(memory + 15, "nabcdn", 6) == 0);

    int lesser = uffd_open(0);
    CHECK(missing_register(lesser, memory + page, page) == 0);
    CHECK(read(source, memory + page, 4) == -1 && errno == EFAULT);
    return 0;
}
