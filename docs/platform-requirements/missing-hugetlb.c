/*
 * Missing pages of hugetlb are whole huge pages: who touches any byte of one waits for all of it, a copy of a part
 * is EINVAL, and so is UFFDIO_ZEROPAGE. What was punched out is missing again.
 *
 * Relied on as a limit by post-copy: pages of a huge page are collected before they are put in place, and zeros
 * are a copy of zeros.
 */
#include "missing.h"

int main(void) {
    size_t huge = 0;
    int memfd = -1;
    char seen = 0;
    char *memory = map_hugetlb(2, MAP_SHARED, &huge, &memfd);
    memory[0] = memory[huge] = 'o';
    char *from = map(huge, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    memset(from, 'n', huge);
    CHECK(madvise(memory, huge, MADV_REMOVE) == 0);
    int fd = uffd_open(UFFD_FEATURE_MISSING_HUGETLBFS);
    CHECK(missing_register(fd, memory, 2 * huge) == 0);

    Task reader = {.body = task_read, .address = memory + huge - 1, .argument = &seen};
    task_start(&reader);
    missing_expect(fd, &reader, memory, huge);
    CHECK(missing_copy(fd, memory, from, page_bytes(), NULL) == -EINVAL);
    CHECK(missing_zero(fd, memory, huge) == -EINVAL);
    CHECK(!task_wait(&reader, QUIET_MS));
    CHECK(missing_copy(fd, memory, from, huge, NULL) == 0);
    CHECK(task_wait(&reader, WAIT_MS));
    pthread_join(reader.thread, NULL);
    CHECK(seen == 'n');
    CHECK(missing_copy(fd, memory, from, huge, NULL) == -EEXIST);
    CHECK(missing_copy(fd, memory + huge, from, huge, NULL) == -EEXIST && memory[huge] == 'o');
    return 0;
}
