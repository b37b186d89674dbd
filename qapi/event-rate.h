/*
 * How often an event may come.
 *
 * Some events tell of something that goes on changing, and only the last matters. As in QEMU the first of them
 * goes out at once; those that follow within the period replace one another, and the last goes out at its end, or
 * before the next other event of the same guest: order is kept. All others pass through.
 */
#pragma once

#include "json.h"

typedef struct QapiEventRate QapiEventRate;

/**
 * qapi_event_rate_new: @context: whose thread sends what was held back. @lock: (borrow) held by callers of put,
 * and taken for what is held back. @send: called with @lock held.
 */
QapiEventRate *qapi_event_rate_new(GMainContext *context, GMutex *lock,
                                   void (*send)(json_object *event, void *opaque), void *opaque);
/** qapi_event_rate_free: what is held back is dropped. In the context's thread. */
void qapi_event_rate_free(QapiEventRate *rate);

/** qapi_event_rate_put: an event has come. @event: (borrow). */
void qapi_event_rate_put(QapiEventRate *rate, json_object *event);
