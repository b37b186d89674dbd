/*
 * Un-protecting one base page of a protected transparent huge page works and leaves the rest protected, with its
 * content: the kernel splits the mapping. Before that, PAGE_IS_WRITTEN is right for the huge page as a whole.
 *
 * Relied on by the fault thread: it un-protects what was hit, not two megabytes.
 */
#include "proof.h"

int main(void) {
    size_t huge = 0;
    char *memory = make_thp(&huge);
    const size_t page = page_bytes();
    int fd = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_UNPOPULATED);
    CHECK(uffd_register(fd, memory, huge) == 0);
    CHECK(page_is_written(memory));
    CHECK(uffd_protect(fd, memory, huge) == 0);
    CHECK(page_categories(memory, PAGE_IS_HUGE)); /* protecting does not split */
    CHECK(!page_is_written(memory) && !page_is_written(memory + huge - page));

    char *hit = memory + 7 * page;
    CHECK(write_is_caught(fd, hit, page));
    for (size_t i = 0; i < huge; i += page)
        CHECK(page_is_written(memory + i) == (memory + i == hit));
    CHECK(!page_categories(memory, PAGE_IS_HUGE));
    CHECK(*hit == 'w' && hit[1] == 1 && hit[-1] == 1 && hit[page] == 1);
    CHECK(write_is_caught(fd, hit + page, page));
    CHECK(write_is_caught(fd, memory + huge - 1, page));
    CHECK(!write_is_caught(fd, hit, page));
    return 0;
}
