/* What is mapped in an address space; see coverage.h. */
#include "coverage.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "uapi.h"

enum {
    TEXT_BYTES = 20480, /* at once; a line is at most a path (PATH_MAX) with every byte escaped as four */
};

int snap_coverage_init(SnapCoverage *coverage, int pid) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/maps", pid);
    *coverage = (SnapCoverage){.maps = open(path, O_RDONLY | O_CLOEXEC)};
    return coverage->maps < 0 ? -errno : 0;
}

void snap_coverage_clear(SnapCoverage *coverage) {
    if (coverage->maps >= 0) {
        close(coverage->maps);
    }
    coverage->maps = -1;
}

/* The mapping that holds @address. Return: 0, -ENOENT when there is none, -ENOTTY when the kernel cannot say. */
static int query(const SnapCoverage *coverage, uint64_t address, uint64_t *ret_end) {
    struct procmap_query arg = {.size = sizeof arg, .query_addr = address};
    if (ioctl(coverage->maps, PROCMAP_QUERY, &arg) < 0) {
        return -errno;
    }
    *ret_end = arg.vma_end;
    return 0;
}

/* ---- the text -------------------------------------------------------------------------------------------- */

/* What is still to be found; mappings come in order of address. */
typedef struct {
    uint64_t at;
    uint64_t end;
    int result; /* 0: go on looking */
} Wanted;

static void take_line(Wanted *wanted, const char *line) {
    uint64_t start, end;
    if (wanted->result || wanted->at >= wanted->end ||
        sscanf(line, "%" SCNx64 "-%" SCNx64 " ", &start, &end) != 2 || end <= wanted->at) {
        return;
    }
    if (start > wanted->at) {
        wanted->result = -ENOENT;
        return;
    }
    wanted->at = end;
}

static int check_text(const SnapCoverage *coverage, uint64_t start, uint64_t end) {
    char text[TEXT_BYTES + 1];
    Wanted wanted = {.at = start, .end = end};
    size_t kept = 0;
    bool any = false;
    if (lseek(coverage->maps, 0, SEEK_SET) < 0) {
        return -errno;
    }
    while (wanted.result == 0 && wanted.at < end) {
        ssize_t n = read(coverage->maps, text + kept, TEXT_BYTES - kept);
        if (n <= 0) {
            /* An address space that has ended reads as empty; one that lives has at least its stack. */
            return n < 0 ? -errno : any ? -ENOENT : -ESRCH;
        }
        any = true;
        kept += (size_t)n;
        text[kept] = '\0';
        char *line = text, *stop;
        while ((stop = strchr(line, '\n'))) {
            take_line(&wanted, line);
            line = stop + 1;
        }
        kept -= (size_t)(line - text);
        memmove(text, line, kept);
        if (kept == TEXT_BYTES) {
            return -EOVERFLOW;
        }
    }
    return wanted.result;
}

int snap_coverage_check(SnapCoverage *coverage, uint64_t start, uint64_t end) {
    while (!coverage->as_text && start < end) {
        uint64_t mapped_to = 0;
        int result = query(coverage, start, &mapped_to);
        if (result == -ENOTTY) {
            coverage->as_text = true;
            break;
        }
        if (result < 0) {
            return result;
        }
        start = mapped_to;
    }
    return start < end ? check_text(coverage, start, end) : 0;
}
