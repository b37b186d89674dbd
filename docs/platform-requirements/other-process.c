/*
 * A userfaultfd belongs to the address space that made it, whoever holds the descriptor: API, REGISTER,
 * WRITEPROTECT and the messages work from another process that took it by pidfd_getfd(2), also after the target
 * has closed its own copy. Addresses are the target's.
 *
 * Relied on by everything that snapshots a guest from outside.
 */
#include "proof.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

/* In memory that both share. */
typedef struct {
    atomic_int fd;
    atomic_bool taken, armed, written;
} Shared;

static void spin_until(atomic_bool *flag) {
    while (!atomic_load(flag))
        usleep(100);
}

/* What an injected system call does in a guest; then the guest goes on to write. */
static void target(Shared *shared, char *memory) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    int fd = uffd_new();
    atomic_store(&shared->fd, fd);
    spin_until(&shared->taken);
    close(fd);
    spin_until(&shared->armed);
    *(volatile char *)memory = 'w';
    atomic_store(&shared->written, true);
    _exit(0);
}

static int take_descriptor(pid_t child, int remote) {
    int pidfd = (int)syscall(SYS_pidfd_open, child, 0);
    CHECK(pidfd >= 0);
    int fd = (int)syscall(SYS_pidfd_getfd, pidfd, remote, 0);
    if (fd < 0)
        end(77, "pidfd_getfd: %s", strerror(errno));
    close(pidfd);
    return fd;
}

int main(void) {
    Shared *shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED);
    atomic_store(&shared->fd, -1);
    char *memory = map_anon(1);
    memory[0] = 'o';

    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0)
        target(shared, memory);
    int status = 0;
    while (atomic_load(&shared->fd) < 0) {
        if (waitpid(child, &status, WNOHANG) == child)
            end(WEXITSTATUS(status), "no userfaultfd in the target");
        usleep(100);
    }
    int fd = take_descriptor(child, atomic_load(&shared->fd));
    atomic_store(&shared->taken, true);
    uffd_api(fd, UFFD_FEATURE_PAGEFAULT_FLAG_WP);
    CHECK(uffd_register(fd, memory, page_bytes()) == 0);
    CHECK(uffd_protect(fd, memory, page_bytes()) == 0);
    atomic_store(&shared->armed, true);

    struct uffd_msg message = uffd_read(fd);
    CHECK(message.event == UFFD_EVENT_PAGEFAULT);
    CHECK((message.arg.pagefault.address & ~(page_bytes() - 1)) == (uintptr_t)memory);
    CHECK(!atomic_load(&shared->written));
    CHECK(uffd_unprotect(fd, memory, page_bytes()) == 0);
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK(atomic_load(&shared->written));
    CHECK(memory[0] == 'o'); /* ours was never meant */
    return 0;
}
