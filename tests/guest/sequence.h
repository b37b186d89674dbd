/*
 * The write sequence of the test guests: what a guest stores where, as a pure function of the write's number.
 *
 *     arena = one header page (SeqHeader) followed by `pages` data pages
 *     write number n = 1, 2, 3, … stores one aligned 8-byte word, n ^ SEQ_KEY
 *     lap 0 visits `touched` pages, every later lap the first `hot` of them; lap l writes slot l % slots
 *     the page at position i of a lap is (i * stride) % pages, with stride coprime to pages
 *
 * After write N every byte of the arena is therefore known, and what was never written is zero. Before each
 * write the guest looks at the word it is about to overwrite, at the one written to that page a lap before, and
 * at the page's first word: a torn, stale or late page is an error that the guest itself counts.
 *
 * Invariants: one writer at a time, so the arena is always the state after exactly one N. The word is stored
 * before the header's counter is, so a frozen guest has counter N or N - 1. Both are single 8-byte stores.
 *
 * Only inline functions, no libc, no 64-bit division in what a guest calls while it runs: the same file is used by
 * 64-bit programs and by a 32-bit kernel without a run-time library.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SEQ_KEY UINT64_C(0x9e3779b97f4a7c15) /* top bit set: no number that is ever reached encodes as zero */
#define SEQ_EVENT_KEY UINT64_C(0xd1b54a32d192ed03)
#define SEQ_MAGIC "snapseq1"
#define SEQ_WORD_BYTES 8u
#define SEQ_EVENTS_MAX 8u
#define SEQ_THREADS_MAX 4u
#define SEQ_MAX_PAGES 0x7fffffffu /* page + stride fits 32 bits */

/* Everything the sequence depends on. */
typedef struct {
    uint32_t pages;      /* data pages, without the header page */
    uint32_t page_bytes; /* a power of two, at least sizeof(SeqHeader) */
    uint32_t touched;    /* pages written in lap 0: 1 … pages */
    uint32_t hot;        /* pages written in every later lap: 1 … touched */
    uint32_t stride;     /* 1 … max(pages - 1, 1), coprime to pages */
} SeqLayout;

/* What the guest's misbehaving thread does to a small area of its own, and what may be there now: README.md. */
typedef enum {
    SEQ_EVENT_NONE,
    SEQ_EVENT_FORK,     /* children write to their copy of it */
    SEQ_EVENT_REMAP,    /* mremap back and forth */
    SEQ_EVENT_UNMAP,    /* mmap, fill, munmap */
    SEQ_EVENT_DONTNEED, /* fill, MADV_DONTNEED */
    SEQ_EVENT_FREE,     /* fill, MADV_FREE */
    SEQ_EVENT_PUNCH,    /* fill, punch a hole in the memfd behind it */
    SEQ_EVENT_MAX
} SeqEventKind;

typedef enum {
    SEQ_PHASE_EMPTY,    /* all zero; or not mapped when address is 0 */
    SEQ_PHASE_FILLING,  /* words of `generation` up to somewhere, after it those of `under` (0: zeros) */
    SEQ_PHASE_FULL,     /* every word is of `generation` */
    SEQ_PHASE_DROPPING, /* each page is zero or of `generation`; or not mapped */
    SEQ_PHASE_MOVING,   /* full at `address` or at `target` */
    SEQ_PHASE_MAX
} SeqPhase;

/* The thread stores these one by one, in an order in which every prefix describes a legal state. */
typedef struct {
    uint64_t kind;
    uint64_t phase;
    uint64_t generation; /* 1, 2, 3, … */
    uint64_t under;
    uint64_t address; /* in the guest process */
    uint64_t target;
    uint64_t length_bytes;
    uint64_t page_bytes;
} SeqEventArea;

/* Lies at the start of the arena; the rest of that page is zero. All numbers are little endian. */
typedef struct {
    char magic[8];
    uint64_t page_bytes;
    uint64_t pages;
    uint64_t touched;
    uint64_t hot;
    uint64_t stride;
    uint64_t threads;
    uint64_t batch; /* writes between two changes of the writer */

    uint64_t counter; /* number of the last write, stored after the write itself */
    uint64_t reserved1[7];

    uint64_t errors; /* words the guest found wrong in the arena; the first of them: */
    uint64_t error_page;
    uint64_t error_slot;
    uint64_t error_found;
    uint64_t error_expected;
    uint64_t event_errors; /* words found wrong in event areas */
    uint64_t reserved2[2];

    SeqEventArea events[SEQ_EVENTS_MAX];
} SeqHeader;

