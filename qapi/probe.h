/* Command family probe: what this machine can do. */
#pragma once

#include "json.h"

/**
 * qapi_probe: every question of snap_probe() with its answer.
 * Return: (out) {ready, dirty-log: "async"|"sync"|"off", items: [{group, name, answer: "yes"|"no"|"denied",
 * required, lost, remedy}]}; ready is false when a required item is not "yes"; dirty-log is the one that is used
 * where none is asked for, off where none can be had. Free with json_object_put(). Never fails.
 */
json_object *qapi_probe(void);
