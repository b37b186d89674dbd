/*
 * A thread whose fault comes too late, when the page is un-protected already, does not wait: the kernel looks at
 * the page again before it lets the thread sleep. So un-protecting a page once is enough, whether or not its
 * message was read, and no thread is left behind asleep.
 *
 * A race, tried many times: it shows no counter-example rather than proving there is none.
 *
 * Relied on by the sweep, which un-protects chunks that faults may be coming in for.
 */
#include "proof.h"

#include <sched.h>

#define ROUNDS 5000

typedef struct {
    int fd;
    char *memory;
    atomic_uint round;   /* what the writer shall do */
    atomic_uint written; /* and has done */
} Race;

static void write_each_round(Task *task) {
    Race *race = task->argument;
    for (unsigned round = 1; round <= ROUNDS; round++) {
        while (atomic_load(&race->round) < round)
            sched_yield();
        *(volatile unsigned *)race->memory = round;
        atomic_store(&race->written, round);
    }
}

static bool wait_until_written(Race *race, unsigned round) {
    for (long tries = 0; atomic_load(&race->written) < round; tries++) {
        if (tries > WAIT_MS * 10L)
            return false;
        if (tries < 1000)
            sched_yield();
        else
            usleep(100);
    }
    return true;
}

int main(void) {
    Race race = {.fd = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP), .memory = map_anon(1)};
    race.memory[0] = 't';
    CHECK(uffd_register(race.fd, race.memory, page_bytes()) == 0);
    Task writer = {.body = write_each_round, .argument = &race};
    task_start(&writer);
    unsigned n_caught = 0;
    for (unsigned round = 1; round <= ROUNDS; round++) {
        CHECK(uffd_protect(race.fd, race.memory, page_bytes()) == 0);
        atomic_store(&race.round, round);
        for (unsigned spin = 0; spin < round % 200 * 20; spin++)
            atomic_signal_fence(memory_order_seq_cst);
        n_caught += uffd_wait(race.fd, 0);
        CHECK(uffd_unprotect(race.fd, race.memory, page_bytes()) == 0);
        CHECK(wait_until_written(&race, round));
    }
    printf("%u rounds, of which %u had a fault waiting\n", ROUNDS, n_caught);
    CHECK(task_wait(&writer, WAIT_MS));
    pthread_join(writer.thread, NULL);
    return 0;
}
