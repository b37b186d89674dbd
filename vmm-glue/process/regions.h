/*
 * The regions of a process: what its mappings are now, with names that last.
 *
 * A first listing decides on every mapping. A listing while the process stands still relates what is there now to
 * that first one, and only what is new is decided on, so it is quick. It returns the regions as they are now:
 * - a region of the first listing that is still there whole: the same name, address and length;
 * - one of which only the beginning is left: the same name and address, and less length;
 * - one of which other pieces are left: each piece as a region of its own, named by its address;
 * - one that is gone, or whose address now holds something else: not listed under its name;
 * - what was not there before, the growth of a heap or stack included: regions of their own.
 * A change of protection alone (mprotect) changes nothing for anonymous memory.
 */
#pragma once

#include <glib.h>

#include "libsnap.h"

G_BEGIN_DECLS

typedef struct Regions Regions;

/* Regions that can only be copied in the pause may add up to this. */
#define REGIONS_COPIED_MAX_BYTES (UINT64_C(16) << 20)

/** regions_new: for process @pid. Errors: GUEST_GONE, PERMISSION. Return: (out) free with regions_free(). */
Regions *regions_new(int pid, GError **error);
/** regions_free: NULL is allowed. */
void regions_free(Regions *regions);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Regions, regions_free)

/**
 * regions_list: append SnapRegions to @list, in ascending order.
 * @paused: the process stands still; relate to the last listing with FALSE. Without one before, it is as FALSE.
 * @watched: this guest's memory is registered with a userfaultfd of ours: do not take that for another's.
 * Errors: REFUSED, a device writes its memory; GUEST_GONE; PROTOCOL.
 */
gboolean regions_list(Regions *regions, gboolean paused, gboolean watched, GPtrArray *list, GError **error);

/** regions_maps_text: the text of /proc/PID/maps in the last listing, (borrow) till the next; NULL before any. */
const GString *regions_maps_text(const Regions *regions);

G_END_DECLS
