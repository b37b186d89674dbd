/* See descriptors.h. */
#include "descriptors.h"

#include <string.h>

gboolean descriptor_writes_memory(const char *target) {
    static const char *const devices[] = {"/dev/vfio/", "anon_inode:[vfio", "anon_inode:vfio",
                                          "/dev/iommu", "/dev/vhost-vdpa",  "/dev/infiniband/uverbs"};
    for (size_t i = 0; i < G_N_ELEMENTS(devices); i++) {
        if (g_str_has_prefix(target, devices[i])) {
            return TRUE;
        }
    }
    return FALSE;
}

Descriptors descriptors_look(int pid) {
    Descriptors found = {0};
    g_autofree char *path = g_strdup_printf("/proc/%d/fd", pid);
    g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
    const char *name = NULL;
    while (dir && (name = g_dir_read_name(dir))) {
        g_autofree char *link = g_build_filename(path, name, NULL);
        g_autofree char *where = g_file_read_link(link, NULL);
        if (!where) {
            continue;
        }
        found.userfaultfd |= strcmp(where, "anon_inode:[userfaultfd]") == 0;
        if (!found.device && descriptor_writes_memory(where)) {
            found.device = g_steal_pointer(&where);
        }
    }
    return found;
}

void descriptors_clear(Descriptors *descriptors) {
    g_clear_pointer(&descriptors->device, g_free);
}
