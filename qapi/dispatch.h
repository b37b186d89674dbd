/*
 * From a request to its answer.
 *
 * Requests are checked in the order in which QEMU does it, so that the first thing wrong is the same:
 * it is an object; its members; the command; out of band where it may be; the arguments.
 */
#pragma once

#include "call.h"

/* Which commands a client may give. */
typedef enum {
    QAPI_MAY_NEGOTIATE, /* qmp_capabilities alone */
    QAPI_MAY_ALL,
} QapiMay;

/** qapi_request_is_oob: whether it asks to be done out of band. @request: (nullable) any value. */
gboolean qapi_request_is_oob(json_object *request);

/**
 * qapi_request_command: the command that a request names, valid or not. Return: (nullable).
 */
const QapiCommand *qapi_request_command(json_object *request);

/**
 * qapi_dispatch: do what a request asks for, in this thread.
 * @request: (borrow) (nullable) any value.
 * @oob: "exec-oob" may be used.
 * @descriptors: (nullable) of the client.
 * Return: (out) the answer: {return, id?} or {id?, error}; NULL where a success has none.
 */
json_object *qapi_dispatch(QapiHelper *helper, json_object *request, QapiMay may, gboolean oob,
                           QapiDescriptors *descriptors);

/** qapi_error_answer: {error: {class, desc}}. @error: (borrow). Return: (out). */
json_object *qapi_error_answer(const GError *error);

/**
 * qapi_execute: one command, for callers in this process.
 * @name: of a command; @arguments: (borrow) (nullable) an object.
 * Errors: NOT_FOUND, there is no such command; FAILED, its arguments are not valid; the handler's.
 * Return: (out) what it returned.
 */
json_object *qapi_execute(QapiHelper *helper, const char *name, json_object *arguments, GError **error);
