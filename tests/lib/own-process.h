/* What tests share whose guest is their own process. Needs cmocka.h before it. */
#pragma once

#include <stdio.h>
#include <unistd.h>

#include "../../libsnap/track-sync.h"
#include "../../libsnap/uffd.h"

static inline void fail_on(const GError *error) {
    if (error) {
        fail_msg("%s", error->message);
    }
}

/* Exit status 77 and why, where the kernel or this user can have no sync log; else 0. */
static inline int skip_without_sync_log(void) {
    g_autoptr(GError) error = NULL;
    SnapSync *sync = snap_sync_new(getpid(), snap_uffd_open(), 0, SNAP_AT_CAP_BLOCK, &error);
    if (!sync) {
        printf("skip: %s\n", error->message);
    }
    snap_sync_free(sync);
    return sync ? 0 : 77;
}
