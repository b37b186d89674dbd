/*
 * UFFD_FEATURE_WP_ASYNC alone: a first write goes through by itself (no message), takes the protection of its page
 * away, and shows as PAGE_IS_WRITTEN; looking changes nothing, PM_SCAN_WP_MATCHING protects again what it reports.
 * It registers every kind of mapping, those of ordinary files too, which sync mode refuses.
 *
 * Relied on by the async log altogether.
 */
#include "async.h"

static void check_kind(const char *kind, char *memory) {
    const size_t page = page_bytes(), length = 4 * page;
    printf("%s\n", kind);
    memory[0] = memory[page] = 'o';
    int fd = async_open(memory, length);
    CHECK(async_protect(memory, length) == 0);
    CHECK(async_written(memory, length, 0) == 0);
    memory[1] = 'w'; /* would never return in sync mode */
    memory[3 * page] = 'w';
    CHECK(!uffd_wait(fd, 0));
    for (int i = 0; i < 2; i++)
        CHECK(async_written(memory, length, 0) == 2);
    CHECK(async_look(memory) & PAGE_IS_WRITTEN && async_look(memory + 3 * page) & PAGE_IS_WRITTEN);
    CHECK(async_written(memory, length, ASYNC_CLEAR) == 2);
    CHECK(async_written(memory, length, ASYNC_CLEAR) == 0);
    memory[2] = 'w';
    CHECK(async_written(memory, length, ASYNC_CLEAR) == 1);
    CHECK(memory[0] == 'o' && memory[1] == 'w' && memory[3 * page] == 'w');
    close(fd);
}

static char *map_file(int flags, bool *ret_sync) {
    int file = open(".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (file < 0 || ftruncate(file, (off_t)(4 * page_bytes())) < 0)
        end(77, "no file can be made here: %s", strerror(errno));
    char *memory = map(4 * page_bytes(), flags, file);
    int fd = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP);
    *ret_sync = uffd_register(fd, memory, 4 * page_bytes()) == 0;
    close(fd);
    return memory;
}

int main(void) {
    const size_t length = 4 * page_bytes();
    bool sync = false;
    check_kind("anon", map_anon(4));
    check_kind("memfd, shared", map(length, MAP_SHARED, make_memfd(length)));
    check_kind("memfd, private", map(length, MAP_PRIVATE, make_memfd(length)));
    check_kind("file, shared", map_file(MAP_SHARED, &sync));
    printf("sync mode %s this file\n", sync ? "registers" : "refuses");
    check_kind("file, private", map_file(MAP_PRIVATE, &sync));
    return 0;
}
