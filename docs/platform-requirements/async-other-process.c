/*
 * From outside: with a userfaultfd that came from the target, and /proc/PID/pagemap, a process logs what another
 * one writes, and protects it again. When the target has ended, a scan is silent (there is nothing mapped),
 * PROCMAP_QUERY on /proc/PID/maps says ESRCH, and its text is empty.
 *
 * Relied on by the log of a guest in another process.
 */
#include "async.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

/* In memory that both share. */
typedef struct {
    atomic_int fd;
    atomic_int command; /* which page to write, -1 when it was done */
} Shared;

static void target(Shared *shared, char *memory) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    atomic_store(&shared->fd, uffd_new());
    for (;;) {
        int page = atomic_load(&shared->command);
        if (page >= 0) {
            ((volatile char *)memory)[(size_t)page * page_bytes()] = 'w';
            atomic_store(&shared->command, -1);
        }
        usleep(100);
    }
}

static void tell(Shared *shared, int page) {
    atomic_store(&shared->command, page);
    for (int ms = 0; ms < WAIT_MS && atomic_load(&shared->command) >= 0; ms++)
        usleep(1000);
    CHECK(atomic_load(&shared->command) < 0);
}

static int take_descriptor(pid_t child, const Shared *shared) {
    while (atomic_load(&shared->fd) < 0) {
        int status = 0;
        if (waitpid(child, &status, WNOHANG) == child)
            end(WEXITSTATUS(status), "no userfaultfd in the target");
        usleep(100);
    }
    int pidfd = (int)syscall(SYS_pidfd_open, child, 0);
    CHECK(pidfd >= 0);
    int fd = (int)syscall(SYS_pidfd_getfd, pidfd, atomic_load(&shared->fd), 0);
    if (fd < 0)
        end(77, "pidfd_getfd: %s", strerror(errno));
    close(pidfd);
    return fd;
}

static int open_proc(pid_t pid, const char *file) {
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/%s", pid, file);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0);
    return fd;
}

/* Runs that were written; they are protected again. Returns their number, or -errno. */
static int clear(int pagemap, const char *memory, size_t length, struct page_region *runs) {
    struct pm_scan_arg scan = async_range(memory, length);
    scan.size = sizeof(scan);
    scan.flags = ASYNC_CLEAR;
    scan.vec = (uintptr_t)runs;
    scan.vec_len = ASYNC_RUNS;
    scan.category_mask = scan.return_mask = PAGE_IS_WRITTEN;
    int n = ioctl(pagemap, PAGEMAP_SCAN, &scan);
    if (n < 0 && errno == ENOTTY)
        end(77, "no PAGEMAP_SCAN (Linux 6.7)");
    return n < 0 ? -errno : n;
}

static void check_ended(int pagemap, int maps, const char *memory, size_t length) {
    struct page_region runs[ASYNC_RUNS];
    struct procmap_query query = {.size = sizeof(query), .query_addr = (uintptr_t)memory};
    char byte;
    CHECK(clear(pagemap, memory, length, runs) <= 0);
    CHECK(ioctl(maps, PROCMAP_QUERY, &query) < 0 && (errno == ESRCH || errno == ENOTTY));
    CHECK(read(maps, &byte, 1) <= 0);
}

int main(void) {
    const size_t page = page_bytes(), length = 4 * page;
    Shared *shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED);
    atomic_store(&shared->fd, -1);
    atomic_store(&shared->command, -1);
    char *memory = map_anon(4);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0)
        target(shared, memory);

    int fd = take_descriptor(child, shared), pagemap = open_proc(child, "pagemap"),
        maps = open_proc(child, "maps");
    struct page_region runs[ASYNC_RUNS];
    uffd_api(fd, UFFD_FEATURE_WP_ASYNC);
    CHECK(uffd_register(fd, memory, length) == 0);
    CHECK(clear(pagemap, memory, length, runs) == 1);
    CHECK(clear(pagemap, memory, length, runs) == 0);
    tell(shared, 2);
    CHECK(clear(pagemap, memory, length, runs) == 1);
    CHECK(runs[0].start == (uintptr_t)memory + 2 * page && runs[0].end == runs[0].start + page);
    CHECK(clear(pagemap, memory, length, runs) == 0);
    tell(shared, 2);
    CHECK(clear(pagemap, memory, length, runs) == 1);

    kill(child, SIGKILL);
    CHECK(waitpid(child, NULL, 0) == child);
    check_ended(pagemap, maps, memory, length);
    return 0;
}
