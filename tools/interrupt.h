/*
 * Ctrl-C: long work is asked to stop and cleans up after itself.
 *
 * Signal handlers belong to the program, never to the library. After interrupt_catch(), SIGINT, SIGTERM and
 * SIGHUP only set a flag that progress functions look at.
 */
#pragma once

#include <glib.h>

void interrupt_catch(void);
gboolean interrupt_seen(void);
