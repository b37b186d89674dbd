/*
 * The async log while the address space changes under it: what is dropped, moved, unmapped, forked. Either what
 * was collected, copied page by page, gives the memory as it is, or the collect is an error.
 */
#include "async-rig.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../libsnap/uffd.h"

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

enum { AREA_BYTES = 8 << 20 };

/* A copy that is kept up by the log alone. */
typedef struct {
    Rig *rig;
    uint8_t *copy;
} Follower;

static Follower follow(Rig *rig) {
    rig_fill(rig, 0, rig->length / rig->page / 2);
    assert_int_equal(snap_async_arm(&rig->async, rig->area), 0);
    return (Follower){rig, g_memdup2(rig->memory, rig->length)};
}

static void copy_run(void *opaque, uint64_t start, uint64_t end) {
    Follower *f = opaque;
    memcpy(f->copy + start, f->rig->memory + start, end - start);
    f->rig->pages += (end - start) / f->rig->page;
}

/* Collect; the copy has to be what the memory is. Return: pages reported. */
static uint64_t catch_up(Follower *f) {
    uint64_t next;
    f->rig->pages = 0;
    assert_int_equal(snap_async_collect(&f->rig->async, f->rig->area, 0, f->rig->length, SNAP_COLLECT_CLEAR, 0,
                                        copy_run, f, &next),
                     0);
    for (size_t i = 0; i < f->rig->length; i += f->rig->page) {
        if (memcmp(f->copy + i, f->rig->memory + i, f->rig->page) != 0) {
            fail_msg("%s: page %zu was lost", f->rig->kind->name, i / f->rig->page);
        }
    }
    return f->rig->pages;
}

static void leave(Follower *f) {
    g_free(f->copy);
}

static void advise(const Rig *rig, size_t first, size_t pages, int advice) {
    assert_int_equal(madvise(rig->memory + first * rig->page, pages * rig->page, advice), 0);
}

/* Does dropping change what is read there? And is it told, then? */
static bool tells_drops(const Rig *rig) {
    return rig->kind->memory == SNAP_MEMORY_ANON || rig->kind->watched || rig->kind->file == RIG_HUGETLB ||
           (rig->kind->flags & MAP_SHARED);
}

/* ---- dropped --------------------------------------------------------------------------------------------- */

/* One that is clean, one that was written, one that was written and collected; then a block and more. */
static void dropped_pages_are_reported(Rig *rig) {
    size_t unit = rig_pages(rig), block = rig->page / sizeof(uint64_t);
    if (!tells_drops(rig)) {
        return;
    }
    Follower f = follow(rig);
    rig_write(rig, 0);
    catch_up(&f);
    rig_write(rig, unit);
    advise(rig, 0, 3 * unit, MADV_DONTNEED);
    catch_up(&f);
    assert_int_equal(catch_up(&f), 0);
    advise(rig, 0, 2 * block, MADV_DONTNEED);
    catch_up(&f);
    rig_write(rig, block + 3);
    assert_int_equal(catch_up(&f), unit);
    leave(&f);
}

/* New in a gap, collected, dropped. */
static void dropped_pages_of_a_new_block_are_reported(Rig *rig) {
    if (!tells_drops(rig)) {
        return;
    }
    Follower f = follow(rig);
    size_t new = rig_first(rig, 1600);
    rig_write(rig, new);
    catch_up(&f);
    advise(rig, new, rig_pages(rig), MADV_DONTNEED);
    catch_up(&f);
    assert_int_equal(catch_up(&f), 0);
    leave(&f);
}

/* What is read again at once is told of private mappings of files, but not of hugetlb. */
static void dropped_pages_that_are_read_again_are_reported(Rig *rig) {
    if (!tells_drops(rig) || rig->kind->file == RIG_HUGETLB) {
        return;
    }
    Follower f = follow(rig);
    advise(rig, 10, 10, MADV_DONTNEED);
    rig_read(rig, 12);
    catch_up(&f);
    rig_write(rig, 12);
    rig_write(rig, 13);
    assert_int_equal(catch_up(&f), 2);
    leave(&f);
}

static void freed_pages_are_what_they_read_as(Rig *rig) {
    if (rig->kind->memory != SNAP_MEMORY_ANON) {
        return; /* EINVAL */
    }
    Follower f = follow(rig);
    rig_write(rig, 100);
    advise(rig, 90, 20, MADV_FREE);
    catch_up(&f);
    rig_write(rig, 95);
    assert_int_equal(catch_up(&f), 1);
    leave(&f);
}

