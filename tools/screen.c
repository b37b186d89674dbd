/*
 * The terminal as a screen: see screen.h.
 *
 * Happy path: the alternate screen, without a cursor; keys come one by one, and none of them makes a signal. Each
 * drawing goes from the upper left corner and erases behind itself, by one write.
 *
 * Failure modes: signals that end a program put the terminal back first, by calls that a handler may make. What
 * they need is static, as handlers have no other memory.
 */
#include "screen.h"

#include "interrupt.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#define ENTER "\033[?1049h\033[?25l"
#define LEAVE "\033[?25h\033[?1049l"
#define LOOK_MS 200 /* at signals that came just before poll() */

enum { KEY_CTRL_C = 3, KEY_CTRL_Z = 26, COLUMNS_DEFAULT = 80, ROWS_DEFAULT = 24 };

static const int fatal_signals[] = {SIGQUIT, SIGABRT, SIGSEGV, SIGBUS, SIGILL, SIGFPE};

struct Screen {
    gboolean has_keys; /* standard input is a terminal too */
    struct sigaction old_actions[G_N_ELEMENTS(fatal_signals)];
    struct sigaction old_winch;
};

/* For handlers: what the terminal was like. */
static struct termios saved_mode;
static volatile sig_atomic_t mode_is_saved, is_entered, resized;

/* ---- in and out ------------------------------------------------------------------------------------------ */

static void write_all(const char *text, size_t length) {
    while (length > 0) {
        ssize_t n = write(STDOUT_FILENO, text, length);
        if (n <= 0)
            return;
        text += n;
        length -= (size_t)n;
    }
}

/* May be called by a handler. */
static void leave(void) {
    if (!is_entered)
        return;
    is_entered = 0;
    write_all(LEAVE, strlen(LEAVE));
    if (mode_is_saved)
        tcsetattr(STDIN_FILENO, TCSANOW, &saved_mode);
}

static void enter(Screen *screen) {
    struct termios mode;
    screen->has_keys = tcgetattr(STDIN_FILENO, &mode) == 0;
    if (screen->has_keys) {
        saved_mode = mode;
        mode_is_saved = 1;
    }
    is_entered = 1;
    if (screen->has_keys) {
        mode.c_lflag &= ~(tcflag_t)(ICANON | ECHO | ISIG);
        mode.c_iflag &= ~(tcflag_t)IXON;
        tcsetattr(STDIN_FILENO, TCSANOW, &mode);
    }
    write_all(ENTER, strlen(ENTER));
}

/* It has the default action again. */
static void leave_and_die(int signal_number) {
    leave();
    raise(signal_number);
}

static void note_size(int signal_number) {
    (void)signal_number;
    resized = 1;
}

Screen *screen_open(void) {
    const char *type = g_getenv("TERM");
    if (!isatty(STDOUT_FILENO) || !type || g_str_equal(type, "dumb"))
        return NULL;
    Screen *screen = g_new0(Screen, 1);
    struct sigaction fatal = {.sa_handler = leave_and_die, .sa_flags = (int)(SA_RESETHAND | SA_NODEFER)};
    struct sigaction winch = {.sa_handler = note_size};
    for (guint i = 0; i < G_N_ELEMENTS(fatal_signals); i++)
        sigaction(fatal_signals[i], &fatal, &screen->old_actions[i]);
    sigaction(SIGWINCH, &winch, &screen->old_winch);
    enter(screen);
    return screen;
}

void screen_close(Screen *screen) {
    if (!screen)
        return;
    leave();
    for (guint i = 0; i < G_N_ELEMENTS(fatal_signals); i++)
        sigaction(fatal_signals[i], &screen->old_actions[i], NULL);
    sigaction(SIGWINCH, &screen->old_winch, NULL);
    g_free(screen);
}

/* ---- out ------------------------------------------------------------------------------------------------- */

char *screen_clip(const char *line, int columns) {
    const char *end = line;
    for (int used = 0; *end; end = g_utf8_next_char(end)) {
        gunichar c = g_utf8_get_char(end);
        used += g_unichar_iszerowidth(c) ? 0 : g_unichar_iswide(c) ? 2 : 1;
        if (used > columns)
            break;
    }
    return g_strndup(line, (gsize)(end - line));
}

static void get_size(int *ret_columns, int *ret_rows) {
    struct winsize size = {0};
    gboolean known = ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 && size.ws_row > 0;
    *ret_columns = known ? size.ws_col : COLUMNS_DEFAULT;
    *ret_rows = known ? size.ws_row : ROWS_DEFAULT;
}

gboolean screen_draw(const Screen *screen, char *const *lines) {
    (void)screen;
    int columns, rows, n = (int)g_strv_length((char **)lines);
    get_size(&columns, &rows);
    g_autoptr(GString) text = g_string_new("\033[H");
    for (int i = 0; i < MIN(n, rows); i++) {
        gboolean cut = i == rows - 1 && n > rows;
        g_autofree char *more = cut ? g_strdup_printf("… %d lines more", n - i) : NULL;
        g_autofree char *line = screen_clip(cut ? more : lines[i], columns);
        g_string_append_printf(text, "%s%s\033[K", i ? "\r\n" : "", line);
    }
    g_string_append(text, "\033[J");
    write_all(text->str, text->len);
    return isatty(STDOUT_FILENO) == 1;
}

/* ---- in -------------------------------------------------------------------------------------------------- */

static void suspend(Screen *screen) {
    leave();
    kill(0, SIGTSTP);
    enter(screen);
}

/* SCREEN_TIME: nothing that matters. */
static ScreenEvent read_keys(Screen *screen) {
    char keys[64];
    ssize_t n = read(STDIN_FILENO, keys, sizeof(keys));
    if (n <= 0)
        return SCREEN_QUIT;
    for (ssize_t i = 0; i < n; i++) {
        if (keys[i] == 'q' || keys[i] == 'Q' || keys[i] == KEY_CTRL_C)
            return SCREEN_QUIT;
        if (keys[i] == KEY_CTRL_Z) {
            suspend(screen);
            return SCREEN_SIZE;
        }
    }
    return SCREEN_TIME;
}

static gboolean take_resized(void) {
    gboolean was = resized != 0;
    resized = 0;
    return was;
}

ScreenEvent screen_wait(Screen *screen, gint64 end_us) {
    struct pollfd keys = {.fd = screen->has_keys ? STDIN_FILENO : -1, .events = POLLIN};
    gint64 left_us;
    while ((left_us = end_us - g_get_monotonic_time()) > 0) {
        int n = poll(&keys, 1, (int)MIN((left_us + 999) / 1000, LOOK_MS));
        ScreenEvent event = n > 0 ? read_keys(screen) : SCREEN_TIME;
        if (interrupt_seen())
            return SCREEN_QUIT;
        if (event != SCREEN_TIME)
            return event;
        if (take_resized())
            return SCREEN_SIZE;
    }
    return SCREEN_TIME;
}
