/*
 * Everything that forbids a snapshot, before the guest is touched.
 *
 * Some of it makes a snapshot wrong: a writer that no page table shows, a disk that goes on while the memory
 * stands still. One thing kills the guest: asked for its device state, a QEMU (7.2 and 10.0 are known to) crashes
 * when a device cannot be migrated. So the blocked reasons are asked for here, and once more just before the
 * pause, as devices may have been plugged since.
 */
#include "preflight.h"

#include "../process/descriptors.h"
#include "../process/foreign.h"

#include <dirent.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static gboolean refuse(GError **error, const char *format, ...) G_GNUC_PRINTF(2, 3);

static gboolean refuse(GError **error, const char *format, ...) {
    va_list args;
    va_start(args, format);
    g_autofree char *text = g_strdup_vprintf(format, args);
    va_end(args);
    g_set_error_literal(error, SNAP_ERROR, SNAP_ERROR_REFUSED, text);
    return FALSE;
}

static gboolean ask(Qmp *qmp, const char *command, json_object **ret, GError **error) {
    return qmp_command(qmp, command, NULL, QMP_TIMEOUT_MS, ret, error);
}

static gboolean check_architecture(Qmp *qmp, GError **error) {
    g_autoptr(json_object) target = NULL;
    if (!ask(qmp, "query-target", &target, error))
        return FALSE;
    const char *arch = qmp_get_string(target, "arch");
    if (g_str_equal(arch, "x86_64") || g_str_equal(arch, "i386"))
        return TRUE;
    if (!*arch)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_PROTOCOL,
                    "query-target names no machine: is it the QMP socket of a QEMU?");
    else
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED,
                    "QEMU emulates %s: only x86 machines can be saved", arch);
    return FALSE;
}

/*
 * Running, or stopped by someone who will let it run again. The other states are of a machine in the middle of
 * something (a migration, a shutdown, an error), whose device state would not bring it back.
 */
gboolean preflight_status(json_object *answer, gboolean *ret_running, GError **error) {
    static const char *const quiet[] = {"paused", "prelaunch", NULL};
    const char *status = qmp_get_string(answer, "status");
    *ret_running = qmp_get_bool(answer, "running");
    if (*ret_running || g_strv_contains(quiet, status))
        return TRUE;
    return refuse(error, "the guest is neither running nor paused: its state is %s", status);
}

/* query-migrate: is one under way, and may there be one? */
gboolean preflight_migration(json_object *migration, GError **error) {
    static const char *const idle[] = {"", "none", "completed", "failed", "cancelled", NULL};
    json_object *reasons = qmp_get(migration, "blocked-reasons");
    if (json_object_is_type(reasons, json_type_array) && json_object_array_length(reasons) > 0)
        return refuse(error, "QEMU cannot save this machine: %s",
                      json_object_get_string(json_object_array_get_idx(reasons, 0)));
    const char *status = qmp_get_string(migration, "status");
    if (!g_strv_contains(idle, status))
        return refuse(error,
                      "a migration or snapshot of the guest is under way (query-migrate: %s): wait for its end, "
                      "or migrate_cancel it",
                      status);
    return TRUE;
}

static gboolean check_status(Qmp *qmp, gboolean *ret_running, GError **error) {
    g_autoptr(json_object) answer = NULL;
    return ask(qmp, "query-status", &answer, error) && preflight_status(answer, ret_running, error);
}

static gboolean check_migration(Qmp *qmp, GError **error) {
    g_autoptr(json_object) migration = NULL;
    return ask(qmp, "query-migrate", &migration, error) && preflight_migration(migration, error);
}

/*
 * Capabilities that change which bytes QEMU would write for a machine, or expect: a stream composed of its device
 * state would be neither the one kind nor the other. For a plain machine the device state itself comes out the
 * same with each of them (tried one by one on 7.2 and 10.0), but devices may look at them, and nobody leaves them
 * on by chance. Those about pages only on their way (xbzrle, compress, auto-converge, release-ram, zero-copy-send
 * …) change nothing here.
 */
static gboolean check_capabilities(Qmp *qmp, GError **error) {
    static const char *const harmful[] = {
        "x-ignore-shared", "validate-uuid", "postcopy-ram", "multifd", "mapped-ram", "x-colo", NULL};
    g_autoptr(json_object) list = NULL;
    if (!ask(qmp, "query-migrate-capabilities", &list, error))
        return FALSE;
    size_t n = json_object_is_type(list, json_type_array) ? json_object_array_length(list) : 0;
    for (size_t i = 0; i < n; i++) {
        json_object *item = json_object_array_get_idx(list, i);
        const char *name = qmp_get_string(item, "capability");
        if (qmp_get_bool(item, "state") && g_strv_contains(harmful, name))
            return refuse(error,
                          "the migration capability %s is switched on: switch it off (migrate-set-capabilities)",
                          name);
    }
    return TRUE;
}