/* Punched into what was clean, what was written, what is a hole anyway. */
static void punched_holes_are_reported_where_watched(Rig *rig) {
    size_t unit = rig_pages(rig);
    if (rig->fd < 0 || !(rig->kind->flags & MAP_SHARED) || rig->kind->file == RIG_DISK ||
        !(rig->kind->watched || rig->kind->file == RIG_HUGETLB)) {
        return;
    }
    Follower f = follow(rig);
    rig_write(rig, unit);
    assert_int_equal(fallocate(rig->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)(2 * rig->granule)),
                     0);
    catch_up(&f);
    assert_int_equal(catch_up(&f), 0);
    rig_write(rig, 0);
    assert_int_equal(catch_up(&f), unit);
    leave(&f);
}

/* Dropped from the page tables, and written by way of the same mapping: nothing is lost with the entries. */
static void written_pages_survive_that_their_entries_go(Rig *rig) {
    if (!(rig->kind->flags & MAP_SHARED)) {
        return;
    }
    Follower f = follow(rig);
    size_t hole = rig_first(rig, rig->length / rig->page - 1), page = rig_first(rig, 700);
    rig_write(rig, page);
    rig_write(rig, hole);
    advise(rig, page, rig_pages(rig), MADV_DONTNEED);
    advise(rig, hole, rig_pages(rig), MADV_DONTNEED);
    assert_true(catch_up(&f) >= 2 * rig_pages(rig));
    leave(&f);
}

/* A guard page is a marker too. It stays one, and the log goes on around it. */
static void guard_pages_stay(Rig *rig) {
    if (rig->kind->memory != SNAP_MEMORY_ANON) {
        return;
    }
    Follower f = follow(rig);
    if (madvise(rig->memory + 5 * rig->page, rig->page, MADV_GUARD_INSTALL) < 0) {
        print_message("not tried: no MADV_GUARD_INSTALL (Linux 6.13)\n");
        return leave(&f);
    }
    rig_forget(rig);
    assert_int_equal(rig_collect(rig, SNAP_COLLECT_CLEAR), 0);
    assert_int_equal(rig->pages, 1);
    assert_int_equal(rig->seen[5], 1);
    int pipes[2];
    assert_int_equal(pipe(pipes), 0);
    assert_int_equal(write(pipes[1], rig->memory + 5 * rig->page, 1), -1);
    assert_int_equal(errno, EFAULT);
    close(pipes[0]);
    close(pipes[1]);
    leave(&f);
}

/* ---- moved, unmapped, taken ------------------------------------------------------------------------------ */

static void collect_fails(Rig *rig, uint64_t from, uint64_t end) {
    uint64_t next = 77;
    assert_int_equal(rig_collect_some(rig, from, end, SNAP_COLLECT_PEEK, 0, &next), -EPERM);
    assert_int_equal(rig_collect_some(rig, from, end, SNAP_COLLECT_CLEAR, 0, &next), -EPERM);
    assert_int_equal(next, 77);
}

static void collect_works(Rig *rig, uint64_t from, uint64_t end) {
    uint64_t next = 0;
    assert_int_equal(rig_collect_some(rig, from, end, SNAP_COLLECT_CLEAR, 0, &next), 0);
    assert_true(next == end);
}

/* As PROCMAP_QUERY and as text says. */
static void fails_around(Rig *rig, uint64_t start, uint64_t end) {
    for (int text = 0; text < 2; text++) {
        rig->async.coverage.as_text = text;
        collect_fails(rig, 0, rig->length);
        collect_fails(rig, start, end);
        collect_works(rig, 0, start);
        collect_works(rig, end, rig->length);
    }
}

static void an_unmapped_part_is_an_error(Rig *rig) {
    size_t at = 2 * rig->granule;
    rig_fill(rig, 0, rig->length / rig->page);
    assert_int_equal(munmap(rig->memory + at, rig->granule), 0);
    fails_around(rig, at, at + rig->granule);
    assert_int_equal(snap_async_arm(&rig->async, rig->area), -EPERM);
}

static void a_part_that_was_mapped_anew_is_an_error(Rig *rig) {
    size_t at = 2 * rig->granule;
    rig_fill(rig, 0, rig->length / rig->page);
    int flags = rig->kind->flags | MAP_FIXED;
    assert_true(mmap(rig->memory + at, rig->granule, PROT_READ | PROT_WRITE, flags, rig->fd, (off_t)at) !=
                MAP_FAILED);
    fails_around(rig, at, at + rig->granule);
}

