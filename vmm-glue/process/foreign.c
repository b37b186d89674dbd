/* See foreign.h. A look, not a promise: a process may map the object a moment later. */
#include "foreign.h"

#include <fcntl.h>
#include <linux/kcmp.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "maps.h"
#include "target.h"

enum { CHILD_LOOKS = 20, CHILD_STEP_US = 1000 };

static ProcMaps *read_maps(int pid) {
    g_autofree char *path = g_strdup_printf("/proc/%d/maps", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return NULL;
    }
    g_autoptr(GString) text = g_string_new(NULL);
    gboolean ok = maps_read_text(fd, text, NULL);
    close(fd);
    return ok ? maps_parse(text->str, text->len, NULL) : NULL;
}

static gboolean is_same_memory(int a, int b) {
    return a == b || syscall(SYS_kcmp, a, b, KCMP_VM, 0, 0) == 0;
}

static SharedObject *find_object(SharedObject *objects, guint n_objects, const ProcMap *map) {
    for (guint i = 0; i < n_objects; i++) {
        if (objects[i].ino == map->ino && objects[i].dev == map->dev) {
            return &objects[i];
        }
    }
    return NULL;
}

/* How many of @objects @other can write; they are given its number. */
static guint look_into(int other, SharedObject *objects, guint n_objects) {
    g_autoptr(ProcMaps) maps = read_maps(other);
    guint n_found = 0;
    for (guint i = 0; maps && i < maps->n_entries; i++) {
        const ProcMap *map = &maps->entries[i];
        if (!map->shared || !map->writable) {
            continue;
        }
        SharedObject *object = find_object(objects, n_objects, map);
        if (object && !object->writer_pid) {
            object->writer_pid = other;
            n_found++;
        }
    }
    return n_found;
}

/* Take back what look_into() found, or give it the name. */
static void settle(int other, gboolean is_writer, SharedObject *objects, guint n_objects) {
    for (guint i = 0; i < n_objects; i++) {
        if (objects[i].writer_pid == other && is_writer) {
            objects[i].writer_name = target_name(other, other);
        } else if (objects[i].writer_pid == other) {
            objects[i].writer_pid = 0;
        }
    }
}

/* A child that is about to execute another program, or to end, has all memory of its parent for a moment. */
static gboolean stays(int pid, int other, SharedObject *objects, guint n_objects) {
    for (guint i = 0; i < CHILD_LOOKS && target_status_number(other, "\nPPid:") == pid; i++) {
        usleep(CHILD_STEP_US);
        settle(other, FALSE, objects, n_objects);
        if (is_same_memory(pid, other) || look_into(other, objects, n_objects) == 0) {
            return FALSE;
        }
    }
    return TRUE;
}

static void look_at_process(int pid, int other, SharedObject *objects, guint n_objects) {
    if (!is_same_memory(pid, other) && look_into(other, objects, n_objects) > 0) {
        settle(other, stays(pid, other, objects, n_objects), objects, n_objects);
    }
}

void foreign_find(int pid, SharedObject *objects, guint n_objects) {
    g_autoptr(GDir) dir = n_objects ? g_dir_open("/proc", 0, NULL) : NULL;
    const char *name = NULL;
    while (dir && (name = g_dir_read_name(dir))) {
        int other = atoi(name);
        if (other > 0 && other != pid) {
            look_at_process(pid, other, objects, n_objects);
        }
    }
}

gboolean process_foreign_writer(int pid, uint64_t dev, uint64_t ino, int *ret_pid, char **ret_name) {
    SharedObject object = {.dev = dev, .ino = ino};
    foreign_find(pid, &object, 1);
    if (!object.writer_pid) {
        return FALSE;
    }
    *ret_pid = object.writer_pid;
    *ret_name = object.writer_name;
    return TRUE;
}
