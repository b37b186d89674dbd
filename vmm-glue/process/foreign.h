/*
 * Who else writes a shared memory object. Writes by another process pass by our protection unseen, so an object
 * that has such a writer cannot be saved.
 */
#pragma once

#include <glib.h>
#include <stdint.h>

G_BEGIN_DECLS

/* A memory object, as /proc/PID/maps identifies it, and one process other than its guest that can write it. */
typedef struct {
    uint64_t dev; /* makedev() */
    uint64_t ino;
    int writer_pid;    /* 0 when there is none */
    char *writer_name; /* owned; NULL when there is none */
} SharedObject;

/**
 * foreign_find: look through the mappings of all processes for shared writable ones of @objects.
 *   One pass over /proc, some 0.1 ms for each process there. A process that shares its whole address space with
 *   @pid is no other one, nor is a child that is gone, or another program, within 20 ms: it was only about to be.
 * What this user may not look into is passed over.
 * @pid: the guest. @objects: (borrow) @n_objects of them; writer_pid and writer_name are filled in.
 */
void foreign_find(int pid, SharedObject *objects, guint n_objects);

/**
 * process_foreign_writer: the same for one object.
 * @ret_pid, @ret_name: (out) who; g_free() the name. Untouched when there is none.
 * Return: TRUE when there is such a process.
 */
gboolean process_foreign_writer(int pid, uint64_t dev, uint64_t ino, int *ret_pid, char **ret_name);

G_END_DECLS
