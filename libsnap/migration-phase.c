/* Where a migration is, by name: see SnapMigrationPhase. */
#include "libsnap.h"

static const char *const names[] = {
    [SNAP_MIGRATION_SETUP] = "setup",
    [SNAP_MIGRATION_ACTIVE] = "active",
    [SNAP_MIGRATION_PRE_SWITCHOVER] = "pre-switchover",
    [SNAP_MIGRATION_DEVICE] = "device",
    [SNAP_MIGRATION_POSTCOPY] = "postcopy",
    [SNAP_MIGRATION_UNCONNECTED] = "unconnected",
    [SNAP_MIGRATION_RECOVER] = "recover",
    [SNAP_MIGRATION_STANDBY] = "standby",
    [SNAP_MIGRATION_COMPLETED] = "completed",
    [SNAP_MIGRATION_FAILED] = "failed",
    [SNAP_MIGRATION_CANCELLED] = "cancelled",
};
G_STATIC_ASSERT(G_N_ELEMENTS(names) == SNAP_MIGRATION_MAX);

const char *snap_migration_phase_name(SnapMigrationPhase phase) {
    return phase < SNAP_MIGRATION_MAX ? names[phase] : NULL;
}
