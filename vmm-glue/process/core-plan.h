/*
 * What an exported core file consists of: its segments, and where in the file each stands.
 */
#pragma once

#include <glib.h>

#include "libsnap.h"

G_BEGIN_DECLS

/* One PT_LOAD. */
typedef struct {
    uint64_t virtual_address;
    uint64_t physical_address;
    uint64_t memory_bytes;
    uint64_t file_bytes; /* memory_bytes, or 0: the debugger finds the content in the mapped file */
    uint64_t file_offset;
    guint flags;  /* PF_R | PF_W | PF_X */
    guint region; /* of the image; where file_bytes */
    uint64_t region_offset;
} CoreSegment;

typedef struct {
    GBytes *notes;    /* NULL when there are none */
    GArray *segments; /* of CoreSegment, in ascending order of address and of place in the file */
    uint64_t notes_offset;
    uint64_t total_bytes;
} CorePlan;

/**
 * core_plan_new: lay out a core file of @image.
 *   An image with a state "notes" is a process: its segments are the mappings of state "maps", each cut where a
 *   region of the image begins or ends. Any other is a machine: a segment for each region with a guest address,
 *   physical and virtual address being that.
 * Errors: REFUSED, no region has an address; CORRUPT, states and regions do not belong together; IO.
 * Return: (out) free with core_plan_free().
 */
CorePlan *core_plan_new(const SnapImage *image, GError **error);

/** core_plan_free: NULL is allowed. */
void core_plan_free(CorePlan *plan);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(CorePlan, core_plan_free)

/** core_plan_headers: the file's beginning: ELF header, program headers, and the section header that very many
 * need. */
GBytes *core_plan_headers(const CorePlan *plan, uint64_t page_bytes);

G_END_DECLS
