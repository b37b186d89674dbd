/*
 * memguest: a process that writes the known sequence into memory of a chosen kind, and says how long it had to
 * wait.
 *
 *     memguest --memory KIND [--size 64M] [--threads 1..4] [--rate WRITES/S] [--batch B] [--populate F] [--hot F]
 *              [--spread scatter|linear] [--page-size N] [--prefill] [--events NAME,…] [--event-size N]
 *              [--event-interval MS] [--seconds S] [--dir DIR]
 *
 * Happy path: map → header → threads → "ready …" on stdout → until SIGTERM, SIGINT or --seconds → "errors=…".
 * SIGUSR1 prints a line about the writes since the last such line. README.md has the lines in full.
 *
 * Failure modes: exit 1 when the guest found a wrong word; 2 usage or no memory; 77 when the machine has not got
 * the huge pages.
 */
#include "backing.h"
#include "events.h"
#include "writers.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define EXIT_USAGE 2
#define EXIT_MISSING 77
#define NS_PER_SECOND UINT64_C(1000000000)
#define NS_PER_MS UINT64_C(1000000)

typedef struct {
    const char *memory;
    const char *dir;
    const char *events;
    uint64_t size_bytes;
    uint64_t page_bytes;  /* 0: the machine's base page */
    uint64_t event_bytes; /* 0: 16 base pages */
    double event_interval_ms;
    double populate; /* fraction of the pages; above 1: their number */
    double hot;
    double rate;
    double seconds; /* 0: until a signal */
    unsigned threads;
    uint32_t batch;
    bool linear;
    bool prefill;
} Options;

typedef struct {
    Backing backing;
    Writers writers;
    Events events;
    SeqHeader *header;

    /* main thread only: what was reported last */
    Stall reported;
    uint64_t reported_n;
    uint64_t reported_ns;
    uint64_t longest_ns;
} Guest;

/* ---- the command line ------------------------------------------------------------------------------------- */

static _Noreturn void usage(void) {
    fprintf(stderr,
            "usage: memguest --memory %s [--size 64M] [--threads 1..%u]\n"
            "                [--rate WRITES/S] [--batch B] [--populate FRACTION|PAGES] [--hot FRACTION|PAGES]\n"
            "                [--spread scatter|linear] [--page-size N] [--prefill] [--seconds S] [--dir DIR]\n"
            "                [--events %s] [--event-size N] [--event-interval MS]\n",
            backing_kinds(), SEQ_THREADS_MAX, events_names());
    exit(EXIT_USAGE);
}

static double parse_number(const char *text) {
    char *end;
    double value = strtod(text, &end);

    if (*end == '%' && !end[1])
        return value / 100;
    if (end == text || *end || !(value >= 0))
        usage();
    return value;
}

static uint64_t parse_size(const char *text) {
    static const char suffixes[] = "KMGT";
    char *end;
    uint64_t value = strtoull(text, &end, 0);
    const char *suffix = *end ? strchr(suffixes, *end) : NULL;

    if (end == text || (*end && (!suffix || end[1])))
        usage();
    return suffix ? value << (10 * (suffix - suffixes + 1)) : value;
}

static bool parse_spread(const char *text) {
    if (strcmp(text, "linear") != 0 && strcmp(text, "scatter") != 0)
        usage();
    return strcmp(text, "linear") == 0;
}

/* The options about speed and time. */
static bool parse_pace_option(int option, Options *options) {
    switch (option) {
    case 't':
        options->threads = (unsigned)parse_number(optarg);
        return true;
    case 'b':
        options->batch = (uint32_t)parse_number(optarg);
        return true;
    case 'r':
        options->rate = parse_number(optarg);
        return true;
    case 'S':
        options->seconds = parse_number(optarg);
        return true;
    case 'f':
        options->prefill = true;
        return true;
    case 'I':
        options->event_interval_ms = parse_number(optarg);
        return true;
    default:
        return false;
    }
}

static void parse_option(int option, Options *options) {
    switch (option) {
    case 'm':
        options->memory = optarg;
        break;
    case 's':
        options->size_bytes = parse_size(optarg);
        break;
    case 'p':
        options->populate = parse_number(optarg);
        break;
    case 'h':
        options->hot = parse_number(optarg);
        break;
    case 'l':
        options->linear = parse_spread(optarg);
        break;
    case 'P':
        options->page_bytes = parse_size(optarg);
        break;
    case 'e':
        options->events = optarg;
        break;
    case 'E':
        options->event_bytes = parse_size(optarg);
        break;
    case 'd':
        options->dir = optarg;
        break;
    default:
        usage();
    }
}

