/*
 * A mapping belongs to one userfaultfd: a second register of any part is EBUSY, whatever the modes. Unregistering
 * drops all protection, and from then on everything counts as written, through registering with the other one and
 * up to arming there.
 *
 * Relied on by the switch between sync and async: what cannot be known looks dirty.
 */
#include "async.h"

static int unregister(int fd, const char *start, size_t length) {
    struct uffdio_range range = {.start = (uintptr_t)start, .len = length};
    return ioctl(fd, UFFDIO_UNREGISTER, &range) < 0 ? -errno : 0;
}

int main(void) {
    const size_t page = page_bytes(), length = 4 * page;
    char *memory = map_anon(4);
    memset(memory, 'o', length);
    int async = async_open(memory, length);
    int sync = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_UNPOPULATED);
    CHECK(uffd_register(sync, memory, length) == -EBUSY);
    CHECK(uffd_register(sync, memory + page, page) == -EBUSY);
    CHECK(async_protect(memory, length) == 0);
    CHECK(async_written(memory, length, 0) == 0);

    CHECK(unregister(async, memory, length) == 0);
    CHECK(page_is_written(memory) && page_is_written(memory + 3 * page));
    CHECK(uffd_register(sync, memory, length) == 0);
    CHECK(uffd_register(async, memory, length) == -EBUSY);
    CHECK(page_is_written(memory));
    CHECK(uffd_protect(sync, memory, length) == 0);
    CHECK(!page_is_written(memory));
    CHECK(write_is_caught(sync, memory, page));

    CHECK(unregister(sync, memory, length) == 0);
    CHECK(uffd_register(async, memory, length) == 0);
    CHECK(async_written(memory, length, ASYNC_CLEAR) == 4);
    memory[0] = 'w';
    CHECK(async_written(memory, length, 0) == 1);
    close(sync);
    close(async);
    return 0;
}
