/*
 * Merging an image into its child, in place: what it reads as afterwards, and what is found when it was killed
 * before or in the middle of any of its steps, when any of its system calls failed, or when the power went.
 *
 * The linker puts the functions below in the place of libc's (--wrap), so the code under test is what ships.
 */
#include "chain-fixture.h"
#include "hash.h"

#include <liburing.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>

#define LEVELS 4u

/* ---- libc with a fuse, and a book about what is on disk --------------------------------------------------- */

typedef enum { FUSE_NONE, FUSE_FAIL, FUSE_KILL } FuseKind;

static atomic_int countdown; /* the call that brings it to 0 fails, or is the last; at 0 none does */
static atomic_int calls;
static FuseKind fuse_kind;
static int fuse_errno;
static gboolean no_uring;

/* What has been changed and not been fsynced: inode → what. NULL: nobody keeps the book. */
static GHashTable *dirty;
static pthread_mutex_t dirty_lock = PTHREAD_MUTEX_INITIALIZER;
static ino_t folder_inode;
static int n_exchanges;

/* TRUE: the call is to fail. */
static gboolean blown(void) {
    atomic_fetch_add(&calls, 1);
    if (fuse_kind == FUSE_NONE || atomic_load(&countdown) <= 0 || atomic_fetch_sub(&countdown, 1) != 1)
        return FALSE;
    if (fuse_kind == FUSE_KILL)
        kill(getpid(), SIGKILL);
    errno = fuse_errno;
    return TRUE;
}

static void note(int fd, const char *what) {
    struct stat status;
    pthread_mutex_lock(&dirty_lock);
    if (dirty && fstat(fd, &status) == 0) {
        if (what)
            g_hash_table_insert(dirty, GSIZE_TO_POINTER(status.st_ino), (char *)what);
        else
            g_hash_table_remove(dirty, GSIZE_TO_POINTER(status.st_ino));
    }
    pthread_mutex_unlock(&dirty_lock);
}

/* A step of which others rely on what went before: all of that is on disk. */
static void check_book(const char *step) {
    GHashTableIter iter;
    void *inode, *what;
    gboolean found = FALSE;
    pthread_mutex_lock(&dirty_lock);
    if (dirty) {
        g_hash_table_iter_init(&iter, dirty);
        found = g_hash_table_iter_next(&iter, &inode, &what);
    }
    pthread_mutex_unlock(&dirty_lock);
    if (found)
        fail_msg("%s: %s is not on disk yet", step, (char *)what);
}

/* The directory that entry @path of @fd is in. */
static void note_entry(int fd, const char *path, const char *what) {
    int dir = fd;
    g_autofree char *parent = g_path_get_dirname(path);
    if (!dirty)
        return;
    dir = open(parent, O_RDONLY | O_DIRECTORY);
    if (path[0] != '/') {
        if (dir >= 0)
            close(dir);
        g_autofree char *absolute = g_strdup_printf("/proc/self/fd/%d/%s", fd, parent);
        dir = open(absolute, O_RDONLY | O_DIRECTORY);
    }
    if (dir >= 0) {
        note(dir, what);
        close(dir);
    }
}

int __real_mkdir(const char *path, mode_t mode);
int __wrap_mkdir(const char *path, mode_t mode);
int __wrap_mkdir(const char *path, mode_t mode) {
    if (blown())
        return -1;
    note_entry(AT_FDCWD, path, "the entry of a new directory");
    return __real_mkdir(path, mode);
}

int __real_mkdirat(int fd, const char *path, mode_t mode);
int __wrap_mkdirat(int fd, const char *path, mode_t mode);
int __wrap_mkdirat(int fd, const char *path, mode_t mode) {
    if (blown())
        return -1;
    note(fd, "the entry of a directory in an image");
    return __real_mkdirat(fd, path, mode);
}

int __real_linkat(int from_fd, const char *from, int fd, const char *path, int flags);
int __wrap_linkat(int from_fd, const char *from, int fd, const char *path, int flags);
int __wrap_linkat(int from_fd, const char *from, int fd, const char *path, int flags) {
    if (blown())
        return -1;
    note_entry(fd, path, "the entry of a link");
    return __real_linkat(from_fd, from, fd, path, flags);
}

