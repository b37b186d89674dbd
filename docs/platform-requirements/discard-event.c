/*
 * MADV_DONTNEED with EVENT_REMOVE: the content stays, and the caller waits in madvise, until the event is read.
 * Meanwhile WRITEPROTECT answers EAGAIN, before it looks at its range: an empty or unmapped range gives EAGAIN
 * too, and EINVAL or ENOENT when no event is pending. That makes a probe that changes nothing.
 *
 * Relied on by the rescue of pages that a guest discards before they were saved.
 */
#include "proof.h"

static void discard(Task *task) {
    CHECK(madvise(task->address, task->length, MADV_DONTNEED) == 0);
}

int main(void) {
    const size_t n = 4, length = n * page_bytes();
    char *memory = map_anon(n);
    char *nowhere = map_anon(1);
    memset(memory, 'o', length);
    CHECK(munmap(nowhere, page_bytes()) == 0);
    int fd = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_EVENT_REMOVE);
    CHECK(uffd_register(fd, memory, length) == 0);
    CHECK(uffd_protect(fd, memory, length) == 0);

    CHECK(uffd_unprotect(fd, memory, 0) == -EINVAL);
    CHECK(uffd_unprotect(fd, memory + 1, page_bytes()) == -EINVAL);
    CHECK(uffd_unprotect(fd, nowhere, page_bytes()) == -ENOENT);

    Task task = {.body = discard, .address = memory, .length = length};
    task_start(&task);
    CHECK(uffd_wait(fd, WAIT_MS));
    CHECK(!task_wait(&task, QUIET_MS));
    for (size_t i = 0; i < length; i++)
        CHECK(memory[i] == 'o');
    CHECK(uffd_unprotect(fd, memory, page_bytes()) == -EAGAIN);
    CHECK(uffd_unprotect(fd, memory, 0) == -EAGAIN);
    CHECK(uffd_unprotect(fd, memory + 1, page_bytes()) == -EAGAIN);
    CHECK(uffd_unprotect(fd, nowhere, page_bytes()) == -EAGAIN);

    struct uffd_msg message = uffd_read(fd);
    CHECK(message.event == UFFD_EVENT_REMOVE);
    CHECK(message.arg.remove.start == (uintptr_t)memory && message.arg.remove.end == (uintptr_t)memory + length);
    CHECK(task_wait(&task, WAIT_MS));
    pthread_join(task.thread, NULL);
    CHECK(memory[0] == 0 && memory[length - 1] == 0);
    CHECK(uffd_unprotect(fd, memory, 0) == -EINVAL);
    CHECK(uffd_unprotect(fd, memory, page_bytes()) == 0);
    return 0;
}
