/*
 * Missing pages of private anonymous memory and of a memfd: who touches one waits until UFFDIO_COPY puts it in
 * place, and finds what was copied. A page that is there is not overwritten: EEXIST, and of a longer copy what
 * comes before it is done, which the call says (EAGAIN, and how much).
 *
 * Relied on by post-copy: a page is put in place once, whoever sends it how often.
 */
#include "missing.h"

enum { PAGES = 8 };

static void prove(char *memory, uint64_t features) {
    const size_t page = page_bytes();
    char *from = map_anon(PAGES), seen = 0;
    memset(from, 'n', PAGES * page);
    memory[5 * page] = 'o'; /* there before it is registered */
    int fd = uffd_open(features);
    CHECK(missing_register(fd, memory, PAGES * page) == 0);

    Task reader = {.body = task_read, .address = memory + page + 17, .argument = &seen};
    task_start(&reader);
    missing_expect(fd, &reader, memory + page, page);
    int64_t done = 0;
    CHECK(missing_copy(fd, memory + page, from, page, &done) == 0 && done == (int64_t)page);
    CHECK(task_wait(&reader, WAIT_MS));
    pthread_join(reader.thread, NULL);
    CHECK(seen == 'n');

    memset(memory + page, 'g', page); /* written by the guest since */
    CHECK(missing_copy(fd, memory + page, from, page, &done) == -EEXIST);
    CHECK(memory[page] == 'g' && memory[2 * page - 1] == 'g');
    CHECK(missing_copy(fd, memory + 3 * page, from, 4 * page, &done) == -EAGAIN && done == 2 * (int64_t)page);
    CHECK(memory[3 * page] == 'n' && memory[4 * page] == 'n' && memory[5 * page] == 'o');
    CHECK(missing_copy(fd, memory + 5 * page, from, page, &done) == -EEXIST);
    close(fd);
}

int main(void) {
    prove(map_anon(PAGES), 0);
    prove(map(PAGES * page_bytes(), MAP_SHARED, make_memfd(PAGES * page_bytes())), UFFD_FEATURE_MISSING_SHMEM);
    return 0;
}
