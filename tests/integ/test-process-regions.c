/*
 * What kinds of memory a process can have, and what becomes of its regions when it changes them.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/userfaultfd.h>

#include <cmocka.h>

#include "foreign.h"
#include "libsnap.h"
#include "process-target.h"
#include "regions.h"

enum { SKIPPED = 77, BIG_BYTES = 20 << 20 };

/* Places in the child. */
typedef enum {
    ANON,
    RESERVE,
    MEMFD,
    MEMFD_PRIVATE,
    MEMFD_READ_ONLY,
    SHM_FILE,
    SYSV,
    ZERO,
    ZERO_PRIVATE,
    FILE_WRITTEN,
    FILE_UNTOUCHED,
    FILE_SHARED,
    FILE_BIG,
    ALIASED,
    ALIAS,
    BEYOND_END,
    HUGE_SHARED,
    HUGE_PRIVATE,
    WATCHED,
    N_PLACES
} Place;

static size_t page;

static void *map(size_t length, int protection, int flags, int fd) {
    void *at = mmap(NULL, length, protection, flags, fd, 0);
    return at == MAP_FAILED ? NULL : at;
}

static int memfd(size_t length) {
    int fd = memfd_create("ram", MFD_CLOEXEC);
    return ftruncate(fd, (off_t)length) < 0 ? -1 : fd;
}

/* A deleted file, on a disk or in shared memory. */
static int file_in(const char *dir, size_t length) {
    g_autofree char *path = g_strdup_printf("%s/test-process-XXXXXX", dir);
    int fd = mkstemp(path);
    unlink(path);
    return ftruncate(fd, (off_t)length) < 0 ? -1 : fd;
}

static const int rw = PROT_READ | PROT_WRITE;

