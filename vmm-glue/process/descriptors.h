/*
 * What a process has open that matters: devices that write its memory behind everybody's back, and userfaultfds.
 */
#pragma once

#include <glib.h>

G_BEGIN_DECLS

typedef struct {
    char *vfio;           /* owned: path of an open /dev/vfio file; NULL when there is none */
    gboolean userfaultfd; /* it has one open */
} Descriptors;

/** descriptors_look: a readlink for each descriptor of @pid. What cannot be read counts as nothing. */
Descriptors descriptors_look(int pid);

/** descriptors_clear: free what it holds. */
void descriptors_clear(Descriptors *descriptors);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Descriptors, descriptors_clear)

G_END_DECLS