#define WRAP_OPENAT(name)                                                                                         \
    int __real_##name(int fd, const char *path, int flags, mode_t mode);                                          \
    int __wrap_##name(int fd, const char *path, int flags, mode_t mode);                                          \
    int __wrap_##name(int fd, const char *path, int flags, mode_t mode) {                                         \
        if (blown())                                                                                              \
            return -1;                                                                                            \
        if ((flags & O_CREAT) != 0)                                                                               \
            note_entry(fd, path, "the entry of a new file");                                                      \
        return __real_##name(fd, path, flags, mode);                                                              \
    }
WRAP_OPENAT(openat)
WRAP_OPENAT(openat64)

#define WRAP_CHANGE(name, what, parameters, ...)                                                                  \
    int __real_##name parameters;                                                                                 \
    int __wrap_##name parameters;                                                                                 \
    int __wrap_##name parameters {                                                                                \
        if (blown())                                                                                              \
            return -1;                                                                                            \
        note(fd, what);                                                                                           \
        return __real_##name(__VA_ARGS__);                                                                        \
    }
WRAP_CHANGE(ftruncate, "a length", (int fd, off_t length), fd, length)
WRAP_CHANGE(ftruncate64, "a length", (int fd, off_t length), fd, length)
WRAP_CHANGE(fallocate, "a hole", (int fd, int mode, off_t start, off_t length), fd, mode, start, length)
WRAP_CHANGE(fallocate64, "a hole", (int fd, int mode, off_t start, off_t length), fd, mode, start, length)

/* Killed in the middle: half of it is written. */
#define WRAP_PWRITE(name)                                                                                         \
    ssize_t __real_##name(int fd, const void *data, size_t length, off_t offset);                                 \
    ssize_t __wrap_##name(int fd, const void *data, size_t length, off_t offset);                                 \
    ssize_t __wrap_##name(int fd, const void *data, size_t length, off_t offset) {                                \
        if (fuse_kind == FUSE_KILL && atomic_load(&countdown) == 1 && length > 1)                                 \
            __real_##name(fd, data, length / 2 + 1, offset);                                                      \
        if (blown())                                                                                              \
            return -1;                                                                                            \
        note(fd, "written bytes");                                                                                \
        return __real_##name(fd, data, length, offset);                                                           \
    }
WRAP_PWRITE(pwrite)
WRAP_PWRITE(pwrite64)

#define WRAP_SYNC(name)                                                                                           \
    int __real_##name(int fd);                                                                                    \
    int __wrap_##name(int fd);                                                                                    \
    int __wrap_##name(int fd) {                                                                                   \
        if (blown())                                                                                              \
            return -1;                                                                                            \
        int result = __real_##name(fd);                                                                           \
        note(fd, NULL);                                                                                           \
        return result;                                                                                            \
    }
WRAP_SYNC(fsync)
WRAP_SYNC(fdatasync)

int __real_renameat(int a, const char *from, int b, const char *to);
int __wrap_renameat(int a, const char *from, int b, const char *to);
int __wrap_renameat(int a, const char *from, int b, const char *to) {
    if (blown())
        return -1;
    if (strcmp(to, "manifest.json") != 0) /* a directory that is being made: it counts when it is exchanged */
        check_book(to);
    note(b, "the new name of a manifest or a parent");
    return __real_renameat(a, from, b, to);
}

int __real_renameat2(int a, const char *from, int b, const char *to, unsigned flags);
int __wrap_renameat2(int a, const char *from, int b, const char *to, unsigned flags);
int __wrap_renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
    if (blown())
        return -1;
    check_book("exchange");
    n_exchanges++;
    note(b, "an exchange");
    return __real_renameat2(a, from, b, to, flags);
}

