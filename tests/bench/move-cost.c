/*
 * What a migration costs, and the floors under it: two processes, a guest of the simplest kind, libsnap's own
 * calls.
 *
 *     move-cost first-round    a gibibyte that nobody writes, moved: bytes a second until the guest is stopped
 *     move-cost stream         the floor: a loop that sends the same bytes, and one that receives them
 *     move-cost postcopy       pages touched at the destination that are still at the source: how long a touch
 * takes move-cost pingpong       the floor: a request and a page in answer move-cost replicate      what a program
 * that writes steadily gets done, alone and replicated
 *
 *     [--size 1G] [--tcp] [--channels 1] [--count 5000] [--epoch-ms 100] [--dirty-pages 26214] [--seconds 4]
 *
 * The destination is a child. Prints one line. Exit status 1 with a line on stderr when something fails, 2 for
 * wrong usage.
 */
#include "floor.h"

#include "libsnap.h"

#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define PROGRAM "move-cost"
#define PIECE (256u << 10)

typedef struct {
    uint64_t size;
    bool tcp;
    unsigned channels;
    uint64_t count;
    uint64_t epoch_ms;
    uint64_t dirty_pages; /* a second */
    uint64_t seconds;
} Options;

/* A guest: memory, and a thread that does something with it as long as it runs. */
typedef struct {
    uint8_t *memory;
    uint64_t size, page;
    const Options *options;
    pthread_mutex_t lock; /* held by who runs the guest, or by who has it stopped */
    void *(*work)(void *);
    pthread_t thread;
    bool started;
    uint64_t stopped_ns;
    /* atomic, relaxed */
    bool wanted; /* somebody waits for the lock: it is not fair by itself */
    bool end;
    uint64_t written; /* pages */
    uint64_t *times_ns;
    /* phases, in the job's thread */
    uint64_t active_ns, device_ns;
} Guest;

/* Each side has a processor of its own, as on two machines: which of them a scheduler puts on one is chance, and
 * changes a round trip by a factor of four. */
static void take_cpu(unsigned side) {
    static cpu_set_t all; /* as this program was given them */
    cpu_set_t one;
    CPU_ZERO(&one);
    if (CPU_COUNT(&all) == 0 && sched_getaffinity(0, sizeof(all), &all) < 0)
        die(PROGRAM, "sched_getaffinity");
    for (unsigned cpu = 0, n = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &all) && n++ == side)
            CPU_SET(cpu, &one);
    if (CPU_COUNT(&one) == 1 && sched_setaffinity(0, sizeof(one), &one) < 0)
        die(PROGRAM, "sched_setaffinity");
}

static _Noreturn void fail(const char *what, const char *why) {
    fprintf(stderr, PROGRAM ": %s: %s\n", what, why);
    _exit(1);
}

static void check(gboolean ok, const GError *error, const char *what) {
    if (!ok)
        fail(what, error ? error->message : "failed");
}

/* ---- the guest ------------------------------------------------------------------------------------------- */

static gboolean list_regions(void *opaque, gboolean paused, GPtrArray *regions, GError **error) {
    Guest *guest = opaque;
    (void)paused, (void)error;
    g_ptr_array_add(regions, snap_region_new("ram", SNAP_MEMORY_ANON, (uintptr_t)guest->memory, guest->size));
    return TRUE;
}

static gboolean pause_guest(void *opaque, SnapPauseStep step, GError **error) {
    Guest *guest = opaque;
    (void)error;
    if (step == SNAP_PAUSE_READY)
        return TRUE;
    __atomic_store_n(&guest->wanted, true, __ATOMIC_RELAXED);
    pthread_mutex_lock(&guest->lock);
    __atomic_store_n(&guest->wanted, false, __ATOMIC_RELAXED);
    guest->stopped_ns = now_ns();
    return TRUE;
}

static gboolean resume(void *opaque, uint64_t *ret_pause_ns, GError **error) {
    Guest *guest = opaque;
    (void)error;
    *ret_pause_ns = 1;
    if (guest->stopped_ns) {
        *ret_pause_ns = now_ns() - guest->stopped_ns;
        guest->stopped_ns = 0;
        pthread_mutex_unlock(&guest->lock);
    }
    return TRUE;
}

static gboolean get_state(void *opaque, GPtrArray *states, GError **error) {
    (void)opaque, (void)error;
    g_ptr_array_add(states, snap_state_new("cpu", g_bytes_new_static("at rest", 7)));
    return TRUE;
}

