/*
 * Checks the areas in which a test guest forks, moves, unmaps and discards memory: is what is there a state that
 * the area can be in at the instant of the header? The rules, one per phase, are in README.md.
 *
 * Failure modes: none of its own; an area that cannot be read is wrong unless its phase allows it to be unmapped.
 */
#include "seqcheck.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* One area and what was read from it. */
typedef struct {
    SeqEventArea area;
    uint64_t *words; /* length_bytes */
    uint32_t n_words;
    SeqReadFunc read;
    void *opaque;
} Subject;

typedef enum { MAPPED, NOT_MAPPED, UNREADABLE } Reading;

static Reading read_area(Subject *subject, uint64_t address) {
    int result = address ? subject->read(subject->opaque, address, subject->words, subject->area.length_bytes) : 1;
    return result == 0 ? MAPPED : result > 0 ? NOT_MAPPED : UNREADABLE;
}

/* Words [start, end) are of @generation. Return: the first that is not, or @end. */
static uint32_t match(const Subject *subject, uint64_t generation, uint32_t start, uint32_t end) {
    while (start < end && subject->words[start] == seq_event_word(generation, start))
        start++;
    return start;
}

static bool is_full(const Subject *subject, uint64_t generation) {
    return match(subject, generation, 0, subject->n_words) == subject->n_words;
}

static bool is_filling(const Subject *subject) {
    uint32_t reached = match(subject, subject->area.generation, 0, subject->n_words);
    return match(subject, subject->area.under, reached, subject->n_words) == subject->n_words;
}

static bool is_dropping(const Subject *subject) {
    uint32_t step = (uint32_t)(subject->area.page_bytes / SEQ_WORD_BYTES);

    for (uint32_t start = 0; start < subject->n_words; start += step)
        if (match(subject, subject->area.generation, start, start + step) != start + step &&
            match(subject, 0, start, start + step) != start + step)
            return false;
    return true;
}

static bool is_moving(Subject *subject) {
    if (read_area(subject, subject->area.address) == MAPPED && is_full(subject, subject->area.generation))
        return true;
    return read_area(subject, subject->area.target) == MAPPED && is_full(subject, subject->area.generation);
}

static bool is_legal(Subject *subject) {
    const SeqEventArea *area = &subject->area;
    Reading reading = read_area(subject, area->address);

    if (reading == UNREADABLE)
        return false;
    if (reading == NOT_MAPPED && area->phase != SEQ_PHASE_MOVING)
        return area->kind == SEQ_EVENT_UNMAP &&
               (area->phase == SEQ_PHASE_DROPPING || (area->phase == SEQ_PHASE_EMPTY && !area->address));
    switch (area->phase) {
    case SEQ_PHASE_EMPTY:
        return is_full(subject, 0);
    case SEQ_PHASE_FILLING:
        return is_filling(subject);
    case SEQ_PHASE_FULL:
        return is_full(subject, area->generation);
    case SEQ_PHASE_DROPPING:
        return is_dropping(subject);
    case SEQ_PHASE_MOVING:
        return is_moving(subject);
    default:
        return false;
    }
}

static bool check_area(const SeqEventArea *area, SeqReadFunc read, void *opaque) {
    Subject subject = {.area = *area, .read = read, .opaque = opaque};
    bool legal;

    if (area->kind >= SEQ_EVENT_MAX || !area->page_bytes || area->page_bytes % SEQ_WORD_BYTES ||
        area->length_bytes % area->page_bytes || area->length_bytes / SEQ_WORD_BYTES > UINT32_MAX)
        return false;
    subject.n_words = (uint32_t)(area->length_bytes / SEQ_WORD_BYTES);
    subject.words = malloc(area->length_bytes);
    legal = subject.words && is_legal(&subject);
    free(subject.words);
    return legal;
}

bool seq_check_events(const void *arena, SeqReadFunc read, void *opaque, char *ret_problem) {
    static const char *const kinds[] = {"none", "fork", "remap", "unmap", "dontneed", "free", "punch"};
    static const char *const phases[] = {"empty", "filling", "full", "dropping", "moving"};
    _Static_assert(sizeof(kinds) / sizeof(*kinds) == SEQ_EVENT_MAX, "a name for each kind");
    _Static_assert(sizeof(phases) / sizeof(*phases) == SEQ_PHASE_MAX, "a name for each phase");
    const SeqHeader *header = arena;

    ret_problem[0] = '\0';
    for (unsigned i = 0; i < SEQ_EVENTS_MAX; i++) {
        const SeqEventArea *area = &header->events[i];
        if (area->kind == SEQ_EVENT_NONE || check_area(area, read, opaque))
            continue;
        snprintf(ret_problem, SEQ_PROBLEM_BYTES,
                 "event area %u (%s) at 0x%" PRIx64 " is not in a legal state of phase %s, generation %" PRIu64, i,
                 area->kind < SEQ_EVENT_MAX ? kinds[area->kind] : "?", area->address,
                 area->phase < SEQ_PHASE_MAX ? phases[area->phase] : "?", area->generation);
        return false;
    }
    return true;
}
