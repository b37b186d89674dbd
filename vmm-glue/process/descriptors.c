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

void descriptors_each(int pid, DescriptorFunc func, void *opaque) {
    g_autofree char *path = g_strdup_printf("/proc/%d/fd", pid);
    g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
    const char *name = NULL;
    while (dir && (name = g_dir_read_name(dir))) {
        g_autofree char *link = g_build_filename(path, name, NULL);
        g_autofree char *target = g_file_read_link(link, NULL);
        if (target) {
            func(name, target, opaque);
        }
    }
}

static void look_at(const char *fd, const char *target, void *opaque) {
    Descriptors *found = (Descriptors *)opaque;
    (void)fd;
    found->userfaultfd |= strcmp(target, "anon_inode:[userfaultfd]") == 0;
    if (!found->device && descriptor_writes_memory(target)) {
        found->device = g_strdup(target);
    }
}

Descriptors descriptors_look(int pid) {
    Descriptors found = {0};
    descriptors_each(pid, look_at, &found);
    return found;
}

void descriptors_clear(Descriptors *descriptors) {
    g_clear_pointer(&descriptors->device, g_free);
}
