/* libc with a fuse, and a book about what is on disk. See fold-fixture.h. */
#include "fold-fixture.h"

#include <liburing.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>

typedef enum { FUSE_NONE, FUSE_FAIL, FUSE_KILL } FuseKind;

static atomic_int countdown; /* the call that brings it to 0 fails, or is the last; at 0 none does */
static FuseKind fuse_kind;
static int fuse_errno;
static gboolean no_uring;

/* What has been changed and not been fsynced: inode → what. NULL: nobody keeps the book. */
static GHashTable *dirty;
static pthread_mutex_t dirty_lock = PTHREAD_MUTEX_INITIALIZER;
static ino_t folder_inode;
static int n_exchanges;

void fold_fuse_fail(int n, int errnum) {
    fuse_kind = FUSE_FAIL;
    fuse_errno = errnum;
    atomic_store(&countdown, n);
}

void fold_fuse_kill(int n) {
    fuse_kind = FUSE_KILL;
    atomic_store(&countdown, n);
}

gboolean fold_fuse_take_out(void) {
    fuse_kind = FUSE_NONE;
    return atomic_exchange(&countdown, 0) == 0;
}

void fold_allow_uring(gboolean allowed) {
    no_uring = !allowed;
}

void fold_book_open(const char *folder) {
    struct stat status;
    assert_int_equal(stat(folder, &status), 0);
    folder_inode = status.st_ino;
    n_exchanges = 0;
    dirty = g_hash_table_new(NULL, NULL);
}

int fold_book_close(void) {
    g_clear_pointer(&dirty, g_hash_table_unref);
    return n_exchanges;
}

/* ---- what the functions below do beside their work ------------------------------------------------------- */

/* TRUE: the call is to fail. */
static gboolean blown(void) {
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

/* ---- in the place of libc's ------------------------------------------------------------------------------ */

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

void fold_before_lock(const char *dir, void (*act)(void)) {
    struct stat status;
    assert_int_equal(stat(dir, &status), 0);
    before_lock_inode = status.st_ino;
    before_lock = act;
}

gboolean fold_before_lock_is_due(void) {
    return before_lock != NULL;
}

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
