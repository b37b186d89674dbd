/*
 * What MADV_DONTNEED leaves of a protected page. Of private anonymous memory nothing: it counts as written.
 * Everywhere else a marker, which counts as clean, and so does the page that is read in after that: of a private
 * mapping of a file it is the file's page (PAGE_IS_FILE), where the guest's own copy was not. A page that was
 * written first leaves nothing behind and counts as written.
 *
 * Relied on as a limit, and to watch for drops: "was there, and is not" is what tells.
 */
#include "async.h"

static void check_kind(const char *kind, char *memory, bool marker, bool own) {
    const size_t page = page_bytes();
    const uint64_t here = PAGE_IS_PRESENT | PAGE_IS_SWAPPED | PAGE_IS_WRITTEN;
    printf("%s\n", kind);
    memset(memory, 'o', 3 * page);
    int fd = async_open(memory, 3 * page);
    CHECK(async_protect(memory, 3 * page) == 0);
    memory[page] = 'w';
    CHECK((async_look(memory) & here) == PAGE_IS_PRESENT);
    CHECK(!own || !(async_look(memory) & PAGE_IS_FILE));
    CHECK(madvise(memory, 3 * page, MADV_DONTNEED) == 0);
    CHECK((async_look(memory) & here) == (marker ? PAGE_IS_SWAPPED : PAGE_IS_WRITTEN));
    CHECK((async_look(memory + page) & here) == PAGE_IS_WRITTEN);
    CHECK(*(volatile char *)memory == (marker && !own ? 'o' : 0));
    if (marker)
        CHECK((async_look(memory) & here) == PAGE_IS_PRESENT);
    if (own)
        CHECK(async_look(memory) & PAGE_IS_FILE);
    close(fd);
}

int main(void) {
    const size_t length = 3 * page_bytes();
    check_kind("anon", map_anon(3), false, false);
    check_kind("memfd, shared", map(length, MAP_SHARED, make_memfd(length)), true, false);
    check_kind("memfd, private", map(length, MAP_PRIVATE, make_memfd(length)), true, true);
    return 0;
}