/* ---- disks ---- */

static void name_disk(GString *names, json_object *device, json_object *inserted) {
    const char *id = qmp_get_string(device, "device");
    const char *node = qmp_get_string(inserted, "node-name");
    const char *qdev = qmp_get_string(device, "qdev");
    const char *file = qmp_get_string(inserted, "file");
    const char *name = *id ? id : *node && *node != '#' ? node : qdev;
    g_string_append_printf(names, "%s%s (%s)", names->len ? ", " : "", name, file);
}

static gboolean check_disks(Qmp *qmp, QemuDisks disks, GError **error) {
    g_autoptr(json_object) list = NULL;
    g_autoptr(GString) names = g_string_new(NULL);
    if (disks == QEMU_DISKS_IGNORE)
        return TRUE;
    if (!ask(qmp, "query-block", &list, error))
        return FALSE;
    size_t n = json_object_is_type(list, json_type_array) ? json_object_array_length(list) : 0;
    for (size_t i = 0; i < n; i++) {
        json_object *device = json_object_array_get_idx(list, i);
        json_object *inserted = qmp_get(device, "inserted");
        if (inserted && !qmp_get_bool(inserted, "ro"))
            name_disk(names, device, inserted);
    }
    if (names->len == 0)
        return TRUE;
    if (disks == QEMU_DISKS_EXTERNAL) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED,
                    "freezing disks with the memory is not supported yet: %s", names->str);
        return FALSE;
    }
    return refuse(error,
                  "the guest can write its disks, and their content would not be of the same instant as its "
                  "memory: %s. Attach them read-only, or say --disks ignore and keep a copy of them yourself",
                  names->str);
}

/* ---- what writes memory unseen ---- */

/* Devices passed through write guest memory by DMA, and QEMU leaves them out of its state without a word. */
static gboolean check_descriptors(int pid, GError **error) {
    g_autofree char *folder = g_strdup_printf("/proc/%d/fd", pid);
    g_autofree char *found = NULL;
    DIR *dir = opendir(folder);
    if (!dir) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_PERMISSION,
                    "the descriptors of QEMU, process %d, may not be seen", pid);
        return FALSE;
    }
    for (struct dirent *entry; !found && (entry = readdir(dir));) {
        char target[256];
        ssize_t length = readlinkat(dirfd(dir), entry->d_name, target, sizeof(target) - 1);
        if (length < 0)
            continue;
        target[length] = '\0';
        found = descriptor_writes_memory(target) ? g_strdup(target) : NULL;
    }
    closedir(dir);
    if (found)
        return refuse(error,
                      "the guest has a device of the host (%s): it writes guest memory unseen, and its state "
                      "cannot be saved. Unplug it first",
                      found);
    return TRUE;
}

gboolean preflight_check(Qmp *qmp, int pid, QemuDisks disks, gboolean *ret_running, GError **error) {
    return check_architecture(qmp, error) && check_status(qmp, ret_running, error) &&
           check_migration(qmp, error) && check_capabilities(qmp, error) && check_descriptors(pid, error) &&
           check_disks(qmp, disks, error);
}

void preflight_regions(int pid, GPtrArray *regions) {
    g_autofree SharedObject *objects = g_new0(SharedObject, regions->len);
    g_autofree SnapRegion **owners = g_new0(SnapRegion *, regions->len);
    guint n = 0;
    for (guint i = 0; i < regions->len; i++) {
        SnapRegion *region = g_ptr_array_index(regions, i);
        struct stat about;
        if (region->fd < 0 || region->refusal || fstat(region->fd, &about) < 0)
            continue;
        objects[n].dev = about.st_dev;
        objects[n].ino = about.st_ino;
        owners[n++] = region;
    }
    if (n > 0)
        foreign_find(pid, objects, n);
    for (guint i = 0; i < n; i++) {
        if (objects[i].writer_pid > 0)
            owners[i]->refusal =
                g_strdup_printf("RAM block %s is mapped by process %d (%s) as well, whose writes are "
                                "not seen: detach that device (vhost-user?) first",
                                owners[i]->name, objects[i].writer_pid, objects[i].writer_name);
        g_free(objects[i].writer_name);
    }
}
