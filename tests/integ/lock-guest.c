/*
 * A process whose locks the kernel writes: what a write-protected page must not spoil.
 *
 *     lock-guest waits        one thread holds a mutex with priority inheritance, another waits for it
 *     lock-guest robust       one thread holds a robust mutex and ends with it
 *     lock-guest contended    four threads fight for a mutex with priority inheritance, which counts
 *     lock-guest churn        four threads start threads, which end at once, and wait for their ends
 *
 * Says "ready", and does a step for each line it reads: "signal" sends the waiting thread a signal, whose handler
 * has run when it says "done"; "end" lets the mutex go, and the last word is "good", or what went wrong. A lock
 * that the kernel refuses ends it by SIGABRT, which is what the C library does then.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { FIGHTERS = 4, LINE_BYTES = 64, STEP_US = 1000 };

#define BALLAST_BYTES ((size_t)16 << 20)

/* Each on a page of its own, so that nothing but the lock is written there. */
typedef struct {
    pthread_mutex_t *mutex;
    uint64_t *count; /* under it */
    pthread_t holder, waiter, fighters[FIGHTERS];
    uint64_t fought[FIGHTERS];
    atomic_bool held, end;
    int result; /* of the waiter's lock */
} Guest;

static Guest guest;
static atomic_int n_signals;

/* Behind what keeps a save busy before it comes there, and far from what else may lie beside it. */
static void *map_memory(void) {
    size_t length = 2 * BALLAST_BYTES;
    char *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        perror("mmap");
        exit(2);
    }
    memset(memory, 1, BALLAST_BYTES);
    return memory + BALLAST_BYTES;
}

static void make_mutex(int robust) {
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setprotocol(&attributes, robust ? PTHREAD_PRIO_NONE : PTHREAD_PRIO_INHERIT);
    pthread_mutexattr_setrobust(&attributes, robust ? PTHREAD_MUTEX_ROBUST : PTHREAD_MUTEX_STALLED);
    size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    char *memory = map_memory();
    guest.mutex = (pthread_mutex_t *)(void *)memory;
    guest.count = (uint64_t *)(void *)(memory + page_bytes);
    pthread_mutex_init(guest.mutex, &attributes);
}

static void *hold(void *data) {
    int robust = *(int *)data;
    pthread_mutex_lock(guest.mutex);
    guest.held = true;
    while (!guest.end) {
        usleep(STEP_US);
    }
    if (!robust) {
        pthread_mutex_unlock(guest.mutex);
    }
    return NULL;
}

static void *wait_for_it(void *data) {
    (void)data;
    guest.result = pthread_mutex_lock(guest.mutex);
    pthread_mutex_unlock(guest.mutex);
    return NULL;
}

static void *fight(void *data) {
    uint64_t *fought = data;
    while (!guest.end) {
        pthread_mutex_lock(guest.mutex);
        (*guest.count)++;
        pthread_mutex_unlock(guest.mutex);
        (*fought)++;
    }
    return NULL;
}

static void *end_at_once(void *data) {
    return data;
}

static void *churn(void *data) {
    uint64_t *fought = data;
    while (!guest.end) {
        pthread_t thread;
        int result = pthread_create(&thread, NULL, end_at_once, NULL);
        if (result == 0) {
            pthread_join(thread, NULL); /* until the kernel has cleared its number */
            (*fought)++;
        }
    }
    return NULL;
}

static void count_signal(int number) {
    (void)number;
    n_signals++;
}

static int say(const char *what) {
    printf("%s\n", what);
    fflush(stdout);
    return 0;
}

static int fail(const char *what, int errnum) {
    printf("%s: %s\n", what, strerror(errnum));
    return 1;
}

/* ---- the three -------------------------------------------------------------------------------------------- */

static int no;
static int yes = 1;

static void start_holder(int *robust) {
    make_mutex(*robust);
    pthread_create(&guest.holder, NULL, hold, robust);
    while (!guest.held) {
        usleep(STEP_US);
    }
}

static void start_waits(void) {
    start_holder(&no);
    pthread_create(&guest.waiter, NULL, wait_for_it, NULL);
    usleep(100 * STEP_US); /* until it waits; that it does not yet would only make the test weaker */
}

static int end_waits(void) {
    pthread_join(guest.holder, NULL);
    pthread_join(guest.waiter, NULL);
    return guest.result == 0 ? say("good") : fail("the lock", guest.result);
}

static void start_robust(void) {
    start_holder(&yes);
}

static int end_robust(void) {
    pthread_join(guest.holder, NULL);
    int result = pthread_mutex_trylock(guest.mutex);
    return result == EOWNERDEAD ? say("good") : fail("the lock of a thread that has ended", result);
}

static void start_fighters(void *(*body)(void *)) {
    for (int i = 0; i < FIGHTERS; i++) {
        pthread_create(&guest.fighters[i], NULL, body, &guest.fought[i]);
    }
}

static void start_contended(void) {
    make_mutex(0);
    start_fighters(fight);
}

static void start_churn(void) {
    start_fighters(churn);
}

static int end_churn(void) {
    for (int i = 0; i < FIGHTERS; i++) {
        pthread_join(guest.fighters[i], NULL);
    }
    return say("good");
}

static int end_contended(void) {
    uint64_t sum = 0;
    for (int i = 0; i < FIGHTERS; i++) {
        pthread_join(guest.fighters[i], NULL);
        sum += guest.fought[i];
    }
    return sum == *guest.count ? say("good") : fail("the count", EDOM);
}

static const struct {
    const char *name;
    void (*start)(void);
    int (*end)(void);
} kinds[] = {
    {"waits", start_waits, end_waits},
    {"robust", start_robust, end_robust},
    {"contended", start_contended, end_contended},
    {"churn", start_churn, end_churn},
};

static void signal_waiter(void) {
    int before = n_signals;
    pthread_kill(guest.waiter, SIGUSR1);
    while (n_signals == before) {
        usleep(STEP_US);
    }
    say("done");
}

int main(int argc, char **argv) {
    struct sigaction action = {.sa_handler = count_signal, .sa_flags = SA_RESTART};
    sigaction(SIGUSR1, &action, NULL);
    size_t kind = 0;
    while (kind < sizeof(kinds) / sizeof(kinds[0]) && (argc != 2 || strcmp(argv[1], kinds[kind].name) != 0)) {
        kind++;
    }
    if (kind == sizeof(kinds) / sizeof(kinds[0])) {
        fprintf(stderr, "usage: lock-guest waits|robust|contended|churn\n");
        return 2;
    }
    kinds[kind].start();
    say("ready");
    char line[LINE_BYTES];
    while (fgets(line, sizeof(line), stdin)) {
        if (strcmp(line, "signal\n") == 0) {
            signal_waiter();
        } else if (strcmp(line, "end\n") == 0) {
            guest.end = true;
            return kinds[kind].end();
        }
    }
    return 2;
}