static void *watch(void *memory) {
    struct uffdio_api api = {.api = UFFD_API};
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    struct uffdio_register range = {.range = {(uintptr_t)memory, page}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    return ioctl(fd, UFFDIO_API, &api) == 0 && ioctl(fd, UFFDIO_REGISTER, &range) == 0 ? memory : NULL;
}

/* Mappings of one kind apart, so that the kernel does not merge them. */
static void *lonely(size_t length) {
    char *at = (char *)map(length + 2 * page, PROT_NONE, MAP_SHARED | MAP_ANONYMOUS, -1);
    return mmap(at + page, length, rw, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
}

static void all_kinds(TargetShared *shared) {
    void **p = shared->places;
    int fd = memfd(4 * page), aliased = memfd(page), disk = file_in("/var/tmp", BIG_BYTES);
    p[ANON] = lonely(4 * page);
    p[RESERVE] = map(64 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
    p[MEMFD] = map(4 * page, rw, MAP_SHARED, fd);
    p[MEMFD_PRIVATE] = map(4 * page, rw, MAP_PRIVATE, memfd(4 * page));
    p[MEMFD_READ_ONLY] = map(4 * page, PROT_READ, MAP_SHARED, memfd(4 * page));
    p[SHM_FILE] = map(4 * page, rw, MAP_SHARED, file_in("/dev/shm", 4 * page));
    int id = shmget(IPC_PRIVATE, 4 * page, 0600);
    p[SYSV] = shmat(id, NULL, 0);
    shmctl(id, IPC_RMID, NULL);
    int zero = open("/dev/zero", O_RDWR);
    p[ZERO] = map(4 * page, rw, MAP_SHARED, zero);
    p[ZERO_PRIVATE] = map(4 * page, rw, MAP_PRIVATE, zero);
    p[FILE_WRITTEN] = map(4 * page, rw, MAP_PRIVATE, file_in("/var/tmp", 4 * page));
    memset((char *)p[FILE_WRITTEN] + page, 1, 1);
    p[FILE_UNTOUCHED] = map(4 * page, rw, MAP_PRIVATE, file_in("/var/tmp", 4 * page));
    p[FILE_SHARED] = map(4 * page, rw, MAP_SHARED, file_in("/var/tmp", 4 * page));
    p[FILE_BIG] = map(BIG_BYTES, rw, MAP_SHARED, disk);
    p[ALIASED] = map(page, rw, MAP_SHARED, aliased);
    p[ALIAS] = map(page, rw, MAP_SHARED, aliased);
    p[BEYOND_END] = map(4 * page, rw, MAP_SHARED, memfd(page));
    p[HUGE_SHARED] = map(2 << 20, rw, MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB, -1);
    p[HUGE_PRIVATE] = map(2 << 20, rw, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1);
    p[WATCHED] = watch(lonely(page));
    shared->ready = 1;
    for (;;) {
        pause();
    }
}

/* ---- looking ------------------------------------------------------------------------------------------------ */

static GPtrArray *list(Regions *regions, gboolean paused) {
    g_autoptr(GError) error = NULL;
    GPtrArray *found = g_ptr_array_new_with_free_func((GDestroyNotify)snap_region_free);
    if (!regions_list(regions, paused, FALSE, found, &error)) {
        fail_msg("%s", error->message);
    }
    return found;
}

static const SnapRegion *region_at(const GPtrArray *list, const void *address) {
    for (guint i = 0; i < list->len; i++) {
        const SnapRegion *region = g_ptr_array_index(list, i);
        if ((uintptr_t)address - region->host_address < region->length_bytes) {
            return region;
        }
    }
    return NULL;
}

static const SnapRegion *region_named(const GPtrArray *list, const char *name) {
    for (guint i = 0; i < list->len; i++) {
        const SnapRegion *region = g_ptr_array_index(list, i);
        if (strcmp(region->name, name) == 0) {
            return region;
        }
    }
    return NULL;
}

static const struct {
    Place place;
    SnapMemory memory; /* MAX: nothing of it is saved */
    const char *label;
    const char *refusal; /* part of it */
} kinds[] = {
    {ANON, SNAP_MEMORY_ANON, "anon", NULL},
    {RESERVE, SNAP_MEMORY_ANON, "anon", NULL},
    {MEMFD, SNAP_MEMORY_SHMEM, "memfd:ram", NULL},
    {MEMFD_PRIVATE, SNAP_MEMORY_SHMEM_PRIVATE, "memfd:ram", NULL},
    {MEMFD_READ_ONLY, SNAP_MEMORY_FIXED, "memfd:ram", NULL},
    {SHM_FILE, SNAP_MEMORY_SHMEM, "test-process-", NULL},
    {SYSV, SNAP_MEMORY_SHMEM, "SYSV00000000", NULL},
    {ZERO, SNAP_MEMORY_SHMEM, "zero", NULL},
    {ZERO_PRIVATE, SNAP_MEMORY_ANON, "zero", NULL},
    {FILE_WRITTEN, SNAP_MEMORY_COPIED, "test-process-", NULL},
    {FILE_UNTOUCHED, SNAP_MEMORY_MAX, NULL, NULL},
    {FILE_SHARED, SNAP_MEMORY_COPIED, "test-process-", NULL},
    {FILE_BIG, SNAP_MEMORY_COPIED, "test-process-", "20.0"},
    {ALIASED, SNAP_MEMORY_COPIED, "memfd:ram", NULL},
    {ALIAS, SNAP_MEMORY_COPIED, "memfd:ram", NULL},
    {BEYOND_END, SNAP_MEMORY_SHMEM, "memfd:ram", NULL},
    {HUGE_SHARED, SNAP_MEMORY_HUGETLB, "anon_hugepage", NULL},
    {HUGE_PRIVATE, SNAP_MEMORY_HUGETLB_PRIVATE, "anon_hugepage", NULL},
    {WATCHED, SNAP_MEMORY_ANON, "anon", "userfaultfd"},
};

static void memory_of_each_kind_is_told_apart(void **state) {
    (void)state;
    g_autoptr(Target) target = target_start(all_kinds);
    g_autoptr(Regions) regions = regions_new(target->pid, NULL);
    g_autoptr(GPtrArray) found = list(regions, FALSE);
    for (size_t i = 0; i < G_N_ELEMENTS(kinds); i++) {
        const void *address = target->shared->places[kinds[i].place];
        if (!address) {
            print_message("skipped: kind %zu is not to be had on this machine\n", i);
            continue;
        }
        const SnapRegion *region = region_at(found, address);
        if (kinds[i].memory == SNAP_MEMORY_MAX ? region != NULL : !region || region->memory != kinds[i].memory) {
            fail_msg("kind %zu at %p is %s", i, address, region ? region->name : "not there");
        }
        if (!region) {
            continue;
        }
        assert_true(g_str_has_prefix(region->name, kinds[i].label));
        if (kinds[i].refusal ? !region->refusal || !strstr(region->refusal, kinds[i].refusal)
                             : region->refusal != NULL) {
            fail_msg("kind %zu (%s): refused with \"%s\"", i, region->name, region->refusal);
        }
        gboolean shared = region->memory == SNAP_MEMORY_SHMEM || region->memory == SNAP_MEMORY_HUGETLB;
        assert_int_equal(shared, region->fd >= 0);
    }
    const SnapRegion *cut = region_at(found, target->shared->places[BEYOND_END]);
    assert_int_equal(cut->length_bytes, page);
}

static void same_listing_twice_gives_the_same(void **state) {
    (void)state;
    g_autoptr(Target) target = target_start(all_kinds);
    g_autoptr(Regions) regions = regions_new(target->pid, NULL);
    g_autoptr(GPtrArray) first = list(regions, FALSE);
    for (int i = 0; i < 2; i++) {
        g_autoptr(GPtrArray) again = list(regions, i == 0);
        assert_int_equal(again->len, first->len);
        for (guint k = 0; k < first->len; k++) {
            const SnapRegion *a = g_ptr_array_index(first, k), *b = g_ptr_array_index(again, k);
            assert_string_equal(a->name, b->name);
            assert_true(a->host_address == b->host_address && a->length_bytes == b->length_bytes);
            assert_true(a->memory == b->memory && (a->fd < 0) == (b->fd < 0) && a->fd_offset == b->fd_offset);
            assert_int_equal(g_strcmp0(a->refusal, b->refusal), 0);
        }
    }
}

/* ---- change ---------------------------------------------------------------------------------------------------
 */

enum { SHRUNK, HOLED, GONE, SPLIT, REPLACED, NEW, TURNED, N_CHANGES };

static void changing(TargetShared *shared) {
    char **p = (char **)shared->places;
    for (int i = SHRUNK; i <= REPLACED; i++) {
        p[i] = lonely(8 * page);
    }
    p[TURNED] = map(4 * page, rw, MAP_PRIVATE, file_in("/var/tmp", 4 * page));
    sbrk(0);
    shared->ready = 1;
    while (!shared->go_on) {
        usleep(1000);
    }
    munmap(p[SHRUNK] + 4 * page, 4 * page);
    munmap(p[HOLED] + 2 * page, 2 * page);
    munmap(p[GONE], 8 * page);
    mprotect(p[SPLIT] + 2 * page, 3 * page, PROT_READ);
    mmap(p[REPLACED], 8 * page, rw, MAP_SHARED | MAP_FIXED, memfd(8 * page), 0);
    p[NEW] = lonely(4 * page);
    memset(p[TURNED], 1, 1);
    shared->done = 1;
    for (;;) {
        pause();
    }
}

static char *name_of(const char *label, const void *address, size_t pages) {
    return g_strdup_printf("%s@%lx", label, (uintptr_t)address + pages * page);
}

static void expect_region(const GPtrArray *found, const char *label, const void *place, size_t from,
                          size_t pages) {
    g_autofree char *name = name_of(label, place, from);
    const SnapRegion *region = region_named(found, name);
    if (!region || region->host_address != (uintptr_t)place + from * page ||
        region->length_bytes != pages * page) {
        fail_msg("%s: %s, %" G_GUINT64_FORMAT " pages", name, region ? "there" : "not there",
                 region ? region->length_bytes / page : 0);
    }
}

static void change_between_listings_is_related(void **state) {
    (void)state;
    g_autoptr(Target) target = target_start(changing);
    g_autoptr(Regions) regions = regions_new(target->pid, NULL);
    g_autoptr(GPtrArray) before = list(regions, FALSE);
    void **p = target->shared->places;
    assert_null(region_at(before, p[TURNED]));
    target->shared->go_on = 1;
    assert_true(target_await_done(target, 1000));
    g_autoptr(GPtrArray) now = list(regions, TRUE);
    expect_region(before, "anon", p[SHRUNK], 0, 8);
    expect_region(now, "anon", p[SHRUNK], 0, 4);
    expect_region(now, "anon", p[HOLED], 0, 2);
    expect_region(now, "anon", p[HOLED], 4, 4);
    assert_null(region_at(now, p[GONE]));
    expect_region(now, "anon", p[SPLIT], 0, 8);
    expect_region(now, "memfd:ram", p[REPLACED], 0, 8);
    g_autofree char *replaced = name_of("anon", p[REPLACED], 0);
    assert_null(region_named(now, replaced));
    expect_region(now, "anon", p[NEW], 0, 4);
    assert_int_equal(region_at(now, p[TURNED])->memory, SNAP_MEMORY_COPIED);
}

static void growing(TargetShared *shared) {
    shared->places[0] = sbrk((intptr_t)(4 * page));
    shared->ready = 1;
    while (!shared->go_on) {
        usleep(1000);
    }
    sbrk((intptr_t)(4 * page));
    shared->done = 1;
    pause();
}

static void heap_grown_has_its_growth_as_a_new_region(void **state) {
    (void)state;
    g_autoptr(Target) target = target_start(growing);
    g_autoptr(Regions) regions = regions_new(target->pid, NULL);
    g_autoptr(GPtrArray) before = list(regions, FALSE);
    const SnapRegion *heap = region_at(before, target->shared->places[0]);
    target->shared->go_on = 1;
    assert_true(target_await_done(target, 1000));
    g_autoptr(GPtrArray) now = list(regions, TRUE);
    const SnapRegion *same = region_named(now, heap->name);
    assert_true(same && same->length_bytes == heap->length_bytes);
    const SnapRegion *more = region_at(now, (char *)(uintptr_t)(heap->host_address + heap->length_bytes));
    assert_true(more && more->length_bytes == 4 * page && g_str_has_prefix(more->name, "heap@"));
    g_autoptr(GPtrArray) anew = list(regions, FALSE);
    assert_int_equal(region_named(anew, heap->name)->length_bytes, heap->length_bytes + 4 * page);
}

/* ---- others ---------------------------------------------------------------------------------------------------
 */

static void memory_of_another_writer_is_refused_by_name(void **state) {
    (void)state;
    g_autoptr(Target) target = target_start(all_kinds); /* its TargetShared is ours as well */
    g_autoptr(Regions) regions = regions_new(target->pid, NULL);
    g_autoptr(GPtrArray) found = list(regions, FALSE);
    const SnapRegion *region = region_at(found, target->shared);
    g_autofree char *who = g_strdup_printf("process %d (test-process-re)", (int)getpid());
    assert_non_null(region);
    assert_non_null(region->refusal);
    assert_non_null(strstr(region->refusal, who));
}

static void writer_of_an_object_is_found(void **state) {
    (void)state;
    g_autoptr(Target) target = target_start(all_kinds);
    struct stat info;
    int fd = memfd(page), pid = 0;
    g_autofree char *name = NULL;
    assert_int_equal(fstat(fd, &info), 0);
    assert_false(process_foreign_writer(target->pid, info.st_dev, info.st_ino, &pid, &name));
    void *read_only = map(page, PROT_READ, MAP_SHARED, fd);
    assert_false(process_foreign_writer(target->pid, info.st_dev, info.st_ino, &pid, &name));
    assert_null(name);
    void *writable = map(page, rw, MAP_SHARED, fd);
    assert_true(process_foreign_writer(target->pid, info.st_dev, info.st_ino, &pid, &name));
    assert_int_equal(pid, getpid());
    assert_string_equal(name, "test-process-re");
    assert_false(process_foreign_writer(getpid(), info.st_dev, info.st_ino, &pid, &name));
    munmap(read_only, page);
    munmap(writable, page);
    close(fd);
}

/* fork() and exec() have a moment in between. */
static void child_that_is_gone_at_once_is_no_writer(void **state) {
    (void)state;
    struct stat info;
    int fd = memfd(page), pid = 0;
    g_autofree char *name = NULL;
    assert_int_equal(fstat(fd, &info), 0);
    void *shared = map(page, rw, MAP_SHARED, fd);
    for (int stays = 0; stays <= 1; stays++) {
        pid_t child = fork();
        if (child == 0) {
            usleep(stays ? 5000000 : 5000);
            _exit(0);
        }
        assert_int_equal(process_foreign_writer(getpid(), info.st_dev, info.st_ino, &pid, &name), stays);
        kill(child, SIGKILL);
        assert_int_equal(waitpid(child, NULL, 0), child);
        assert_int_equal(pid, stays ? child : 0);
    }
    munmap(shared, page);
    close(fd);
}

static void ended_process_is_gone(void **state) {
    (void)state;
    g_autoptr(GError) error = NULL;
    g_autoptr(Target) target = target_start(all_kinds);
    g_autoptr(Regions) regions = regions_new(target->pid, NULL);
    kill(target->pid, SIGKILL);
    assert_true(target_await_state(target->pid, 'Z'));
    g_autoptr(GPtrArray) found = g_ptr_array_new();
    assert_false(regions_list(regions, FALSE, FALSE, found, &error));
    assert_true(g_error_matches(error, SNAP_ERROR, SNAP_ERROR_GUEST_GONE));
}

int main(void) {
    page = (size_t)sysconf(_SC_PAGESIZE);
    if (geteuid() != 0) {
        print_message("needs root\n");
        return SKIPPED;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_of_each_kind_is_told_apart),
        cmocka_unit_test(same_listing_twice_gives_the_same),
        cmocka_unit_test(change_between_listings_is_related),
        cmocka_unit_test(heap_grown_has_its_growth_as_a_new_region),
        cmocka_unit_test(memory_of_another_writer_is_refused_by_name),
        cmocka_unit_test(writer_of_an_object_is_found),
        cmocka_unit_test(child_that_is_gone_at_once_is_no_writer),
        cmocka_unit_test(ended_process_is_gone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