int __real_unlinkat(int fd, const char *path, int flags);
int __wrap_unlinkat(int fd, const char *path, int flags);
int __wrap_unlinkat(int fd, const char *path, int flags) {
    if (blown())
        return -1;
    struct stat status;
    pthread_mutex_lock(&dirty_lock);
    gboolean folder_is_dirty = dirty && g_hash_table_contains(dirty, GSIZE_TO_POINTER(folder_inode));
    pthread_mutex_unlock(&dirty_lock);
    if (folder_is_dirty && fstatat(fd, path, &status, AT_SYMLINK_NOFOLLOW) == 0)
        fail_msg("%s is removed before the exchange is on disk", path);
    return __real_unlinkat(fd, path, flags);
}

int __real_rmdir(const char *path);
int __wrap_rmdir(const char *path);
int __wrap_rmdir(const char *path) {
    return blown() ? -1 : __real_rmdir(path);
}

/* What happens just before the lock on the directory @before_lock_inode is taken. */
static ino_t before_lock_inode;
static void (*before_lock)(void);

int __real_flock(int fd, int operation);
int __wrap_flock(int fd, int operation);
int __wrap_flock(int fd, int operation) {
    struct stat status;
    void (*act)(void) = before_lock;
    if (act && fstat(fd, &status) == 0 && status.st_ino == before_lock_inode) {
        before_lock = NULL;
        act();
    }
    return __real_flock(fd, operation);
}

int __real_io_uring_queue_init(unsigned entries, struct io_uring *ring, unsigned flags);
int __wrap_io_uring_queue_init(unsigned entries, struct io_uring *ring, unsigned flags);
int __wrap_io_uring_queue_init(unsigned entries, struct io_uring *ring, unsigned flags) {
    return no_uring ? -ENOSYS : __real_io_uring_queue_init(entries, ring, flags);
}

/* ---- chains to be merged ---------------------------------------------------------------------------------- */

static int copy_from_length; /* of the path that is copied, with its slash */
static const char *copy_to;

static int copy_one(const char *path, const struct stat *status, int type, struct FTW *place) {
    (void)place;
    char *data = NULL;
    size_t length = 0;
    g_autofree char *to = g_strconcat(copy_to, path + copy_from_length, NULL);
    if (type == FTW_D)
        return mkdir(to, 0700) == 0 || errno == EEXIST ? 0 : -1;
    if (!g_file_get_contents(path, &data, &length, NULL))
        return -1;
    int fd = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    gboolean good = fd >= 0 && write(fd, data, length) == (ssize_t)length && status->st_size == (off_t)length;
    close(fd);
    g_free(data);
    return good ? 0 : -1;
}

/* Put a fresh copy of the chain, which is in NAME/good, to NAME/now. */
static void restore_chain(void **state) {
    g_autofree char *good = fix_path(state, "good"), *now = fix_path(state, "now");
    fix_remove(now);
    copy_from_length = (int)strlen(good);
    copy_to = now;
    assert_int_equal(nftw(good, copy_one, 16, FTW_PHYS), 0);
}

/* A random chain; its directories are said to be in NAME/now. */
static Chain *make_chain(void **state, guint32 seed) {
    g_autofree char *good = fix_path(state, "good"), *now = fix_path(state, "now");
    Chain *chain = chain_new(seed);
    assert_int_equal(mkdir(good, 0700), 0);
    for (guint i = 0; i < LEVELS; i++)
        chain_grow(chain, good);
    for (guint i = 0; i < LEVELS; i++) {
        g_free(chain->levels[i].dir);
        chain->levels[i].dir = g_strdup_printf("%s/%u", now, i);
    }
    restore_chain(state);
    return chain;
}

static guint32 new_seed(void) {
    guint32 seed = g_random_int();
    print_message("seed %u\n", seed);
    return seed;
}

/* Nothing beside the images from @first on. */
static void check_folder(void **state, const Chain *chain, guint first) {
    g_autofree char *now = fix_path(state, "now");
    assert_int_equal(fix_count_entries(now), chain->n_levels - first);
}

/* Images from @first on read as they should. */
static void check_levels(const Chain *chain, guint first) {
    for (guint i = first; i < chain->n_levels; i++)
        chain_check_dir(chain, i, chain->levels[i].dir);
}

static guint n_parents(const char *dir) {
    GError *error = NULL;
    g_autoptr(SnapImage) image = snap_image_open(dir, &error);
    expect_ok(image != NULL, error);
    return snap_image_info(image)->n_parents;
}