static void parse_options(int argc, char **argv, Options *options) {
    static const struct option table[] = {
        {"memory", required_argument, NULL, 'm'},     {"size", required_argument, NULL, 's'},
        {"threads", required_argument, NULL, 't'},    {"rate", required_argument, NULL, 'r'},
        {"batch", required_argument, NULL, 'b'},      {"populate", required_argument, NULL, 'p'},
        {"hot", required_argument, NULL, 'h'},        {"spread", required_argument, NULL, 'l'},
        {"page-size", required_argument, NULL, 'P'},  {"prefill", no_argument, NULL, 'f'},
        {"seconds", required_argument, NULL, 'S'},    {"events", required_argument, NULL, 'e'},
        {"event-size", required_argument, NULL, 'E'}, {"event-interval", required_argument, NULL, 'I'},
        {"dir", required_argument, NULL, 'd'},        {0}};
    int option;

    while ((option = getopt_long(argc, argv, "", table, NULL)) != -1)
        if (!parse_pace_option(option, options))
            parse_option(option, options);
    if (optind != argc || !options->memory || options->threads < 1 || options->threads > SEQ_THREADS_MAX ||
        options->batch < 1)
        usage();
}

/* ---- setting up ------------------------------------------------------------------------------------------- */

static uint32_t pages_of(double fraction, uint32_t pages) {
    double wanted = fraction <= 1 ? fraction * pages : fraction;
    return wanted < 1 ? 1 : wanted > pages ? pages : (uint32_t)wanted;
}

static void map_arena(const Options *options, Guest *guest) {
    int result = backing_map(options->memory, options->size_bytes, options->dir, &guest->backing);
    bool huge = strncmp(options->memory, "hugetlb", strlen("hugetlb")) == 0;

    if (result == -EINVAL)
        usage();
    if (result < 0) {
        fprintf(stderr, "memguest: cannot map %" PRIu64 " bytes of %s memory: %s%s\n", options->size_bytes,
                options->memory, strerror(-result), huge ? "; raise vm.nr_hugepages" : "");
        exit(huge ? EXIT_MISSING : EXIT_USAGE);
    }
    guest->header = guest->backing.arena;
}

static void lay_out(const Options *options, Guest *guest) {
    SeqLayout *layout = &guest->writers.layout;
    uint64_t page_bytes = options->page_bytes ? options->page_bytes : guest->backing.page_bytes;
    uint64_t pages = guest->backing.length_bytes / page_bytes;

    if (pages < 2 || pages > SEQ_MAX_PAGES)
        usage();
    layout->page_bytes = (uint32_t)page_bytes;
    layout->pages = (uint32_t)pages - 1;
    layout->touched = pages_of(options->populate, layout->pages);
    layout->hot = pages_of(options->hot, layout->touched);
    layout->stride = options->linear ? 1 : seq_scatter_stride(layout->pages);
    if (!seq_layout_valid(layout))
        usage();
    seq_header_init(guest->header, layout, options->threads, options->batch);
}

static void set_up_events(const Options *options, Guest *guest) {
    char *names = strdup(options->events ? options->events : ""), *rest = names;
    uint64_t page_bytes = guest->backing.page_bytes;
    uint64_t wanted = options->event_bytes ? options->event_bytes : 16 * page_bytes;

    guest->events = (Events){.header = guest->header,
                             .interval_ns = (uint64_t)(options->event_interval_ms * (double)NS_PER_MS),
                             .length_bytes = (wanted + page_bytes - 1) / page_bytes * page_bytes};
    for (char *name; (name = strsep(&rest, ",")) != NULL;)
        if (*name && events_add(&guest->events, name) < 0)
            usage();
    free(names);
}

static void set_up_writers(const Options *options, Guest *guest) {
    Writers *writers = &guest->writers;

    writers->arena = guest->backing.arena;
    writers->threads = options->threads;
    writers->batch = options->batch;
    writers->period_ns = options->rate > 0 ? (uint64_t)((double)NS_PER_SECOND / options->rate) : 0;
    seq_start(&writers->layout, &writers->cursor);
    if (options->prefill)
        writers_prefill(writers);
}

static void start(Guest *guest) {
    int result = writers_start(&guest->writers);

    if (result == 0 && guest->events.n_areas)
        result = events_start(&guest->events);
    if (result < 0) {
        fprintf(stderr, "memguest: cannot start a thread: %s\n", strerror(-result));
        exit(EXIT_USAGE);
    }
}

