/* Targets: see targets.h. */
#include "targets.h"

#include "call.h"
#include "dirty-log.h"
#include "dirty-rate.h"
#include "dump.h"
#include "jobs.h"
#include "migration.h"
#include "schema-handlers.h"
#include "target-drivers.h"

#include <glib-unix.h>
#include <sys/syscall.h>
#include <unistd.h>

struct QapiTarget {
    /* set before start */
    QapiHelper *helper;
    char *id;
    const QapiDriver *driver;
    char *where; /* (nullable) the socket it was found at */
    void *own;   /* (nullable) the driver's */
    SnapGuest *guest;
    int pidfd;          /* -1: it is this process, or nobody waits for its end */
    GPtrArray *watches; /* of GSource, each with a reference of its own */

    QapiTargetParts parts;

    /* under helper->lock */
    guint n_refs;
    gboolean gone;
    QapiPlace place;
};

/* ---- life ------------------------------------------------------------------------------------------------ */

QapiTarget *qapi_target_ref_locked(QapiTarget *target) {
    target->n_refs++;
    return target;
}

QapiTarget *qapi_target_ref(QapiTarget *target) {
    g_mutex_lock(&target->helper->lock);
    qapi_target_ref_locked(target);
    g_mutex_unlock(&target->helper->lock);
    return target;
}

static void target_free(QapiTarget *target) {
    qapi_dirty_log_free(target->parts.dirty_log);
    qapi_dirty_rate_free(target->parts.dirty_rate);
    qapi_migration_free(target->parts.migration);
    qapi_dump_free(target->parts.dump);
    snap_guest_free(target->guest);
    g_ptr_array_unref(target->watches);
    if (target->pidfd >= 0)
        close(target->pidfd);
    g_free(target->where);
    g_free(target->id);
    g_free(target);
}

/* What is freed may wait for a disk or a guest: not under the lock. */
void qapi_target_unref(QapiTarget *target) {
    if (!target)
        return;
    g_mutex_lock(&target->helper->lock);
    gboolean last = --target->n_refs == 0;
    g_mutex_unlock(&target->helper->lock);
    if (last)
        target_free(target);
}

const char *qapi_target_id(const QapiTarget *target) {
    return target->id;
}

SnapGuest *qapi_target_guest(const QapiTarget *target) {
    return target->guest;
}

const char *qapi_target_driver(const QapiTarget *target) {
    return target->driver->name;
}

QapiHelper *qapi_target_helper(const QapiTarget *target) {
    return target->helper;
}

const QapiTargetParts *qapi_target_parts(const QapiTarget *target) {
    return &target->parts;
}

gboolean qapi_target_check(QapiTarget *target, GError **error) {
    g_mutex_lock(&target->helper->lock);
    gboolean gone = target->gone;
    g_mutex_unlock(&target->helper->lock);
    if (gone)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_GUEST_GONE, "target %s: process %d has ended", target->id,
                    snap_guest_pid(target->guest));
    return !gone;
}

/* ---- where it is ----------------------------------------------------------------------------------------- */

/* The second text is QEMU's. */
static const struct {
    const char *status;
    const char *refusal;
} places[] = {
    [QAPI_PLACE_HERE] = {NULL, NULL},
    [QAPI_PLACE_AWAITED] = {"inmigrate", "the guest has not come yet: a migration is to bring it here"},
    [QAPI_PLACE_LEAVING] = {"finish-migrate", "Migration is not finalized yet"},
    [QAPI_PLACE_ELSEWHERE] = {"postmigrate", "the guest has been handed over by a migration: it is elsewhere now"},
};
G_STATIC_ASSERT(G_N_ELEMENTS(places) == QAPI_PLACE_MAX);

QapiPlace qapi_target_place_locked(const QapiTarget *target) {
    return target->place;
}

QapiPlace qapi_target_set_place_locked(QapiTarget *target, QapiPlace place) {
    QapiPlace before = target->place;
    target->place = place;
    return before;
}

const char *qapi_place_status(QapiPlace place) {
    return places[place].status;
}

gboolean qapi_place_check(QapiPlace place, GError **error) {
    if (places[place].refusal)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_REFUSED, "%s", places[place].refusal);
    return !places[place].refusal;
}

gboolean qapi_target_would_run(QapiTarget *target) {
    return target->driver->would_run && target->driver->would_run(target->own);
}

/* ---- by name --------------------------------------------------------------------------------------------- */

static QapiTarget *find_locked(QapiHelper *helper, const char *id) {
    for (guint i = 0; i < helper->targets->len; i++) {
        QapiTarget *target = helper->targets->pdata[i];
        if (g_str_equal(target->id, id))
            return target;
    }
    return NULL;
}

static QapiTarget *the_only_one_locked(QapiHelper *helper, GError **error) {
    if (helper->targets->len == 1)
        return helper->targets->pdata[0];
    if (helper->targets->len == 0)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_FOUND, "there is no target; target-add adds one");
    else
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "Parameter 'target' is missing: there are %u targets",
                    helper->targets->len);
    return NULL;
}

