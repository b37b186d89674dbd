/*
 * Checks memory of a test guest against the write sequence: is it the state after exactly one write?
 *
 * The number is derived from the memory itself, as the highest one found; every byte is then compared with what it
 * is after that write. The header's counter only has to agree: N, or N - 1 in a guest frozen between the two
 * stores.
 */
#pragma once

#include "sequence.h"

#include <stdio.h>

#define SEQ_WRONG_MAX 10u
#define SEQ_PROBLEM_BYTES 160u

/* The first wrong word of a page. */
typedef struct {
    uint32_t page;
    uint32_t slot;
    uint64_t found;
    uint64_t expected;
} SeqWrong;

typedef struct {
    uint64_t n;           /* the arena is, or is closest to, the state after this write */
    uint64_t counter;     /* what the header says */
    uint64_t wrong_pages; /* all of them; the first SEQ_WRONG_MAX are in wrong[] */
    SeqWrong wrong[SEQ_WRONG_MAX];
    char problem[SEQ_PROBLEM_BYTES]; /* what is wrong with the header; empty when nothing is */
} SeqReport;

/*
 * seq_read_layout: take the layout from the header at the start of an arena.
 * Return: whether there is a header with a layout that makes sense.
 */
bool seq_read_layout(const void *arena, size_t length_bytes, SeqLayout *ret_layout);

/*
 * seq_check: check an arena, header page included.
 * @layout: what the guest was started with; NULL to believe the header.
 * Return: whether it is exactly the state after ret_report->n, and the header agrees.
 */
bool seq_check(const void *arena, size_t length_bytes, const SeqLayout *layout, SeqReport *ret_report);

/* seq_print_report: "ok N=…", or a line for each wrong page and for the header. */
void seq_print_report(FILE *file, const SeqReport *report);

/*
 * Reads @length_bytes of guest memory at @address as it was at the instant to check. Return: 0; 1 when the address
 * was not mapped; -1 when reading failed.
 */
typedef int (*SeqReadFunc)(void *opaque, uint64_t address, void *ret_data, size_t length_bytes);

/*
 * seq_check_events: check every event area that the header names against the phase it says it is in.
 * @arena: as for seq_check(), of the same instant as what @read returns.
 * @ret_problem: SEQ_PROBLEM_BYTES; what is wrong with the first wrong area, or empty.
 * Return: whether all areas are in a legal state.
 */
bool seq_check_events(const void *arena, SeqReadFunc read, void *opaque, char *ret_problem);