/* ---- reporting -------------------------------------------------------------------------------------------- */

static void print_ready(const Guest *guest) {
    const SeqLayout *layout = &guest->writers.layout;

    printf("ready pid=%d arena=0x%" PRIxPTR " size=%zu memory=%s pages=%" PRIu32 " page-size=%" PRIu32
           " touched=%" PRIu32 " hot=%" PRIu32 " stride=%" PRIu32 " threads=%u batch=%" PRIu32 "\n",
           getpid(), (uintptr_t)guest->backing.arena, guest->backing.length_bytes, guest->backing.kind,
           layout->pages, layout->page_bytes, layout->touched, layout->hot, layout->stride, guest->writers.threads,
           guest->writers.batch);
    fflush(stdout);
}

static uint64_t counter_of(const Guest *guest) {
    return __atomic_load_n(&guest->header->counter, __ATOMIC_RELAXED);
}

static uint64_t errors_of(const Guest *guest) {
    return __atomic_load_n(&guest->header->errors, __ATOMIC_RELAXED) +
           __atomic_load_n(&guest->header->event_errors, __ATOMIC_RELAXED);
}

static double us(uint64_t ns) {
    return (double)ns / 1000;
}

/* Take the window since the last report; the first one starts when the guest is ready. */
static void take_window(Guest *guest, Stall *ret_window, double *ret_rate) {
    uint64_t now_ns = clock_ns(), n = counter_of(guest);

    *ret_rate =
        (double)(n - guest->reported_n) * (double)NS_PER_SECOND / (double)(now_ns - guest->reported_ns + 1);
    stall_take(&guest->writers.stall, &guest->reported, ret_window);
    if (ret_window->max_ns > guest->longest_ns)
        guest->longest_ns = ret_window->max_ns;
    guest->reported_ns = now_ns;
    guest->reported_n = n;
}

static void print_window(Guest *guest) {
    Stall window;
    double rate;

    take_window(guest, &window, &rate);
    printf("n=%" PRIu64 " rate=%.0f stall-us=%.1f p50-us=%.3f p99-us=%.3f p999-us=%.3f errors=%" PRIu64 "\n",
           counter_of(guest), rate, us(window.max_ns), us(stall_percentile_ns(&window, 500)),
           us(stall_percentile_ns(&window, 990)), us(stall_percentile_ns(&window, 999)), errors_of(guest));
    fflush(stdout);
}

static void print_end(Guest *guest) {
    Stall window;
    double rate;

    take_window(guest, &window, &rate);
    printf("errors=%" PRIu64 " writes=%" PRIu64 " longest-stall-us=%.1f\n", errors_of(guest), counter_of(guest),
           us(guest->longest_ns));
    fflush(stdout);
}

/* Serve signals until it is time to end. */
static void serve(Guest *guest, const sigset_t *signals, double seconds) {
    uint64_t end_ns = clock_ns() + (uint64_t)(seconds * (double)NS_PER_SECOND);
    int got = 0;

    while (got != SIGTERM && got != SIGINT) {
        uint64_t now_ns = clock_ns();
        uint64_t left_ns = seconds > 0 ? end_ns - now_ns : 3600 * NS_PER_SECOND;
        struct timespec left = {(time_t)(left_ns / NS_PER_SECOND), (long)(left_ns % NS_PER_SECOND)};
        if (seconds > 0 && now_ns >= end_ns)
            return;
        got = sigtimedwait(signals, NULL, &left);
        if (got == SIGUSR1)
            print_window(guest);
    }
}

int main(int argc, char **argv) {
    Options options = {.dir = "/dev/shm",
                       .size_bytes = 64u << 20,
                       .threads = 1,
                       .batch = 64,
                       .populate = 1,
                       .hot = 1,
                       .event_interval_ms = 5};
    static Guest guest;
    sigset_t signals;

    parse_options(argc, argv, &options);
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGUSR1);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    map_arena(&options, &guest);
    lay_out(&options, &guest);
    set_up_events(&options, &guest);
    set_up_writers(&options, &guest);
    guest.reported_ns = clock_ns();
    guest.reported_n = counter_of(&guest);
    start(&guest);
    print_ready(&guest);
    serve(&guest, &signals, options.seconds);
    writers_stop(&guest.writers);
    if (guest.events.n_areas)
        events_stop(&guest.events);
    print_end(&guest);
    return errors_of(&guest) ? 1 : 0;
}
