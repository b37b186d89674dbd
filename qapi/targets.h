/*
 * Targets: the guests of a helper, by name.
 *
 * What a driver does is in target-drivers.c; this file knows names, lives and ends. A target is there from
 * target-add until target-del; when its guest ends before, it stays, and says so.
 */
#pragma once

#include "helper.h"

/** qapi_target_find: @id: (borrow) (nullable) NULL for the only one there is. Errors: NOT_FOUND, there is none;
 *   FAILED, there are several. Return: (out) qapi_target_unref(). */
QapiTarget *qapi_target_find(QapiHelper *helper, const char *id, GError **error);

QapiTarget *qapi_target_ref(QapiTarget *target);
QapiTarget *qapi_target_ref_locked(QapiTarget *target);
void qapi_target_unref(QapiTarget *target);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(QapiTarget, qapi_target_unref)

const char *qapi_target_id(const QapiTarget *target);
/** qapi_target_guest: (borrow) for as long as the target. */
SnapGuest *qapi_target_guest(const QapiTarget *target);
const char *qapi_target_driver(const QapiTarget *target);

/* Where a guest is, as far as migrations know. Only one whose VMM can be moved is elsewhere than here. */
typedef enum {
    QAPI_PLACE_HERE,
    QAPI_PLACE_AWAITED,   /* it is to be moved here, and has never run here */
    QAPI_PLACE_LEAVING,   /* it stands, and may be the other side's in a moment */
    QAPI_PLACE_ELSEWHERE, /* it was handed over */
    QAPI_PLACE_MAX,
    QAPI_PLACE_AS_IT_WAS = QAPI_PLACE_MAX, /* no change */
} QapiPlace;

QapiPlace qapi_target_place_locked(const QapiTarget *target);
/** qapi_target_set_place_locked: Return: where it was. */
QapiPlace qapi_target_set_place_locked(QapiTarget *target, QapiPlace place);
/** qapi_place_status: the RunState of a guest that is there; NULL: here, it has its own. */
const char *qapi_place_status(QapiPlace place);
/** qapi_place_check: Errors: REFUSED, as it is not here: it is neither stopped, nor let go, nor saved. */
gboolean qapi_place_check(QapiPlace place, GError **error);

/** qapi_target_would_run: whether it runs when neither a snapshot nor a migration makes it stand. FALSE where that
 * is not known. */
gboolean qapi_target_would_run(QapiTarget *target);

/** qapi_target_check: Errors: GUEST_GONE, its guest has ended. */
gboolean qapi_target_check(QapiTarget *target, GError **error);

/**
 * qapi_target_add: a guest that is attached.
 * @driver: its kind. @guest: (take). @where: (borrow) (nullable) its socket. @own: (borrow) (nullable) what the
 * driver wants to have with it, for the life of the target. Errors: FAILED, the id is taken, or no id, or the
 * process is a target already.
 */
gboolean qapi_target_add(QapiHelper *helper, const char *id, const char *driver, SnapGuest *guest,
                         const char *where, void *own, GError **error);

/** qapi_targets_end: let go of all. */
void qapi_targets_end(QapiHelper *helper);

/**
 * qapi_target_emit: as qapi_emit_at(), with the target's id as member "target". @data: (take) (nullable).
 * @time_us: 0: now.
 */
void qapi_target_emit(QapiTarget *target, const char *event, json_object *data, int64_t time_us);

/* What other families keep with a target; freed with it. */
typedef struct DirtyLog DirtyLog;
typedef struct DirtyRate DirtyRate;
typedef struct Migration Migration;
typedef struct Dump Dump;

/* Each is made with the target, and has its own rules. */
typedef struct {
    DirtyLog *dirty_log;
    DirtyRate *dirty_rate;
    Migration *migration;
    Dump *dump;
} QapiTargetParts;

const QapiTargetParts *qapi_target_parts(const QapiTarget *target);
QapiHelper *qapi_target_helper(const QapiTarget *target);

/**
 * qapi_target_query: what one family keeps with the guest that the argument "target" of @call names.
 * @to_json_locked: called with the helper's lock held. Return: (out).
 * Errors: as qapi_target_find(). Return: (out).
 */
json_object *qapi_target_query(const QapiCall *call, json_object *(*to_json_locked)(const QapiTargetParts *parts),
                               GError **error);
