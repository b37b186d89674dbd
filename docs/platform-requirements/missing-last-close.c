/*
 * The last close of a userfaultfd lets everybody who waits for a missing page go on, and shows zeros to them.
 *
 * Relied on as a danger by post-copy: a descriptor that still has missing pages is never closed while the guest
 * lives.
 */
#include "missing.h"

int main(void) {
    char *memory = map_anon(1), seen = 'x';
    int fd = uffd_open(0);
    CHECK(missing_register(fd, memory, page_bytes()) == 0);
    Task reader = {.body = task_read, .address = memory, .argument = &seen};
    task_start(&reader);
    missing_expect(fd, &reader, memory, page_bytes());
    CHECK(close(fd) == 0);
    CHECK(task_wait(&reader, WAIT_MS));
    pthread_join(reader.thread, NULL);
    CHECK(seen == 0);
    return 0;
}
