/*
 * mremap of a registered range: with EVENT_REMAP the registration and the protection go along to the new address,
 * and the event says where that is. Without the feature they are dropped, in silence.
 *
 * Relied on by the tracker, which follows the move.
 */
#include "proof.h"

static void move(Task *task) {
    CHECK(mremap(task->address, task->length, task->length, MREMAP_MAYMOVE | MREMAP_FIXED, task->argument) ==
          task->argument);
}

int main(void) {
    const size_t n = 3, length = n * page_bytes();
    for (int with_event = 0; with_event < 2; with_event++) {
        char *from = map_anon(n), *to = map_anon(n);
        memset(from, 'o', length);
        int fd = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_UNPOPULATED |
                           (with_event ? UFFD_FEATURE_EVENT_REMAP : 0u));
        CHECK(uffd_register(fd, from, length) == 0);
        CHECK(uffd_protect(fd, from, length) == 0);
        CHECK(uffd_unprotect(fd, from + page_bytes(), page_bytes()) == 0);

        Task task = {.body = move, .address = from, .length = length, .argument = to};
        task_start(&task);
        if (with_event) {
            struct uffd_msg message = uffd_read(fd);
            CHECK(message.event == UFFD_EVENT_REMAP);
            CHECK(message.arg.remap.from == (uintptr_t)from && message.arg.remap.to == (uintptr_t)to);
            CHECK(message.arg.remap.len == length);
        }
        CHECK(task_wait(&task, WAIT_MS));
        pthread_join(task.thread, NULL);

        CHECK(to[0] == 'o');
        CHECK(page_is_written(to) == !with_event);
        CHECK(page_is_written(to + page_bytes()));
        CHECK(page_is_written(to + 2 * page_bytes()) == !with_event);
        CHECK(write_is_caught(fd, to, page_bytes()) == (bool)with_event);
        CHECK((uffd_protect(fd, to, length) == 0) == (bool)with_event);
        close(fd);
    }
    return 0;
}
