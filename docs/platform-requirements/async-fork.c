/*
 * fork(2) under async write-protection, without EVENT_FORK: the parent's protection and its log stay exact,
 * through copying on write too; the child's memory is not registered, and nothing waits for anybody.
 *
 * Relied on by the async log, which asks for no events.
 */
#include "async.h"

#include <sys/wait.h>

int main(void) {
    const size_t page = page_bytes(), length = 8 * page;
    char *memory = map_anon(8);
    memset(memory, 'o', length);
    int fd = async_open(memory, length);
    CHECK(async_protect(memory, length) == 0);
    memory[0] = 'w';
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        memset(memory, 'c', length);
        struct pm_scan_arg scan = async_range(memory, length);
        scan.flags = ASYNC_CLEAR;
        _exit(async_scan(&scan, NULL, 0) == -EPERM ? 0 : 1);
    }
    memory[page] = 'w'; /* a copy, since the child has it too */
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK(async_written(memory, length, ASYNC_CLEAR) == 2);
    CHECK(async_look(memory + 2 * page) == PAGE_IS_PRESENT);
    CHECK(memory[2 * page] == 'o' && memory[page] == 'w');
    memory[2 * page] = 'w';
    CHECK(async_written(memory, length, ASYNC_CLEAR) == 1);
    close(fd);
    return 0;
}
