/* How much a guest writes: see dirty-rate.h. */
#include "dirty-rate.h"

#include "call.h"
#include "dirty-log.h"
#include "jobs.h"
#include "schema-handlers.h"

enum {
    SECONDS_MIN = 1,
    SECONDS_MAX = 60,
    SAMPLE_PAGES_MIN = 128, /* QEMU's limits for a sampling that is not done here */
    SAMPLE_PAGES_MAX = 16384,
    SAMPLE_PAGES_DEFAULT = 512,
    LOOK_US = 50000,
};

typedef enum { RATE_UNSTARTED, RATE_MEASURING, RATE_MEASURED } RateStatus;

static const char *const statuses[] = {
    [RATE_UNSTARTED] = "unstarted", [RATE_MEASURING] = "measuring", [RATE_MEASURED] = "measured"};

/* All under the helper's lock. */
struct DirtyRate {
    RateStatus status;
    int64_t start_s;
    int64_t seconds;
    int64_t sample_pages;
    const char *mode;
    int64_t mib_per_second; /* -1: it could not be measured */
};

DirtyRate *qapi_dirty_rate_new(void) {
    DirtyRate *rate = g_new0(DirtyRate, 1);
    rate->mode = "page-sampling";
    return rate;
}

void qapi_dirty_rate_free(DirtyRate *rate) {
    g_free(rate);
}

/* ---- the measurement ------------------------------------------------------------------------------------- */

typedef struct {
    QapiTarget *target;
    SnapTracker *tracker;
    int64_t seconds;
} Measurement;

static void count(const SnapRegion *region, uint64_t offset_bytes, uint64_t length_bytes, void *opaque) {
    (void)region, (void)offset_bytes;
    *(uint64_t *)opaque += length_bytes;
}

static json_object *run(QapiJob *job, void *opaque, GError **error) {
    Measurement *measurement = opaque;
    uint64_t bytes = 0;
    gint64 start_us = g_get_monotonic_time(), end_us = start_us + measurement->seconds * G_USEC_PER_SEC;
    while (qapi_job_go_on(job, 0, 0) && g_get_monotonic_time() < end_us)
        g_usleep(LOOK_US);
    gboolean ok = snap_tracker_collect(measurement->tracker, count, &bytes, NULL, error);
    double seconds = (double)(g_get_monotonic_time() - start_us) / 1e6;
    qapi_dirty_log_close(measurement->target, measurement->tracker); /* before anybody can want the next one */

    QapiHelper *helper = qapi_target_helper(measurement->target);
    DirtyRate *rate = qapi_target_parts(measurement->target)->dirty_rate;
    g_mutex_lock(&helper->lock);
    rate->status = RATE_MEASURED;
    rate->mib_per_second = ok ? (int64_t)((double)bytes / seconds / (1 << 20)) : -1;
    g_mutex_unlock(&helper->lock);
    qapi_target_unref(measurement->target);
    return ok ? json_object_new_object() : NULL;
}

static const QapiJobKind kind = {.run = run, .free = g_free};

/* ---- commands -------------------------------------------------------------------------------------------- */

static gboolean check(QapiCall *call, GError **error) {
    int64_t seconds = qapi_int(call, "calc-time", 0);
    int64_t samples = qapi_int(call, "sample-pages", SAMPLE_PAGES_DEFAULT);
    if (seconds < SECONDS_MIN || seconds > SECONDS_MAX)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "calc-time is out of range[%d, %d].", SECONDS_MIN,
                    SECONDS_MAX);
    else if (qapi_has(call, "sample-pages") && g_strcmp0(qapi_string(call, "mode"), "dirty-ring") == 0)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "either sample-pages or dirty-ring can be specified.");
    else if (samples < SAMPLE_PAGES_MIN || samples > SAMPLE_PAGES_MAX)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "sample-pages is out of range[%d, %d].",
                    SAMPLE_PAGES_MIN, SAMPLE_PAGES_MAX);
    else
        return TRUE;
    return FALSE;
}

static const char *mode_of(const char *name) {
    static const char *const names[] = {"page-sampling", "dirty-ring", "dirty-bitmap"};
    for (guint i = 0; name && i < G_N_ELEMENTS(names); i++)
        if (g_str_equal(name, names[i]))
            return names[i];
    return names[0];
}

/* That one runs is said before any complaint about arguments. */
static gboolean begin(QapiCall *call, QapiTarget *target, GError **error) {
    DirtyRate *rate = qapi_target_parts(target)->dirty_rate;
    g_mutex_lock(&call->helper->lock);
    gboolean runs = rate->status == RATE_MEASURING;
    gboolean ok = !runs && check(call, error);
    if (ok)
        *rate = (DirtyRate){.status = RATE_MEASURING,
                            .start_s = g_get_monotonic_time() / G_USEC_PER_SEC,
                            .seconds = qapi_int(call, "calc-time", 0),
                            .sample_pages = qapi_int(call, "sample-pages", SAMPLE_PAGES_DEFAULT),
                            .mode = mode_of(qapi_string(call, "mode")),
                            .mib_per_second = -1};
    g_mutex_unlock(&call->helper->lock);
    if (runs)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "the dirty rate is already being measured.");
    return ok;
}

static void give_up(QapiCall *call, QapiTarget *target) {
    g_mutex_lock(&call->helper->lock);
    *qapi_target_parts(target)->dirty_rate = (DirtyRate){.mode = "page-sampling"};
    g_mutex_unlock(&call->helper->lock);
}

static gboolean start(QapiCall *call, QapiTarget *target, GError **error) {
    g_autofree char *why_not_async = NULL;
    SnapTracker *tracker = qapi_dirty_log_open(target, "auto", NULL, &why_not_async, error);
    if (!tracker)
        return FALSE;
    QapiJob *job = qapi_job_new(call->helper, &kind, NULL, NULL, NULL, error);
    if (!job) {
        qapi_dirty_log_close(target, tracker);
        return FALSE;
    }
    Measurement *measurement = g_new(Measurement, 1);
    *measurement = (Measurement){
        .target = qapi_target_ref(target), .tracker = tracker, .seconds = qapi_int(call, "calc-time", 0)};
    qapi_job_begin(job, measurement);
    return TRUE;
}

json_object *qmp_calc_dirty_rate(QapiCall *call, GError **error) {
    g_autoptr(QapiTarget) target = qapi_call_target(call, error);
    if (target && begin(call, target, error) && !start(call, target, error))
        give_up(call, target);
    return NULL;
}

static json_object *rate_to_json_locked(const QapiTargetParts *parts) {
    const DirtyRate *rate = parts->dirty_rate;
    json_object *object = json_object_new_object();
    if (rate->status == RATE_MEASURED)
        qapi_json_add(object, "dirty-rate", json_object_new_int64(rate->mib_per_second));
    qapi_json_add_string(object, "status", statuses[rate->status]);
    qapi_json_add(object, "start-time", json_object_new_int64(rate->start_s));
    qapi_json_add(object, "calc-time", json_object_new_int64(rate->seconds));
    qapi_json_add_uint(object, "sample-pages", (uint64_t)rate->sample_pages);
    qapi_json_add_string(object, "mode", rate->mode);
    return object;
}

json_object *qmp_query_dirty_rate(QapiCall *call, GError **error) {
    return qapi_target_query(call, rate_to_json_locked, error);
}
