/*
 * The note segment of an ELF core file: what a debugger must know of a process beside its memory.
 *
 * Pure: structures in, bytes out. The layouts are those of the kernel's own core dumps on x86-64.
 */
#pragma once

#include <glib.h>
#include <sys/procfs.h>

#include "freeze.h"
#include "maps.h"

G_BEGIN_DECLS

/** notes_append: one note, padded. @description: (borrow). */
void notes_append(GByteArray *notes, const char *owner, guint32 type, gconstpointer description,
                  gsize length_bytes);

/* The process as a whole. (borrow) all of it. */
typedef struct {
    const prpsinfo_t *info;
    GBytes *auxv;
    const ProcMaps *maps;
    uint64_t page_bytes;
} NotesProcess;

/* One thread. (borrow) */
typedef struct {
    const FreezeThread *thread;
    pid_t parent, group, session;
    struct timeval user_time, system_time;
} NotesThread;

/**
 * notes_build: NT_PRSTATUS of the first thread, NT_PRPSINFO, NT_SIGINFO where a signal was being delivered,
 * NT_AUXV, NT_FILE, its floating point registers; then of each further thread NT_PRSTATUS, NT_SIGINFO and those
 * registers.
 * @threads: the first is the one a debugger selects.
 * Return: (out) g_bytes_unref() it.
 */
GBytes *notes_build(const NotesProcess *process, const NotesThread *threads, guint n_threads);

G_END_DECLS
