/* Command family probe: what this machine can do. */
#pragma once

#include "json.h"

/**
 * qapi_probe: every question of snap_probe() with its answer.
 * Return: (out) {ready, items: [{group, name, answer: "yes"|"no"|"denied", required, lost, remedy}]}; ready is
 *   false when a required item is not "yes". Free with json_object_put(). Never fails.
 */
json_object *qapi_probe(void);