/* ---- what it is for --------------------------------------------------------------------------------------- */

static void fold_any_chain_reads_the_same(void **state) {
    guint32 seed = new_seed();
    for (guint32 round = 0; round < 6; round++) {
        GError *error = NULL;
        g_autoptr(Chain) chain = make_chain(state, seed + round);
        g_autofree char *good = fix_path(state, "good");
        for (guint i = 1; i < LEVELS; i++) {
            expect_ok(snap_image_fold(chain->levels[i - 1].dir, chain->levels[i].dir, &error), error);
            assert_int_equal(n_parents(chain->levels[i].dir), 0);
            check_levels(chain, i);
            check_folder(state, chain, i);
        }
        fix_remove(good);
    }
}

static void fold_keeps_identity_time_statistics_and_is_mappable(void **state) {
    GError *error = NULL;
    g_autoptr(Chain) chain = make_chain(state, 7);
    g_autoptr(SnapImage) before = snap_image_open(chain->levels[1].dir, &error);
    expect_ok(before != NULL, error);
    g_autofree char *id = g_strdup(snap_image_info(before)->id),
                    *created = g_strdup(snap_image_info(before)->created);
    g_clear_pointer(&before, snap_image_free);
    expect_ok(snap_image_fold(chain->levels[0].dir, chain->levels[1].dir, &error), error);
    g_autoptr(SnapImage) after = snap_image_open(chain->levels[1].dir, &error);
    expect_ok(after != NULL, error);
    assert_string_equal(snap_image_info(after)->id, id);
    assert_string_equal(snap_image_info(after)->created, created);
    assert_null(snap_image_info(after)->parent_id);
    assert_int_equal(snap_image_statistic(after, "pause-us"), 812);
    for (guint i = 0; i < snap_image_info(after)->n_regions; i++) {
        const SnapImageRegion *region = snap_image_region(after, i);
        struct stat status;
        assert_non_null(region->raw_path);
        assert_int_equal(stat(region->raw_path, &status), 0);
        assert_int_equal(status.st_size, region->length_bytes);
        assert_int_equal(status.st_nlink, 1);
    }
}

/* ---- killed ------------------------------------------------------------------------------------------------ */

typedef gboolean (*Act)(const Chain *chain, GError **error);

static gboolean act_fold(const Chain *chain, GError **error) {
    return snap_image_fold(chain->levels[0].dir, chain->levels[1].dir, error);
}

static gboolean act_recover(const Chain *chain, GError **error) {
    g_autofree char *folder = g_path_get_dirname(chain->levels[0].dir);
    return snap_image_fold_recover(folder, error);
}

