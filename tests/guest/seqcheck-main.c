/*
 * seqcheck: is this memory of a test guest the state after exactly one write?
 *
 *     seqcheck [--offset N] [--pages P --page-size S [--touched T] [--hot H] [--stride R]] FILE|-
 *     seqcheck --multiboot FILE                  physical memory of the multiboot guest, from address 0
 *     seqcheck --pid PID --address A             a stopped process; checks its event areas as well
 *
 * Prints "ok N=…" and exits 0, or a line for each wrong page and exits 1; 2 for wrong usage or an unreadable file.
 * Without --pages the layout is the header's.
 */
#include "seqcheck.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define MULTIBOOT_ARENA_ADDRESS (UINT64_C(16) << 20)
#define READ_BYTES (1u << 20)

typedef struct {
    const char *file;
    uint64_t offset;
    SeqLayout layout; /* pages is 0 where the header is to be believed */
    bool has_process;
    pid_t pid;
    uint64_t address;
} Options;

/* What is to be checked. */
typedef struct {
    const char *data; /* the arena */
    size_t length_bytes;
} Arena;

static _Noreturn void die(const char *what, const char *name) {
    fprintf(stderr, "seqcheck: %s %s: %s\n", what, name, strerror(errno));
    exit(2);
}

/* ---- where the bytes come from ---------------------------------------------------------------------------- */

static bool map_file(int fd, uint64_t offset, Arena *ret_arena) {
    struct stat status;
    void *map;

    if (fstat(fd, &status) < 0 || !S_ISREG(status.st_mode) || (uint64_t)status.st_size <= offset)
        return false;
    map = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (map == MAP_FAILED)
        return false;
    madvise(map, (size_t)status.st_size, MADV_SEQUENTIAL);
    *ret_arena = (Arena){(const char *)map + offset, (size_t)status.st_size - offset};
    return true;
}

static void read_pipe(int fd, const char *name, uint64_t offset, Arena *ret_arena) {
    size_t capacity = 0, length = 0;
    char *buffer = NULL;
    ssize_t got;

    do {
        if (capacity - length < READ_BYTES)
            capacity = capacity * 2 + READ_BYTES;
        buffer = realloc(buffer, capacity);
        if (!buffer)
            die("no memory for", name);
        got = read(fd, buffer + length, READ_BYTES);
        if (got < 0)
            die("cannot read", name);
        length += (size_t)got;
    } while (got > 0);
    if (length <= offset) {
        errno = ENODATA;
        die("nothing at that offset in", name);
    }
    *ret_arena = (Arena){buffer + offset, length - offset};
}

