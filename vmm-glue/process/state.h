/*
 * The state blobs of a process guest: "notes", "maps", "auxv".
 */
#pragma once

#include <glib.h>

#include "freeze.h"

G_BEGIN_DECLS

/**
 * state_build: append the SnapState blobs of process @pid to @states.
 *   What has to be of the point in time is given; what does not change, or does not matter to the byte (command
 *   line, parent, times used), is read from /proc now.
 * @threads: (borrow) as they were; those without registers are left out.
 * @maps_text: (borrow) of /proc/PID/maps at the point.
 * Errors: PROTOCOL, the text cannot be understood; GUEST_GONE, no thread was captured.
 */
gboolean state_build(int pid, const FreezeThread *threads, guint n_threads, const GString *maps_text,
                     GPtrArray *states, GError **error);

G_END_DECLS
