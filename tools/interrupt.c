/* Ctrl-C: see interrupt.h. */
#include "interrupt.h"

#include <signal.h>

static volatile sig_atomic_t seen;

static void remember(int signal_number) {
    (void)signal_number;
    seen = 1;
}

/* SA_RESTART: nothing in the library needs to know about signals. A signal ignored from birth (nohup) stays so. */
void interrupt_catch(void) {
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP};
    for (guint i = 0; i < G_N_ELEMENTS(signals); i++) {
        struct sigaction old, action = {.sa_handler = remember, .sa_flags = SA_RESTART};
        sigemptyset(&action.sa_mask);
        if (sigaction(signals[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN)
            sigaction(signals[i], &action, NULL);
    }
}

gboolean interrupt_seen(void) {
    return seen != 0;
}