static void hand_over(void *opaque) {
    (void)opaque;
}

static gboolean load_state(void *opaque, GPtrArray *states, GError **error) {
    (void)opaque, (void)states, (void)error;
    return TRUE;
}

static gboolean start(void *opaque, GError **error) {
    Guest *guest = opaque;
    (void)error;
    if (guest->work)
        guest->started = pthread_create(&guest->thread, NULL, guest->work, guest) == 0;
    return TRUE;
}

static const SnapGuestOps guest_ops = {
    .list_regions = list_regions, .pause = pause_guest, .resume = resume, .get_state = get_state};
static const SnapMoveOps move_ops = {.hand_over = hand_over, .load_state = load_state, .start = start};

static void init_guest(Guest *guest, const Options *options, bool filled) {
    *guest = (Guest){.size = options->size, .page = (uint64_t)sysconf(_SC_PAGESIZE), .options = options};
    guest->memory =
        mmap(NULL, guest->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (guest->memory == MAP_FAILED)
        die(PROGRAM, "memory");
    madvise(guest->memory, guest->size, MADV_NOHUGEPAGE);
    pthread_mutex_init(&guest->lock, NULL);
    for (uint64_t at = 0; filled && at < guest->size; at += 8)
        *(uint64_t *)(guest->memory + at) = (at + 1) * UINT64_C(0x9e3779b97f4a7c15);
}

static SnapGuest *new_guest(Guest *guest) {
    SnapGuest *made = snap_guest_new("bench", 0, &guest_ops, guest);
    snap_guest_set_move_ops(made, &move_ops);
    return made;
}

static void on_phase(SnapMigrationPhase phase, uint64_t round, void *opaque) {
    Guest *guest = opaque;
    (void)round;
    if (phase == SNAP_MIGRATION_ACTIVE && !guest->active_ns)
        guest->active_ns = now_ns();
    if (phase == SNAP_MIGRATION_DEVICE && !guest->device_ns)
        guest->device_ns = now_ns();
}

/* ---- the two sides --------------------------------------------------------------------------------------- */

/* The destination: says where it listens, receives, and then @report of what was seen. */
static pid_t fork_destination(const Options *options, void *(*work)(void *), void (*report)(Guest *),
                              int *ret_pipe, char *ret_uri, size_t room) {
    int ends[2];
    if (pipe(ends) < 0)
        die(PROGRAM, "pipe");
    pid_t pid = fork();
    if (pid) {
        close(ends[1]);
        ssize_t n = read(ends[0], ret_uri, room - 1);
        if (n <= 0)
            fail("the destination", "it did not start");
        ret_uri[n] = '\0';
        *ret_pipe = ends[0];
        return pid;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    Guest guest;
    init_guest(&guest, options, false);
    guest.work = work;
    g_autoptr(GError) error = NULL;
    g_autofree char *path = g_strdup_printf("unix:/tmp/move-cost-%d", getpid());
    SnapIncomingOptions incoming_options = {.uri = options->tcp ? "tcp:127.0.0.1:0" : path};
    SnapIncoming *incoming = snap_incoming_start(new_guest(&guest), &incoming_options, NULL, NULL, &error);
    check(incoming != NULL, error, "the destination");
    g_autofree char *uri = snap_incoming_uri(incoming);
    if (write(ends[1], uri, strlen(uri)) < 0)
        die(PROGRAM, "pipe");
    gboolean ok = snap_incoming_wait(incoming, -1, &error);
    if (report) { /* otherwise the source may just go */
        check(ok, error, "the destination");
        report(&guest);
    }
    _exit(0);
}

static SnapOutgoing *start_source(Guest *guest, SnapOutgoingOptions *options, const char *uri) {
    g_autoptr(GError) error = NULL;
    options->uri = uri;
    options->n_channels = guest->options->channels;
    SnapOutgoing *outgoing = snap_outgoing_start(new_guest(guest), options, on_phase, guest, &error);
    check(outgoing != NULL, error, "the source");
    return outgoing;
}

static void wait_for_child(pid_t pid) {
    int status = 0;
    waitpid(pid, &status, 0);
    if (status != 0)
        fail("the destination", "it failed");
}

static int first_round(const Options *options) {
    char uri[128];
    int pipe_fd;
    pid_t pid = fork_destination(options, NULL, NULL, &pipe_fd, uri, sizeof(uri));
    Guest guest;
    g_autoptr(GError) error = NULL;
    init_guest(&guest, options, true);
    SnapOutgoing *outgoing = start_source(&guest, &(SnapOutgoingOptions){.uri = uri}, uri);
    check(snap_outgoing_wait(outgoing, -1, &error), error, "the source");
    SnapMigrationStats stats;
    snap_outgoing_get_stats(outgoing, &stats);
    wait_for_child(pid);
    printf("bytes-per-second=%.0f downtime-us=%.0f total-us=%.0f\n",
           (double)guest.size * 1e9 / (double)(guest.device_ns - guest.active_ns), (double)stats.downtime_ns / 1e3,
           (double)stats.total_ns / 1e3);
    return 0;
}

/* ---- post-copy ------------------------------------------------------------------------------------------- */

static void *touch(void *opaque) {
    Guest *guest = opaque;
    uint64_t n_pages = guest->size / guest->page, page = 1;
    for (uint64_t i = 0; i < guest->options->count; i++) {
        page = (page + n_pages / 8 * 5 + 1237) % n_pages;
        uint64_t begin_ns = now_ns();
        __atomic_load_n((uint64_t *)(guest->memory + page * guest->page), __ATOMIC_RELAXED);
        guest->times_ns[i] = now_ns() - begin_ns;
    }
    return NULL;
}

static void print_times(uint64_t *times_ns, uint64_t count, const char *more) {
    sort_times(times_ns, count);
    printf("p50-us=%.1f p99-us=%.1f max-us=%.1f%s\n", percentile_us(times_ns, count, 50),
           percentile_us(times_ns, count, 99), percentile_us(times_ns, count, 100), more);
    fflush(stdout);
}

static void *begin_touching(void *opaque) {
    Guest *guest = opaque;
    guest->times_ns = g_new0(uint64_t, guest->options->count);
    return touch(guest);
}

static void report_touches(Guest *guest) {
    pthread_join(guest->thread, NULL);
    print_times(guest->times_ns, guest->options->count, "");
}

/* Nothing is sent before the switch-over, and little in the background until all are touched. */
static int postcopy(const Options *options) {
    char uri[128];
    int pipe_fd;
    take_cpu(1); /* which the child has, too */
    pid_t pid = fork_destination(options, begin_touching, report_touches, &pipe_fd, uri, sizeof(uri));
    take_cpu(0);
    Guest guest;
    g_autoptr(GError) error = NULL;
    init_guest(&guest, options, true);
    SnapOutgoingOptions outgoing_options = {
        .may_postcopy = TRUE,
        .limits = {.max_bandwidth_bytes = 1 << 20, .max_postcopy_bandwidth_bytes = 20 << 20}};
    SnapOutgoing *outgoing = start_source(&guest, &outgoing_options, uri);
    check(snap_outgoing_start_postcopy(outgoing, &error), error, "post-copy");
    SnapMigrationStats stats = {0};
    for (int i = 0; i < 60000 && stats.postcopy_requests + options->count / 10 < options->count; i++) {
        g_usleep(1000);
        snap_outgoing_get_stats(outgoing, &stats);
    }
    g_usleep(300000);
    snap_outgoing_set_limits(outgoing, &(SnapMigrationLimits){0}, NULL);
    check(snap_outgoing_wait(outgoing, -1, &error), error, "the source");
    wait_for_child(pid);
    return 0;
}

/* ---- replication ----------------------------------------------------------------------------------------- */

static uint64_t compute(uint64_t seed, uint64_t steps) {
    for (uint64_t i = 0; i < steps; i++)
        seed = seed * UINT64_C(6364136223846793005) + 1;
    return seed;
}

/* How many steps take a second; the fastest of some tries, since others disturb. */
static uint64_t calibrate(void) {
    uint64_t best = UINT64_MAX;
    for (int i = 0; i < 5; i++) {
        uint64_t begin_ns = now_ns();
        uint64_t seed = compute(begin_ns, 50000000);
        uint64_t took = now_ns() - begin_ns + (seed == 0);
        best = took < best ? took : best;
    }
    return (uint64_t)(50000000.0 * 1e9 / (double)best);
}

/* Some computing, one write to the next page, and so on. */
static void *write_steadily(void *opaque) {
    Guest *guest = opaque;
    uint64_t steps = calibrate() / guest->options->dirty_pages, seed = 1, at = 0;
    while (!__atomic_load_n(&guest->end, __ATOMIC_RELAXED)) {
        pthread_mutex_lock(&guest->lock);
        for (int i = 0; i < 20; i++) {
            seed = compute(seed, steps);
            *(uint64_t *)(guest->memory + at) = seed;
            at = (at + guest->page) % guest->size;
            __atomic_add_fetch(&guest->written, 1, __ATOMIC_RELAXED);
        }
        pthread_mutex_unlock(&guest->lock);
        while (__atomic_load_n(&guest->wanted, __ATOMIC_RELAXED))
            sched_yield();
    }
    return NULL;
}

static double pages_per_second(Guest *guest, double seconds) {
    uint64_t before = __atomic_load_n(&guest->written, __ATOMIC_RELAXED), begin_ns = now_ns();
    g_usleep((gulong)(seconds * 1e6));
    uint64_t after = __atomic_load_n(&guest->written, __ATOMIC_RELAXED);
    return (double)(after - before) * 1e9 / (double)(now_ns() - begin_ns);
}

static int replicate(const Options *options) {
    char uri[128];
    int pipe_fd;
    pid_t pid = fork_destination(options, NULL, NULL, &pipe_fd, uri, sizeof(uri));
    Guest guest;
    init_guest(&guest, options, true);
    guest.work = write_steadily;
    start(&guest, NULL);
    g_usleep(1500000);
    double alone = pages_per_second(&guest, (double)options->seconds / 2);
    SnapOutgoing *outgoing = start_source(&guest, &(SnapOutgoingOptions){.epoch_ms = options->epoch_ms}, uri);
    SnapMigrationStats before = {0}, after = {0};
    for (int i = 0; i < 30000 && before.epoch < 3; i++) {
        g_usleep(1000);
        snap_outgoing_get_stats(outgoing, &before);
    }
    if (before.epoch < 3)
        fail("replication", "no epochs");
    double replicated = pages_per_second(&guest, (double)options->seconds);
    snap_outgoing_get_stats(outgoing, &after);
    snap_outgoing_free(outgoing);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    alone = (alone + pages_per_second(&guest, (double)options->seconds / 2)) / 2;
    __atomic_store_n(&guest.end, true, __ATOMIC_RELAXED);
    pthread_join(guest.thread, NULL);
    printf("alone=%.0f replicated=%.0f slowdown=%.4f epochs=%" PRIu64 " pause-us=%.0f\n", alone, replicated,
           1 - replicated / alone, after.epoch - before.epoch, (double)after.epoch_pause_ns / 1e3);
    return 0;
}

/* ---- floors ---------------------------------------------------------------------------------------------- */

/* Connected descriptors of the kind that a migration has. */
static void make_connection(const Options *options, int ret_fds[2]) {
    if (!options->tcp) {
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ret_fds) < 0)
            die(PROGRAM, "socketpair");
        return;
    }
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof(address);
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    ret_fds[0] = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&address, length) < 0 || listen(listener, 1) < 0 ||
        getsockname(listener, (struct sockaddr *)&address, &length) < 0 ||
        connect(ret_fds[0], (struct sockaddr *)&address, length) < 0 ||
        (ret_fds[1] = accept(listener, NULL, NULL)) < 0)
        die(PROGRAM, "tcp");
    for (int i = 0; i < 2; i++)
        setsockopt(ret_fds[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    close(listener);
}

static void send_all(int fd, const void *data, size_t length) {
    for (size_t done = 0; done < length;) {
        ssize_t n = send(fd, (const char *)data + done, length - done, MSG_NOSIGNAL);
        if (n <= 0)
            die(PROGRAM, "send");
        done += (size_t)n;
    }
}

static bool receive_all(int fd, void *data, size_t length) {
    for (size_t done = 0; done < length;) {
        ssize_t n = recv(fd, (char *)data + done, length - done, 0);
        if (n <= 0)
            return false;
        done += (size_t)n;
    }
    return true;
}

/* Into memory of its own, as a migration has to; or all into one buffer. */
static double stream_once(const Options *options, const Guest *guest, bool place) {
    int fds[2];
    make_connection(options, fds);
    pid_t pid = fork();
    if (pid == 0) {
        Guest to;
        init_guest(&to, options, false);
        for (uint64_t at = 0; at < to.size; at += PIECE)
            if (!receive_all(fds[1], to.memory + (place ? at : 0), PIECE))
                _exit(1);
        send_all(fds[1], "", 1);
        _exit(0);
    }
    char answer;
    uint64_t begin_ns = now_ns();
    for (uint64_t at = 0; at < guest->size; at += PIECE)
        send_all(fds[0], guest->memory + at, PIECE);
    if (!receive_all(fds[0], &answer, 1))
        fail("stream", "the receiver failed");
    double rate = (double)guest->size * 1e9 / (double)(now_ns() - begin_ns);
    wait_for_child(pid);
    close(fds[0]);
    close(fds[1]);
    return rate;
}

static int stream(const Options *options) {
    Guest guest;
    init_guest(&guest, options, true);
    double placed = stream_once(options, &guest, true), dropped = stream_once(options, &guest, false);
    printf("placed-bytes-per-second=%.0f dropped-bytes-per-second=%.0f\n", placed, dropped);
    return 0;
}

enum { REQUEST_BYTES = 56, ANSWER_BYTES = 4096 + 88 };

static int pingpong(const Options *options) {
    static char request[REQUEST_BYTES], answer[ANSWER_BYTES];
    int fds[2];
    make_connection(options, fds);
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        take_cpu(1);
        close(fds[0]);
        while (receive_all(fds[1], request, sizeof(request)))
            send_all(fds[1], answer, sizeof(answer));
        _exit(0);
    }
    close(fds[1]);
    take_cpu(0);
    uint64_t *times_ns = g_new0(uint64_t, options->count);
    for (uint64_t i = 0; i < options->count; i++) {
        uint64_t begin_ns = now_ns();
        send_all(fds[0], request, sizeof(request));
        if (!receive_all(fds[0], answer, sizeof(answer)))
            fail("pingpong", "the other side failed");
        times_ns[i] = now_ns() - begin_ns;
    }
    close(fds[0]);
    wait_for_child(pid);
    print_times(times_ns, options->count, "");
    g_free(times_ns);
    return 0;
}

