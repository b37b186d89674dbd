/*
 * A QEMU as a child process: started, watched, its standard error passed on and its last line kept.
 */
#pragma once

#include "qemu.h"

/**
 * child_start: start @argv with standard input and output of the caller, and the descriptors @keep besides.
 * @keep: (borrow) @n_keep of them, kept open under their own numbers.
 * Errors: NOT_FOUND, no such program; PERMISSION; IO.
 * Return: (out) free with qemu_process_free().
 */
QemuProcess *child_start(char *const *argv, const int *keep, guint n_keep, GError **error);

/**
 * child_poll: pass on standard error and signals, and see whether it has ended, waiting at most @timeout_ms.
 * @other_fd: also return when this one is readable; -1 for none.
 * Return: TRUE once it has ended.
 */
gboolean child_poll(QemuProcess *process, int other_fd, int timeout_ms);

/** child_last_line: what it wrote last to standard error that tells a cause, "" for nothing; (borrow). */
const char *child_last_line(const QemuProcess *process);

/** child_status: once it has ended, its exit status as a shell has it. */
int child_status(const QemuProcess *process);

/** child_kill: end it, and wait for that. */
void child_kill(QemuProcess *process);
