/* The helper: see helper.h. */
#include "helper.h"

#include "descriptors.h"
#include "incoming.h"
#include "jobs.h"
#include "targets.h"
#include "validate.h"

QapiHelper *qapi_helper_new(const char *snapshot_dir) {
    QapiHelper *helper = g_new0(QapiHelper, 1);
    helper->snapshot_dir = g_canonicalize_filename(snapshot_dir ? snapshot_dir : ".", NULL);
    helper->alone = !snapshot_dir;
    helper->targets = g_ptr_array_new();
    helper->jobs = g_ptr_array_new();
    helper->fdsets = qapi_fdsets_new();
    g_mutex_init(&helper->lock);
    g_cond_init(&helper->job_ended);
    return helper;
}

void qapi_helper_listen(QapiHelper *helper, const QapiListener *listener, void *opaque) {
    helper->listener = listener;
    helper->listener_opaque = opaque;
}

/* ---- the thread that watches guests ------------------------------------------------------------------------ */

static gpointer watch_guests(gpointer loop) {
    GMainContext *context = g_main_loop_get_context(loop);
    g_main_context_push_thread_default(context);
    g_main_loop_run(loop);
    g_main_context_pop_thread_default(context);
    return NULL;
}

static GMainContext *watch_context(QapiHelper *helper) {
    g_mutex_lock(&helper->lock);
    if (!helper->watch) {
        helper->watch = g_main_context_new();
        helper->watch_loop = g_main_loop_new(helper->watch, FALSE);
        helper->watch_thread = g_thread_new("qapi-watch", watch_guests, helper->watch_loop);
    }
    GMainContext *context = helper->watch;
    g_mutex_unlock(&helper->lock);
    return context;
}

void qapi_helper_watch(QapiHelper *helper, GSource *source) {
    g_source_attach(source, watch_context(helper));
}

static gboolean quit_loop(gpointer loop) {
    g_main_loop_quit(loop);
    return G_SOURCE_REMOVE;
}

/* A loop may not have begun to run yet: it is told to end by a source, which it comes to when it runs. */
static void end_watch(QapiHelper *helper) {
    if (!helper->watch)
        return;
    g_autoptr(GSource) source = g_idle_source_new();
    g_source_set_callback(source, quit_loop, helper->watch_loop, NULL);
    g_source_attach(source, helper->watch);
    g_thread_join(helper->watch_thread);
    g_main_loop_unref(helper->watch_loop);
    g_main_context_unref(helper->watch);
}

void qapi_helper_close(QapiHelper *helper) {
    g_mutex_lock(&helper->lock);
    helper->closing = TRUE;
    g_mutex_unlock(&helper->lock);
    qapi_jobs_end(helper);
}

void qapi_helper_free(QapiHelper *helper) {
    if (!helper)
        return;
    qapi_helper_close(helper);
    qapi_targets_end(helper);
    end_watch(helper);
    qapi_incoming_images_free(helper);
    g_ptr_array_unref(helper->targets);
    g_ptr_array_unref(helper->jobs);
    g_ptr_array_unref(helper->fdsets);
    g_mutex_clear(&helper->lock);
    g_cond_clear(&helper->job_ended);
    g_free(helper->snapshot_dir);
    g_free(helper);
}

char *qapi_path(const QapiHelper *helper, const char *path) {
    return helper->alone ? g_strdup(path) : g_canonicalize_filename(path, helper->snapshot_dir);
}

gboolean qapi_is_id(const char *text) {
    gboolean ok = g_ascii_isalpha(text[0]);
    for (; ok && *text; text++)
        ok = g_ascii_isalnum(*text) || *text == '-' || *text == '.' || *text == '_';
    return ok;
}

/* ---- events ---------------------------------------------------------------------------------------------- */

static json_object *timestamp(int64_t time_us) {
    json_object *object = json_object_new_object();
    qapi_json_add(object, "seconds", json_object_new_int64(time_us / G_USEC_PER_SEC));
    qapi_json_add(object, "microseconds", json_object_new_int64(time_us % G_USEC_PER_SEC));
    return object;
}

/* What the schema does not know does not reach a client. */
static gboolean is_valid(const char *name, json_object *data) {
    g_autoptr(GError) error = NULL;
    g_autoptr(json_object) nothing = json_object_new_object();
    const QapiEvent *event = qapi_find_event(&qapi_schema, name);
    if (event && qapi_validate(event->data, data ? data : nothing, NULL, &error))
        return TRUE;
    g_warning("event %s is not as the schema has it: %s", name, error ? error->message : "there is none");
    return FALSE;
}

static void emit_locked(QapiHelper *helper, const char *name, json_object *data, int64_t time_us) {
    g_autoptr(json_object) event = json_object_new_object();
    gboolean valid = is_valid(name, data);
    qapi_json_add(event, "timestamp", timestamp(time_us));
    qapi_json_add_string(event, "event", name);
    if (data)
        qapi_json_add(event, "data", data);
    if (valid && helper->listener)
        helper->listener->event(event, helper->listener_opaque);
}

void qapi_emit_locked(QapiHelper *helper, const char *name, json_object *data) {
    emit_locked(helper, name, data, g_get_real_time());
}

void qapi_emit_at(QapiHelper *helper, const char *name, json_object *data, int64_t time_us) {
    g_mutex_lock(&helper->lock);
    emit_locked(helper, name, data, time_us);
    g_mutex_unlock(&helper->lock);
}

void qapi_emit(QapiHelper *helper, const char *name, json_object *data) {
    qapi_emit_at(helper, name, data, g_get_real_time());
}