_Static_assert(offsetof(SeqHeader, counter) == 64 && offsetof(SeqHeader, events) == 192 &&
                   sizeof(SeqHeader) == 704,
               "the header is the same to 32-bit and 64-bit programs");

/* The next write: its number, its place, and how many writes ago the words were stored that are looked at. */
typedef struct {
    uint64_t n;
    uint32_t lap;
    uint32_t index; /* position in the lap, below length */
    uint32_t length;
    uint32_t page;
    uint32_t slot;
    uint32_t slot_before; /* written by the lap before */
    uint64_t back_over;   /* for slot, slot_before and slot 0; 0: not written before */
    uint64_t back_before;
    uint64_t back_first;
} SeqCursor;

static inline uint32_t seq_slots(const SeqLayout *layout) {
    return layout->page_bytes / SEQ_WORD_BYTES;
}

/* The word that write @n stores; 0 stands for no write. */
static inline uint64_t seq_word(uint64_t n) {
    return n ? n ^ SEQ_KEY : 0;
}

/* Word @index of generation @generation in an event area; generation 0 is zero memory. */
static inline uint64_t seq_event_word(uint64_t generation, uint32_t index) {
    return generation ? ((generation << 32) | index) ^ SEQ_EVENT_KEY : 0;
}

/* How many writes ago the same position was visited @laps_back laps before @lap; 0: there was no such lap. */
static inline uint64_t seq_writes_back(const SeqLayout *layout, uint32_t lap, uint32_t laps_back) {
    if (!laps_back || laps_back > lap)
        return 0;
    if (laps_back < lap)
        return (uint64_t)laps_back * layout->hot;
    return layout->touched + (uint64_t)(lap - 1) * layout->hot;
}

/* Set everything in the cursor that depends on its lap alone. */
static inline void seq_begin_lap(const SeqLayout *layout, SeqCursor *cursor, uint32_t lap) {
    uint32_t slots = seq_slots(layout);

    cursor->lap = lap;
    cursor->index = 0;
    cursor->page = 0;
    cursor->length = lap ? layout->hot : layout->touched;
    cursor->slot = lap & (slots - 1);
    cursor->slot_before = (lap - 1) & (slots - 1);
    cursor->back_over = seq_writes_back(layout, lap, slots);
    cursor->back_before = seq_writes_back(layout, lap, 1);
    cursor->back_first = seq_writes_back(layout, lap, cursor->slot);
}

/* The cursor of write 1. */
static inline void seq_start(const SeqLayout *layout, SeqCursor *cursor) {
    cursor->n = 1;
    seq_begin_lap(layout, cursor, 0);
}

static inline uint32_t seq_next_page(const SeqLayout *layout, uint32_t page) {
    page += layout->stride;
    return page >= layout->pages ? page - layout->pages : page;
}

/* On to the write after this one. */
static inline void seq_advance(const SeqLayout *layout, SeqCursor *cursor) {
    cursor->n++;
    if (++cursor->index == cursor->length)
        seq_begin_lap(layout, cursor, cursor->lap + 1);
    else
        cursor->page = seq_next_page(layout, cursor->page);
}

/* The cursor of write @n >= 1, in closed form. Divides 64-bit numbers: not for a program without a run-time
 * library. */
static inline void seq_seek(const SeqLayout *layout, SeqCursor *cursor, uint64_t n) {
    uint64_t k = n - 1;
    uint64_t lap = k < layout->touched ? 0 : 1 + (k - layout->touched) / layout->hot;

    seq_begin_lap(layout, cursor, (uint32_t)lap);
    cursor->n = n;
    cursor->index = (uint32_t)(lap ? (k - layout->touched) % layout->hot : k);
    cursor->page = (uint32_t)((uint64_t)cursor->index * layout->stride % layout->pages);
}

static inline uint64_t *seq_page_words(const SeqLayout *layout, void *arena, uint32_t page) {
    return (uint64_t *)((char *)arena + (size_t)(page + 1) * layout->page_bytes);
}

