/*
 * Looking things up in the schema.
 *
 * Happy path: commands and events are sorted by name, so they are found by halving.
 *
 * Failure modes: what is not there is NULL, or FALSE.
 *
 * Invariant: the generator sorts by the bytes of names, as strcmp() does; a unit test looks after it.
 */
#include "schema.h"

#include <string.h>

static int compare_command(const void *name, const void *command) {
    return strcmp(name, ((const QapiCommand *)command)->name);
}

static int compare_event(const void *name, const void *event) {
    return strcmp(name, ((const QapiEvent *)event)->name);
}

const QapiCommand *qapi_find_command(const QapiSchema *schema, const char *name) {
    if (schema->n_commands == 0)
        return NULL;
    return bsearch(name, schema->commands, schema->n_commands, sizeof(QapiCommand), compare_command);
}

const QapiEvent *qapi_find_event(const QapiSchema *schema, const char *name) {
    if (schema->n_events == 0)
        return NULL;
    return bsearch(name, schema->events, schema->n_events, sizeof(QapiEvent), compare_event);
}

gboolean qapi_type_has_member(const QapiType *type, const char *name) {
    if (type->kind != QAPI_TYPE_OBJECT)
        return FALSE;
    for (guint i = 0; i < type->n_members; i++)
        if (g_str_equal(type->members[i].name, name))
            return TRUE;
    for (guint i = 0; i < type->n_variants; i++)
        if (type->variants[i].type && qapi_type_has_member(type->variants[i].type, name))
            return TRUE;
    return FALSE;
}
