/* See huge-pages.h. */
#include "huge-pages.h"

#include <errno.h>
#include <glib.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

static bool are_made_everywhere(void) {
    g_autofree char *text = NULL;
    return g_file_get_contents("/sys/kernel/mm/transparent_hugepage/enabled", &text, NULL, NULL) &&
           strstr(text, "[always]");
}

/* The line "VmFlags: rd wr … hg …" of the mapping at @address, into @ret_flags; empty when there is none. */
static void read_flags(uint64_t address, char *ret_flags, int size) {
    uint64_t start = 0, end = 0;
    bool found = false;
    FILE *file = fopen("/proc/self/smaps", "re");
    *ret_flags = '\0';
    while (file && fgets(ret_flags, size, file)) {
        if (sscanf(ret_flags, "%" SCNx64 "-%" SCNx64 " ", &start, &end) == 2)
            found = start <= address && address < end;
        else if (found && g_str_has_prefix(ret_flags, "VmFlags:"))
            break;
        *ret_flags = '\0';
    }
    if (file)
        fclose(file);
}

bool snap_huge_pages_may_be_made(uint64_t address) {
    char flags[2000];
    read_flags(address, flags, sizeof flags);
    return !strstr(flags, " nh") && (strstr(flags, " hg") || are_made_everywhere());
}

int snap_huge_pages_allow(uint64_t address, uint64_t length_bytes, bool allow) {
    void *memory = (void *)(uintptr_t)address; /* this process's */
    return madvise(memory, length_bytes, allow ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) < 0 ? -errno : 0;
}
