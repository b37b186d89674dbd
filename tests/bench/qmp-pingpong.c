/*
 * Round trips of a QMP command: what a client waits for an answer, with as little of a client as possible.
 *
 *     qmp-pingpong SOCKET COMMAND [--count 2000] [--interval-us 0] [--oob]
 *
 * One connection, one command at a time, of which the time from send to the end of the answer's line is taken.
 * With
 * --oob it is sent by exec-oob. With --interval-us one begins every so often, and otherwise at once. Events
 * between are skipped.
 *
 * Prints one line. Exit status 1 with a line on stderr when the server is not there or answers with an error, 2
 * for wrong usage.
 */
#include "floor.h"

#include <getopt.h>
#include <stdbool.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define PROGRAM "qmp-pingpong"
#define PIECE (64 << 10)

typedef struct {
    const char *path;
    const char *command;
    size_t count;
    uint64_t interval_us;
    bool oob;
} Options;

typedef struct {
    int fd;
    char line[PIECE]; /* its beginning, and the pieces after it over it */
} Client;

/* One line, of which the beginning is kept. */
static void read_line(Client *client) {
    size_t kept = 0;
    bool ended = false;

    while (!ended) {
        char piece[PIECE];
        ssize_t n = recv(client->fd, piece, sizeof(piece), 0);
        if (n <= 0)
            die(PROGRAM, "the connection");
        size_t room = sizeof(client->line) - 1 - kept, some = (size_t)n < room ? (size_t)n : room;
        memcpy(client->line + kept, piece, some);
        kept += some;
        ended = piece[n - 1] == '\n';
    }
    client->line[kept] = '\0';
}

/* Nothing comes behind an answer but the next event, which begins with its time stamp or goes on behind a line. */
static void read_answer(Client *client) {
    do
        read_line(client);
    while (!strstr(client->line, "{\"return\"") && !strstr(client->line, "{\"error\""));
    if (strstr(client->line, "{\"error\"")) {
        fprintf(stderr, PROGRAM ": %s", client->line);
        exit(1);
    }
}

static void ask(Client *client, const char *request) {
    if (send(client->fd, request, strlen(request), 0) < 0)
        die(PROGRAM, "send");
    read_answer(client);
}

static void connect_to(Client *client, const Options *options) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    snprintf(address.sun_path, sizeof(address.sun_path), "%s", options->path);
    client->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (client->fd < 0 || connect(client->fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        die(PROGRAM, options->path);
    read_line(client);
    ask(client, options->oob ? "{\"execute\": \"qmp_capabilities\", \"arguments\": {\"enable\": [\"oob\"]}}\n"
                             : "{\"execute\": \"qmp_capabilities\"}\n");
}

static void wait_until(uint64_t ns) {
    struct timespec due = {.tv_sec = (time_t)(ns / NS_PER_SECOND), .tv_nsec = (long)(ns % NS_PER_SECOND)};

    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL) == EINTR)
        continue;
}

static void play(Client *client, const Options *options, uint64_t *times_ns) {
    char request[256];
    uint64_t due_ns = now_ns();

    snprintf(request, sizeof(request), "{\"%s\": \"%s\"}\n", options->oob ? "exec-oob" : "execute",
             options->command);
    for (size_t i = 0; i < options->count; i++) {
        if (options->interval_us)
            wait_until(due_ns += options->interval_us * 1000);
        uint64_t start_ns = now_ns();
        ask(client, request);
        times_ns[i] = now_ns() - start_ns;
    }
}

static int usage(void) {
    fprintf(stderr, "usage: " PROGRAM " SOCKET COMMAND [--count 2000] [--interval-us 0] [--oob]\n");
    return 2;
}

static bool parse(int argc, char **argv, Options *options) {
    static const struct option names[] = {{"count", required_argument, NULL, 'c'},
                                          {"interval-us", required_argument, NULL, 'i'},
                                          {"oob", no_argument, NULL, 'o'},
                                          {0}};
    int option;

    while ((option = getopt_long(argc, argv, "", names, NULL)) != -1) {
        if (option == 'c')
            options->count = parse_size(optarg);
        else if (option == 'i')
            options->interval_us = parse_size(optarg);
        else if (option == 'o')
            options->oob = true;
        else
            return false;
    }
    if (argc - optind != 2 || options->count == 0)
        return false;
    options->path = argv[optind];
    options->command = argv[optind + 1];
    return true;
}

int main(int argc, char **argv) {
    static Client client;
    Options options = {.count = 2000};

    if (!parse(argc, argv, &options))
        return usage();
    uint64_t *times_ns = calloc(options.count, sizeof(*times_ns));
    if (!times_ns)
        die(PROGRAM, "memory");
    connect_to(&client, &options);
    play(&client, &options, times_ns);
    sort_times(times_ns, options.count);
    printf("count=%zu p50-us=%.1f p99-us=%.1f max-us=%.1f\n", options.count,
           percentile_us(times_ns, options.count, 50), percentile_us(times_ns, options.count, 99),
           percentile_us(times_ns, options.count, 100));
    free(times_ns);
    return 0;
}
