/* How often an event may come, and in which order. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../../qapi/event-rate.h"

enum { PERIOD_MS = 1000 };

typedef struct {
    GMainContext *context;
    GMutex lock;
    QapiEventRate *rate;
    GString *sent; /* a word an event */
} Rig;

static json_object *member(json_object *object, const char *name) {
    return json_object_object_get(object, name);
}

static void note(json_object *event, void *opaque) {
    Rig *rig = opaque;
    json_object *data = member(event, "data");
    g_string_append_printf(rig->sent, "%s%s%s ", json_object_get_string(member(event, "event")),
                           json_object_get_string(member(data, "pass")),
                           member(data, "target") ? json_object_get_string(member(data, "target")) : "");
}

static void rig_init(Rig *rig) {
    rig->context = g_main_context_new();
    g_mutex_init(&rig->lock);
    rig->sent = g_string_new(NULL);
    rig->rate = qapi_event_rate_new(rig->context, &rig->lock, note, rig);
}

static void rig_clear(Rig *rig) {
    qapi_event_rate_free(rig->rate);
    g_main_context_unref(rig->context);
    g_mutex_clear(&rig->lock);
    g_string_free(rig->sent, TRUE);
}

/* @target: (nullable) */
static void put(Rig *rig, const char *name, int pass, const char *target) {
    json_object *event = json_object_new_object(), *data = json_object_new_object();
    json_object_object_add(event, "event", json_object_new_string(name));
    json_object_object_add(event, "data", data);
    json_object_object_add(data, "pass", json_object_new_int(pass));
    if (target) {
        json_object_object_add(data, "target", json_object_new_string(target));
    }
    g_mutex_lock(&rig->lock);
    qapi_event_rate_put(rig->rate, event);
    g_mutex_unlock(&rig->lock);
    json_object_put(event);
}

static void pass(Rig *rig, int number, const char *target) {
    put(rig, "MIGRATION_PASS", number, target);
}

static void check_sent(Rig *rig, const char *words) {
    assert_string_equal(rig->sent->str, words);
    g_string_truncate(rig->sent, 0);
}

static void run_for(const Rig *rig, int ms) {
    gint64 end_us = g_get_monotonic_time() + ms * INT64_C(1000);
    while (g_get_monotonic_time() < end_us) {
        g_main_context_iteration(rig->context, FALSE);
        g_usleep(1000);
    }
}

/* ---- tests ------------------------------------------------------------------------------------------------ */

static void first_goes_out_at_once_and_the_last_at_the_end(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig);
    pass(&rig, 1, NULL);
    check_sent(&rig, "MIGRATION_PASS1 ");
    pass(&rig, 2, NULL);
    pass(&rig, 3, NULL);
    check_sent(&rig, "");
    run_for(&rig, PERIOD_MS + 200);
    check_sent(&rig, "MIGRATION_PASS3 ");
    run_for(&rig, PERIOD_MS + 200);
    check_sent(&rig, "");
    pass(&rig, 4, NULL);
    check_sent(&rig, "MIGRATION_PASS4 ");
    rig_clear(&rig);
}

static void others_pass_through(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig);
    for (int i = 0; i < 3; i++) {
        put(&rig, "MIGRATION", i, NULL);
    }
    check_sent(&rig, "MIGRATION0 MIGRATION1 MIGRATION2 ");
    rig_clear(&rig);
}

static void each_guest_has_its_own_period(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig);
    pass(&rig, 1, "a");
    pass(&rig, 1, "b");
    pass(&rig, 2, "a");
    check_sent(&rig, "MIGRATION_PASS1a MIGRATION_PASS1b ");
    rig_clear(&rig);
}

/* Nobody hears of a round after the migration has completed. */
static void nothing_overtakes_what_is_held_back(void **state) {
    (void)state;
    Rig rig;
    rig_init(&rig);
    pass(&rig, 1, "a");
    pass(&rig, 1, "b");
    pass(&rig, 2, "a");
    pass(&rig, 2, "b");
    pass(&rig, 3, "a");
    put(&rig, "MIGRATION", 9, "a");
    check_sent(&rig, "MIGRATION_PASS1a MIGRATION_PASS1b MIGRATION_PASS3a MIGRATION9a ");
    put(&rig, "MIGRATION", 9, "a");
    check_sent(&rig, "MIGRATION9a ");
    rig_clear(&rig);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(first_goes_out_at_once_and_the_last_at_the_end),
        cmocka_unit_test(others_pass_through),
        cmocka_unit_test(each_guest_has_its_own_period),
        cmocka_unit_test(nothing_overtakes_what_is_held_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
