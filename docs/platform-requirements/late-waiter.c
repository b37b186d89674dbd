/*
 * A thread whose fault comes too late, when its page is un-protected already, usually does not wait: the kernel
 * looks at the page again before it lets the thread sleep. But what it looks at is the write bit, and a page that
 * is shared with a forked child has it clear, protected or not: there a late thread can go to sleep after the
 * un-protect that should have woken it. A UFFDIO_WAKE, or another un-protect, wakes it.
 *
 * A race, tried many times. Without fork a sleeper disproves the fact; after fork it may or may not come up, and
 * has to be woken by UFFDIO_WAKE.
 *
 * Relied on by the fault thread: every message is answered, even where the page is free by now.
 */
#include "proof.h"

#include <sched.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>

#define ROUNDS 2000u
#define SLEEPS_AFTER_MS 200

typedef struct {
    int fd;
    char *memory;        /* a page a round */
    atomic_uint round;   /* what the writer shall do */
    atomic_uint written; /* and has done */
    unsigned n_caught;   /* rounds that had a fault waiting before the un-protect */
    unsigned n_sleepers; /* rounds in which the writer slept on after it */
} Race;

/* A race needs two CPUs: the @nth one that we may use is the caller's. */
static void pin_to_cpu(int nth) {
    static cpu_set_t allowed;
    if (CPU_COUNT(&allowed) == 0)
        CHECK(sched_getaffinity(0, sizeof(allowed), &allowed) == 0);
    if (CPU_COUNT(&allowed) < 2)
        end(77, "two CPUs are needed");
    size_t cpu = 0;
    for (int seen = CPU_ISSET(cpu, &allowed) ? 0 : -1; seen < nth;)
        seen += CPU_ISSET(++cpu, &allowed) ? 1 : 0;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    CHECK(sched_setaffinity(0, sizeof(one), &one) == 0);
}

static void write_each_round(Task *task) {
    Race *race = task->argument;
    pin_to_cpu(1);
    for (unsigned round = 1; round <= ROUNDS; round++) {
        while (atomic_load(&race->round) < round)
            sched_yield();
        *(volatile char *)(race->memory + (round - 1) * page_bytes()) = 'w';
        atomic_store(&race->written, round);
    }
}

static bool is_written_within(Race *race, unsigned round, int timeout_ms) {
    for (int tries = 0; atomic_load(&race->written) < round && tries < 1000; tries++)
        sched_yield();
    for (int ms = 0; atomic_load(&race->written) < round && ms < timeout_ms; ms++)
        usleep(1000);
    return atomic_load(&race->written) >= round;
}

/* A little longer each round, so that some un-protects come just as the fault does. */
static void busy_wait_ns(long ns) {
    struct timespec start, now;
    clock_gettime(CLOCK_MONOTONIC, &start);
    do
        clock_gettime(CLOCK_MONOTONIC, &now);
    while ((now.tv_sec - start.tv_sec) * 1000000000L + now.tv_nsec - start.tv_nsec < ns);
}

static void wake(Race *race, char *page) {
    struct uffdio_range range = {.start = (uintptr_t)page, .len = page_bytes()};
    CHECK(ioctl(race->fd, UFFDIO_WAKE, &range) == 0);
}

static void run_rounds(Race *race) {
    Task writer = {.body = write_each_round, .argument = race};
    task_start(&writer);
    for (unsigned round = 1; round <= ROUNDS; round++) {
        char *page = race->memory + (round - 1) * page_bytes();
        atomic_store(&race->round, round);
        busy_wait_ns(round % 200 * 250);
        race->n_caught += uffd_wait(race->fd, 0);
        CHECK(uffd_unprotect(race->fd, page, page_bytes()) == 0);
        /* Who is merely slow has no fault waiting any more. */
        if (!is_written_within(race, round, SLEEPS_AFTER_MS) && uffd_wait(race->fd, 0)) {
            race->n_sleepers++;
            wake(race, page);
        }
        CHECK(is_written_within(race, round, WAIT_MS));
    }
    CHECK(task_wait(&writer, WAIT_MS));
    pthread_join(writer.thread, NULL);
}

static Race run_race(bool forked) {
    const size_t length = ROUNDS * page_bytes();
    Race race = {.fd = uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP), .memory = map_anon(ROUNDS)};
    madvise(race.memory, length, MADV_NOHUGEPAGE);
    memset(race.memory, 't', length);
    pid_t child = forked ? fork() : 0;
    if (forked && child == 0) {
        pause();
        _exit(0);
    }
    CHECK(uffd_register(race.fd, race.memory, length) == 0);
    CHECK(uffd_protect(race.fd, race.memory, length) == 0);
    run_rounds(&race);
    if (forked) {
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
    }
    printf("%s: %u rounds, %u with a fault before the un-protect, %u slept on after it\n",
           forked ? "after fork" : "no fork", ROUNDS, race.n_caught, race.n_sleepers);
    return race;
}

int main(void) {
    pin_to_cpu(0);
    CHECK(run_race(false).n_sleepers == 0);
    run_race(true);
    return 0;
}
