/*
 * A page that is given back out of a transparent huge page (MADV_DONTNEED) is missing by itself; its neighbours
 * stay, and what fills it is a base page.
 *
 * Relied on by post-copy: what was sent before the switch-over is good where it is not called missing, in huge
 * pages as well; and pages that nobody ever wrote may be there, as zeros, in a huge page: what is missing has to
 * be given back first.
 */
#include "missing.h"

int main(void) {
    size_t huge = 0;
    const size_t page = page_bytes();
    char *memory = make_thp(&huge), *from = map_anon(1), seen = 0;
    memset(from, 'n', page);
    CHECK(madvise(memory + 3 * page, page, MADV_DONTNEED) == 0);
    int fd = uffd_open(0);
    CHECK(missing_register(fd, memory, huge) == 0);
    for (size_t i = 0; i < huge; i += page)
        CHECK(i == 3 * page || memory[i] == 1);
    Task reader = {.body = task_read, .address = memory + 3 * page, .argument = &seen};
    task_start(&reader);
    missing_expect(fd, &reader, memory + 3 * page, page);
    CHECK(missing_copy(fd, memory + 3 * page, from, page, NULL) == 0);
    CHECK(task_wait(&reader, WAIT_MS));
    pthread_join(reader.thread, NULL);
    CHECK(seen == 'n' && memory[2 * page] == 1 && memory[4 * page] == 1);
    return 0;
}
