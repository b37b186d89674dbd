/*
 * The two ends of an injection that may allocate: what has to be known before, and the words for what failed.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "inject.h"
#include "libsnap.h"
#include "maps.h"
#include "target.h"

#define STOP_TIMEOUT_NS (2 * G_GUINT64_CONSTANT(1000000000)) /* a loaded machine may not run a thread for long */
enum { SEARCH_BYTES = 1 << 16 };

static const char *const steps[] = {
#define X(name, text) [INJECT_STEP_##name] = text,
    INJECT_STEP_TABLE(X)
#undef X
};
G_STATIC_ASSERT(G_N_ELEMENTS(steps) == INJECT_STEP_MAX);

/* Address of the first `syscall` instruction in @map, or 0. */
static uint64_t search_mapping(int pid, const ProcMap *map) {
    static const unsigned char instruction[] = {0x0f, 0x05};
    g_autofree char *bytes = g_malloc(SEARCH_BYTES);
    for (uint64_t at = map->start; at < map->end; at += SEARCH_BYTES - 1) {
        size_t length = (size_t)MIN((uint64_t)SEARCH_BYTES, map->end - at);
        struct iovec here = {bytes, length}, there = {(void *)(uintptr_t)at, length};
        ssize_t n = process_vm_readv(pid, &here, 1, &there, 1, 0);
        if (n < (ssize_t)sizeof(instruction)) {
            return 0;
        }
        const char *found = memmem(bytes, (size_t)n, instruction, sizeof(instruction));
        if (found) {
            return at + (uint64_t)(found - bytes);
        }
    }
    return 0;
}

/* The vdso has one, in every process, and needs no page from disk; the C library is the next best. */
static uint64_t find_instruction(int pid, const ProcMaps *maps) {
    uint64_t found = 0;
    for (guint i = 0; i < maps->n_entries && !found; i++) {
        if (strcmp(maps->entries[i].path, "[vdso]") == 0) {
            found = search_mapping(pid, &maps->entries[i]);
        }
    }
    for (guint i = 0; i < maps->n_entries && !found; i++) {
        const ProcMap *map = &maps->entries[i];
        if (map->executable && map->readable && strcmp(map->path, "[vsyscall]") != 0) {
            found = search_mapping(pid, map);
        }
    }
    return found;
}

static ProcMaps *read_maps(int pid, GError **error) {
    g_autofree char *path = g_strdup_printf("/proc/%d/maps", pid);
    g_autoptr(GString) text = g_string_new(NULL);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        snap_set_errno(error, errno == ENOENT ? ESRCH : errno, "cannot open %s", path);
        return NULL;
    }
    gboolean ok = maps_read_text(fd, text, error);
    close(fd);
    return ok ? maps_parse(text->str, text->len, error) : NULL;
}

gboolean inject_prepare(int pid, InjectRequest *ret_request, GError **error) {
    g_autoptr(ProcMaps) maps = read_maps(pid, error);
    g_autoptr(GArray) threads = maps ? target_threads(pid, error) : NULL;
    if (!threads) {
        return FALSE;
    }
    InjectRequest request = {.pid = pid,
                             .syscall_address = find_instruction(pid, maps),
                             .page_bytes = (uint64_t)sysconf(_SC_PAGESIZE),
                             .seccomp = target_status_number(pid, "\nSeccomp:") > 0,
                             .stop_timeout_ns = STOP_TIMEOUT_NS,
                             .n_threads = MIN(threads->len, (guint)INJECT_THREADS_MAX)};
    if (!request.syscall_address) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED,
                    "process %d has no system call instruction to use", pid);
        return FALSE;
    }
    memcpy(request.threads, threads->data, request.n_threads * sizeof(pid_t));
    *ret_request = request;
    return TRUE;
}

/* What the user can do about it, or NULL. */
static const char *advice(const InjectResult *result) {
    switch (result->step) {
    case INJECT_STEP_SEIZE:
        return result->errnum == EPERM ? "run as root, and see that no other tracer is attached" : NULL;
    case INJECT_STEP_DEVICE:
        return "run as root, or set vm.unprivileged_userfaultfd to 1";
    case INJECT_STEP_SECCOMP:
        return "it filters its system calls, which only root may suspend, on a kernel with "
               "CONFIG_CHECKPOINT_RESTORE";
    case INJECT_STEP_STOP:
        return "it sleeps in the kernel and cannot be interrupted; try again later";
    default:
        return NULL;
    }
}

static SnapErrorCode code_of(const InjectResult *result) {
    if (result->step == INJECT_STEP_STOP || result->errnum == ETIMEDOUT) {
        return SNAP_ERROR_TIMED_OUT;
    }
    if (result->step == INJECT_STEP_SECCOMP || result->step == INJECT_STEP_NOT_64_BIT ||
        result->errnum == ENOSYS) {
        return SNAP_ERROR_NOT_SUPPORTED;
    }
    SnapErrorCode code = snap_error_from_errno(result->errnum);
    return code == SNAP_ERROR_PERMISSION || code == SNAP_ERROR_GUEST_GONE ? code : SNAP_ERROR_FAILED;
}

/* The kernel says EPERM of a process that is ending, too. */
void inject_set_error(GError **error, int pid, const InjectResult *result) {
    if (result->errnum == ESRCH || (result->step == INJECT_STEP_SEIZE && target_has_ended(pid, pid))) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_GUEST_GONE, "process %d has ended", pid);
        return;
    }
    if (result->step == INJECT_STEP_SEIZE && result->errnum == EPERM && !target_check_tracer(pid, error)) {
        return;
    }
    const char *hint = advice(result);
    g_set_error(error, SNAP_ERROR, (gint)code_of(result), "process %d, thread %d: cannot %s: %s%s%s", pid,
                (int)result->tid, steps[result->step], g_strerror(result->errnum), hint ? ": " : "",
                hint ? hint : "");
}
