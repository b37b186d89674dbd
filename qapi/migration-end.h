/*
 * One end of a move or a replication: a SnapOutgoing or a SnapIncoming, as a job that is not listed.
 *
 * Happy path: new → the libsnap function that starts it, with qapi_migration_end_on_phase() → begin; its phases
 * become statuses, events and the run state of the guest; at its end the job lets go of everything, and then
 * tells.
 *
 * Failure modes: it does not start: drop. The helper ends: it is cancelled, or, where it is too late for that,
 * left as it is, and the guest with it.
 *
 * Invariants: whoever is told that it has ended may begin the next one at once. Nothing is told of one that has
 * not begun: its thread waits in on_phase until begin.
 */
#pragma once

#include "migration-state.h"

/* What SnapOutgoing and SnapIncoming have in common. */
typedef struct {
    gboolean arrives;
    gboolean (*wait)(void *handle, int timeout_ms, GError **error);
    gboolean (*cancel)(void *handle, GError **error);
    void (*get_stats)(void *handle, SnapMigrationStats *ret_stats);
    void (*free)(void *handle);
} MigrationEndOps;

extern const MigrationEndOps qapi_outgoing_ops;
extern const MigrationEndOps qapi_incoming_ops;

struct MigrationEnd {
    /* set before start */
    const MigrationEndOps *ops;
    QapiHelper *helper;
    QapiTarget *target; /* (nullable) a reference; NULL: into images */
    Migration *migration;
    QapiJob *job;
    gboolean replicates;
    void (*again)(QapiHelper *helper); /* (nullable) in the job's thread, when it has ended */

    /* set in begin */
    void *handle;         /* SnapOutgoing or SnapIncoming */
    SnapIncoming *images; /* (nullable) the other end, in this process */

    /* under the helper's lock */
    GCond changed; /* begun, a new phase, or cancelled */
    gboolean begun;
    gboolean cancelled;
    gboolean loaded; /* a destination: the guest's state may have been touched */
    SnapMigrationPhase phase;
};

/**
 * qapi_migration_end_new: one that has not begun. Its job has the target for itself, and nobody else can log it.
 * @target: (borrow) (nullable). @migration: (borrow) the target's, or another one for the life of the helper.
 * Errors: as qapi_job_new(); REFUSED, the target is logged. Return: (out) begin or drop it.
 */
MigrationEnd *qapi_migration_end_new(QapiHelper *helper, const MigrationEndOps *ops, QapiTarget *target,
                                     Migration *migration, gboolean replicates, GError **error);
/** qapi_migration_end_on_phase: a SnapMigrationFunc; @opaque: the MigrationEnd. */
void qapi_migration_end_on_phase(SnapMigrationPhase phase, uint64_t round, void *opaque);
/** qapi_migration_end_begin: it has started; a destination listens. @end: (take). @handle, @images: (take). */
void qapi_migration_end_begin(MigrationEnd *end, void *handle, SnapIncoming *images);
/** qapi_migration_end_drop: it has not started. @end: (take). */
void qapi_migration_end_drop(MigrationEnd *end);

/** qapi_migration_outgoing_locked, qapi_migration_incoming_locked: (borrow) what runs, while Migration.lock is
 * held; NULL: no such. */
SnapOutgoing *qapi_migration_outgoing_locked(const Migration *migration);
SnapIncoming *qapi_migration_incoming_locked(const Migration *migration);

/** qapi_migration_stats_locked: of what runs, or ran last. Migration.lock is held, the helper's not. */
SnapMigrationStats qapi_migration_stats_locked(QapiHelper *helper, Migration *migration);

/** qapi_migration_apply_limits: let those of the settings hold for what runs. */
void qapi_migration_apply_limits(QapiTarget *target);
