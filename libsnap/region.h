/* Regions inside the library: see "guest memory" in libsnap.h. */
#pragma once

#include "libsnap.h"

#include <stdbool.h>

/*
 * Whether two listings tell of the same mapping, which may have been of another length: the same address, kind of
 * memory, granule, and bytes of the same file.
 */
bool snap_region_is_same(const SnapRegion *a, const SnapRegion *b);
