/* The async log of another process, and what it says when that process dies; and ranges of many terabytes. */
#include "async-rig.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../libsnap/uffd.h"

enum { AREA_BYTES = 8 << 20 };

/* A process with a copy of our address space that does what it is told, a command at a time. */
typedef struct {
    Rig *rig;
    pid_t pid;
    int to;   /* it reads: a page to write, or -1 to open a userfaultfd */
    int from; /* it answers */
} Guest;

static void serve(const Rig *rig, int in, int out) {
    long command;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    while (read(in, &command, sizeof command) == sizeof command) {
        long answer = 0;
        if (command >= 0) {
            rig_write(rig, (size_t)command);
        } else {
            answer = snap_uffd_open();
        }
        if (write(out, &answer, sizeof answer) != sizeof answer) {
            break;
        }
    }
    _exit(0);
}

static long tell(const Guest *guest, long command) {
    long answer = -EIO;
    assert_int_equal(write(guest->to, &command, sizeof command), sizeof command);
    assert_int_equal(read(guest->from, &answer, sizeof answer), sizeof answer);
    return answer;
}

static void start_guest(Guest *guest, Rig *rig) {
    int in[2], out[2];
    assert_int_equal(pipe2(in, O_CLOEXEC), 0);
    assert_int_equal(pipe2(out, O_CLOEXEC), 0);
    *guest = (Guest){rig, fork(), in[1], out[0]};
    assert_true(guest->pid >= 0);
    if (guest->pid == 0) {
        close(in[1]);
        serve(rig, in[0], out[1]);
    }
    close(in[0]);
    close(out[1]);
}

static void end_guest(Guest *guest) {
    if (guest->pid > 0) {
        kill(guest->pid, SIGKILL);
        waitpid(guest->pid, NULL, 0);
    }
    guest->pid = -1;
}

static void clear_guest(Guest *guest) {
    end_guest(guest);
    close(guest->to);
    close(guest->from);
}

/* A descriptor of its address space, as an injected system call would make it. */
static int take_uffd(const Guest *guest) {
    int pidfd = (int)syscall(SYS_pidfd_open, guest->pid, 0);
    int uffd = (int)syscall(SYS_pidfd_getfd, pidfd, (int)tell(guest, -1), 0);
    assert_true(pidfd >= 0 && uffd >= 0);
    close(pidfd);
    return uffd;
}

static void log_guest(Guest *guest) {
    Rig *rig = guest->rig;
    assert_int_equal(snap_async_init(&rig->async, guest->pid, take_uffd(guest)), 0);
    rig_make_area(rig);
    assert_int_equal(snap_async_register(&rig->async, (uintptr_t)rig->memory, rig->length), 0);
    assert_int_equal(snap_async_arm(&rig->async, rig->area), 0);
}

static void each_kind(void (*body)(Guest *guest)) {
    for (unsigned i = 0; i < n_rig_kinds; i++) {
        Rig rig;
        Guest guest;
        const char *missing = rig_map(&rig, &rig_kinds[i], AREA_BYTES);
        if (missing) {
            print_message("not tried: %s: %s\n", rig_kinds[i].name, missing);
        } else {
            rig_fill(&rig, 0, rig.length / rig.page / 2);
            start_guest(&guest, &rig);
            log_guest(&guest);
            body(&guest);
            clear_guest(&guest);
        }
        rig_clear(&rig);
        rig_unmap(&rig);
    }
}

static void seen_is(Rig *rig, size_t i, int times) {
    if (rig->seen[i] != times) {
        fail_msg("%s: page %zu was reported %d times, not %d", rig->kind->name, i, rig->seen[i], times);
    }
}

static void a_guests_writes_are_reported(Guest *guest) {
    Rig *rig = guest->rig;
    size_t unit = rig_pages(rig), new = rig_first(rig, 1500), block = rig->page / sizeof(uint64_t);
    bool huge = rig->kind->huge; /* the second write is the first of a huge page */
    for (int round = 0; round < 2; round++) {
        tell(guest, 0);
        tell(guest, (long)new);
        assert_int_equal(rig_collect(rig, SNAP_COLLECT_PEEK), 0);
        rig_forget(rig);
        assert_int_equal(rig_collect(rig, SNAP_COLLECT_CLEAR), 0);
        seen_is(rig, 0, 1);
        seen_is(rig, new, 1);
        if (rig->pages != 2 * unit && !(huge && rig->pages == 1 + block)) {
            fail_msg("%s: %lu pages", rig->kind->name, (unsigned long)rig->pages);
        }
        rig_forget(rig);
        assert_int_equal(rig_collect(rig, SNAP_COLLECT_CLEAR), 0);
        assert_int_equal(rig->pages, 0);
    }
}

