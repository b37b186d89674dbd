/*
 * Every system call of the image layer fails in turn, once, and the call that needed it must say so, in one line
 * that names a file, and leave no image that claims to be complete.
 *
 * The linker puts the functions below in the place of libc's (--wrap), so the code under test is what ships.
 */
#include "image-fixture.h"
#include "sink.h"

#include <liburing.h>
#include <stdatomic.h>

/* ---- libc with a fuse ------------------------------------------------------------------------------------ */

typedef enum { FUSE_FAIL, FUSE_SHORT } FuseKind;

static atomic_int countdown; /* the call that brings it to 0 fails; at 0 none does */
static int fuse_errno;
static FuseKind fuse_kind;
static gboolean no_uring;

static gboolean blown(void) {
    if (atomic_load(&countdown) <= 0 || atomic_fetch_sub(&countdown, 1) != 1)
        return FALSE;
    errno = fuse_errno;
    return TRUE;
}

static gboolean fails(void) {
    return fuse_kind == FUSE_FAIL && blown();
}

/* Each is known to the linker by one of two names, depending on how libc spells a 64-bit file offset. */
#define WRAP(type, name, parameters, ...)                                                                         \
    type __real_##name parameters;                                                                                \
    type __wrap_##name parameters;                                                                                \
    type __wrap_##name parameters {                                                                               \
        return fails() ? -1 : __real_##name(__VA_ARGS__);                                                         \
    }
#define WRAP_64(type, name, parameters, ...)                                                                      \
    WRAP(type, name, parameters, __VA_ARGS__)                                                                     \
    WRAP(type, name##64, parameters, __VA_ARGS__)
#define WRAP_SHORT(name)                                                                                          \
    ssize_t __real_##name(int fd, const void *data, size_t length, off_t offset);                                 \
    ssize_t __wrap_##name(int fd, const void *data, size_t length, off_t offset);                                 \
    ssize_t __wrap_##name(int fd, const void *data, size_t length, off_t offset) {                                \
        if (fuse_kind == FUSE_SHORT && blown())                                                                   \
            length = length > FIX_PAGE ? FIX_PAGE : (length + 1) / 2;                                             \
        return fails() ? -1 : __real_##name(fd, data, length, offset);                                            \
    }

WRAP(int, mkdir, (const char *path, mode_t mode), path, mode)
WRAP(int, mkdirat, (int fd, const char *path, mode_t mode), fd, path, mode)
WRAP_64(int, openat, (int fd, const char *path, int flags, mode_t mode), fd, path, flags, mode)
WRAP_64(int, ftruncate, (int fd, off_t length), fd, length)
WRAP(int, fsync, (int fd), fd)
WRAP(int, fdatasync, (int fd), fd)
WRAP(int, renameat, (int a, const char *from, int b, const char *to), a, from, b, to)
WRAP(int, unlinkat, (int fd, const char *path, int flags), fd, path, flags)
WRAP(int, rmdir, (const char *path), path)
WRAP_64(off_t, lseek, (int fd, off_t offset, int whence), fd, offset, whence)
WRAP_64(ssize_t, pread, (int fd, void *data, size_t length, off_t offset), fd, data, length, offset)
WRAP_SHORT(pwrite)
WRAP_SHORT(pwrite64)

int __real_io_uring_queue_init(unsigned entries, struct io_uring *ring, unsigned flags);
int __wrap_io_uring_queue_init(unsigned entries, struct io_uring *ring, unsigned flags);
int __wrap_io_uring_queue_init(unsigned entries, struct io_uring *ring, unsigned flags) {
    return no_uring ? -ENOSYS : __real_io_uring_queue_init(entries, ring, flags);
}

/* ---- what goes on under it ------------------------------------------------------------------------------- */

static int count_descriptors(void) {
    return fix_count_entries("/proc/self/fd");
}

/* Call @act with its first, second, … system call failing, until it needs no more; the number of calls. */
static int for_every_call(const char *dir, int errnum, gboolean (*act)(const char *, GError **),
                          void (*check)(const char *dir, gboolean good, GError **error)) {
    for (int n = 1;; n++) {
        GError *error = NULL;
        int before = count_descriptors();
        fuse_errno = errnum;
        atomic_store(&countdown, n);
        gboolean good = act(dir, &error);
        gboolean fired = atomic_exchange(&countdown, 0) == 0;
        assert_int_equal(count_descriptors(), before);
        if (!fired) {
            expect_ok(good, error);
            return n - 1;
        }
        check(dir, good, &error);
    }
}

static void expect_io_and_nothing_left(const char *dir, gboolean good, GError **error) {
    assert_false(good);
    expect_error(error, SNAP_ERROR_IO, "image");
    assert_int_equal(fix_count_entries(dir), -1);
}

static void expect_no_space_and_nothing_left(const char *dir, gboolean good, GError **error) {
    assert_false(good);
    expect_error(error, SNAP_ERROR_NO_SPACE, "free some room");
    assert_int_equal(fix_count_entries(dir), -1);
}

