/* See process-target.h. Children die with the test, so that a failing one leaves nothing behind. */
#include "process-target.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

uint64_t target_clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void target_sleep_ms(int ms) {
    struct timespec left = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L};
    while (nanosleep(&left, &left) < 0) {
    }
}

Target *target_start(void (*body)(TargetShared *)) {
    Target *target = g_new0(Target, 1);
    target->shared = (TargetShared *)mmap(NULL, sizeof(TargetShared), PROT_READ | PROT_WRITE,
                                          MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    g_assert(target->shared != MAP_FAILED);
    g_assert(pipe2(target->shared->pipe, O_CLOEXEC) == 0);
    g_assert(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, target->shared->sockets) == 0);
    target->pid = fork();
    if (target->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        signal(SIGSEGV, SIG_DFL); /* the test framework's handler would go on with the other tests in here */
        body(target->shared);
        target->shared->done = 1;
        _exit(0);
    }
    for (int i = 0; i < 5000 && !target->shared->ready; i++) {
        target_sleep_ms(1);
    }
    return target;
}

void target_end(Target *target) {
    if (!target) {
        return;
    }
    kill(target->pid, SIGKILL);
    waitpid(target->pid, NULL, 0);
    for (int i = 0; i < 2; i++) {
        close(target->shared->pipe[i]);
        close(target->shared->sockets[i]);
    }
    munmap(target->shared, sizeof(TargetShared));
    g_free(target);
}

char target_state(pid_t pid) {
    g_autofree char *path = g_strdup_printf("/proc/%d/stat", (int)pid);
    g_autofree char *text = NULL;
    if (!g_file_get_contents(path, &text, NULL, NULL)) {
        return '?';
    }
    return strrchr(text, ')')[2];
}

gboolean target_await_state(pid_t pid, char state) {
    for (int i = 0; i < 1000 && target_state(pid) != state; i++) {
        target_sleep_ms(1);
    }
    return target_state(pid) == state;
}

gboolean target_await(const volatile uint64_t *value, uint64_t at_least, int timeout_ms) {
    for (int i = 0; i < timeout_ms && *value < at_least; i++) {
        target_sleep_ms(1);
    }
    return *value >= at_least;
}

gboolean target_await_done(const Target *target, int timeout_ms) {
    for (int i = 0; i < timeout_ms && !target->shared->done; i++) {
        target_sleep_ms(1);
    }
    return target->shared->done != 0;
}

char *target_descriptors(pid_t pid) {
    g_autofree char *path = g_strdup_printf("/proc/%d/fd", (int)pid);
    g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
    GString *all = g_string_new(NULL);
    const char *name = NULL;
    while (dir && (name = g_dir_read_name(dir))) {
        g_autofree char *link = g_build_filename(path, name, NULL);
        g_autofree char *where = g_file_read_link(link, NULL);
        g_string_append_printf(all, "%s:%s ", name, where ? where : "?");
    }
    return g_string_free(all, FALSE);
}

gint64 target_tracer(pid_t pid) {
    g_autofree char *path = g_strdup_printf("/proc/%d/status", (int)pid);
    g_autofree char *text = NULL;
    if (!g_file_get_contents(path, &text, NULL, NULL)) {
        return -1;
    }
    const char *line = strstr(text, "\nTracerPid:");
    return line ? g_ascii_strtoll(line + strlen("\nTracerPid:"), NULL, 10) : -1;
}
