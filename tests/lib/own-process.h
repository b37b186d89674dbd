/* What tests share whose guest is their own process. Needs cmocka.h before it. */
#pragma once

#include "../../libsnap/libsnap.h"
#include "../../libsnap/uffd.h"

static inline void fail_on(const GError *error) {
    if (error) {
        fail_msg("%s", error->message);
    }
}

/* As SnapGuestOps has it. */
static inline int own_open_uffd(void *opaque, GError **error) {
    (void)opaque;
    int fd = snap_uffd_open();
    if (fd < 0) {
        snap_set_errno(error, -fd, "userfaultfd");
        return -1;
    }
    return fd;
}
