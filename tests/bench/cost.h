/* The command line of the programs that measure an operation on memory of one kind, in several rounds. */
#pragma once

#include "floor-library.h"

#include <getopt.h>

#define COST_ROUNDS_MAX 100

static inline _Noreturn void cost_usage(const char *program) {
    fprintf(stderr, "usage: %s [--memory anon|thp|memfd|hugetlb] [--size SIZE] [--rounds N]\n", program);
    exit(2);
}

/* main() of @program, which measures with 1 to COST_ROUNDS_MAX rounds. */
static inline int cost_main(const char *program, int argc, char **argv,
                            void (*measure)(const Memory *memory, uint64_t rounds)) {
    static const struct option table[] = {{"memory", required_argument, NULL, 'm'},
                                          {"size", required_argument, NULL, 's'},
                                          {"rounds", required_argument, NULL, 'r'},
                                          {0}};
    uint64_t size_bytes = UINT64_C(1) << 30, rounds = 5;
    const char *kind = "anon";
    Memory memory;
    int option;

    while ((option = getopt_long(argc, argv, "", table, NULL)) != -1) {
        if (option == 'm')
            kind = optarg;
        else if (option == 's')
            size_bytes = parse_size(optarg);
        else if (option == 'r')
            rounds = parse_size(optarg);
        else
            cost_usage(program);
    }
    if (optind != argc || !size_bytes || !rounds || rounds > COST_ROUNDS_MAX)
        cost_usage(program);
    memory = map_memory(program, kind, size_bytes);
    measure(&memory, rounds);
    return 0;
}
