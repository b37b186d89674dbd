/*
 * Any Linux process as a guest. The one header of this folder that the layers above need.
 */
#pragma once

#include "libsnap.h"

G_BEGIN_DECLS

/**
 * process_guest_new: a running process as a guest. It is looked at, not touched.
 *   Its regions are its mappings; a pause stops all its threads by ptrace; its states are "notes" (an ELF note
 *   segment: registers of every thread, mappings, auxv), "maps" (text of /proc/PID/maps at the point) and "auxv".
 *   A guard process is forked (see guard.h), so call it early.
 * @pid: of the process.
 * Errors: NOT_FOUND, PERMISSION, REFUSED, NOT_SUPPORTED: what target.h says; IO.
 * Return: (out) free with snap_guest_free().
 */
SnapGuest *process_guest_new(int pid, GError **error);

/**
 * process_guest_stop: stop it by SIGSTOP, and wait until it stands; it stays so when we are gone. A snapshot of a
 *   process that stands works, and leaves it standing.
 * @guest: of process_guest_new().
 * Errors: GUEST_GONE; PERMISSION; TIMED_OUT, a thread sleeps in the kernel, and stops when it comes out of it.
 * Thread: any.
 */
gboolean process_guest_stop(SnapGuest *guest, GError **error);

/** process_guest_cont: let it run again by SIGCONT, and wait until it does. Errors: as above. Thread: any. */
gboolean process_guest_cont(SnapGuest *guest, GError **error);

/**
 * process_guest_is_stopped: whether it stands, whoever has stopped it. The pause of a snapshot does not count.
 * Errors: GUEST_GONE. Thread: any.
 */
gboolean process_guest_is_stopped(SnapGuest *guest, gboolean *ret_stopped, GError **error);

/**
 * process_export_core: write an image as an ELF core file.
 *   Of a process: as the kernel would have dumped it at the point in time, with all threads; gdb opens it. Of
 *   another guest: its memory by guest address, without registers. Zero pages are holes where the file can have
 * them.
 * @out_path: (borrow) a file, which is overwritten and readable by its owner only; or "-" for stdout.
 * @progress: (nullable) called in this thread.
 * Errors: REFUSED, there is nothing with an address to export; CORRUPT; IO; NO_SPACE; CANCELLED. A file that was
 *   begun is removed.
 */
gboolean process_export_core(const SnapImage *image, const char *out_path, SnapProgressFunc progress, void *opaque,
                             GError **error);

G_END_DECLS