/* As PROCMAP_QUERY says it, and the text. */
static void a_guest_that_died_is_gone(Guest *guest) {
    Rig *rig = guest->rig;
    tell(guest, 0);
    end_guest(guest);
    for (int text = 0; text < 2; text++) {
        uint64_t next = 77, address = (uintptr_t)rig->memory;
        rig->async.coverage.as_text = text;
        assert_int_equal(rig_collect_some(rig, 0, rig->length, SNAP_COLLECT_PEEK, 0, &next), -ESRCH);
        assert_int_equal(rig_collect_some(rig, 0, rig->length, SNAP_COLLECT_CLEAR, 0, &next), -ESRCH);
        assert_int_equal(next, 77);
        assert_int_equal(snap_async_check(&rig->async, address, address + rig->length), -ESRCH);
        assert_int_equal(snap_async_arm(&rig->async, rig->area), -ESRCH);
    }
}

static void each_a_guests_writes_are_reported(void **state) {
    (void)state;
    each_kind(a_guests_writes_are_reported);
}

static void each_a_guest_that_died_is_gone(void **state) {
    (void)state;
    each_kind(a_guest_that_died_is_gone);
}

/* ---- terabytes ------------------------------------------------------------------------------------------- */

/* A thousand pages in 16 TiB cost the page tables that they have anyway, at an address of no alignment at all. */
static void sparse_terabytes_grow_no_page_tables(void **state) {
    (void)state;
    const size_t length = (size_t)16 << 40, n = 1000;
    Rig rig = {.kind = &rig_kinds[0], .fd = -1, .page = (size_t)sysconf(_SC_PAGESIZE)};
    char *place = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (place == MAP_FAILED) {
        print_message("not tried: no 16 TiB of addresses\n");
        skip();
    }
    madvise(place, length, MADV_NOHUGEPAGE);
    rig.memory = (uint8_t *)place + 37 * rig.page;
    rig.granule = rig.page;
    rig.length = length - 100 * rig.page;
    size_t step = rig.length / rig.page / n;
    for (size_t i = 0; i < n; i++) {
        rig_write(&rig, i * step);
    }
    rig.seen = mmap(NULL, rig.length / rig.page, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    assert_true((void *)rig.seen != MAP_FAILED);
    long before = rig_page_tables_kb();
    rig_start(&rig);
    assert_true(rig_page_tables_kb() - before <= 64); /* what the log notes of it is sparse as well */
    assert_int_equal(rig_collect(&rig, SNAP_COLLECT_CLEAR), 0);
    assert_int_equal(rig.pages, 0);
    for (size_t i = 0; i < 2 * n; i++) {
        rig.seen[i * step / 2] = 0; /* our own notes have page tables too */
    }
    before = rig_page_tables_kb();
    assert_int_equal(snap_async_arm(&rig.async, rig.area), 0);
    for (size_t i = 0; i < n; i += 2) {
        rig_write(&rig, i * step);
    }
    assert_int_equal(rig_collect(&rig, SNAP_COLLECT_CLEAR), 0);
    assert_int_equal(rig.pages, n / 2);
    assert_true(rig_page_tables_kb() - before <= 64);
    rig_write(&rig, step / 2);
    rig_write(&rig, step + step / 2);
    assert_int_equal(rig_collect(&rig, SNAP_COLLECT_CLEAR), 0);
    assert_int_equal(rig.pages, n / 2 + 2);
    assert_int_equal(rig_collect(&rig, SNAP_COLLECT_CLEAR), 0);
    assert_int_equal(rig.pages, n / 2 + 2);
    assert_true(rig_page_tables_kb() - before <= 128);
    rig_clear(&rig);
    munmap(rig.seen, rig.length / rig.page);
    munmap(place, length);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_a_guests_writes_are_reported),
        cmocka_unit_test(each_a_guest_that_died_is_gone),
        cmocka_unit_test(sparse_terabytes_grow_no_page_tables),
    };
    return rig_skip() ?: cmocka_run_group_tests_name("async-process", tests, NULL, NULL);
}
