/*
 * The last close of a userfaultfd un-protects and unregisters everything and lets every waiting thread go on.
 *
 * Relied on when a snapshot ends badly: kill -9 of the program that held the descriptor lets the guest run on.
 * (A copy of the descriptor that stays behind in the guest would defeat it: none is left there.)
 */
#include "proof.h"

int main(void) {
    const size_t n = 2;
    char *memory = map_anon(n);
    memset(memory, 'o', n * page_bytes());
    int fd = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP);
    CHECK(uffd_register(fd, memory, n * page_bytes()) == 0);
    CHECK(uffd_protect(fd, memory, n * page_bytes()) == 0);
    CHECK(!page_is_written(memory + page_bytes()));

    Task writer = {.body = task_write, .address = memory};
    task_start(&writer);
    CHECK(uffd_wait(fd, WAIT_MS));
    int copy = dup(fd);
    CHECK(close(fd) == 0);
    CHECK(!task_wait(&writer, QUIET_MS)); /* it was not the last one */
    CHECK(close(copy) == 0);
    CHECK(task_wait(&writer, WAIT_MS));
    pthread_join(writer.thread, NULL);
    CHECK(memory[0] == 'w');
    CHECK(page_is_written(memory + page_bytes()));

    /* Not registered any more: a range belongs to one context at a time, and another can have it now. */
    int next = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP);
    CHECK(uffd_register(next, memory, n * page_bytes()) == 0);
    int third = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP);
    CHECK(uffd_register(third, memory, n * page_bytes()) == -EBUSY);
    return 0;
}
