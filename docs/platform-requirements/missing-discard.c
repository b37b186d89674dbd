/*
 * Who discards memory (MADV_DONTNEED of anonymous memory, MADV_REMOVE of a memfd) that is registered for missing
 * pages with EVENT_REMOVE waits until the event is read. Until then UFFDIO_COPY and UFFDIO_ZEROPAGE answer EAGAIN
 * and do nothing. Afterwards the page is missing again, and its next touch is a fault.
 *
 * Relied on by post-copy: what the guest discards is not put in place any more, wherever it is on its way; and
 * whoever reads faults has to read events as well, as long as anything is registered.
 */
#include "missing.h"

enum { PAGES = 4 };

static void discard_anon(Task *task) {
    CHECK(madvise(task->address, task->length, MADV_DONTNEED) == 0);
}

static void discard_shared(Task *task) {
    CHECK(madvise(task->address, task->length, MADV_REMOVE) == 0);
}

static void prove(char *memory, void (*discard)(Task *), uint64_t features) {
    const size_t page = page_bytes();
    char *from = map_anon(1), seen = 'x';
    memset(from, 'n', page);
    int fd = uffd_open(UFFD_FEATURE_EVENT_REMOVE | features);
    CHECK(missing_register(fd, memory, PAGES * page) == 0);
    CHECK(missing_copy(fd, memory + page, from, page, NULL) == 0);

    Task task = {.body = discard, .address = memory, .length = 2 * page};
    task_start(&task);
    CHECK(uffd_wait(fd, WAIT_MS));
    CHECK(!task_wait(&task, QUIET_MS));
    CHECK(memory[page] == 'n');
    CHECK(missing_copy(fd, memory, from, page, NULL) == -EAGAIN);
    CHECK(missing_zero(fd, memory + 2 * page, page) == -EAGAIN);
    struct uffd_msg message = uffd_read(fd);
    CHECK(message.event == UFFD_EVENT_REMOVE);
    CHECK(message.arg.remove.start == (uintptr_t)memory && message.arg.remove.end == (uintptr_t)memory + 2 * page);
    CHECK(task_wait(&task, WAIT_MS));
    pthread_join(task.thread, NULL);

    Task reader = {.body = task_read, .address = memory + page, .argument = &seen};
    task_start(&reader);
    missing_expect(fd, &reader, memory + page, page);
    CHECK(missing_zero(fd, memory + page, page) == 0);
    CHECK(task_wait(&reader, WAIT_MS));
    pthread_join(reader.thread, NULL);
    CHECK(seen == 0);
    close(fd);
}

int main(void) {
    prove(map_anon(PAGES), discard_anon, 0);
    prove(map(PAGES * page_bytes(), MAP_SHARED, make_memfd(PAGES * page_bytes())), discard_shared,
          UFFD_FEATURE_MISSING_SHMEM);
    return 0;
}
