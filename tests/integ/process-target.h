/* Child processes to be attached to, and looks at what became of them. */
#pragma once

#include <glib.h>
#include <stdint.h>
#include <sys/types.h>

/* Shared with the child, so that both sides see what it does. */
typedef struct {
    volatile uint64_t steps;   /* counted up by whoever has something to show */
    volatile uint64_t signals; /* handled so far */
    volatile int64_t result;   /* of the call under test: a value or -errno */
    volatile uint64_t elapsed_ns;
    volatile int ready; /* the child is about to do it */
    volatile int done;
    volatile int go_on; /* set by the test */
    int pipe[2];
    int sockets[2];
    void *places[32]; /* in the child, for the test to look at */
} TargetShared;

typedef struct {
    pid_t pid;
    TargetShared *shared;
} Target;

/* Fork a child that runs @body(shared) and exits; returns when it has set shared->ready. */
Target *target_start(void (*body)(TargetShared *));
/* SIGKILL and reap. */
void target_end(Target *target);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Target, target_end)

/* The letter of /proc/PID/stat, field 3. */
char target_state(pid_t pid);
/* Wait until its main thread is in state @state; FALSE after a second. */
gboolean target_await_state(pid_t pid, char state);
/* Wait until *value >= at_least, at most @timeout_ms. */
gboolean target_await(const volatile uint64_t *value, uint64_t at_least, int timeout_ms);
gboolean target_await_done(const Target *target, int timeout_ms);
/* What is in /proc/PID/fd: "0:/dev/null 1:pipe:[…]". */
char *target_descriptors(pid_t pid);
gint64 target_tracer(pid_t pid);
uint64_t target_clock_ns(void);
void target_sleep_ms(int ms);
