/* Dumps: dump-guest-memory and query-dump, which QEMU has too. */
#pragma once

#include "targets.h"

Dump *qapi_dump_new(void);
void qapi_dump_free(Dump *dump);
