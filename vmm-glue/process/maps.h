/*
 * The mappings of a process, as /proc/PID/maps tells them.
 *
 * Pure parsing apart from maps_read_text(). A kernel that adds columns behind the path would be the only surprise;
 * a line that cannot be understood fails the whole, because a mapping overlooked is memory lost.
 */
#pragma once

#include <glib.h>
#include <stdint.h>

G_BEGIN_DECLS

/* One mapping. */
typedef struct {
    uint64_t start;
    uint64_t end;
    uint64_t offset; /* in the file, in bytes */
    uint64_t dev;    /* makedev() of the file; 0 when there is none */
    uint64_t ino;
    const char *path; /* "" when there is none; without " (deleted)"; (borrow) from the ProcMaps */
    gboolean readable;
    gboolean writable;
    gboolean executable;
    gboolean shared;
    gboolean deleted;
} ProcMap;

/* All of them, in ascending order. */
typedef struct {
    ProcMap *entries;
    guint n_entries;
    char *storage; /* what the paths point into */
} ProcMaps;

/**
 * maps_parse: the mappings in a text of the form of /proc/PID/maps, or of /proc/PID/smaps (whose attribute lines
 *   are skipped).
 * @text: (borrow), @length_bytes of it; need not end in NUL.
 * Errors: PROTOCOL, with the first line that is not a mapping.
 * Return: (out) free with maps_free().
 */
ProcMaps *maps_parse(const char *text, gsize length_bytes, GError **error);

/** maps_free: NULL is allowed. */
void maps_free(ProcMaps *maps);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(ProcMaps, maps_free)

/** maps_find: the mapping that holds @address, or NULL. (borrow) from @maps. */
const ProcMap *maps_find(const ProcMaps *maps, uint64_t address);

/**
 * maps_read_text: read a whole file of /proc from its beginning.
 * @fd: (borrow) of the file. @text: overwritten.
 * Errors: GUEST_GONE, the process ended; IO.
 */
gboolean maps_read_text(int fd, GString *text, GError **error);

/* What smaps adds, for the few who need it. */
typedef struct {
    uint64_t start;
    uint64_t end;
    gboolean userfault; /* some userfaultfd has it registered */
} ProcVmFlags;

/**
 * maps_parse_vm_flags: the VmFlags lines of /proc/PID/smaps.
 * Return: (out) an array of ProcVmFlags, g_array_unref() it.
 */
GArray *maps_parse_vm_flags(const char *text, gsize length_bytes);

G_END_DECLS
