/*
 * The floor of fault service: a bare userfaultfd write-protect ping-pong, with nothing in it but what any
 * snapshotter has to do for a fault.
 *
 *     uffd-pingpong [--memory anon|memfd] [--size 256M] [--faults 20000] [--in-process]
 *                   [--handler-cpu N] [--writer-cpu N]
 *
 * The writer stores a word into a protected page, which stops it. The handler: poll, read the message, copy the
 * page into a buffer, un-protect it. The pages are far apart and the buffer is a ring of 64 MiB, so that both are
 * as cold as in a real snapshot. The writer is a process of its own, and its page is copied by process_vm_readv(2)
 * (anon) or pread(2) (memfd); with --in-process it is a thread, and memcpy() does.
 *
 * Prints one line: service is message read to un-protect done, stall is what the writer waited.
 * Exit status 1 with a line on stderr when the kernel does not let us, 2 for wrong usage.
 */
#include "floor.h"

#include <assert.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdbool.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define PROGRAM "uffd-pingpong"
#define POOL_BYTES (UINT64_C(64) << 20)

typedef struct {
    uint64_t size_bytes;
    size_t faults;
    int handler_cpu; /* -1: anywhere */
    int writer_cpu;
    bool memfd;
    bool in_process;
} Options;

/* In memory that both sides see. */
typedef struct {
    sem_t ready; /* the writer has mapped and populated, uffd is open */
    sem_t go;    /* everything is protected */
    char *arena; /* in the writer */
    int uffd;    /* in the writer */
    uint64_t stalls_ns[];
} Shared;

typedef struct {
    Options options;
    Shared *shared;
    uint64_t page_bytes;
    uint64_t pages;
    uint64_t stride; /* coprime to pages: consecutive faults are far apart */
    int memfd;
    pid_t writer;
    pthread_t thread;
    /* the handler's */
    int uffd;
    char *pool;
    uint64_t *service_ns;
} Pingpong;

static void pin(int cpu) {
    cpu_set_t set;

    if (cpu < 0)
        return;
    CPU_ZERO(&set);
    CPU_SET((size_t)cpu, &set);
    if (sched_setaffinity(0, sizeof(set), &set) < 0)
        die(PROGRAM, "pin to a CPU");
}

/* ---- the writer ------------------------------------------------------------------------------------------- */

static char *map_arena(const Pingpong *pp) {
    int flags = pp->memfd >= 0 ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS;
    char *arena = mmap(NULL, pp->options.size_bytes, PROT_READ | PROT_WRITE, flags, pp->memfd, 0);

    if (arena == MAP_FAILED)
        die(PROGRAM, "map the arena");
    madvise(arena, pp->options.size_bytes, MADV_NOHUGEPAGE);
    memset(arena, 1, pp->options.size_bytes);
    return arena;
}

static void run_writer(Pingpong *pp) {
    Shared *shared = pp->shared;

    pin(pp->options.writer_cpu);
    shared->arena = map_arena(pp);
    shared->uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (shared->uffd < 0)
        die(PROGRAM, "userfaultfd (needs root)");
    sem_post(&shared->ready);
    while (sem_wait(&shared->go) < 0)
        ;
    for (size_t i = 0; i < pp->options.faults; i++) {
        volatile uint64_t *word =
            (volatile uint64_t *)(shared->arena + i * pp->stride % pp->pages * pp->page_bytes);
        uint64_t start_ns = now_ns();
        *word = i;
        shared->stalls_ns[i] = now_ns() - start_ns;
    }
}

static void *writer_thread(void *opaque) {
    run_writer(opaque);
    return NULL;
}

static void start_writer(Pingpong *pp) {
    if (pp->options.in_process) {
        if ((errno = pthread_create(&pp->thread, NULL, writer_thread, pp)) != 0)
            die(PROGRAM, "start the writer");
        return;
    }
    pp->writer = fork();
    if (pp->writer < 0)
        die(PROGRAM, "fork");
    if (pp->writer == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        run_writer(pp);
        _exit(0);
    }
}

