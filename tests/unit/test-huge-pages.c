/* What the kernel may make of a mapping. MADV_COLLAPSE does at once what khugepaged does at its leisure. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "huge-pages.h"

#include <sys/mman.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* Linux 6.1 */
#endif

enum { HUGE = 2 << 20 };

static char *map_huge_range(void) {
    char *memory = mmap(NULL, 2 * HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(memory, MAP_FAILED);
    return (char *)(((uintptr_t)memory + HUGE - 1) / HUGE * HUGE);
}

static bool is_filled(char *memory) {
    return madvise(memory, HUGE, MADV_COLLAPSE) == 0;
}

static void forbidden_range_keeps_its_holes(void **state) {
    (void)state;
    char *memory = map_huge_range();
    uintptr_t address = (uintptr_t)memory;
    if (madvise(memory, HUGE, MADV_HUGEPAGE) < 0) {
        print_message("skip: this kernel has no transparent huge pages\n");
        skip();
    }
    assert_true(snap_huge_pages_may_be_made(address));
    assert_int_equal(snap_huge_pages_allow(address, HUGE, false), 0);
    assert_false(snap_huge_pages_may_be_made(address));
    memory[0] = 1;
    assert_false(is_filled(memory));
    assert_int_equal(snap_huge_pages_allow(address, HUGE, true), 0);
    assert_true(snap_huge_pages_may_be_made(address));
    assert_true(is_filled(memory));
    munmap(memory, HUGE);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forbidden_range_keeps_its_holes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
