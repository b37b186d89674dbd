/*
 * What the first write of a page costs the writer, three ways to notice it:
 *     async      userfaultfd write-protection that the kernel takes away by itself
 *     mprotect   a read-only mapping, and a SIGSEGV handler that makes the page writable
 *     sync       userfaultfd write-protection that a thread takes away
 *
 *     first-write [--size 256M] [--rounds 5] [--how async,mprotect,sync]
 *
 * One thread writes a word into each page of anonymous memory in base pages, in order (so that mprotect() does not
 * run out of mappings). Prints the median over the rounds of the mean of a write, in nanoseconds. Exit status 1
 * with a line on stderr when the kernel does not let us, 2 for wrong usage.
 */
#include "floor-memory.h"

#include "../../libsnap/uapi.h"

#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#define PROGRAM "first-write"
#define ROUNDS_MAX 100

typedef struct {
    Memory memory;
    int uffd;
    atomic_bool stop;
} Arena;

static Arena arena; /* a signal handler finds it */

static int open_uffd(uint64_t features) {
    struct uffdio_api api = {.api = UFFD_API, .features = features};
    struct uffdio_register reg = {
        .range = {.start = (uintptr_t)arena.memory.start, .len = arena.memory.size_bytes},
        .mode = UFFDIO_REGISTER_MODE_WP};
    int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

    if (uffd < 0)
        die(PROGRAM, "userfaultfd (needs root)");
    if (ioctl(uffd, UFFDIO_API, &api) < 0 || ioctl(uffd, UFFDIO_REGISTER, &reg) < 0)
        die(PROGRAM, "register the memory");
    return uffd;
}

static void protect(uint64_t start, uint64_t length, uint64_t mode) {
    struct uffdio_writeprotect wp = {.range = {.start = start, .len = length}, .mode = mode};

    if (ioctl(arena.uffd, UFFDIO_WRITEPROTECT, &wp) < 0)
        die(PROGRAM, "write-protect the memory");
}

static void protect_all(void) {
    protect((uintptr_t)arena.memory.start, arena.memory.size_bytes, UFFDIO_WRITEPROTECT_MODE_WP);
}

static double write_all_ns(void) {
    uint64_t start_ns = now_ns(), pages = arena.memory.size_bytes / arena.memory.page_bytes;

    write_pages(&arena.memory, 1);
    return (double)(now_ns() - start_ns) / (double)pages;
}

/* ---- three ways ------------------------------------------------------------------------------------------- */

static double round_async(void) {
    double each_ns;

    arena.uffd = open_uffd(UFFD_FEATURE_WP_ASYNC);
    protect_all();
    each_ns = write_all_ns();
    close(arena.uffd);
    return each_ns;
}

static void on_fault(int signal, siginfo_t *info, void *context) {
    uint64_t address = (uintptr_t)info->si_addr, page = arena.memory.page_bytes;

    (void)signal;
    (void)context;
    if (mprotect((void *)(address - address % page), page, PROT_READ | PROT_WRITE) < 0)
        _exit(1);
}

static double round_mprotect(void) {
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO}, before;
    double each_ns;

    sigaction(SIGSEGV, &action, &before);
    if (mprotect(arena.memory.start, arena.memory.size_bytes, PROT_READ) < 0)
        die(PROGRAM, "mprotect");
    each_ns = write_all_ns();
    sigaction(SIGSEGV, &before, NULL);
    return each_ns;
}

static void *serve(void *opaque) {
    struct pollfd fd = {.fd = arena.uffd, .events = POLLIN};
    struct uffd_msg msg;

    (void)opaque;
    while (!atomic_load(&arena.stop)) {
        poll(&fd, 1, 10);
        while (read(arena.uffd, &msg, sizeof(msg)) == (ssize_t)sizeof(msg))
            protect(msg.arg.pagefault.address / arena.memory.page_bytes * arena.memory.page_bytes,
                    arena.memory.page_bytes, 0);
    }
    return NULL;
}

static double round_sync(void) {
    pthread_t thread;
    double each_ns;

    arena.uffd = open_uffd(UFFD_FEATURE_PAGEFAULT_FLAG_WP);
    protect_all();
    atomic_store(&arena.stop, false);
    if ((errno = pthread_create(&thread, NULL, serve, NULL)) != 0)
        die(PROGRAM, "start a thread");
    each_ns = write_all_ns();
    atomic_store(&arena.stop, true);
    pthread_join(thread, NULL);
    close(arena.uffd);
    return each_ns;
}

static const struct {
    const char *name;
    double (*round)(void);
} ways[] = {{"async", round_async}, {"mprotect", round_mprotect}, {"sync", round_sync}};

/* ---- the whole -------------------------------------------------------------------------------------------- */

static _Noreturn void usage(void) {
    fprintf(stderr, "usage: " PROGRAM " [--size SIZE] [--rounds N] [--how async,mprotect,sync]\n");
    exit(2);
}

int main(int argc, char **argv) {
    static const struct option table[] = {{"size", required_argument, NULL, 's'},
                                          {"rounds", required_argument, NULL, 'r'},
                                          {"how", required_argument, NULL, 'h'},
                                          {0}};
    uint64_t times[sizeof(ways) / sizeof(*ways)][ROUNDS_MAX], size_bytes = UINT64_C(256) << 20, rounds = 5;
    const char *how = "async,mprotect,sync";
    int option;

    while ((option = getopt_long(argc, argv, "", table, NULL)) != -1) {
        if (option == 's')
            size_bytes = parse_size(optarg);
        else if (option == 'r')
            rounds = parse_size(optarg);
        else if (option == 'h')
            how = optarg;
        else
            usage();
    }
    if (optind != argc || !size_bytes || !rounds || rounds > ROUNDS_MAX)
        usage();
    arena.memory = map_memory(PROGRAM, "anon", size_bytes);
    for (uint64_t i = 0; i < rounds; i++)
        for (size_t way = 0; way < sizeof(ways) / sizeof(*ways); way++)
            if (strstr(how, ways[way].name))
                times[way][i] = (uint64_t)(ways[way].round() * 1000);
    for (size_t way = 0; way < sizeof(ways) / sizeof(*ways); way++)
        if (strstr(how, ways[way].name))
            printf("%s-ns=%.0f ", ways[way].name, median_us(times[way], rounds));
    printf("pages=%lu\n", (unsigned long)(arena.memory.size_bytes / arena.memory.page_bytes));
    return 0;
}
