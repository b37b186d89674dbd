/*
 * View: what one consumer of the log has still to be told of one range of addresses, because another consumer
 * collected it, or somebody marked it. A bit a page; sparse ranges cost what is marked. Not thread safe.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

typedef struct {
    uint64_t start; /* addresses, whole pages */
    uint64_t end;
    uint64_t page_bytes;
    uint64_t *bits;
    uint64_t low; /* no bit outside [low, high), counted in pages */
    uint64_t high;
} SnapView;

void snap_view_init(SnapView *view, uint64_t start, uint64_t end, uint64_t page_bytes);
void snap_view_clear(SnapView *view);

bool snap_view_is_empty(const SnapView *view);

/* Mark what [start, end) has in common with the view. */
void snap_view_mark(SnapView *view, uint64_t start, uint64_t end);

/* The first marked run at or behind @address, cut at @end; FALSE when there is none. */
bool snap_view_next(const SnapView *view, uint64_t address, uint64_t end, uint64_t *ret_start, uint64_t *ret_end);

/* Unmark [start, end). */
void snap_view_unmark(SnapView *view, uint64_t start, uint64_t end);
