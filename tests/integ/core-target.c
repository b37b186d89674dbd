/*
 * A process for debuggers: threads parked at known places with known call stacks, known values in every kind of
 * variable. Prints its pid when all are in place.
 */
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { N_THREADS = 6, N_NUMBERS = 100000 };

struct record {
    const char *text;
    long numbers[8];
    double fraction;
};

struct record initialised = {"initialised", {1, 2, 3, 5, 8, 13, 21, 34}, 0.625};
struct record *on_heap;
uint32_t *numbers; /* large, so in a mapping of its own */
char *shared_text;
int untouched[1024];
__thread long thread_value;
static sem_t never;
static int in_place;

static void park(int id) {
    int ends[2];
    if (pipe(ends) < 0) {
        abort();
    }
    __atomic_add_fetch(&in_place, 1, __ATOMIC_SEQ_CST);
    switch (id % 4) {
    case 0:
        pause();
        break;
    case 1:
        sem_wait(&never);
        break;
    case 2:
        poll(&(struct pollfd){.fd = ends[0], .events = POLLIN}, 1, -1);
        break;
    default:
        if (read(ends[0], ends, 1) < 0) {
            abort();
        }
    }
}

static __attribute__((noinline)) int descend(int id, int depth, const char *why) {
    char local[32];
    snprintf(local, sizeof(local), "%s %d at depth %d", why, id, depth);
    if (depth == 0) {
        park(id);
    } else {
        (void)descend(id, depth - 1, why);
    }
    return local[0];
}

static void *run(void *opaque) {
    int id = (int)(intptr_t)opaque;
    thread_value = 1000 + id;
    (void)descend(id, id + 2, "thread");
    return NULL;
}

int main(void) {
    pthread_t thread;
    sem_init(&never, 0, 0);
    on_heap = malloc(sizeof(*on_heap));
    *on_heap = initialised;
    on_heap->text = strdup("on the heap");
    numbers = malloc(N_NUMBERS * sizeof(*numbers));
    for (uint32_t i = 0; i < N_NUMBERS; i++) {
        numbers[i] = i * 2654435761u;
    }
    shared_text = mmap(NULL, 1 << 16, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    strcpy(shared_text + 5000, "in shared memory");
    for (int i = 1; i < N_THREADS; i++) {
        pthread_create(&thread, NULL, run, (void *)(intptr_t)i);
    }
    while (__atomic_load_n(&in_place, __ATOMIC_SEQ_CST) < N_THREADS - 1) {
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
    printf("%d\n", (int)getpid());
    fflush(stdout);
    thread_value = 1000;
    (void)descend(4, 3, "main");
    return 0;
}
