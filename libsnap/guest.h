/* A guest, inside the library: see SnapGuestOps in libsnap.h. */
#pragma once

#include "libsnap.h"

struct SnapGuest {
    char *driver;
    int pid;
    const SnapGuestOps *ops;
    void *opaque;
};
