/*
 * MADV_FREE: one event, before it begins. Afterwards private memory is there as it was, protected as it was; and
 * when the kernel takes it away it does so without an event, and without leaving a mark: the page is protected no
 * longer, and what is written there then is not caught. MADV_PAGEOUT makes the kernel do it at once.
 *
 * Relied on by the look at discarded pages in each round of a log (libsnap/lazy.h).
 */
#include "proof.h"

enum { TRIES = 100, TRY_US = 10000 };

static void give_free(Task *task) {
    CHECK(madvise(task->address, task->length, MADV_FREE) == 0);
}

/* The other processor may have a page in hand for a moment, and such a one is left out. */
static bool page_out(char *memory, size_t length) {
    for (int i = 0; i < TRIES; i++) {
        CHECK(madvise(memory, length, MADV_PAGEOUT) == 0);
        if (page_categories(memory, PAGE_IS_PRESENT) == 0)
            return true;
        usleep(TRY_US);
    }
    return false;
}

int main(void) {
    const size_t n = 4, length = n * page_bytes();
    char *memory = map_anon(n);
    memset(memory, 'o', length);
    int fd = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_WP_UNPOPULATED);
    CHECK(uffd_register(fd, memory, length) == 0);
    CHECK(uffd_protect(fd, memory, length) == 0);

    Task task = {.body = give_free, .address = memory, .length = length};
    task_start(&task);
    CHECK(uffd_wait(fd, WAIT_MS));
    CHECK(uffd_read(fd).event == UFFD_EVENT_REMOVE);
    CHECK(task_wait(&task, WAIT_MS));
    pthread_join(task.thread, NULL);
    CHECK(memory[0] == 'o' && !page_is_written(memory));

    if (!page_out(memory, length))
        end(77, "this kernel does not take free pages at once");
    CHECK(!uffd_wait(fd, QUIET_MS));
    CHECK(page_categories(memory, PAGE_IS_PRESENT | PAGE_IS_SWAPPED) == 0);
    CHECK(!write_is_caught(fd, memory, page_bytes()));
    CHECK(memory[page_bytes()] == 0);
    return 0;
}
