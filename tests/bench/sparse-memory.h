/* Anonymous memory of base pages that is huge and nearly empty: the same few pages, anywhere in it, are filled. */
#pragma once

#include "floor.h"

#include <sys/mman.h>

#define SPARSE_PAGES_MAX 100000

typedef struct {
    char *start;
    uint64_t size_bytes;
    uint64_t page_bytes;
    uint64_t block_bytes; /* what one page table maps */
    size_t n_pages;
    uint64_t offsets[SPARSE_PAGES_MAX];
} Sparse;

/* Page tables of this process, in KiB. */
static inline uint64_t tables_kib(void) {
    unsigned long kib = 0;
    char line[128];
    FILE *file = fopen("/proc/self/status", "re");

    while (file && fgets(line, sizeof(line), file))
        sscanf(line, "VmPTE: %lu kB", &kib);
    if (file)
        fclose(file);
    return kib;
}

/* Where the pages are: anywhere, each once, the same in every run. */
static inline void choose_pages(Sparse *sparse) {
    uint64_t random = 88172645463325252, step = sparse->size_bytes / sparse->page_bytes / sparse->n_pages;

    for (size_t i = 0; i < sparse->n_pages; i++) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        sparse->offsets[i] = (i * step + random % step) * sparse->page_bytes;
    }
}

/* Write a word into every @step-th of the pages. */
static inline void write_every(const Sparse *sparse, size_t step) {
    for (size_t i = 0; i < sparse->n_pages; i += step)
        ++*(volatile uint64_t *)(void *)(sparse->start + sparse->offsets[i]);
}

/* Fresh, with all of the pages filled, or the end of the program. */
static inline void map_sparse(const char *program, Sparse *sparse) {
    sparse->start =
        mmap(NULL, sparse->size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (sparse->start == MAP_FAILED)
        die(program, "map so many addresses");
    madvise(sparse->start, sparse->size_bytes, MADV_NOHUGEPAGE);
    write_every(sparse, 1);
}

static inline void unmap_sparse(const Sparse *sparse) {
    munmap(sparse->start, sparse->size_bytes);
}
