/* Command family probe: see probe.h. */
#include "probe.h"

#include "libsnap.h"
#include "schema-handlers.h"

static const char *const answers[] = {
    [SNAP_PROBE_YES] = "yes",
    [SNAP_PROBE_NO] = "no",
    [SNAP_PROBE_DENIED] = "denied",
};

static json_object *item_to_json(const SnapProbeItem *item) {
    json_object *object = json_object_new_object();
    qapi_json_add_string(object, "group", item->group);
    qapi_json_add_string(object, "name", item->name);
    qapi_json_add_string(object, "answer", answers[item->answer]);
    qapi_json_add_bool(object, "required", item->required);
    qapi_json_add_string(object, "lost", item->lost);
    qapi_json_add_string(object, "remedy", item->remedy);
    return object;
}

static gboolean has(const SnapProbeItem *items, guint n, const char *group, const char *name) {
    for (guint i = 0; i < n; i++)
        if (g_str_equal(items[i].group, group) && g_str_equal(items[i].name, name))
            return items[i].answer == SNAP_PROBE_YES;
    return FALSE;
}

/* As snap_tracker_set_mode() will find it: the thread needs what every snapshot needs. */
static SnapTrackMode dirty_log(const SnapProbeItem *items, guint n, gboolean ready) {
    if (has(items, n, "userfaultfd", "wp-async") && has(items, n, "pagemap", "scan"))
        return SNAP_TRACK_ASYNC;
    return ready ? SNAP_TRACK_SYNC : SNAP_TRACK_OFF;
}

json_object *qapi_probe(void) {
    guint n = 0;
    g_autofree SnapProbeItem *items = snap_probe(&n);
    gboolean ready = TRUE;
    json_object *list = json_object_new_array();
    for (guint i = 0; i < n; i++) {
        if (items[i].required && items[i].answer != SNAP_PROBE_YES)
            ready = FALSE;
        json_object_array_add(list, item_to_json(&items[i]));
    }
    json_object *result = json_object_new_object();
    qapi_json_add_bool(result, "ready", ready);
    qapi_json_add_string(result, "dirty-log", snap_track_mode_name(dirty_log(items, n, ready)));
    qapi_json_add(result, "items", list);
    return result;
}

json_object *qmp_query_probe(QapiCall *call, GError **error) {
    (void)call, (void)error;
    return qapi_probe();
}
