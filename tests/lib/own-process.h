/* What tests share whose guest is their own process. Needs cmocka.h before it. */
#pragma once

#include "../../libsnap/libsnap.h"
#include "../../libsnap/uffd.h"

static inline void fail_on(const GError *error) {
    if (error) {
        fail_msg("%s", error->message);
    }
}
