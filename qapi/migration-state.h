/*
 * What the files of migration share about one guest: how it is set, and what was last done.
 *
 * Lock order: Migration.lock, then the helper's. libsnap is asked with Migration.lock held, so that what is asked
 * is not freed meanwhile, but never with the helper's: its thread takes that one to say how far it is.
 */
#pragma once

#include "call.h"
#include "jobs.h"
#include "migration.h"

/* MigrationStatus of the schema, in its order. */
typedef enum {
    MIGRATION_NONE,
    MIGRATION_SETUP,
    MIGRATION_CANCELLING,
    MIGRATION_CANCELLED,
    MIGRATION_ACTIVE,
    MIGRATION_POSTCOPY_ACTIVE,
    MIGRATION_POSTCOPY_PAUSED,
    MIGRATION_POSTCOPY_RECOVER,
    MIGRATION_COMPLETED,
    MIGRATION_FAILED,
    MIGRATION_COLO,
    MIGRATION_PRE_SWITCHOVER,
    MIGRATION_DEVICE,
    MIGRATION_STATUS_MAX
} MigrationStatus;

/* qapi_migration_status_name: as the schema has it. */
const char *qapi_migration_status_name(MigrationStatus status);

/* Those capabilities that can be set here. */
typedef enum {
    MIGRATION_CAPABILITY_AUTO_CONVERGE,
    MIGRATION_CAPABILITY_EVENTS,
    MIGRATION_CAPABILITY_POSTCOPY_RAM,
    MIGRATION_CAPABILITY_RETURN_PATH,
    MIGRATION_CAPABILITY_PAUSE_BEFORE_SWITCHOVER,
    MIGRATION_CAPABILITY_MULTIFD,
    MIGRATION_CAPABILITY_BACKGROUND_SNAPSHOT,
    MIGRATION_CAPABILITY_POSTCOPY_PREEMPT,
    MIGRATION_CAPABILITY_MAX
} MigrationCapability;

typedef struct {
    gboolean on[MIGRATION_CAPABILITY_MAX];
    uint64_t max_bandwidth_bytes; /* a second; 0: no limit */
    uint64_t max_postcopy_bandwidth_bytes;
    uint64_t downtime_limit_ms;
    uint64_t throttle_initial, throttle_increment, throttle_max; /* per cent */
    uint64_t channels;
    uint64_t zstd_level;
    SnapCompress compress;
    uint64_t dirty_limit_mib; /* a second; 0: no limit */
} MigrationSettings;

/** qapi_migration_settings_init: QEMU's defaults, but no limit of bandwidth. */
void qapi_migration_settings_init(MigrationSettings *ret_settings);
/** qapi_migration_limits: what of it may change while a migration runs. */
SnapMigrationLimits qapi_migration_limits(const MigrationSettings *settings);

typedef struct MigrationEnd MigrationEnd;

/* Whether a guest may be moved here. */
typedef enum {
    MIGRATION_AWAITS_NONE,     /* it is here */
    MIGRATION_AWAITS_COMMAND,  /* migrate-incoming may come */
    MIGRATION_AWAITS_INCOMING, /* it has come, or will not come again */
} MigrationAwaits;

struct Migration {
    GMutex lock; /* held while an end is asked */

    /* under lock; the end of `end` takes the helper's as well */
    MigrationEnd *end;     /* (nullable) while one runs */
    SnapIncoming *arrived; /* (nullable) what has brought the guest: its source may not have heard of that */

    /* under the helper's lock */
    MigrationSettings settings;
    MigrationStatus status;
    QapiJob *job;             /* (nullable) while something runs */
    gboolean incoming;        /* what runs, or ran last, is a destination */
    gboolean replicates;      /* … is a replication */
    SnapMigrationStats stats; /* of a background snapshot, or of an end that is no more */
    char *error;              /* (nullable) */
    char *uri;                /* (nullable) where a destination listens */
    MigrationAwaits awaits;
    gboolean deferred; /* it waited for a command first: another one may come if this fails early */

    /* set before start */
    uint64_t silence_ms;                                       /* of a connection; 0: libsnap's own */
    void (*on_incoming_failed)(const char *why, void *opaque); /* (nullable) no guest will come */
    void *failed_opaque;
};

/** qapi_migration_set_status_locked: and tell, where events are wanted. @target: (nullable) images have none. */
void qapi_migration_set_status_locked(QapiHelper *helper, QapiTarget *target, Migration *migration,
                                      MigrationStatus status);
/** qapi_migration_event_locked: one of ours, with the target's name. @data: (take). */
void qapi_migration_event_locked(QapiHelper *helper, QapiTarget *target, const char *event, json_object *data);

/**
 * qapi_migration_begin_locked: something begins; what was before is forgotten, and the status is SETUP.
 * The caller has checked that nothing else runs.
 */
void qapi_migration_begin_locked(QapiHelper *helper, QapiTarget *target, Migration *migration, QapiJob *job);

/** qapi_migration_call: the Migration of the target of a call, which holds a reference on it in @ret_target.
 * Errors: as qapi_target_find(). Return: (borrow). */
Migration *qapi_migration_call(QapiCall *call, QapiTarget **ret_target, GError **error);

/** qapi_migration_ask: let @ask_locked ask what runs for the target of a call, with Migration.lock held.
 * Errors: as qapi_target_find(); those of @ask_locked. Return: NULL, in any case: there is nothing to be answered.
 */
json_object *qapi_migration_ask(QapiCall *call,
                                void (*ask_locked)(QapiCall *call, QapiTarget *target, Migration *migration,
                                                   GError **error),
                                GError **error);

/** qapi_migration_check_locked: Errors: FAILED, something runs already, as QEMU says it. */
gboolean qapi_migration_check_locked(const Migration *migration, GError **error);

/** qapi_migration_status: where it is now. Takes the helper's lock. */
MigrationStatus qapi_migration_status(QapiHelper *helper, const Migration *migration);

/* ---- migration.c ----------------------------------------------------------------------------------------- */

/** qapi_migration_check_uri: Errors: FAILED, no such protocol, as QEMU says it. */
gboolean qapi_migration_check_uri(const char *uri, GError **error);
/**
 * qapi_migration_uri: the argument "uri" of a call, as libsnap takes it: the path of a file absolute, and the
 * number of a descriptor that getfd has kept, which is free again. Errors: as above; FAILED, there is no such
 * descriptor, or it is no socket. Return: (out) g_free() it.
 */
char *qapi_migration_uri(QapiCall *call, GError **error);
/**
 * qapi_migration_check: whether a guest can leave now. @ret_settings: (out) those that hold for it.
 * Errors: FAILED, something runs already, or the guest is not here, as QEMU says it.
 */
gboolean qapi_migration_check(const QapiCall *call, const QapiTarget *target, MigrationSettings *ret_settings,
                              GError **error);
/** qapi_migration_options: of a move; without the URI. */
SnapOutgoingOptions qapi_migration_options(const Migration *migration, const MigrationSettings *settings);

/** qapi_background_start: see background.c. @call: of migrate. */
void qapi_background_start(QapiCall *call, QapiTarget *target, GError **error);