/* ---------------------------------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    int (*run)(const Options *options);
} modes[] = {{"first-round", first_round},
             {"stream", stream},
             {"postcopy", postcopy},
             {"pingpong", pingpong},
             {"replicate", replicate}};

static int usage(void) {
    fprintf(stderr, "usage: " PROGRAM " first-round|stream|postcopy|pingpong|replicate [--size 1G] [--tcp] "
                    "[--channels 1] [--count 5000] [--epoch-ms 100] [--dirty-pages 26214] [--seconds 4]\n");
    return 2;
}

static bool set_option(Options *options, int option, const char *value) {
    uint64_t number = value ? parse_size(value) : 1;
    switch (option) {
    case 's':
        options->size = number / PIECE * PIECE;
        return options->size > 0;
    case 't':
        options->tcp = true;
        return true;
    case 'c':
        options->channels = (unsigned)number;
        return number > 0;
    case 'n':
        options->count = number;
        return number > 0;
    case 'e':
        options->epoch_ms = number;
        return number > 0;
    case 'd':
        options->dirty_pages = number;
        return number > 0;
    case 'l':
        options->seconds = number;
        return number > 0;
    default:
        return false;
    }
}

int main(int argc, char **argv) {
    static const struct option names[] = {
        {"size", required_argument, NULL, 's'},     {"tcp", no_argument, NULL, 't'},
        {"channels", required_argument, NULL, 'c'}, {"count", required_argument, NULL, 'n'},
        {"epoch-ms", required_argument, NULL, 'e'}, {"dirty-pages", required_argument, NULL, 'd'},
        {"seconds", required_argument, NULL, 'l'},  {0}};
    Options options = {.size = UINT64_C(1) << 30,
                       .channels = 1,
                       .count = 5000,
                       .epoch_ms = 100,
                       .dirty_pages = 26214,
                       .seconds = 4};
    int option;
    while ((option = getopt_long(argc, argv, "", names, NULL)) != -1)
        if (!set_option(&options, option, optarg))
            return usage();
    if (argc - optind != 1)
        return usage();
    for (size_t i = 0; i < G_N_ELEMENTS(modes); i++)
        if (strcmp(argv[optind], modes[i].name) == 0)
            return modes[i].run(&options);
    return usage();
}
