/*
 * ELF notes.
 *
 *     [4] length of the owner's name with its NUL   [4] length of the description   [4] type
 *     owner, padded to 4   description, padded to 4
 *
 * NT_FILE's description: [8] how many, [8] page size, then for each mapping of a file [8] start, [8] end, [8]
 * offset in pages, then their names one after another, each with its NUL.
 */
#include "notes.h"

#include <elf.h>
#include <string.h>

enum { NOTE_ALIGNMENT = 4 };

#define OWNER_CORE "CORE"
#define OWNER_LINUX "LINUX"

/* The part of an XSAVE area that is an FXSAVE area, and where in that the kernel keeps words of its own. */
#define FXSAVE_BYTES 512
#define FXSAVE_SOFTWARE_OFFSET 464

static void append_padded(GByteArray *array, gconstpointer data, gsize length) {
    static const guint8 zeros[NOTE_ALIGNMENT];
    if (length) {
        g_byte_array_append(array, data, (guint)length);
    }
    g_byte_array_append(array, zeros, (guint)((NOTE_ALIGNMENT - length % NOTE_ALIGNMENT) % NOTE_ALIGNMENT));
}

void notes_append(GByteArray *notes, const char *owner, guint32 type, gconstpointer description,
                  gsize length_bytes) {
    Elf64_Nhdr head = {
        .n_namesz = (Elf64_Word)strlen(owner) + 1, .n_descsz = (Elf64_Word)length_bytes, .n_type = type};
    append_padded(notes, &head, sizeof(head));
    append_padded(notes, owner, head.n_namesz);
    append_padded(notes, description, length_bytes);
}

static void append_status(GByteArray *notes, const NotesThread *thread) {
    const FreezeThread *frozen = thread->thread;
    struct elf_prstatus status = {
        .pr_info.si_signo = frozen->signal,
        .pr_cursig = (short)frozen->signal,
        .pr_sigpend = frozen->signals_pending,
        .pr_sighold = frozen->signals_blocked,
        .pr_pid = frozen->tid,
        .pr_ppid = thread->parent,
        .pr_pgrp = thread->group,
        .pr_sid = thread->session,
        .pr_fpvalid = frozen->xstate_bytes > 0,
    };
    G_STATIC_ASSERT(sizeof(status.pr_utime) == sizeof(thread->user_time));
    memcpy(&status.pr_utime, &thread->user_time, sizeof(status.pr_utime));
    memcpy(&status.pr_stime, &thread->system_time, sizeof(status.pr_stime));
    G_STATIC_ASSERT(sizeof(status.pr_reg) == sizeof(frozen->registers));
    memcpy(&status.pr_reg, &frozen->registers, sizeof(status.pr_reg));
    notes_append(notes, OWNER_CORE, NT_PRSTATUS, &status, sizeof(status));
}

static void append_siginfo(GByteArray *notes, const FreezeThread *thread) {
    if (thread->signal) {
        notes_append(notes, OWNER_CORE, NT_SIGINFO, &thread->siginfo, sizeof(thread->siginfo));
    }
}

static void append_floating_point(GByteArray *notes, const FreezeThread *thread) {
    guint8 legacy[FXSAVE_BYTES] = {0};
    if (thread->xstate_bytes < sizeof(legacy)) {
        return;
    }
    memcpy(legacy, thread->xstate, FXSAVE_SOFTWARE_OFFSET);
    notes_append(notes, OWNER_CORE, NT_FPREGSET, legacy, sizeof(legacy));
    if (thread->xstate_bytes > sizeof(legacy)) {
        notes_append(notes, OWNER_LINUX, NT_X86_XSTATE, thread->xstate, thread->xstate_bytes);
    }
}

static gboolean has_file(const ProcMap *map) {
    return map->ino != 0 && map->path[0] == '/';
}

static void append_files(GByteArray *notes, const ProcMaps *maps, uint64_t page_bytes) {
    g_autoptr(GByteArray) body = g_byte_array_new();
    g_autoptr(GByteArray) names = g_byte_array_new();
    guint64 head[2] = {0, page_bytes};
    for (guint i = 0; i < maps->n_entries; i++) {
        head[0] += has_file(&maps->entries[i]) ? 1u : 0u;
    }
    g_byte_array_append(body, (const guint8 *)head, sizeof(head));
    for (guint i = 0; i < maps->n_entries; i++) {
        const ProcMap *map = &maps->entries[i];
        if (has_file(map)) {
            g_autofree char *name = g_strconcat(map->path, map->deleted ? " (deleted)" : "", NULL);
            guint64 range[3] = {map->start, map->end, map->offset / page_bytes};
            g_byte_array_append(body, (const guint8 *)range, sizeof(range));
            g_byte_array_append(names, (const guint8 *)name, (guint)strlen(name) + 1);
        }
    }
    if (names->len) {
        g_byte_array_append(body, names->data, names->len);
        notes_append(notes, OWNER_CORE, NT_FILE, body->data, body->len);
    }
}

GBytes *notes_build(const NotesProcess *process, const NotesThread *threads, guint n_threads) {
    GByteArray *notes = g_byte_array_new();
    for (guint i = 0; i < n_threads; i++) {
        append_status(notes, &threads[i]);
        if (i == 0) {
            notes_append(notes, OWNER_CORE, NT_PRPSINFO, process->info, sizeof(*process->info));
        }
        append_siginfo(notes, threads[i].thread);
        if (i == 0) {
            gsize length = 0;
            gconstpointer auxv = g_bytes_get_data(process->auxv, &length);
            notes_append(notes, OWNER_CORE, NT_AUXV, auxv, length);
            append_files(notes, process->maps, process->page_bytes);
        }
        append_floating_point(notes, threads[i].thread);
    }
    return g_byte_array_free_to_bytes(notes);
}
