/*
 * Pageset: pages of one region that are still to be sent, as a mask a chunk. What is sparse costs what is in it.
 *
 * One thread adds while nobody takes; several may take at a time, and each page is taken by one of them. Words are
 * read and changed atomically, relaxed: what orders the pages themselves is how the threads were started.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

typedef struct {
    uint64_t *words;  /* a mask a chunk */
    uint64_t *filled; /* a bit a chunk: its mask may not be empty */
    uint64_t n_chunks;
    uint64_t n_pages; /* in it */
} SnapPageSet;

void snap_pageset_init(SnapPageSet *set, uint64_t n_chunks);
void snap_pageset_clear(SnapPageSet *set);

/* Nothing is in it any more. Nobody else uses it. */
void snap_pageset_empty(SnapPageSet *set);

void snap_pageset_add(SnapPageSet *set, uint64_t chunk, uint64_t mask);
/* Pages [first, end) of the region. */
void snap_pageset_add_run(SnapPageSet *set, uint64_t first_page, uint64_t end_page);

/* Take those of @mask out that are in it. Return: which were. */
uint64_t snap_pageset_take(SnapPageSet *set, uint64_t chunk, uint64_t mask);

uint64_t snap_pageset_get(const SnapPageSet *set, uint64_t chunk);
uint64_t snap_pageset_count(const SnapPageSet *set);

/* The first chunk at or behind @chunk, and before @end, that has any; FALSE when there is none. */
bool snap_pageset_next(const SnapPageSet *set, uint64_t chunk, uint64_t end, uint64_t *ret_chunk);
