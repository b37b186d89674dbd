/* Memory of the kinds that floors are measured on, populated, and what is written into it. */
#pragma once

#include "floor.h"

#include <stdbool.h>
#include <sys/mman.h>
#include <unistd.h>

typedef struct {
    const char *kind;
    char *start;
    uint64_t size_bytes;
    uint64_t page_bytes;    /* what is written, and told, at once */
    uint64_t granule_bytes; /* what the kernel maps at once */
    int fd;
} Memory;

static inline uint64_t huge_page_bytes(void) {
    unsigned long kib = 2048;
    char line[128];
    FILE *file = fopen("/proc/meminfo", "re");

    while (file && fgets(line, sizeof(line), file))
        sscanf(line, "Hugepagesize: %lu kB", &kib);
    if (file)
        fclose(file);
    return (uint64_t)kib << 10;
}

/* Write a word into every @step-th page. */
static inline void write_pages(const Memory *memory, uint64_t step) {
    for (uint64_t at = 0; at < memory->size_bytes; at += step * memory->page_bytes)
        ++*(volatile uint64_t *)(void *)(memory->start + at);
}

/* @kind: anon, thp, memfd or hugetlb. Aligned and populated, or the end of the program. */
static inline Memory map_memory(const char *program, const char *kind, uint64_t size_bytes) {
    uint64_t base_bytes = (uint64_t)sysconf(_SC_PAGESIZE), huge_bytes = huge_page_bytes();
    bool hugetlb = strcmp(kind, "hugetlb") == 0, memfd = strcmp(kind, "memfd") == 0;
    bool thp = strcmp(kind, "thp") == 0;
    Memory memory = {.kind = kind, .size_bytes = size_bytes / huge_bytes * huge_bytes, .fd = -1};
    int flags = MAP_FIXED | (memfd || hugetlb ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS);
    char *place =
        mmap(NULL, memory.size_bytes + huge_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (memfd || hugetlb) {
        memory.fd = memfd_create("floor", MFD_CLOEXEC | (hugetlb ? MFD_HUGETLB : 0u));
        if (memory.fd < 0 || ftruncate(memory.fd, (off_t)memory.size_bytes) < 0)
            die(program, "memfd");
    }
    place = (char *)(((uintptr_t)place + huge_bytes - 1) / huge_bytes * huge_bytes);
    memory.start = mmap(place, memory.size_bytes, PROT_READ | PROT_WRITE, flags, memory.fd, 0);
    if (memory.start == MAP_FAILED)
        die(program, hugetlb ? "map the memory (sysctl vm.nr_hugepages)" : "map the memory");
    if (!hugetlb)
        madvise(memory.start, memory.size_bytes, thp ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    memory.granule_bytes = thp || hugetlb ? huge_bytes : base_bytes;
    memory.page_bytes = hugetlb ? huge_bytes : base_bytes;
    write_pages(&memory, 1);
    return memory;
}

/* Sorts. */
static inline double median_us(uint64_t *times_ns, size_t n) {
    sort_times(times_ns, n);
    return percentile_us(times_ns, n, 50);
}
