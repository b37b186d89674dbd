/*
 * The QMP schema as tables.
 *
 * qapi/qapi-schema.json and what it includes are the single source. gen-schema.py reads them when the program is
 * built and writes schema-tables.c, which fills the structs below; validate.c, introspect.c and dispatch.c are
 * driven by them. Everything here is const, and shared by all threads.
 */
#pragma once

#include "json.h"

typedef enum {
    QAPI_TYPE_STR,
    QAPI_TYPE_INT,  /* signed 64 bits */
    QAPI_TYPE_INT8, /* … */
    QAPI_TYPE_INT16,
    QAPI_TYPE_INT32,
    QAPI_TYPE_UINT8,
    QAPI_TYPE_UINT16,
    QAPI_TYPE_UINT32,
    QAPI_TYPE_UINT64, /* "uint64" and "size" */
    QAPI_TYPE_NUMBER,
    QAPI_TYPE_BOOL,
    QAPI_TYPE_NULL,
    QAPI_TYPE_ANY,
    QAPI_TYPE_ENUM,
    QAPI_TYPE_ARRAY,
    QAPI_TYPE_OBJECT, /* struct, or union where it has a tag */
    QAPI_TYPE_ALTERNATE,
    QAPI_TYPE_MAX
} QapiTypeKind;

typedef struct QapiType QapiType;

/* A member of an object, or an alternative of an alternate. */
typedef struct {
    const char *name;
    const QapiType *type;
    gboolean optional;
    const char *const *features; /* (nullable) NULL-terminated */
} QapiMember;

/* What an object has beside its members where its tag has this value; NULL type: nothing. */
typedef struct {
    const char *tag_value;
    const QapiType *type;
} QapiVariant;

struct QapiType {
    QapiTypeKind kind;
    const char *name;                         /* as the schema has it; "" for one that has no name there */
    const char *const *values;                /* ENUM: NULL-terminated */
    const char *const *const *value_features; /* ENUM: (nullable) of each value as members have them */
    const QapiType *element;                  /* ARRAY */
    const QapiMember *members;                /* OBJECT: its own and its base's; ALTERNATE */
    guint n_members;
    const char *tag; /* OBJECT: (nullable) the member that chooses the variant */
    const QapiVariant *variants;
    guint n_variants;
    const char *const *features; /* (nullable) */
};

typedef struct QapiCall QapiCall;

/*
 * A command's handler. @call has arguments that are valid.
 * Return: (out) what is returned; NULL with *error set, or NULL without: the empty object.
 */
typedef json_object *QapiHandler(QapiCall *call, GError **error);

typedef struct {
    const char *name;
    const QapiType *arguments; /* an OBJECT, never NULL */
    const QapiType *returns;   /* never NULL; the empty object where the schema says nothing */
    gboolean allow_oob;
    gboolean no_response;        /* nothing is answered when it succeeds */
    const char *const *features; /* (nullable) */
    QapiHandler *handler;
} QapiCommand;

typedef struct {
    const char *name;
    const QapiType *data;        /* an OBJECT, never NULL */
    const char *const *features; /* (nullable) */
} QapiEvent;

typedef struct {
    const QapiCommand *commands; /* by name, ascending */
    guint n_commands;
    const QapiEvent *events; /* by name, ascending */
    guint n_events;
} QapiSchema;

/* The schema of this program. */
extern const QapiSchema qapi_schema;

/** qapi_find_command, qapi_find_event: NULL when there is none called @name. */
const QapiCommand *qapi_find_command(const QapiSchema *schema, const char *name);
const QapiEvent *qapi_find_event(const QapiSchema *schema, const char *name);

/** qapi_type_has_member: whether objects of this type can have a member called @name, in any variant. */
gboolean qapi_type_has_member(const QapiType *type, const char *name);
