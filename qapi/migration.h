/*
 * Migration as QEMU has it: capabilities, parameters, migrate, query-migrate.
 *
 * What there is of it is QEMU's way to a background snapshot: the stream of the guest at one moment, while it runs
 * on.
 *
 *     NONE ─ migrate ─> SETUP ─> ACTIVE ─────> COMPLETED
 *                         │        ├─────────> FAILED         and from each of these: migrate again
 *                         └─ cancel ─> CANCELLING ─> CANCELLED
 */
#pragma once

#include "targets.h"

Migration *qapi_migration_new(void);
void qapi_migration_free(Migration *migration);
