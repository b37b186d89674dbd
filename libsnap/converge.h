/*
 * Converge: after each round of a migration, whether to go on, to switch over, or to give up; and how much the
 * guest is to be slowed down. Pure: from figures to a verdict.
 *
 * Expected downtime = what is dirty / what the connection takes, and what the switch costs beside that. It is time
 * to switch when it is below the limit; but as long as it still shrinks clearly another round costs little, and
 * the smallest downtime is worth it. Figures of short rounds are rough, so it is not the first that does not
 * shrink that ends this, and the switch comes when things are about as good as they were at best.
 *
 * A throttled guest is kept from running for a part of each period of its throttle, and a round that falls into
 * that part finds next to nothing dirty, although the guest may write as much as it ever does by the time it is
 * stopped. So while it is throttled, it is not the last round that counts, but the worst of at least a whole
 * period; and the rate at which it dirties is that of so long.
 *
 * A round is *useless* when what is dirty afterwards is not clearly less than it ever was. Rounds get short when
 * little is dirty, and a guest takes a while to feel its throttle, so they are judged together until STEP_NS are
 * over. A useless one raises the throttle, where that may be; as far as it goes, max_useless_rounds of them in a
 * row are the end.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

typedef enum { SNAP_CONVERGE_ITERATE, SNAP_CONVERGE_SWITCH, SNAP_CONVERGE_FAIL } SnapConvergeVerdict;

typedef struct {
    uint64_t downtime_limit_ns;
    uint64_t dirty_limit_bytes; /* a second; 0: none */
    bool auto_converge;
    unsigned throttle_initial, throttle_increment, throttle_max; /* per cent */
    unsigned max_useless_rounds;                                 /* 0: never give up */
} SnapConvergeOptions;

/* What a round was. */
typedef struct {
    uint64_t sent_bytes;  /* of memory that had to be sent: pages that are zero cost next to nothing */
    uint64_t send_ns;     /* in so long */
    uint64_t dirty_bytes; /* written meanwhile: what the next round would send */
    uint64_t round_ns;    /* in so long */
    uint64_t fixed_ns;    /* what the switch costs whatever is dirty */
} SnapConvergeRound;

/* Rounds in a row, of as long as a throttle's period at least once it is whole. */
typedef struct {
    uint64_t ns;
    uint64_t dirty_bytes;
    uint64_t worst_bytes; /* the most that was dirty after one of them */
} SnapConvergePeriod;

/* {0} begins it. */
typedef struct {
    /* What it has come to; for all to read. */
    uint64_t bytes_per_second; /* that the connection takes; 0: not known yet */
    uint64_t dirty_bytes_per_second;
    uint64_t expected_downtime_ns; /* UINT64_MAX: not known yet */
    unsigned throttle_percent;
    unsigned useless_rounds; /* in a row, throttled as far as it goes */

    /* Its own. */
    uint64_t best_downtime_ns;      /* below the limit */
    unsigned stalled_rounds;        /* below the limit, that have not brought it down */
    double bytes, ns;               /* sent: a half of what was known before, and the last round */
    SnapConvergePeriod now, before; /* whole is the one before, and now at its last round */
    uint64_t best_dirty_bytes;
    uint64_t step_ns; /* since rounds were judged last */
    uint64_t step_dirty_bytes;
    unsigned wanted_percent; /* by auto_converge */
} SnapConverge;

SnapConvergeVerdict snap_converge_round(SnapConverge *converge, const SnapConvergeOptions *options,
                                        const SnapConvergeRound *round);