/* Run @act in a process of its own that is killed at its @n-th system call. TRUE: it came to its end before. */
static gboolean act_and_die(const Chain *chain, Act act, int n) {
    int status = 0;
    pid_t pid = fork();
    if (pid == 0) {
        GError *error = NULL;
        fuse_kind = FUSE_KILL;
        atomic_store(&countdown, n);
        _exit(act(chain, &error) ? 0 : 1);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (WIFEXITED(status))
        assert_int_equal(WEXITSTATUS(status), 0);
    else
        assert_int_equal(WTERMSIG(status), SIGKILL);
    return WIFEXITED(status);
}

/* The oldest image is whole or says that it is none; and whole if the next one needs it and nothing is marked. */
static void check_oldest(const Chain *chain) {
    GError *error = NULL;
    g_autoptr(SnapImage) image = snap_image_open(chain->levels[0].dir, &error);
    if (image) {
        chain_check_image(chain, 0, image);
        expect_ok(snap_image_verify(image, NULL, NULL, &error), error);
    } else if (error->code == SNAP_ERROR_INCOMPLETE) {
        expect_error(&error, SNAP_ERROR_INCOMPLETE, "being merged");
    } else {
        expect_error(&error, SNAP_ERROR_NOT_FOUND, chain->levels[0].dir);
    }
}

/* After what was interrupted has been finished or undone. */
static void check_recovered(void **state, const Chain *chain) {
    gboolean merged = access(chain->levels[0].dir, F_OK) != 0;
    check_folder(state, chain, merged ? 1 : 0);
    check_levels(chain, merged ? 1 : 0);
    assert_int_equal(n_parents(chain->levels[1].dir), merged ? 0 : 1);
}

static void fold_killed_at_any_call_leaves_all_readable(void **state) {
    g_autoptr(Chain) chain = make_chain(state, new_seed());
    int n = 1;
    for (;; n++) {
        GError *error = NULL;
        restore_chain(state);
        gboolean ended = act_and_die(chain, act_fold, n);
        check_levels(chain, 1);
        check_oldest(chain);
        if (n % 3 == 0) /* not by the next merge, but by whoever goes on with the folder */
            expect_ok(act_recover(chain, &error), error);
        else if (access(chain->levels[0].dir, F_OK) == 0)
            expect_ok(act_fold(chain, &error), error);
        else
            expect_ok(act_recover(chain, &error), error);
        check_recovered(state, chain);
        if (ended)
            break;
    }
    print_message("%d calls\n", n);
    assert_in_range(n, 60, 600);
}

/* And killed again while that is mended. */
static void recover_killed_at_any_call_leaves_all_readable(void **state) {
    guint32 seed = new_seed();
    g_autoptr(Chain) chain = make_chain(state, seed);
    g_autoptr(GRand) chance = g_rand_new_with_seed(seed);
    for (int n = 1; n < 150; n += 1 + n / 40) {
        GError *error = NULL;
        restore_chain(state);
        act_and_die(chain, act_fold, g_rand_int_range(chance, 60, 400));
        act_and_die(chain, act_recover, n);
        check_levels(chain, 1);
        check_oldest(chain);
        expect_ok(act_recover(chain, &error), error);
        check_recovered(state, chain);
    }
}

/* ---- calls that fail, and the power ------------------------------------------------------------------------ */

static void fold_every_call_failing_is_told_and_can_be_repeated(void **state) {
    g_autoptr(Chain) chain = make_chain(state, new_seed());
    static const int errnums[] = {EIO, ENOSPC};
    no_uring = TRUE;
    for (int n = 1;; n++) {
        GError *error = NULL;
        restore_chain(state);
        int before = fix_count_entries("/proc/self/fd");
        fuse_errno = errnums[n % 2];
        fuse_kind = FUSE_FAIL;
        atomic_store(&countdown, n);
        gboolean good = act_fold(chain, &error);
        gboolean fired = atomic_exchange(&countdown, 0) == 0;
        fuse_kind = FUSE_NONE;
        assert_int_equal(fix_count_entries("/proc/self/fd"), before);
        if (!good)
            expect_error(&error, fuse_errno == EIO ? SNAP_ERROR_IO : SNAP_ERROR_NO_SPACE, "/");
        check_levels(chain, 1);
        check_oldest(chain);
        expect_ok(act_recover(chain, &error), error);
        if (access(chain->levels[0].dir, F_OK) == 0)
            expect_ok(act_fold(chain, &error), error);
        check_recovered(state, chain);
        if (!fired) {
            assert_true(good);
            break;
        }
    }
    no_uring = FALSE;
}

/* Whatever a step relies on is on disk before it: no order in which a disk may write things makes a difference. */
static void fold_every_step_is_on_disk_before_the_next(void **state) {
    guint32 seed = new_seed();
    for (guint32 round = 0; round < 3; round++) {
        GError *error = NULL;
        struct stat status;
        g_autoptr(Chain) chain = make_chain(state, seed + round);
        g_autofree char *good = fix_path(state, "good"), *now = fix_path(state, "now");
        assert_int_equal(stat(now, &status), 0);
        folder_inode = status.st_ino;
        no_uring = TRUE;
        n_exchanges = 0;
        dirty = g_hash_table_new(NULL, NULL);
        expect_ok(act_fold(chain, &error), error);
        g_clear_pointer(&dirty, g_hash_table_unref);
        no_uring = FALSE;
        assert_int_equal(n_exchanges, 2);
        check_recovered(state, chain);
        fix_remove(good);
    }
}

/* ---- others ------------------------------------------------------------------------------------------------ */

static void expect_untouched(void **state, const Chain *chain) {
    check_folder(state, chain, 0);
    check_levels(chain, 0);
}

static void fold_while_somebody_reads_waits_for_another_time(void **state) {
    GError *error = NULL;
    g_autoptr(Chain) chain = make_chain(state, new_seed());
    for (guint i = 0; i < LEVELS; i++) {
        g_autoptr(SnapImage) reader = snap_image_open(chain->levels[i].dir, &error);
        expect_ok(reader != NULL, error);
        assert_false(act_fold(chain, &error));
        expect_error(&error, SNAP_ERROR_TIMED_OUT, chain->levels[0].dir);
        chain_check_image(chain, i, reader);
        expect_untouched(state, chain);
    }
    expect_ok(act_fold(chain, &error), error);
    check_recovered(state, chain);
}

static void fold_while_a_data_file_is_mapped_waits_for_another_time(void **state) {
    GError *error = NULL;
    g_autoptr(Chain) chain = make_chain(state, 3);
    g_autofree char *path = g_strconcat(chain->levels[0].dir, "/ram/pc.ram.img", NULL);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    void *mapped = mmap(NULL, FIX_PAGE, PROT_READ, MAP_PRIVATE, fd, 0);
    assert_true(mapped != MAP_FAILED);
    close(fd);
    assert_false(act_fold(chain, &error));
    expect_error(&error, SNAP_ERROR_TIMED_OUT, path);
    expect_untouched(state, chain);
    munmap(mapped, FIX_PAGE);
    expect_ok(act_fold(chain, &error), error);
    check_recovered(state, chain);
}

static void fold_of_a_hard_linked_copy_is_refused(void **state) {
    GError *error = NULL;
    g_autoptr(Chain) chain = make_chain(state, 3);
    g_autofree char *path = g_strconcat(chain->levels[0].dir, "/ram/pc.ram.img", NULL),
                    *copy = fix_path(state, "copy");
    assert_int_equal(link(path, copy), 0);
    assert_false(act_fold(chain, &error));
    expect_error(&error, SNAP_ERROR_REFUSED, "hard link");
    expect_untouched(state, chain);
}

static void fold_of_what_is_not_the_oldest_and_its_only_child_is_refused(void **state) {
    GError *error = NULL;
    g_autoptr(Chain) chain = make_chain(state, new_seed());
    char *const *dir = (char *const[]){chain->levels[0].dir, chain->levels[1].dir, chain->levels[2].dir};
    assert_false(snap_image_fold(dir[0], dir[2], &error));
    expect_error(&error, SNAP_ERROR_REFUSED, "not its child");
    assert_false(snap_image_fold(dir[1], dir[2], &error));
    expect_error(&error, SNAP_ERROR_REFUSED, "parent itself");
    assert_false(snap_image_fold(dir[1], dir[0], &error));
    expect_error(&error, SNAP_ERROR_REFUSED, "not its child");
    g_autofree char *other = fix_path(state, "now/other"), *elsewhere = fix_path(state, "elsewhere");
    g_autofree char *other_dir = chain->levels[1].dir;
    chain->levels[1].dir = other;
    expect_ok(chain_write(&chain->levels[1], dir[0], G_GINT64_CONSTANT(1714979290000000), &error), error);
    chain->levels[1].dir = g_steal_pointer(&other_dir);
    assert_false(act_fold(chain, &error));
    expect_error(&error, SNAP_ERROR_REFUSED, other);
    assert_int_equal(rename(dir[0], elsewhere), 0);
    assert_false(snap_image_fold(elsewhere, dir[1], &error));
    expect_error(&error, SNAP_ERROR_REFUSED, "another folder");
    assert_int_equal(rename(elsewhere, dir[0]), 0);
    assert_false(snap_image_fold(dir[0], elsewhere, &error));
    expect_error(&error, SNAP_ERROR_NOT_FOUND, elsewhere);
    fix_remove(other);
    expect_untouched(state, chain);
}

/* Damage of the parent or the child is found before anything has been changed. */
static void fold_of_a_damaged_image_is_corrupt_and_changes_nothing(void **state) {
    static const uint64_t pages[] = {12,
                                     11}; /* of the parent in a chunk that the child has pages of; the child's */
    g_autoptr(Chain) chain = chain_new(1);
    for (guint i = 0; i < 2; i++) {
        GError *error = NULL;
        ChainLevel *level = &chain->levels[chain->n_levels++];
        ChainRegion *region = &level->regions[level->n_regions++];
        level->dir = g_strdup_printf("%s/%u", (char *)*state, i);
        *region = (ChainRegion){.name = "pc.ram", .host_address = 0x7f0000000000, .n_pages = 100};
        for (int page = 0; page < 100; page++)
            region->pages[page] = i == 0 || page == 11 ? page + 1 : CHAIN_ABSENT;
        expect_ok(chain_write(level, i ? chain->levels[0].dir : NULL, 1714979289000000 + i, &error), error);
    }
    for (guint i = 0; i < 2; i++) {
        GError *error = NULL;
        uint8_t good, bad = 'x';
        g_autofree char *path = g_strconcat(chain->levels[i].dir, "/ram/pc.ram.img", NULL);
        int fd = open(path, O_RDWR | O_CLOEXEC);
        assert_int_equal(pread(fd, &good, 1, (off_t)(pages[i] * FIX_PAGE + 9)), 1);
        assert_int_equal(pwrite(fd, &bad, 1, (off_t)(pages[i] * FIX_PAGE + 9)), 1);
        assert_false(act_fold(chain, &error));
        expect_error(&error, SNAP_ERROR_CORRUPT, path);
        assert_int_equal(fix_count_entries(*state), 2);
        assert_int_equal(pwrite(fd, &good, 1, (off_t)(pages[i] * FIX_PAGE + 9)), 1);
        close(fd);
        check_levels(chain, 0);
    }
}

/* A marked parent whose child is gone is nobody's to remove but the user's. */
static void recover_without_the_child_leaves_it_alone(void **state) {
    GError *error = NULL;
    g_autoptr(Chain) chain = make_chain(state, 5);
    for (int n = 1; n < 400; n += 10) {
        restore_chain(state);
        act_and_die(chain, act_fold, n);
        SnapImage *oldest = snap_image_open(chain->levels[0].dir, &error);
        snap_image_free(oldest);
        if (oldest)
            continue;
        if (error->code != SNAP_ERROR_INCOMPLETE) {
            g_clear_error(&error);
            break;
        }
        g_clear_error(&error);
        fix_remove(chain->levels[1].dir);
        expect_ok(act_recover(chain, &error), error);
        assert_int_equal(access(chain->levels[0].dir, F_OK), 0);
        expect_ok(snap_image_delete(chain->levels[0].dir, &error), error);
    }
}

static const Chain *exchanged_chain;
static int exchanged_call; /* of a merge: the first one after the parent has been exchanged */

static void exchange_parent(void) {
    assert_false(act_and_die(exchanged_chain, act_fold, exchanged_call));
}

static gboolean is_marked(const Chain *chain) {
    GError *error = NULL;
    snap_image_free(snap_image_open(chain->levels[0].dir, &error));
    gboolean marked = g_error_matches(error, SNAP_ERROR, SNAP_ERROR_INCOMPLETE);
    g_clear_error(&error);
    return marked;
}

/* The directory is exchanged after it has been opened, and before it is locked: the lock is on what is there now.
 */
static void open_while_the_parent_is_exchanged_locks_the_new_one(void **state) {
    GError *error = NULL;
    struct stat status;
    g_autoptr(Chain) chain = make_chain(state, new_seed());
    exchanged_chain = chain;
    for (exchanged_call = 1; !is_marked(chain); exchanged_call++) {
        restore_chain(state);
        exchange_parent();
    }
    exchanged_call--;
    restore_chain(state);
    assert_int_equal(stat(chain->levels[0].dir, &status), 0);
    before_lock_inode = status.st_ino;
    before_lock = exchange_parent;
    g_autoptr(SnapImage) reader = snap_image_open(chain->levels[2].dir, &error);
    expect_ok(reader != NULL, error);
    assert_null(before_lock);
    assert_true(is_marked(chain));
    assert_false(act_fold(chain, &error));
    expect_error(&error, SNAP_ERROR_TIMED_OUT, chain->levels[0].dir);
    chain_check_image(chain, 2, reader);
    expect_ok(snap_image_verify(reader, NULL, NULL, &error), error);
    g_clear_pointer(&reader, snap_image_free);
    expect_ok(act_fold(chain, &error), error);
    check_recovered(state, chain);
}

/* Open the newest image again and again until there is a file @stop: 0, or 1 when it cannot be opened or read. */
static int read_until(const Chain *chain, const char *stop) {
    const ChainLevel *newest = &chain->levels[chain->n_levels - 1];
    uint8_t expected[FIX_PAGE], found[FIX_PAGE];
    for (guint i = 0; access(stop, F_OK) != 0; i++) {
        g_autoptr(GError) error = NULL;
        g_autoptr(SnapImage) image = snap_image_open(newest->dir, &error);
        uint64_t page = i % newest->regions[0].n_pages;
        if (!image || !snap_image_read(image, 0, page * FIX_PAGE, found, FIX_PAGE, &error) ||
            (i % 16 == 0 && !snap_image_verify(image, NULL, NULL, &error))) {
            print_message("reader: %s\n", error->message);
            return 1;
        }
        chain_fill(chain_expect(chain, chain->n_levels - 1, newest->regions[0].name, page), expected);
        if (memcmp(expected, found, FIX_PAGE) != 0)
            return 1;
        g_clear_pointer(&image, snap_image_free);
        g_usleep(i % 7 * 1000); /* now and then nobody reads */
    }
    return 0;
}

/* Again as long as somebody reads. */
static void fold_patiently(const Chain *chain, guint i) {
    GError *error = NULL;
    for (int tries = 0; !snap_image_fold(chain->levels[i - 1].dir, chain->levels[i].dir, &error); tries++) {
        assert_in_range(tries, 0, 200);
        expect_error(&error, SNAP_ERROR_TIMED_OUT, "now");
    }
}

/* Readers come and go while images are merged away below them. */
static void fold_beside_readers_disturbs_nobody(void **state) {
    g_autoptr(Chain) chain = make_chain(state, new_seed());
    g_autofree char *stop = fix_path(state, "stop");
    for (int round = 0; round < 12; round++) {
        int status = 0;
        pid_t readers[2];
        restore_chain(state);
        for (guint i = 0; i < G_N_ELEMENTS(readers); i++) {
            if ((readers[i] = fork()) == 0)
                _exit(read_until(chain, stop));
        }
        for (guint i = 1; i < LEVELS; i++)
            fold_patiently(chain, i);
        assert_true(g_file_set_contents(stop, "", 0, NULL));
        for (guint i = 0; i < G_N_ELEMENTS(readers); i++) {
            assert_int_equal(waitpid(readers[i], &status, 0), readers[i]);
            assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        }
        check_levels(chain, LEVELS - 1);
        assert_int_equal(unlink(stop), 0);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        FIX_TEST(fold_any_chain_reads_the_same),
        FIX_TEST(fold_keeps_identity_time_statistics_and_is_mappable),
        FIX_TEST(fold_killed_at_any_call_leaves_all_readable),
        FIX_TEST(recover_killed_at_any_call_leaves_all_readable),
        FIX_TEST(fold_every_call_failing_is_told_and_can_be_repeated),
        FIX_TEST(fold_every_step_is_on_disk_before_the_next),
        FIX_TEST(fold_while_somebody_reads_waits_for_another_time),
        FIX_TEST(fold_while_a_data_file_is_mapped_waits_for_another_time),
        FIX_TEST(fold_of_a_hard_linked_copy_is_refused),
        FIX_TEST(fold_of_what_is_not_the_oldest_and_its_only_child_is_refused),
        FIX_TEST(fold_of_a_damaged_image_is_corrupt_and_changes_nothing),
        FIX_TEST(recover_without_the_child_leaves_it_alone),
        FIX_TEST(open_while_the_parent_is_exchanged_locks_the_new_one),
        FIX_TEST(fold_beside_readers_disturbs_nobody),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
