/*
 * Refusals that need no attaching, and small readers of /proc.
 *
 * All of it is advice: the process may end, or change, between the look and the deed. What happens then is an
 * error of the deed.
 */
#include "target.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "libsnap.h"

/* Indices into target_stat_fields(). */
enum { STAT_STATE = 0, STAT_FLAGS = 6, STAT_START = 19 };
#define TASK_IS_KERNEL_THREAD 0x00200000 /* PF_KTHREAD of include/linux/sched.h */

static char *read_proc_file(int pid, const char *name) {
    g_autofree char *path = g_strdup_printf("/proc/%d/%s", pid, name);
    g_autofree char *text = NULL;
    return g_file_get_contents(path, &text, NULL, NULL) ? g_steal_pointer(&text) : NULL;
}

gint64 target_status_number(int pid, const char *key) {
    g_autofree char *text = read_proc_file(pid, "status");
    const char *line = text ? strstr(text, key) : NULL;
    return line ? g_ascii_strtoll(line + strlen(key), NULL, 10) : -1;
}

char **target_stat_fields(int pid, pid_t tid) {
    g_autofree char *name = g_strdup_printf("task/%d/stat", (int)tid);
    g_autofree char *text = read_proc_file(pid, name);
    /* The command stands in parentheses and may hold anything, so count from the last one: field 3 follows it. */
    char *rest = text ? strrchr(text, ')') : NULL;
    return rest && rest[1] == ' ' ? g_strsplit(g_strchomp(rest + 2), " ", -1) : g_new0(char *, 1);
}

gboolean target_has_ended(int pid, pid_t tid) {
    g_auto(GStrv) fields = target_stat_fields(pid, tid);
    if (fields[0]) {
        return strchr("ZX", fields[0][0]) != NULL;
    }
    g_autofree char *path = g_strdup_printf("/proc/%d/task/%d", pid, (int)tid);
    return access(path, F_OK) < 0; /* it takes a descriptor to read, and none to look whether it is there */
}

char *target_identity(int pid) {
    g_auto(GStrv) fields = target_stat_fields(pid, pid);
    g_autofree char *boot = NULL;
    if (g_strv_length(fields) <= STAT_START ||
        !g_file_get_contents("/proc/sys/kernel/random/boot_id", &boot, NULL, NULL)) {
        return NULL;
    }
    return g_strdup_printf("process %d, started %s, boot %s", pid, fields[STAT_START], g_strchomp(boot));
}

char *target_name(int pid, pid_t tid) {
    g_autofree char *file = g_strdup_printf("task/%d/comm", (int)tid);
    char *name = read_proc_file(pid, file);
    return name ? g_strchomp(name) : g_strdup("?");
}

static gboolean is_32_bit(int pid) {
    g_autofree char *path = g_strdup_printf("/proc/%d/exe", pid);
    unsigned char ident[EI_NIDENT];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return FALSE;
    }
    ssize_t n = read(fd, ident, sizeof(ident));
    close(fd);
    return n == sizeof(ident) && memcmp(ident, ELFMAG, SELFMAG) == 0 && ident[EI_CLASS] == ELFCLASS32;
}

static gboolean check_state(int pid, GError **error) {
    g_auto(GStrv) fields = target_stat_fields(pid, pid);
    if (g_strv_length(fields) <= STAT_FLAGS) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_FOUND, "there is no process %d", pid);
        return FALSE;
    }
    gint64 leader = target_status_number(pid, "\nTgid:");
    if (leader > 0 && leader != pid) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_FOUND, "%d is a thread of process %d: give that one", pid,
                    (int)leader);
        return FALSE;
    }
    if (g_ascii_strtoull(fields[STAT_FLAGS], NULL, 10) & TASK_IS_KERNEL_THREAD) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED, "process %d is a kernel thread: it has no memory",
                    pid);
        return FALSE;
    }
    if (strchr("ZX", fields[STAT_STATE][0])) {
        gboolean others = target_status_number(pid, "\nThreads:") > 1;
        /* The kernel shows a process's memory under its main thread's number, and there is none any more. */
        g_set_error(error, SNAP_ERROR, others ? SNAP_ERROR_NOT_SUPPORTED : SNAP_ERROR_NOT_FOUND,
                    others ? "process %d: its main thread has ended, so its memory cannot be looked at"
                           : "process %d has ended (it is a zombie)",
                    pid);
        return FALSE;
    }
    return TRUE;
}

gboolean target_check_tracer(int pid, GError **error) {
    gint64 tracer = target_status_number(pid, "\nTracerPid:");
    if (tracer <= 0) {
        return TRUE;
    }
    g_autofree char *name = target_name((int)tracer, (pid_t)tracer);
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_REFUSED,
                "process %d is being traced by process %d (%s): end that first", pid, (int)tracer, name);
    return FALSE;
}

/* Opening mem asks the kernel the same question as ptrace does. */
static gboolean check_permission(int pid, GError **error) {
    g_autofree char *path = g_strdup_printf("/proc/%d/mem", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        close(fd);
        return TRUE;
    }
    if (errno == EACCES || errno == EPERM) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_PERMISSION, "this user may not trace process %d: run as root",
                    pid);
    } else {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_FOUND, "there is no process %d", pid);
    }
    return FALSE;
}

gboolean target_check(int pid, GError **error) {
    if (pid == getpid()) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_REFUSED,
                    "process %d is this very process: it cannot stop itself", pid);
        return FALSE;
    }
    if (pid <= 0) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_FOUND, "there is no process %d", pid);
        return FALSE;
    }
    if (!check_state(pid, error) || !target_check_tracer(pid, error) || !check_permission(pid, error)) {
        return FALSE;
    }
    if (is_32_bit(pid)) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED,
                    "process %d is a 32-bit program: only 64-bit ones can be saved", pid);
        return FALSE;
    }
    return TRUE;
}

GArray *target_threads(int pid, GError **error) {
    g_autofree char *path = g_strdup_printf("/proc/%d/task", pid);
    g_autoptr(GError) open_error = NULL;
    g_autoptr(GDir) dir = g_dir_open(path, 0, &open_error);
    g_autoptr(GArray) threads = g_array_new(FALSE, FALSE, sizeof(pid_t));
    const char *name = NULL;
    while (dir && (name = g_dir_read_name(dir))) {
        pid_t tid = (pid_t)atoi(name);
        if (tid == pid) {
            g_array_prepend_val(threads, tid);
        } else {
            g_array_append_val(threads, tid);
        }
    }
    if (g_error_matches(open_error, G_FILE_ERROR, G_FILE_ERROR_MFILE) ||
        g_error_matches(open_error, G_FILE_ERROR, G_FILE_ERROR_NFILE)) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_IO, "process %d: its threads cannot be listed: %s", pid,
                    open_error->message);
        return NULL;
    }
    if (threads->len == 0) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_GUEST_GONE, "process %d has ended", pid);
        return NULL;
    }
    return g_steal_pointer(&threads);
}
