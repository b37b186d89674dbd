/* What each kind of target does its own way. */
#pragma once

#include "call.h"

typedef enum { QAPI_VERB_STATUS, QAPI_VERB_NAME, QAPI_VERB_STOP, QAPI_VERB_CONT, QAPI_VERB_MAX } QapiVerb;

/* Any thread, several at once. */
typedef struct {
    const char *name; /* a TargetDriver of the schema */
    /* (nullable) Attach to the guest that the arguments of target-add name. @ret_where: (out) (nullable) its
     * socket. */
    SnapGuest *(*open)(const QapiCall *call, char **ret_where, GError **error);
    /* @own: what qapi_target_add() was given. Do it. Return: (out) as the command of that name returns it; NULL
     * without *error: nothing. */
    json_object *(*run)(SnapGuest *guest, QapiVerb verb, QapiTarget *target, void *own, GError **error);
    /* (nullable) See qapi_target_would_run(). */
    gboolean (*would_run)(void *own);
    /* (nullable) From now on tell @target of the guest's events. */
    void (*on_events)(SnapGuest *guest, QapiTarget *target);
    /* (nullable) Readable when there are events, for the life of the guest; read them. */
    int (*event_fd)(SnapGuest *guest);
    void (*read_events)(SnapGuest *guest);
} QapiDriver;

/** qapi_driver_find: by its name in the schema, which has no other. */
const QapiDriver *qapi_driver_find(const char *name);

/** qapi_run_state: a StatusInfo of what is either running or paused. */
json_object *qapi_run_state(gboolean running);
/** qapi_run_state_named: a StatusInfo of what does not run. @status: a RunState. */
json_object *qapi_run_state_named(const char *status);
