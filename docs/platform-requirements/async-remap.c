/*
 * mremap(2) without EVENT_REMAP: what moved is not registered at its new place, and its old one is not mapped.
 * Growing in place keeps the registration, and the new part counts as written.
 *
 * Relied on by the async log: a region that was moved is an error, never clean.
 */
#include "async.h"

int main(void) {
    const size_t page = page_bytes(), length = 4 * page;
    char *memory = map_anon(16);
    CHECK(munmap(memory + length, 12 * page) == 0);
    memset(memory, 'o', length);
    int fd = async_open(memory, length);
    CHECK(async_protect(memory, length) == 0);
    CHECK(mremap(memory, length, 2 * length, 0) == memory);
    CHECK(async_written(memory, 2 * length, ASYNC_CLEAR) == 4);
    CHECK(async_written(memory, 2 * length, 0) == 0);

    char *to = map_anon(8);
    CHECK(mremap(memory, 2 * length, 2 * length, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
    CHECK(to[0] == 'o');
    CHECK(async_protect(to, 2 * length) == -EPERM);
    CHECK(page_is_written(to));
    close(fd);
    return 0;
}
