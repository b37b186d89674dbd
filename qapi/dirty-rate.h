/* How much a guest writes: calc-dirty-rate and query-dirty-rate, which QEMU has too. */
#pragma once

#include "targets.h"

DirtyRate *qapi_dirty_rate_new(void);
void qapi_dirty_rate_free(DirtyRate *rate);
