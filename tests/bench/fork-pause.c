/*
 * What a snapshot by fork() costs: how long the call holds up a process with much memory.
 *
 *     fork-pause SIZE
 *
 * Populates SIZE of anonymous memory in base pages, says "ready", and then forks once for every line on standard
 * input and prints "fork-us=…", the time of the call in the parent. The child ends at once; the copies that the
 * parent's writes would cost it later are not in the figure.
 */
#include "floor.h"

#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define PROGRAM "fork-pause"

static void populate(uint64_t size_bytes) {
    char *memory = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint64_t page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);

    if (memory == MAP_FAILED)
        die(PROGRAM, "map the memory");
    madvise(memory, size_bytes, MADV_NOHUGEPAGE);
    for (uint64_t at = 0; at < size_bytes; at += page_bytes)
        ((volatile char *)memory)[at] = 1;
}

static uint64_t fork_once_ns(void) {
    uint64_t start_ns = now_ns(), took_ns;
    pid_t child = fork();

    if (child == 0)
        _exit(0);
    took_ns = now_ns() - start_ns;
    if (child < 0)
        die(PROGRAM, "fork");
    waitpid(child, NULL, 0);
    return took_ns;
}

int main(int argc, char **argv) {
    uint64_t size_bytes = argc == 2 ? parse_size(argv[1]) : 0;

    if (size_bytes == 0) {
        fprintf(stderr, "usage: " PROGRAM " SIZE\n");
        return 2;
    }
    populate(size_bytes);
    puts("ready");
    fflush(stdout);
    for (int c; (c = getchar()) != EOF;) {
        if (c != '\n')
            continue;
        printf("fork-us=%.1f\n", (double)fork_once_ns() / 1000);
        fflush(stdout);
    }
    return 0;
}
