/* What vmsnap top shows, as lines of text. */
#pragma once

#include "qapi/json.h"

/**
 * top_view_lines: a round.
 * @socket: (borrow) the helper's. @targets, @jobs: (borrow) what query-targets and query-job-statistics returned.
 * Return: (out) lines, UTF-8 without control characters; g_strfreev() them.
 */
char **top_view_lines(const char *socket, json_object *targets, json_object *jobs);
