/*
 * EVENT_UNMAP is told after the fact: when the event can be read, the range is unmapped and its content gone.
 *
 * Relied on as a limit: an unsaved page of an unmapped range cannot be rescued. It is a loss, by name.
 */
#include "proof.h"

#include <sys/uio.h>

static void unmap(Task *task) {
    CHECK(munmap(task->address, task->length) == 0);
}

static bool is_mapped(char *address) {
    char byte = 0;
    struct iovec local = {.iov_base = &byte, .iov_len = 1};
    struct iovec remote = {.iov_base = address, .iov_len = 1};
    return process_vm_readv(getpid(), &local, 1, &remote, 1, 0) == 1;
}

int main(void) {
    char *memory = map_anon(2);
    memset(memory, 'o', 2 * page_bytes());
    int fd = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_EVENT_UNMAP);
    CHECK(uffd_register(fd, memory, 2 * page_bytes()) == 0);
    CHECK(is_mapped(memory));

    Task task = {.body = unmap, .address = memory, .length = page_bytes()};
    task_start(&task);
    CHECK(uffd_wait(fd, WAIT_MS));
    CHECK(!is_mapped(memory)); /* the event is not read yet */
    CHECK(is_mapped(memory + page_bytes()));
    CHECK(!task_wait(&task, QUIET_MS));

    struct uffd_msg message = uffd_read(fd);
    CHECK(message.event == UFFD_EVENT_UNMAP);
    CHECK(message.arg.remove.start == (uintptr_t)memory);
    CHECK(message.arg.remove.end == (uintptr_t)memory + page_bytes());
    CHECK(task_wait(&task, WAIT_MS));
    pthread_join(task.thread, NULL);
    return 0;
}
