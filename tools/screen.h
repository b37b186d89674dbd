/*
 * The terminal as a screen: text that is redrawn in place, and keys.
 *
 *     screen_open → screen_draw, screen_wait … → screen_close
 *
 * The terminal is as it was after screen_close(), while the program is suspended (Ctrl-Z), and when it is ended by
 * a signal, other than SIGKILL and SIGSTOP. There is one screen at a time.
 */
#pragma once

#include <glib.h>

typedef struct Screen Screen;

typedef enum {
    SCREEN_TIME, /* it is over */
    SCREEN_SIZE, /* the terminal has another one, or was used by others: draw again */
    SCREEN_QUIT, /* q, Ctrl-C, or the terminal has gone */
} ScreenEvent;

/** screen_open: Return: (out) screen_close() it; NULL: standard output is no terminal, or a dumb one. */
Screen *screen_open(void);
/** screen_close: NULL is allowed. */
void screen_close(Screen *screen);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Screen, screen_close)

/** screen_draw: show @lines (borrow), UTF-8, as far as they fit. FALSE: it cannot be written to. */
gboolean screen_draw(const Screen *screen, char *const *lines);

/** screen_wait: until @end_us of the monotonic clock, or something happens. */
ScreenEvent screen_wait(Screen *screen, gint64 end_us);

/** screen_clip: so much of @line as @columns have room for. Return: (out). */
char *screen_clip(const char *line, int columns);
