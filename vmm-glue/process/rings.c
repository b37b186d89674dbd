/* Registered buffers of io_uring: see rings.h. The form is that of io_uring/fdinfo.c in the kernel. */
#include "rings.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "descriptors.h"
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

typedef struct {
    int pid;
    GArray *ranges;
} Search;

static void look_at(const char *fd, const char *target, void *opaque) {
    const Search *search = (const Search *)opaque;
    gboolean told = strcmp(target, "anon_inode:[io_uring]") != 0;
    g_autofree char *path = g_strdup_printf("/proc/%d/fdinfo/%s", search->pid, fd);
    for (int i = 0; i < BUSY_LOOKS && !told; i++) {
        g_autofree char *text = NULL;
        if (i > 0) {
            usleep(BUSY_STEP_US);
        }
        told = !g_file_get_contents(path, &text, NULL, NULL) || rings_parse_buffers(text, search->ranges);
    }
}

uint64_t rings_find_buffers(int pid, GArray *ranges) {
    Search search = {pid, ranges};
    gint64 pinned_kib = target_status_number(pid, "\nVmPin:");
    if (pinned_kib <= 0) {
        return 0;
    }
    descriptors_each(pid, look_at, &search);
    return (uint64_t)pinned_kib << 10;
}

uint64_t rings_bytes(const GArray *ranges) {
    uint64_t total = 0;
    for (guint i = 0; i < ranges->len; i++) {
        total += g_array_index(ranges, SnapRange, i).length_bytes;
    }
    return total;
}