QapiTarget *qapi_target_find(QapiHelper *helper, const char *id, GError **error) {
    g_mutex_lock(&helper->lock);
    QapiTarget *target = id ? find_locked(helper, id) : the_only_one_locked(helper, error);
    if (target)
        target->n_refs++;
    g_mutex_unlock(&helper->lock);
    if (!target && id)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_FOUND, "Target '%s' not found", id);
    return target;
}

/* ---- its end --------------------------------------------------------------------------------------------- */

static gboolean on_end(gint fd, GIOCondition condition, gpointer opaque) {
    (void)fd, (void)condition;
    QapiTarget *target = opaque;
    g_mutex_lock(&target->helper->lock);
    gboolean known = find_locked(target->helper, target->id) == target;
    target->gone = TRUE;
    if (known) {
        json_object *data = json_object_new_object();
        qapi_json_add_string(data, "id", target->id);
        qapi_json_add_string(data, "driver", target->driver->name);
        qapi_json_add(data, "pid", json_object_new_int64(snap_guest_pid(target->guest)));
        qapi_emit_locked(target->helper, "TARGET_GONE", data);
    }
    g_mutex_unlock(&target->helper->lock);
    return G_SOURCE_REMOVE;
}

static gboolean on_event(gint fd, GIOCondition condition, gpointer opaque) {
    (void)fd, (void)condition;
    QapiTarget *target = opaque;
    /* A connection that is lost is made anew by the next command; an end is seen by on_end(). */
    target->driver->read_events(target->guest);
    return G_SOURCE_CONTINUE;
}

static void release(gpointer target) {
    qapi_target_unref(target);
}

static void watch(QapiTarget *target, int fd, GUnixFDSourceFunc func) {
    g_autoptr(GSource) source = g_unix_fd_source_new(fd, G_IO_IN);
    g_source_set_callback(source, G_SOURCE_FUNC(func), qapi_target_ref(target), release);
    g_ptr_array_add(target->watches, g_source_ref(source));
    qapi_helper_watch(target->helper, source);
}

static void unwatch(QapiTarget *target) {
    for (guint i = 0; i < target->watches->len; i++)
        g_source_destroy(target->watches->pdata[i]);
}

/* ---- target-add ------------------------------------------------------------------------------------------ */

static gboolean check_locked(QapiHelper *helper, const char *id, int pid, GError **error) {
    if (helper->closing) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_CANCELLED, "the helper is ending");
        return FALSE;
    }
    if (!qapi_is_id(id)) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "Invalid target ID '%s'", id);
        return FALSE;
    }
    if (find_locked(helper, id)) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "Target ID '%s' already in use", id);
        return FALSE;
    }
    for (guint i = 0; i < helper->targets->len; i++) {
        const QapiTarget *other = helper->targets->pdata[i];
        if (!other->gone && snap_guest_pid(other->guest) == pid) {
            g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "process %d is target '%s' already", pid, other->id);
            return FALSE;
        }
    }
    return TRUE;
}

static gboolean check(QapiHelper *helper, const char *id, int pid, GError **error) {
    g_mutex_lock(&helper->lock);
    gboolean ok = check_locked(helper, id, pid, error);
    g_mutex_unlock(&helper->lock);
    return ok;
}

gboolean qapi_target_add(QapiHelper *helper, const char *id, const char *driver_name, SnapGuest *guest,
                         const char *where, void *own, GError **error) {
    const QapiDriver *driver = qapi_driver_find(driver_name);
    QapiTarget *target = g_new0(QapiTarget, 1);
    target->helper = helper;
    target->id = g_strdup(id);
    target->driver = driver;
    target->where = g_strdup(where);
    target->own = own;
    target->guest = guest;
    target->n_refs = 1;
    target->parts = (QapiTargetParts){.dirty_log = qapi_dirty_log_new(),
                                      .dirty_rate = qapi_dirty_rate_new(),
                                      .migration = qapi_migration_new(),
                                      .dump = qapi_dump_new()};
    target->watches = g_ptr_array_new_with_free_func((GDestroyNotify)g_source_unref);
    int pid = snap_guest_pid(guest);
    target->pidfd = pid == getpid() || helper->alone ? -1 : (int)syscall(SYS_pidfd_open, pid, 0);
    if (driver->on_events)
        driver->on_events(guest, target);
    g_mutex_lock(&helper->lock);
    gboolean ok = check_locked(helper, id, pid, error);
    if (ok)
        g_ptr_array_add(helper->targets, target);
    g_mutex_unlock(&helper->lock);
    if (!ok) {
        qapi_target_unref(target);
        return FALSE;
    }
    if (target->pidfd >= 0)
        watch(target, target->pidfd, on_end);
    if (!helper->alone && driver->event_fd && driver->event_fd(guest) >= 0)
        watch(target, driver->event_fd(guest), on_event);
    return TRUE;
}

