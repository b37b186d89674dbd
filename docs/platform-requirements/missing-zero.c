/*
 * UFFDIO_ZEROPAGE puts zeros where a page is missing, in private anonymous memory and in a memfd, and answers
 * EEXIST where there is one. Who waits and is woken with nothing in place faults again.
 *
 * Relied on by post-copy: pages of zeros cost no transfer; a wake is always a safe answer.
 */
#include "missing.h"

enum { PAGES = 4 };

static void prove(char *memory, uint64_t features) {
    const size_t page = page_bytes();
    char seen = 'x';
    int fd = uffd_open(features);
    CHECK(missing_register(fd, memory, PAGES * page) == 0);

    Task reader = {.body = task_read, .address = memory, .argument = &seen};
    task_start(&reader);
    missing_expect(fd, &reader, memory, page);
    missing_wake(fd, memory, page);
    missing_expect(fd, &reader, memory, page); /* again */
    CHECK(missing_zero(fd, memory, page) == 0);
    CHECK(task_wait(&reader, WAIT_MS));
    pthread_join(reader.thread, NULL);
    CHECK(seen == 0);

    memory[0] = 'g';
    CHECK(missing_zero(fd, memory, page) == -EEXIST && memory[0] == 'g');
    CHECK(missing_zero(fd, memory + page, 3 * page) == 0);
    for (size_t i = page; i < 4 * page; i++)
        CHECK(memory[i] == 0);
    close(fd);
}

int main(void) {
    prove(map_anon(PAGES), 0);
    prove(map(PAGES * page_bytes(), MAP_SHARED, make_memfd(PAGES * page_bytes())), UFFD_FEATURE_MISSING_SHMEM);
    return 0;
}
