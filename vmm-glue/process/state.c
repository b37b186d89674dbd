/* See state.h. A thread may be gone by the time this runs: its registers are kept, what /proc would say is zero.
 */
#include "state.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "libsnap.h"
#include "notes.h"
#include "target.h"

/* Fields of /proc/PID/stat, as proc(5) counts them. */
enum {
    STAT_STATE = 3,
    STAT_PARENT = 4,
    STAT_GROUP = 5,
    STAT_SESSION = 6,
    STAT_FLAGS = 9,
    STAT_USER_TICKS = 14,
    STAT_SYSTEM_TICKS = 15,
    STAT_NICE = 19,
};

static gint64 number_at(char *const *fields, guint field) {
    return field - STAT_STATE < g_strv_length((char **)fields)
               ? g_ascii_strtoll(fields[field - STAT_STATE], NULL, 10)
               : 0;
}

static struct timeval time_of_ticks(gint64 ticks) {
    long per_second = sysconf(_SC_CLK_TCK);
    return (struct timeval){.tv_sec = ticks / per_second, .tv_usec = ticks % per_second * 1000000 / per_second};
}

static char *read_proc(int pid, const char *name, gsize *ret_length) {
    g_autofree char *path = g_strdup_printf("/proc/%d/%s", pid, name);
    char *data = NULL;
    return g_file_get_contents(path, &data, ret_length, NULL) ? data : NULL;
}

static void describe_thread(int pid, NotesThread *ret_thread) {
    g_auto(GStrv) fields = target_stat_fields(pid, ret_thread->thread->tid);
    ret_thread->parent = (pid_t)number_at(fields, STAT_PARENT);
    ret_thread->group = (pid_t)number_at(fields, STAT_GROUP);
    ret_thread->session = (pid_t)number_at(fields, STAT_SESSION);
    ret_thread->user_time = time_of_ticks(number_at(fields, STAT_USER_TICKS));
    ret_thread->system_time = time_of_ticks(number_at(fields, STAT_SYSTEM_TICKS));
}

static void copy_words(char *to, gsize room, const char *from, gsize length) {
    length = MIN(length, room - 1);
    for (gsize i = 0; i < length; i++) {
        to[i] = from[i] ? from[i] : ' ';
    }
    while (length > 0 && to[length - 1] == ' ') {
        to[--length] = '\0';
    }
}

static void describe_process(int pid, prpsinfo_t *ret_info) {
    g_auto(GStrv) fields = target_stat_fields(pid, pid);
    g_autofree char *name = target_name(pid, pid);
    gsize length = 0;
    g_autofree char *arguments = read_proc(pid, "cmdline", &length);
    static const char states[] = "RSDTZW";
    const char *state = fields[0] ? strchr(states, fields[0][0]) : NULL;
    *ret_info = (prpsinfo_t){.pr_sname = fields[0] ? fields[0][0] : '.',
                             .pr_state = (char)(state ? state - states : 0),
                             .pr_zomb = fields[0] && fields[0][0] == 'Z',
                             .pr_nice = (char)number_at(fields, STAT_NICE),
                             .pr_flag = (unsigned long)number_at(fields, STAT_FLAGS),
                             .pr_uid = (unsigned)MAX(target_status_number(pid, "\nUid:"), 0),
                             .pr_gid = (unsigned)MAX(target_status_number(pid, "\nGid:"), 0),
                             .pr_pid = pid,
                             .pr_ppid = (int)number_at(fields, STAT_PARENT),
                             .pr_pgrp = (int)number_at(fields, STAT_GROUP),
                             .pr_sid = (int)number_at(fields, STAT_SESSION)};
    copy_words(ret_info->pr_fname, sizeof(ret_info->pr_fname), name, strlen(name));
    copy_words(ret_info->pr_psargs, sizeof(ret_info->pr_psargs), arguments ? arguments : "", length);
}

static GBytes *read_auxv(int pid) {
    gsize length = 0;
    char *data = read_proc(pid, "auxv", &length);
    return g_bytes_new_take(data, data ? length : 0);
}

gboolean state_build(int pid, const FreezeThread *threads, guint n_threads, const GString *maps_text,
                     GPtrArray *states, GError **error) {
    g_autoptr(ProcMaps) maps = maps_parse(maps_text->str, maps_text->len, error);
    if (!maps) {
        return FALSE;
    }
    g_autoptr(GArray) captured = g_array_new(FALSE, TRUE, sizeof(NotesThread));
    for (guint i = 0; i < n_threads; i++) {
        NotesThread thread = {.thread = &threads[i]};
        if (threads[i].captured) {
            describe_thread(pid, &thread);
            g_array_append_val(captured, thread);
        }
    }
    if (captured->len == 0) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_GUEST_GONE, "process %d: no thread was caught in the pause",
                    pid);
        return FALSE;
    }
    prpsinfo_t info;
    describe_process(pid, &info);
    g_autoptr(GBytes) auxv = read_auxv(pid);
    NotesProcess process = {
        .info = &info, .auxv = auxv, .maps = maps, .page_bytes = (uint64_t)sysconf(_SC_PAGESIZE)};
    GBytes *notes = notes_build(&process, (const NotesThread *)(const void *)captured->data, captured->len);
    g_ptr_array_add(states, snap_state_new("notes", notes));
    g_ptr_array_add(states, snap_state_new("maps", g_bytes_new(maps_text->str, maps_text->len)));
    g_ptr_array_add(states, snap_state_new("auxv", g_bytes_ref(auxv)));
    return TRUE;
}