json_object *qmp_target_add(QapiCall *call, GError **error) {
    const char *id = qapi_string(call, "id");
    const QapiDriver *driver = qapi_driver_find(qapi_string(call, "driver"));
    if (!driver->open) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "Parameter 'driver' does not accept value '%s'",
                    driver->name);
        return NULL;
    }
    if (!check(call->helper, id, -1, error)) /* before the guest is touched */
        return NULL;
    g_autofree char *where = NULL;
    SnapGuest *guest = driver->open(call, &where, error);
    if (guest)
        qapi_target_add(call->helper, id, driver->name, guest, where, NULL, error);
    return NULL;
}

/* ---- target-del ------------------------------------------------------------------------------------------ */

json_object *qmp_target_del(QapiCall *call, GError **error) {
    const char *id = qapi_string(call, "id");
    g_autoptr(QapiTarget) target = qapi_target_find(call->helper, id, error);
    if (!target)
        return NULL;
    if (!target->driver->open) { /* nobody could add it again */
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_REFUSED, "target %s is this program itself, and stays", id);
        return NULL;
    }
    g_mutex_lock(&call->helper->lock);
    gboolean busy = qapi_target_jobs_locked(call->helper, target) > 0;
    gboolean ours = !busy && g_ptr_array_remove(call->helper->targets, target);
    g_mutex_unlock(&call->helper->lock);
    if (busy)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_REFUSED, "target %s is busy with a job; job-cancel ends it", id);
    if (!ours)
        return NULL;
    unwatch(target);
    qapi_target_unref(target);
    return NULL;
}

void qapi_targets_end(QapiHelper *helper) {
    g_mutex_lock(&helper->lock);
    g_autoptr(GPtrArray) targets = g_ptr_array_copy(helper->targets, NULL, NULL);
    g_ptr_array_set_size(helper->targets, 0);
    g_mutex_unlock(&helper->lock);
    for (guint i = 0; i < targets->len; i++) {
        unwatch(targets->pdata[i]);
        qapi_target_unref(targets->pdata[i]);
    }
}

/* ---- queries, stop and go -------------------------------------------------------------------------------- */

static json_object *target_to_json_locked(QapiTarget *target) {
    json_object *object = json_object_new_object();
    qapi_json_add_string(object, "id", target->id);
    qapi_json_add_string(object, "driver", target->driver->name);
    qapi_json_add_string(object, "state", target->gone ? "gone" : "attached");
    qapi_json_add(object, "pid", json_object_new_int64(snap_guest_pid(target->guest)));
    qapi_json_add(object, "jobs", json_object_new_int64(qapi_target_jobs_locked(target->helper, target)));
    qapi_json_add_bool(object, "dirty-log", qapi_dirty_log_is_on(target->parts.dirty_log));
    int pages_per_second = qapi_dirty_log_rate(target->parts.dirty_log);
    if (pages_per_second >= 0)
        qapi_json_add_uint(object, "dirty-pages-per-second", (uint64_t)pages_per_second);
    qapi_json_add_string(object, "qmp-socket", target->where);
    return object;
}

json_object *qmp_query_targets(QapiCall *call, GError **error) {
    (void)error;
    json_object *list = json_object_new_array();
    g_mutex_lock(&call->helper->lock);
    for (guint i = 0; i < call->helper->targets->len; i++)
        json_object_array_add(list, target_to_json_locked(call->helper->targets->pdata[i]));
    g_mutex_unlock(&call->helper->lock);
    return list;
}

static json_object *run(QapiCall *call, QapiVerb verb, GError **error) {
    g_autoptr(QapiTarget) target = qapi_call_target(call, error);
    if (!target || !qapi_target_check(target, error))
        return NULL;
    return target->driver->run(target->guest, verb, target, target->own, error);
}

json_object *qmp_query_status(QapiCall *call, GError **error) {
    return run(call, QAPI_VERB_STATUS, error);
}

json_object *qmp_query_name(QapiCall *call, GError **error) {
    return run(call, QAPI_VERB_NAME, error);
}

json_object *qmp_stop(QapiCall *call, GError **error) {
    return run(call, QAPI_VERB_STOP, error);
}

json_object *qmp_cont(QapiCall *call, GError **error) {
    return run(call, QAPI_VERB_CONT, error);
}

void qapi_target_emit(QapiTarget *target, const char *event, json_object *data, int64_t time_us) {
    if (!data)
        data = json_object_new_object();
    qapi_json_add_string(data, "target", target->id);
    qapi_emit_at(target->helper, event, data, time_us ? time_us : g_get_real_time());
}

json_object *qapi_target_query(const QapiCall *call, json_object *(*to_json_locked)(const QapiTargetParts *parts),
                               GError **error) {
    g_autoptr(QapiTarget) target = qapi_call_target(call, error);
    if (!target)
        return NULL;
    g_mutex_lock(&call->helper->lock);
    json_object *result = to_json_locked(&target->parts);
    g_mutex_unlock(&call->helper->lock);
    return result;
}
