/* How often an event may come: see event-rate.h. */
#include "event-rate.h"

/* Milliseconds from one to the next of an event and a target. */
static const struct {
    const char *event;
    guint period_ms;
} periods[] = {
    {"MIGRATION_PASS", 1000},
};

typedef struct {
    QapiEventRate *rate;
    char *key;         /* event and target */
    char *target;      /* "" without one */
    json_object *held; /* (nullable) */
    GSource *timer;
} Slot;

struct QapiEventRate {
    /* set before start */
    GMainContext *context;
    GMutex *lock;
    void (*send)(json_object *event, void *opaque);
    void *opaque;

    /* under lock */
    GHashTable *slots; /* those whose period has not passed */
};

static void slot_free(gpointer data) {
    Slot *slot = data;
    g_source_destroy(slot->timer);
    g_source_unref(slot->timer);
    json_object_put(slot->held);
    g_free(slot->key);
    g_free(slot->target);
    g_free(slot);
}

QapiEventRate *qapi_event_rate_new(GMainContext *context, GMutex *lock,
                                   void (*send)(json_object *event, void *opaque), void *opaque) {
    QapiEventRate *rate = g_new0(QapiEventRate, 1);
    *rate = (QapiEventRate){.context = context, .lock = lock, .send = send, .opaque = opaque};
    rate->slots = g_hash_table_new_full(g_str_hash, g_str_equal, NULL, slot_free);
    return rate;
}

void qapi_event_rate_free(QapiEventRate *rate) {
    g_mutex_lock(rate->lock);
    g_hash_table_unref(rate->slots);
    g_mutex_unlock(rate->lock);
    g_free(rate);
}

static guint period_of(const char *event) {
    for (guint i = 0; i < G_N_ELEMENTS(periods); i++)
        if (g_str_equal(periods[i].event, event))
            return periods[i].period_ms;
    return 0;
}

static gboolean on_period(gpointer data) {
    Slot *slot = data;
    QapiEventRate *rate = slot->rate;
    g_mutex_lock(rate->lock);
    json_object *held = g_steal_pointer(&slot->held);
    if (held)
        rate->send(held, rate->opaque);
    else
        g_hash_table_remove(rate->slots, slot->key);
    g_mutex_unlock(rate->lock);
    json_object_put(held);
    return held ? G_SOURCE_CONTINUE : G_SOURCE_REMOVE;
}

static void begin_period(QapiEventRate *rate, char *key, const char *target, guint period_ms) {
    Slot *slot = g_new0(Slot, 1);
    slot->rate = rate;
    slot->key = key;
    slot->target = g_strdup(target);
    slot->timer = g_timeout_source_new(period_ms);
    g_source_set_callback(slot->timer, on_period, slot, NULL);
    g_hash_table_insert(rate->slots, key, slot);
    g_source_attach(slot->timer, rate->context);
}

static const char *get_string(json_object *object, const char *name) {
    json_object *value = NULL;
    return json_object_object_get_ex(object, name, &value) ? json_object_get_string(value) : "";
}

/* What was held back of @target goes out now, so that nothing overtakes it. */
static void send_held(const QapiEventRate *rate, const char *target) {
    GHashTableIter iter;
    gpointer value = NULL;
    g_hash_table_iter_init(&iter, rate->slots);
    while (g_hash_table_iter_next(&iter, NULL, &value)) {
        Slot *slot = value;
        if (slot->held && g_str_equal(slot->target, target)) {
            json_object *held = g_steal_pointer(&slot->held);
            rate->send(held, rate->opaque);
            json_object_put(held);
        }
    }
}

void qapi_event_rate_put(QapiEventRate *rate, json_object *event) {
    json_object *data = NULL;
    const char *name = get_string(event, "event");
    guint period_ms = period_of(name);
    json_object_object_get_ex(event, "data", &data);
    const char *target = get_string(data, "target");
    if (period_ms == 0) {
        send_held(rate, target);
        rate->send(event, rate->opaque);
        return;
    }
    g_autofree char *key = g_strdup_printf("%s %s", name, target);
    Slot *slot = g_hash_table_lookup(rate->slots, key);
    if (slot) {
        json_object_put(slot->held);
        slot->held = json_object_get(event);
        return;
    }
    rate->send(event, rate->opaque);
    begin_period(rate, g_steal_pointer(&key), target, period_ms);
}