static void open_file(const Options *options, Arena *ret_arena) {
    bool is_stdin = strcmp(options->file, "-") == 0;
    int fd = is_stdin ? STDIN_FILENO : open(options->file, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        die("cannot open", options->file);
    if (!map_file(fd, options->offset, ret_arena))
        read_pipe(fd, options->file, options->offset, ret_arena);
}

/* A SeqReadFunc; @opaque is the Options. */
static int read_process(void *opaque, uint64_t address, void *ret_data, size_t length_bytes) {
    const Options *options = opaque;
    size_t done = 0;

    while (done < length_bytes) {
        struct iovec local = {(char *)ret_data + done, length_bytes - done};
        struct iovec remote = {(void *)(uintptr_t)(address + done), length_bytes - done};
        ssize_t got = process_vm_readv(options->pid, &local, 1, &remote, 1, 0);
        if (got <= 0)
            return got < 0 && errno == EFAULT ? 1 : -1;
        done += (size_t)got;
    }
    return 0;
}

static void open_process(Options *options, Arena *ret_arena) {
    SeqHeader header;
    SeqLayout layout;
    size_t length_bytes;
    char *buffer;

    if (read_process(options, options->address, &header, sizeof(header)) != 0)
        die("cannot read", "the process");
    if (!seq_read_layout(&header, sizeof(header), &layout)) {
        errno = EINVAL;
        die("no header at that address of", "the process");
    }
    length_bytes = ((size_t)layout.pages + 1) * layout.page_bytes;
    buffer = malloc(length_bytes);
    if (!buffer || read_process(options, options->address, buffer, length_bytes) != 0)
        die("cannot read all of the arena of", "the process");
    *ret_arena = (Arena){buffer, length_bytes};
}

/* ---- the command line ------------------------------------------------------------------------------------- */

static _Noreturn void usage(void) {
    fprintf(stderr, "usage: seqcheck [--offset N] [--pages P --page-size S [--touched T] [--hot H] [--stride R]] "
                    "FILE|-\n"
                    "       seqcheck --multiboot FILE\n"
                    "       seqcheck --pid PID --address A\n");
    exit(2);
}

static uint64_t parse_number(const char *text) {
    char *end;
    uint64_t value;

    errno = 0;
    value = strtoull(text, &end, 0);
    if (errno || end == text || *end)
        usage();
    return value;
}

static uint32_t parse_u32(const char *text) {
    uint64_t value = parse_number(text);
    if (value > UINT32_MAX)
        usage();
    return (uint32_t)value;
}

static void parse_option(int option, Options *options) {
    switch (option) {
    case 'o':
        options->offset = parse_number(optarg);
        break;
    case 'p':
        options->layout.pages = parse_u32(optarg);
        break;
    case 's':
        options->layout.page_bytes = parse_u32(optarg);
        break;
    case 't':
        options->layout.touched = parse_u32(optarg);
        break;
    case 'h':
        options->layout.hot = parse_u32(optarg);
        break;
    case 'r':
        options->layout.stride = parse_u32(optarg);
        break;
    case 'm':
        options->offset = MULTIBOOT_ARENA_ADDRESS;
        break;
    case 'P':
        options->has_process = true;
        options->pid = (pid_t)parse_u32(optarg);
        break;
    case 'a':
        options->address = parse_number(optarg);
        break;
    default:
        usage();
    }
}

static void complete_layout(SeqLayout *layout) {
    if (!layout->pages)
        return;
    if (!layout->touched)
        layout->touched = layout->pages;
    if (!layout->hot)
        layout->hot = layout->touched;
    if (!layout->stride)
        layout->stride = seq_scatter_stride(layout->pages);
    if (!seq_layout_valid(layout))
        usage();
}

static void parse_options(int argc, char **argv, Options *options) {
    static const struct option table[] = {
        {"offset", required_argument, NULL, 'o'},    {"pages", required_argument, NULL, 'p'},
        {"page-size", required_argument, NULL, 's'}, {"touched", required_argument, NULL, 't'},
        {"hot", required_argument, NULL, 'h'},       {"stride", required_argument, NULL, 'r'},
        {"multiboot", no_argument, NULL, 'm'},       {"pid", required_argument, NULL, 'P'},
        {"address", required_argument, NULL, 'a'},   {0}};
    int option;

    while ((option = getopt_long(argc, argv, "", table, NULL)) != -1)
        parse_option(option, options);
    complete_layout(&options->layout);
    if (optind + !options->has_process != argc || options->offset % SEQ_WORD_BYTES)
        usage();
    options->file = argv[optind];
}

int main(int argc, char **argv) {
    char problem[SEQ_PROBLEM_BYTES] = "";
    Options options = {0};
    SeqReport report;
    Arena arena;
    bool right;

    parse_options(argc, argv, &options);
    if (options.has_process)
        open_process(&options, &arena);
    else
        open_file(&options, &arena);
    right = seq_check(arena.data, arena.length_bytes, options.layout.pages ? &options.layout : NULL, &report);
    seq_print_report(stdout, &report);
    if (options.has_process && !seq_check_events(arena.data, read_process, &options, problem)) {
        printf("%s\n", problem);
        right = false;
    }
    return right ? 0 : 1;
}
