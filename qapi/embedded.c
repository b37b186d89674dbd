/* The guest that this program itself is: see embedded.h. */
#include "embedded.h"

#include "target-drivers.h"
#include "targets.h"

struct QapiEmbedded {
    char *name; /* (nullable) */
    const SnapQmpVm *vm;
    void *opaque;
    GMutex one_at_a_time;
};

static json_object *name_of(const QapiEmbedded *embedded) {
    json_object *object = json_object_new_object();
    qapi_json_add_string(object, "name", embedded->name);
    return object;
}

/* As QEMU: an event where it makes a difference. */
static json_object *stop_or_cont(const QapiEmbedded *embedded, gboolean stop, QapiTarget *target, GError **error) {
    const SnapQmpVm *vm = embedded->vm;
    if (vm->is_running(embedded->opaque) != stop)
        return NULL;
    if (stop ? vm->stop(embedded->opaque, error) : vm->cont(embedded->opaque, error))
        qapi_target_emit(target, stop ? "STOP" : "RESUME", NULL, 0);
    return NULL;
}

gboolean qapi_embedded_would_run(void *own) {
    QapiEmbedded *embedded = own;
    if (!embedded->vm)
        return FALSE;
    g_mutex_lock(&embedded->one_at_a_time);
    gboolean running = embedded->vm->is_running(embedded->opaque);
    g_mutex_unlock(&embedded->one_at_a_time);
    return running;
}

static QapiPlace place_of(QapiTarget *target) {
    QapiHelper *helper = qapi_target_helper(target);
    g_mutex_lock(&helper->lock);
    QapiPlace place = qapi_target_place_locked(target);
    g_mutex_unlock(&helper->lock);
    return place;
}

/* A migration that takes the guest away in the very moment has paused it, and goes by what it was then. */
static json_object *run_here(QapiEmbedded *embedded, QapiVerb verb, QapiTarget *target, GError **error) {
    QapiPlace place = place_of(target);
    if (verb == QAPI_VERB_STATUS)
        return place == QAPI_PLACE_HERE ? qapi_run_state(embedded->vm->is_running(embedded->opaque))
                                        : qapi_run_state_named(qapi_place_status(place));
    return qapi_place_check(place, error) ? stop_or_cont(embedded, verb == QAPI_VERB_STOP, target, error) : NULL;
}

json_object *qapi_embedded_run(SnapGuest *guest, QapiVerb verb, QapiTarget *target, void *own, GError **error) {
    (void)guest;
    QapiEmbedded *embedded = own;
    if (verb == QAPI_VERB_NAME)
        return name_of(embedded);
    if (!embedded->vm) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED,
                    "this VMM has not told its server how to do that");
        return NULL;
    }
    g_mutex_lock(&embedded->one_at_a_time);
    json_object *result = run_here(embedded, verb, target, error);
    g_mutex_unlock(&embedded->one_at_a_time);
    return result;
}

QapiEmbedded *qapi_embed(QapiHelper *helper, SnapGuest *guest, const char *name, const SnapQmpVm *vm,
                         void *opaque) {
    QapiEmbedded *embedded = g_new0(QapiEmbedded, 1);
    embedded->name = g_strdup(name);
    embedded->vm = vm;
    embedded->opaque = opaque;
    g_mutex_init(&embedded->one_at_a_time);
    g_autoptr(GError) error = NULL;
    if (!qapi_target_add(helper, "embedded", "embedded", guest, NULL, embedded, &error))
        g_error("%s", error->message); /* there is no other target yet */
    return embedded;
}

void qapi_embedded_free(QapiEmbedded *embedded) {
    if (!embedded)
        return;
    g_mutex_clear(&embedded->one_at_a_time);
    g_free(embedded->name);
    g_free(embedded);
}