static void wait_ready(Pingpong *pp) {
    struct timespec poll_at = {0};

    do { /* a writer that could not start has said why */
        if (pp->writer > 0 && waitpid(pp->writer, NULL, WNOHANG) != 0)
            exit(1);
        clock_gettime(CLOCK_REALTIME, &poll_at);
        poll_at.tv_sec++;
    } while (sem_timedwait(&pp->shared->ready, &poll_at) < 0);
}

static void join_writer(Pingpong *pp) {
    if (pp->options.in_process)
        pthread_join(pp->thread, NULL);
    else
        waitpid(pp->writer, NULL, 0);
}

/* ---- the handler ------------------------------------------------------------------------------------------ */

static int take_uffd(const Pingpong *pp) {
    int pidfd, uffd;

    if (pp->options.in_process)
        return pp->shared->uffd;
    pidfd = (int)syscall(SYS_pidfd_open, pp->writer, 0);
    uffd = pidfd < 0 ? -1 : (int)syscall(SYS_pidfd_getfd, pidfd, pp->shared->uffd, 0);
    if (uffd < 0)
        die(PROGRAM, "take the userfaultfd");
    close(pidfd);
    return uffd;
}

static int write_protect(int uffd, uint64_t start, uint64_t length, uint64_t mode) {
    struct uffdio_writeprotect wp = {.range = {.start = start, .len = length}, .mode = mode};

    return ioctl(uffd, UFFDIO_WRITEPROTECT, &wp);
}

static void protect_all(const Pingpong *pp) {
    uint64_t start = (uintptr_t)pp->shared->arena, length = pp->options.size_bytes;
    struct uffdio_api api = {.api = UFFD_API, .features = pp->memfd >= 0 ? UFFD_FEATURE_WP_HUGETLBFS_SHMEM : 0};
    struct uffdio_register reg = {.range = {.start = start, .len = length}, .mode = UFFDIO_REGISTER_MODE_WP};

    if (ioctl(pp->uffd, UFFDIO_API, &api) < 0 || ioctl(pp->uffd, UFFDIO_REGISTER, &reg) < 0 ||
        write_protect(pp->uffd, start, length, UFFDIO_WRITEPROTECT_MODE_WP) < 0)
        die(PROGRAM, "write-protect the arena");
}

static void copy_page(const Pingpong *pp, uint64_t address, char *to) {
    struct iovec local = {.iov_base = to, .iov_len = pp->page_bytes};
    struct iovec remote = {.iov_base = (void *)(uintptr_t)address, .iov_len = pp->page_bytes};
    ssize_t n = (ssize_t)pp->page_bytes;

    if (pp->options.in_process)
        memcpy(to, remote.iov_base, pp->page_bytes);
    else if (pp->memfd >= 0)
        n = pread(pp->memfd, to, pp->page_bytes, (off_t)(address - (uintptr_t)pp->shared->arena));
    else
        n = process_vm_readv(pp->writer, &local, 1, &remote, 1, 0);
    if (n != (ssize_t)pp->page_bytes)
        die(PROGRAM, "copy a page");
}

static void serve_one(Pingpong *pp, size_t number) {
    struct pollfd fd = {.fd = pp->uffd, .events = POLLIN};
    struct uffd_msg msg;
    uint64_t read_ns, address;

    do
        poll(&fd, 1, -1);
    while (read(pp->uffd, &msg, sizeof(msg)) != (ssize_t)sizeof(msg));
    read_ns = now_ns();
    address = msg.arg.pagefault.address - msg.arg.pagefault.address % pp->page_bytes;
    copy_page(pp, address, pp->pool + number * pp->page_bytes % POOL_BYTES);
    if (write_protect(pp->uffd, address, pp->page_bytes, 0) < 0)
        die(PROGRAM, "un-protect a page");
    pp->service_ns[number] = now_ns() - read_ns;
}