static void expect_image_is_good(const char *dir, gboolean good, GError **error) {
    expect_ok(good, *error);
    expect_ok(fix_check_image(dir, error), *error);
    fix_remove(dir);
}

static void write_every_call_failing_with_eio_leaves_nothing(void **state) {
    g_autofree char *dir = fix_path(state, "image");
    fuse_kind = FUSE_FAIL;
    no_uring = TRUE;
    int n = for_every_call(dir, EIO, fix_write_image, expect_io_and_nothing_left);
    assert_in_range(n, 50, 1000);
}

static void write_every_call_failing_with_enospc_says_so(void **state) {
    g_autofree char *dir = fix_path(state, "image");
    fuse_kind = FUSE_FAIL;
    no_uring = TRUE;
    for_every_call(dir, ENOSPC, fix_write_image, expect_no_space_and_nothing_left);
}

static void write_by_io_uring_every_other_call_failing_leaves_nothing(void **state) {
    g_autofree char *dir = fix_path(state, "image");
    fuse_kind = FUSE_FAIL;
    no_uring = FALSE;
    for_every_call(dir, EIO, fix_write_image, expect_io_and_nothing_left);
}

static void write_short_at_any_place_is_continued(void **state) {
    g_autofree char *dir = fix_path(state, "image");
    fuse_kind = FUSE_SHORT;
    no_uring = TRUE;
    int n = for_every_call(dir, 0, fix_write_image, expect_image_is_good);
    assert_in_range(n, 20, 1000);
}

/* ---- reading and deleting -------------------------------------------------------------------------------- */

static void expect_io(const char *dir, gboolean good, GError **error) {
    (void)dir;
    assert_false(good);
    expect_error(error, SNAP_ERROR_IO, "image");
}

static gboolean read_all(const char *dir, GError **error) {
    uint8_t data[FIX_RAM_PAGES * FIX_PAGE];
    g_autoptr(SnapImage) image = snap_image_open(dir, error);
    if (!image || !snap_image_read(image, 0, 0, data, sizeof data, error))
        return FALSE;
    g_autoptr(GBytes) blob = snap_image_state(image, "vcpu", error);
    return blob != NULL;
}

static void read_every_call_failing_is_reported(void **state) {
    GError *error = NULL;
    g_autofree char *dir = fix_path(state, "image");
    no_uring = FALSE;
    expect_ok(fix_write_image(dir, &error), error);
    fuse_kind = FUSE_FAIL;
    for_every_call(dir, EIO, read_all, expect_io);
    for_every_call(dir, EIO, fix_check_image, expect_io);
}

/* What an interrupted delete leaves is whole or visibly incomplete, and the next delete finishes it. */
static gboolean delete_twice(const char *dir, GError **error) {
    GError *ignored = NULL;
    if (access(dir, F_OK) != 0)
        expect_ok(fix_write_image(dir, &ignored), ignored);
    return snap_image_delete(dir, error);
}

static void expect_io_and_no_false_claim(const char *dir, gboolean good, GError **error) {
    GError *broken = NULL;
    assert_false(good);
    expect_error(error, SNAP_ERROR_IO, "image");
    if (!fix_check_image(dir, &broken))
        expect_error(&broken, SNAP_ERROR_INCOMPLETE, "manifest.json");
}

static gboolean prepare_and_delete(const char *dir, GError **error) {
    int n = atomic_exchange(&countdown, 0);
    fix_remove(dir);
    GError *ignored = NULL;
    expect_ok(fix_write_image(dir, &ignored), ignored);
    atomic_store(&countdown, n);
    return delete_twice(dir, error);
}

static void delete_every_call_failing_claims_nothing_false(void **state) {
    GError *error = NULL;
    g_autofree char *dir = fix_path(state, "image");
    fuse_kind = FUSE_FAIL;
    no_uring = FALSE;
    int n = for_every_call(dir, EIO, prepare_and_delete, expect_io_and_no_false_claim);
    assert_in_range(n, 10, 100);
    /* Finished in the last round; and a half-done one can be finished. */
    assert_int_equal(fix_count_entries(dir), -1);
    expect_ok(fix_write_image(dir, &error), error);
    fuse_errno = EIO;
    atomic_store(&countdown, n - 3);
    assert_false(snap_image_delete(dir, &error));
    g_clear_error(&error);
    expect_ok(snap_image_delete(dir, &error), error);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        FIX_TEST(write_every_call_failing_with_eio_leaves_nothing),
        FIX_TEST(write_every_call_failing_with_enospc_says_so),
        FIX_TEST(write_by_io_uring_every_other_call_failing_leaves_nothing),
        FIX_TEST(write_short_at_any_place_is_continued),
        FIX_TEST(read_every_call_failing_is_reported),
        FIX_TEST(delete_every_call_failing_claims_nothing_false),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
