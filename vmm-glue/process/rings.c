/* Registered buffers of io_uring: see rings.h. The form is that of io_uring/fdinfo.c in the kernel. */
#include "rings.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "target.h"

enum { BUSY_LOOKS = 50, BUSY_STEP_US = 200 };

gboolean rings_parse_buffers(const char *text, GArray *ranges) {
    const char *line = strstr(text, "\nUserBufs:");
    if (!line) {
        return FALSE;
    }
    /* "UserBufs:	2", and an indented line each: "    0: 0x7f4050195000/65536", or "    1: <none>" */
    for (line = strchr(line + 1, '\n'); line && line[1] == ' '; line = strchr(line + 1, '\n')) {
        SnapRange range;
        if (sscanf(line, " %*u: 0x%" G_GINT64_MODIFIER "x/%" G_GUINT64_FORMAT, &range.address,
                   &range.length_bytes) == 2) {
            g_array_append_val(ranges, range);
        }
    }
    return TRUE;
}

static void look_into(int pid, const char *fd, GArray *ranges) {
    g_autofree char *path = g_strdup_printf("/proc/%d/fdinfo/%s", pid, fd);
    for (int i = 0; i < BUSY_LOOKS; i++) {
        g_autofree char *text = NULL;
        if (!g_file_get_contents(path, &text, NULL, NULL) || rings_parse_buffers(text, ranges)) {
            return;
        }
        usleep(BUSY_STEP_US);
    }
}

uint64_t rings_find_buffers(int pid, GArray *ranges) {
    gint64 pinned_kib = target_status_number(pid, "\nVmPin:");
    if (pinned_kib <= 0) {
        return 0;
    }
    g_autofree char *path = g_strdup_printf("/proc/%d/fd", pid);
    g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
    const char *name = NULL;
    while (dir && (name = g_dir_read_name(dir))) {
        g_autofree char *link = g_build_filename(path, name, NULL);
        g_autofree char *where = g_file_read_link(link, NULL);
        if (where && strcmp(where, "anon_inode:[io_uring]") == 0) {
            look_into(pid, name, ranges);
        }
    }
    return (uint64_t)pinned_kib << 10;
}