static void run_handler(Pingpong *pp) {
    pin(pp->options.handler_cpu);
    wait_ready(pp);
    pp->uffd = take_uffd(pp);
    pp->pool = mmap(NULL, POOL_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (pp->pool == MAP_FAILED)
        die(PROGRAM, "memory");
    protect_all(pp);
    sem_post(&pp->shared->go);
    for (size_t i = 0; i < pp->options.faults; i++)
        serve_one(pp, i);
}

/* ---- the whole -------------------------------------------------------------------------------------------- */

static _Noreturn void usage(void) {
    fprintf(stderr, "usage: " PROGRAM " [--memory anon|memfd] [--size 256M] [--faults N] [--in-process]\n"
                    "                     [--handler-cpu N] [--writer-cpu N]\n");
    exit(2);
}

static void parse_options(int argc, char **argv, Options *options) {
    static const struct option table[] = {{"memory", required_argument, NULL, 'm'},
                                          {"size", required_argument, NULL, 's'},
                                          {"faults", required_argument, NULL, 'f'},
                                          {"in-process", no_argument, NULL, 'i'},
                                          {"handler-cpu", required_argument, NULL, 'h'},
                                          {"writer-cpu", required_argument, NULL, 'w'},
                                          {0}};
    int option;

    while ((option = getopt_long(argc, argv, "", table, NULL)) != -1) {
        if (option == 'm' && strcmp(optarg, "memfd") == 0)
            options->memfd = true;
        else if (option == 's')
            options->size_bytes = parse_size(optarg);
        else if (option == 'f')
            options->faults = parse_size(optarg);
        else if (option == 'i')
            options->in_process = true;
        else if (option == 'h')
            options->handler_cpu = (int)parse_size(optarg);
        else if (option == 'w')
            options->writer_cpu = (int)parse_size(optarg);
        else if (option != 'm' || strcmp(optarg, "anon") != 0)
            usage();
    }
    if (optind != argc || options->faults == 0 || options->size_bytes == 0)
        usage();
}

static uint64_t greatest_common_divisor(uint64_t a, uint64_t b) {
    while (b) {
        uint64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

static void set_up(Pingpong *pp) {
    size_t shared_bytes = sizeof(Shared) + pp->options.faults * sizeof(uint64_t);

    pp->page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
    pp->pages = pp->options.size_bytes / pp->page_bytes;
    if (pp->pages < pp->options.faults)
        usage(); /* a page faults once */
    pp->stride = pp->pages * 618 / 1000 | 1;
    while (greatest_common_divisor(pp->stride, pp->pages) != 1)
        pp->stride += 2;
    pp->memfd = pp->options.memfd ? memfd_create("arena", MFD_CLOEXEC) : -1;
    if (pp->memfd >= 0 && ftruncate(pp->memfd, (off_t)pp->options.size_bytes) < 0)
        die(PROGRAM, "memfd");
    pp->shared = mmap(NULL, shared_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pp->service_ns = calloc(pp->options.faults, sizeof(*pp->service_ns));
    if (pp->shared == MAP_FAILED || !pp->service_ns)
        die(PROGRAM, "memory");
    sem_init(&pp->shared->ready, 1, 0);
    sem_init(&pp->shared->go, 1, 0);
}

static void report(Pingpong *pp) {
    size_t n = pp->options.faults;

    assert(pp->service_ns);
    sort_times(pp->service_ns, n);
    sort_times(pp->shared->stalls_ns, n);
    printf("service-p50-us=%.3f service-p99-us=%.3f stall-p50-us=%.3f stall-p99-us=%.3f faults=%zu\n",
           percentile_us(pp->service_ns, n, 50), percentile_us(pp->service_ns, n, 99),
           percentile_us(pp->shared->stalls_ns, n, 50), percentile_us(pp->shared->stalls_ns, n, 99), n);
}

int main(int argc, char **argv) {
    static Pingpong pp = {
        .options = {.size_bytes = UINT64_C(256) << 20, .faults = 20000, .handler_cpu = -1, .writer_cpu = -1}};

    parse_options(argc, argv, &pp.options);
    set_up(&pp);
    start_writer(&pp);
    run_handler(&pp);
    join_writer(&pp);
    report(&pp);
    return 0;
}
