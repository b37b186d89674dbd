/*
 * Buffers that a process has registered with io_uring. They stay pinned, and reads into them are written by the
 * device or the kernel past the page tables, whenever they complete: no protection and no log sees that.
 *
 * What an ordinary read is given is pinned when it is submitted, which is a fault like any other; only what is
 * under way at the point in time is written after it, and what a read holds before it has completed is nobody's.
 *
 * Whether there are any the kernel tells in one number, VmPin of /proc/PID/status; where they are, each ring's
 * fdinfo. A ring that has no descriptor of its own (IORING_SETUP_REGISTERED_FD_ONLY) is not found, nor what RDMA
 * has pinned: then the number is all that is known.
 */
#pragma once

#include <glib.h>

#include "libsnap.h"

G_BEGIN_DECLS

/* So much is copied in the pause; of more it is said that it cannot be saved. */
#define RINGS_BUFFERS_MAX_BYTES (UINT64_C(2) << 20)

/** rings_find_buffers: append those of @pid to @ranges, as SnapRange. Some 20 µs where there are none, else a
 * readlink for each of its descriptors. Return: how many bytes are pinned; more than the buffers where they share
 * huge pages. */
uint64_t rings_find_buffers(int pid, GArray *ranges);

/** rings_bytes: of @ranges together. More than RINGS_BUFFERS_MAX_BYTES, and no region that holds one can be saved.
 */
uint64_t rings_bytes(const GArray *ranges);

/** rings_parse_buffers: the same from the text of /proc/PID/fdinfo/FD. FALSE: it does not tell them (the ring was
 * busy). */
gboolean rings_parse_buffers(const char *text, GArray *ranges);

G_END_DECLS