/*
 * One 8-byte store, by a single instruction also in 32-bit code, where it is MMX's (the FPU has to be on). Earlier
 * stores are seen before it.
 */
static inline void seq_store(uint64_t *word, uint64_t value) {
#ifdef __i386__
    __asm__ volatile("movq %1, %%mm0\n\tmovq %%mm0, %0" : "=m"(*word) : "m"(value) : "memory");
#else
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
#endif
}

/* Count a wrong word, and keep the first. Kept out of line: it never happens. */
static __attribute__((noinline, unused)) void seq_wrong(SeqHeader *header, uint32_t page, uint32_t slot,
                                                        uint64_t found, uint64_t expected) {
    if (!header->errors) {
        header->error_page = page;
        header->error_slot = slot;
        header->error_found = found;
        header->error_expected = expected;
    }
    header->errors++;
}

/* What has to be in a word that was stored @back writes before write @n. */
static inline uint64_t seq_word_back(uint64_t n, uint64_t back) {
    return back ? (n - back) ^ SEQ_KEY : 0;
}

/* Look at the three words that the write at @cursor depends on. */
static inline void seq_check_page(const SeqCursor *cursor, const uint64_t *words, SeqHeader *header) {
    uint64_t over = seq_word_back(cursor->n, cursor->back_over);
    uint64_t before = seq_word_back(cursor->n, cursor->back_before);
    uint64_t first = seq_word_back(cursor->n, cursor->back_first);

    if (__builtin_expect(words[cursor->slot] != over, 0))
        seq_wrong(header, cursor->page, cursor->slot, words[cursor->slot], over);
    if (cursor->back_before && __builtin_expect(words[cursor->slot_before] != before, 0))
        seq_wrong(header, cursor->page, cursor->slot_before, words[cursor->slot_before], before);
    if (cursor->back_first && __builtin_expect(words[0] != first, 0))
        seq_wrong(header, cursor->page, 0, words[0], first);
}

/* Check, write, publish, advance: everything a guest does for one number. @arena starts with the header. */
static inline void seq_write(const SeqLayout *layout, SeqCursor *cursor, void *arena) {
    SeqHeader *header = (SeqHeader *)arena;
    uint64_t *words = seq_page_words(layout, arena, cursor->page);

    seq_check_page(cursor, words, header);
    seq_store(&words[cursor->slot], cursor->n ^ SEQ_KEY);
    seq_store(&header->counter, cursor->n);
    seq_advance(layout, cursor);
}

static inline uint32_t seq_gcd(uint32_t a, uint32_t b) {
    while (b) {
        uint32_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

/* A stride that jumps by about the golden section of the arena: any run of positions is spread all over it. */
static inline uint32_t seq_scatter_stride(uint32_t pages) {
    uint32_t stride = (uint32_t)(((uint64_t)pages * 40503u) >> 16); /* 0.618 * 2^16 */

    if (stride < 1)
        stride = 1;
    while (seq_gcd(pages, stride) != 1)
        stride++;
    return stride;
}

/* Whether a layout is one that the functions above can work with. */
static inline bool seq_layout_valid(const SeqLayout *layout) {
    return layout->page_bytes >= sizeof(SeqHeader) && !(layout->page_bytes & (layout->page_bytes - 1)) &&
           layout->pages >= 1 && layout->pages <= SEQ_MAX_PAGES && layout->touched >= 1 &&
           layout->touched <= layout->pages && layout->hot >= 1 && layout->hot <= layout->touched &&
           layout->stride >= 1 && (layout->stride < layout->pages || layout->stride == 1) &&
           seq_gcd(layout->pages, layout->stride) == 1;
}

/* Fill the constant part of a header in zeroed memory. */
static inline void seq_header_init(SeqHeader *header, const SeqLayout *layout, uint32_t threads, uint32_t batch) {
    for (unsigned i = 0; i < sizeof(header->magic); i++)
        header->magic[i] = SEQ_MAGIC[i];
    header->page_bytes = layout->page_bytes;
    header->pages = layout->pages;
    header->touched = layout->touched;
    header->hot = layout->hot;
    header->stride = layout->stride;
    header->threads = threads;
    header->batch = batch;
}
