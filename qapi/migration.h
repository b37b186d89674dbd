/*
 * Migration as QEMU has it: capabilities, parameters, migrate, migrate-incoming, query-migrate.
 *
 * What is done is one of two things, one at a time with a guest, and never beside another job:
 *
 *     background.c      QEMU's way to a background snapshot: the stream of a QEMU at one moment, while it runs on
 *     migration-end.c   one end of a move or a replication: a SnapOutgoing or a SnapIncoming
 *     (migrate, replicate, migrate-incoming begin the latter: migration.c, replicate.c, incoming.c)
 *
 *     NONE ─> SETUP ─> ACTIVE ─> PRE_SWITCHOVER ─> DEVICE ─> POSTCOPY_ACTIVE ─> COMPLETED      from ends:
 *               │        │ ↓          │            ↑ │ │      ↓         ↑         FAILED      again
 *               │        │ COLO ──────┼────────────┘ │ └> POSTCOPY_PAUSED <─> _RECOVER ─> COMPLETED, FAILED
 *               │        │   │        │              │
 *               └────────┴───┴────────┴──────────────┴─> CANCELLING ─> CANCELLED
 *
 * PRE_SWITCHOVER is left out where its capability is not set. A standby goes from COLO to COMPLETED by the
 * source's hand-over; to POSTCOPY_PAUSED where its source is lost; and from either to DEVICE when it is promoted.
 */
#pragma once

#include "targets.h"

Migration *qapi_migration_new(void);
void qapi_migration_free(Migration *migration);
