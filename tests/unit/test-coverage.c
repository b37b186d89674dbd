/* Whether a range is mapped: as the kernel answers, and as its text says. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../libsnap/coverage.h"

enum { PAGES = 64 };

/* The same answer both ways. */
static int check(int pid, uint64_t start, uint64_t end) {
    SnapCoverage coverage;
    int answers[2];
    for (int text = 0; text < 2; text++) {
        assert_int_equal(snap_coverage_init(&coverage, pid), 0);
        coverage.as_text = text;
        answers[text] = snap_coverage_check(&coverage, start, end);
        snap_coverage_clear(&coverage);
    }
    assert_int_equal(answers[0], answers[1]);
    return answers[0];
}

static uint64_t map(size_t page) {
    void *p = mmap(NULL, PAGES * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(p != MAP_FAILED);
    return (uintptr_t)p;
}

static void one_mapping_is_covered(void **state) {
    (void)state;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    uint64_t start = map(page);
    assert_int_equal(check(getpid(), start, start + PAGES * page), 0);
    assert_int_equal(check(getpid(), start + page, start + 2 * page), 0);
    assert_int_equal(check(getpid(), start, start), 0);
    munmap((void *)start, PAGES * page);
}

/* Many mappings without a gap between them, more than one read of the text. */
static void many_mappings_are_covered(void **state) {
    (void)state;
    size_t page = (size_t)sysconf(_SC_PAGESIZE), n = 1000;
    char *p = mmap(NULL, n * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(p != MAP_FAILED);
    for (size_t i = 0; i < n; i += 2) {
        assert_int_equal(mprotect(p + i * page, page, PROT_NONE), 0);
    }
    uint64_t start = (uintptr_t)p;
    assert_int_equal(check(getpid(), start, start + n * page), 0);
    assert_int_equal(munmap(p + 700 * page, page), 0);
    assert_int_equal(check(getpid(), start, start + n * page), -ENOENT);
    assert_int_equal(check(getpid(), start, start + 700 * page), 0);
    assert_int_equal(check(getpid(), start + 701 * page, start + n * page), 0);
    munmap(p, n * page);
}

static void a_gap_anywhere_is_found(void **state) {
    (void)state;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t gaps[] = {0, 1, 30, PAGES - 1};
    for (size_t i = 0; i < sizeof gaps / sizeof *gaps; i++) {
        uint64_t start = map(page), gap = start + gaps[i] * page;
        assert_int_equal(munmap((void *)gap, page), 0);
        assert_int_equal(check(getpid(), start, start + PAGES * page), -ENOENT);
        assert_int_equal(check(getpid(), gap, gap + page), -ENOENT);
        assert_int_equal(check(getpid(), start, gap), 0);
        munmap((void *)start, PAGES * page);
    }
    assert_int_equal(check(getpid(), UINT64_C(1) << 62, (UINT64_C(1) << 62) + page), -ENOENT);
}

static void a_process_that_ended_is_gone(void **state) {
    (void)state;
    SnapCoverage coverage;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    uint64_t start = map(page);
    pid_t child = fork();
    if (child == 0) {
        pause();
        _exit(0);
    }
    assert_int_equal(snap_coverage_init(&coverage, child), 0);
    assert_int_equal(snap_coverage_check(&coverage, start, start + page), 0);
    kill(child, SIGKILL);
    assert_int_equal(waitpid(child, NULL, 0), child);
    assert_int_equal(snap_coverage_check(&coverage, start, start + page), -ESRCH);
    coverage.as_text = true;
    assert_int_equal(snap_coverage_check(&coverage, start, start + page), -ESRCH);
    snap_coverage_clear(&coverage);
    assert_true(snap_coverage_init(&coverage, child) < 0);
    snap_coverage_clear(&coverage);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_mapping_is_covered),
        cmocka_unit_test(many_mappings_are_covered),
        cmocka_unit_test(a_gap_anywhere_is_found),
        cmocka_unit_test(a_process_that_ended_is_gone),
    };
    return cmocka_run_group_tests_name("coverage", tests, NULL, NULL);
}