static void an_unregistered_part_is_an_error(Rig *rig) {
    size_t at = 2 * rig->granule;
    uint64_t start = (uintptr_t)rig->memory + at;
    rig_fill(rig, 0, rig->length / rig->page);
    assert_int_equal(snap_async_unregister(&rig->async, start, rig->granule), 0);
    fails_around(rig, at, at + rig->granule);
    /* Registered again it is an area of its own, with everything dirty. */
    assert_int_equal(snap_async_register(&rig->async, start, rig->granule), 0);
    rig_forget(rig);
    assert_int_equal(rig_collect(rig, SNAP_COLLECT_PEEK), 0);
    assert_int_equal(rig->seen[at / rig->page], 1);
}

static void what_moved_away_is_an_error(Rig *rig) {
    size_t at = 4 << 20, length = 2 << 20;
    rig_fill(rig, 0, rig->length / rig->page);
    void *to = mmap(NULL, 2 * length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    to = (void *)(((uintptr_t)to + length - 1) / length * length);
    assert_true(mremap(rig->memory + at, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
    fails_around(rig, at, at + length);
    assert_int_equal(snap_async_check(&rig->async, (uintptr_t)to, (uintptr_t)to + length), -EPERM);
    munmap(to, length);
}

static void a_range_of_another_userfaultfd_is_busy(Rig *rig) {
    SnapAsync other;
    int uffd = snap_uffd_open();
    assert_true(uffd >= 0);
    assert_int_equal(snap_async_init(&other, getpid(), uffd), 0);
    uint64_t start = (uintptr_t)rig->memory + rig->granule;
    assert_int_equal(snap_async_register(&other, start, rig->granule), -EBUSY);
    assert_int_equal(snap_async_unregister(&rig->async, start, rig->granule), 0);
    assert_int_equal(snap_async_register(&other, start, rig->granule), 0);
    assert_int_equal(snap_async_register(&rig->async, start, rig->granule), -EBUSY);
    snap_async_clear(&other);
    collect_fails(rig, 0, rig->length);
}

/* ---- forked ---------------------------------------------------------------------------------------------- */

/* The child shares pages, and page tables of them, copy on write. */
static void a_childs_writes_are_not_ours(Rig *rig) {
    size_t unit = rig_pages(rig);
    Follower f = follow(rig);
    catch_up(&f); /* which looks at the holes of shared memory, and so fills them */
    catch_up(&f);
    rig_write(rig, 0);
    int go[2];
    assert_int_equal(pipe(go), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        char c;
        close(go[1]); /* so that the end of the parent ends this too */
        if (rig->kind->flags & MAP_PRIVATE) {
            rig_fill(rig, 0, rig->length / rig->page);
        }
        _exit(read(go[0], &c, 1) != 1);
    }
    rig_write(rig, 2 * unit);
    assert_int_equal(catch_up(&f), 2 * unit);
    rig_write(rig, 2 * unit);
    rig_write(rig, 3 * unit);
    assert_int_equal(catch_up(&f), 2 * unit);
    assert_int_equal(catch_up(&f), 0);
    assert_int_equal(write(go[1], "", 1), 1);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_int_equal(catch_up(&f), 0);
    close(go[0]);
    close(go[1]);
    leave(&f);
}

/* ---- the table ------------------------------------------------------------------------------------------- */

#define EACH(X)                                                                                                   \
    X(dropped_pages_are_reported)                                                                                 \
    X(dropped_pages_of_a_new_block_are_reported)                                                                  \
    X(dropped_pages_that_are_read_again_are_reported)                                                             \
    X(freed_pages_are_what_they_read_as)                                                                          \
    X(punched_holes_are_reported_where_watched)                                                                   \
    X(written_pages_survive_that_their_entries_go)                                                                \
    X(guard_pages_stay)                                                                                           \
    X(an_unmapped_part_is_an_error)                                                                               \
    X(a_part_that_was_mapped_anew_is_an_error)                                                                    \
    X(an_unregistered_part_is_an_error)                                                                           \
    X(what_moved_away_is_an_error)                                                                                \
    X(a_range_of_another_userfaultfd_is_busy)                                                                     \
    X(a_childs_writes_are_not_ours)

#define X(name)                                                                                                   \
    static void each_##name(void **state) {                                                                       \
        (void)state;                                                                                              \
        rig_each_kind(AREA_BYTES, name);                                                                          \
    }
EACH(X)
#undef X

int main(void) {
#define X(name) cmocka_unit_test(each_##name),
    const struct CMUnitTest tests[] = {EACH(X)};
    return rig_skip() ?: cmocka_run_group_tests_name("async-changes", tests, NULL, NULL);
}
