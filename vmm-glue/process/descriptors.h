/*
 * What a process has open that matters: devices that write its memory behind everybody's back, and userfaultfds.
 */
#pragma once

#include <glib.h>

G_BEGIN_DECLS

typedef struct {
    char *device;         /* owned: an open one that writes memory by itself; NULL when there is none */
    gboolean userfaultfd; /* it has one open */
} Descriptors;

/** descriptor_writes_memory: whether it is a device that writes the memory of whoever has it open, past all page
 * tables.
 * @target: what the link in /proc/PID/fd says. */
gboolean descriptor_writes_memory(const char *target);

/* @fd: its number, as text. @target: what its link says. */
typedef void (*DescriptorFunc)(const char *fd, const char *target, void *opaque);

/** descriptors_each: call @func for each descriptor of @pid. What cannot be read is passed over. */
void descriptors_each(int pid, DescriptorFunc func, void *opaque);

/** descriptors_look: a readlink for each descriptor of @pid. What cannot be read counts as nothing. */
Descriptors descriptors_look(int pid);

/** descriptors_clear: free what it holds. */
void descriptors_clear(Descriptors *descriptors);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Descriptors, descriptors_clear)

G_END_DECLS
