/*
 * Owed: ranges that were protected by a collect which could not report them, because they were beyond its limit or
 * beside what it was asked for. The next collect that looks there reports them.
 *
 * A sorted array of address ranges; empty but for a moment as a rule.
 */
#pragma once

#include "async-area.h"

typedef struct {
    GArray *ranges; /* of SnapBytes, disjoint */
} SnapOwed;

void snap_owed_init(SnapOwed *owed);
void snap_owed_clear(SnapOwed *owed);

/* Owe [start, end). */
void snap_owed_add(SnapOwed *owed, uint64_t start, uint64_t end);

/* Take [start, end) out, where it is owed. */
void snap_owed_settle(SnapOwed *owed, uint64_t start, uint64_t end);

/* The first range that ends behind @start; NULL when there is none. Until the next change. */
const SnapBytes *snap_owed_next(const SnapOwed *owed, uint64_t start);
