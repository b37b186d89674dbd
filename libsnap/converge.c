/* Go on, switch over, or give up; see converge.h. */
#include "converge.h"

#include <glib.h>

#define NS_PER_SECOND 1e9
#define STEP_NS UINT64_C(100000000)
#define PERIOD_NS UINT64_C(50000000) /* of SnapMoveOps.throttle; no longer than a step */

enum { STALLED_MIN = 2, STALLED_MAX = 4 };

static uint64_t per_second(uint64_t bytes, uint64_t ns) {
    return (uint64_t)((double)bytes * NS_PER_SECOND / (double)MAX(ns, 1));
}

/* The period that goes on begins with the round after the one that has made the last one whole. */
static void look_at_period(SnapConverge *converge, const SnapConvergeRound *round) {
    if (converge->now.ns >= PERIOD_NS) {
        converge->before = converge->now;
        converge->now = (SnapConvergePeriod){0};
    }
    converge->now.ns += round->round_ns;
    converge->now.dirty_bytes += round->dirty_bytes;
    converge->now.worst_bytes = MAX(converge->now.worst_bytes, round->dirty_bytes);
}

static bool is_throttled(const SnapConverge *converge) {
    return converge->throttle_percent > 0;
}

/* A whole one at least, up to now. */
static SnapConvergePeriod last_period(const SnapConverge *converge) {
    SnapConvergePeriod last = converge->now;
    if (last.ns < PERIOD_NS) {
        last.ns += converge->before.ns;
        last.dirty_bytes += converge->before.dirty_bytes;
        last.worst_bytes = MAX(last.worst_bytes, converge->before.worst_bytes);
    }
    return last;
}

/* A round that sent little says little of the connection: each counts by what it sent. */
static void measure(SnapConverge *converge, const SnapConvergeRound *round) {
    if (round->sent_bytes) {
        converge->bytes = converge->bytes / 2 + (double)round->sent_bytes;
        converge->ns = converge->ns / 2 + (double)MAX(round->send_ns, 1);
        converge->bytes_per_second = MAX((uint64_t)(converge->bytes * NS_PER_SECOND / converge->ns), 1);
    }
    look_at_period(converge, round);
    SnapConvergePeriod last = last_period(converge);
    converge->dirty_bytes_per_second = is_throttled(converge) ? per_second(last.dirty_bytes, last.ns)
                                                              : per_second(round->dirty_bytes, round->round_ns);
}

/* Nothing was sent yet, and nothing says how fast it would be: only an empty rest is known to be quick. */
static uint64_t expect(const SnapConverge *converge, uint64_t rest, uint64_t fixed_ns) {
    if (rest == 0) {
        return fixed_ns;
    }
    if (converge->bytes_per_second == 0) {
        return UINT64_MAX;
    }
    double ns = (double)rest * NS_PER_SECOND / (double)converge->bytes_per_second;
    return ns < 1e18 ? fixed_ns + (uint64_t)ns : UINT64_MAX;
}

/* What a switch-over now has to send; of a guest that sleeps at times, what it may have to. */
static uint64_t rest_bytes(const SnapConverge *converge, const SnapConvergeRound *round) {
    return is_throttled(converge) ? last_period(converge).worst_bytes : round->dirty_bytes;
}

/* What the guest would dirty unthrottled is taken to be in proportion to the time that it may run. */
static unsigned throttle_for_limit(const SnapConverge *converge, uint64_t limit_bytes,
                                   uint64_t dirty_bytes_per_second) {
    double free_run = (double)dirty_bytes_per_second * 100 / (100 - (double)converge->throttle_percent);
    double percent = free_run > 0 ? 100 - 100 * (double)limit_bytes / free_run : 0;
    return percent <= 0 ? 0 : (unsigned)MIN(percent + 1, 99);
}

static bool may_slow_down_more(const SnapConverge *converge, const SnapConvergeOptions *options) {
    return options->auto_converge && converge->wanted_percent < options->throttle_max;
}

static void slow_down(SnapConverge *converge, const SnapConvergeOptions *options) {
    unsigned next = converge->wanted_percent ? converge->wanted_percent + options->throttle_increment
                                             : options->throttle_initial;
    converge->wanted_percent = MIN(MAX(next, converge->wanted_percent + 1), options->throttle_max);
}

/* Return: whether it is to be given up. */
static bool judge(SnapConverge *converge, const SnapConvergeOptions *options, uint64_t rest) {
    uint64_t step_rate = per_second(converge->step_dirty_bytes, converge->step_ns);
    unsigned by_limit =
        options->dirty_limit_bytes ? throttle_for_limit(converge, options->dirty_limit_bytes, step_rate) : 0;
    converge->step_ns = converge->step_dirty_bytes = 0;
    bool nearer =
        converge->best_dirty_bytes == 0 || rest < converge->best_dirty_bytes - converge->best_dirty_bytes / 8;
    if (nearer) {
        converge->best_dirty_bytes = rest;
        converge->useless_rounds = 0;
    } else if (may_slow_down_more(converge, options)) {
        slow_down(converge, options);
    } else {
        converge->useless_rounds++;
    }
    converge->throttle_percent = MAX(by_limit, converge->wanted_percent);
    return options->max_useless_rounds && converge->useless_rounds >= options->max_useless_rounds;
}

/* Below the limit. Return: whether it is time. */
static bool is_as_good_as_it_gets(SnapConverge *converge, uint64_t rest) {
    uint64_t now_ns = converge->expected_downtime_ns, best_ns = converge->best_downtime_ns;
    if (best_ns == 0 || now_ns < best_ns - best_ns / 4) {
        converge->best_downtime_ns = now_ns;
        converge->stalled_rounds = 0;
        return rest == 0;
    }
    converge->stalled_rounds++;
    return rest == 0 || converge->stalled_rounds >= STALLED_MAX ||
           (converge->stalled_rounds >= STALLED_MIN && now_ns <= best_ns + best_ns / 4);
}

SnapConvergeVerdict snap_converge_round(SnapConverge *converge, const SnapConvergeOptions *options,
                                        const SnapConvergeRound *round) {
    measure(converge, round);
    uint64_t rest = rest_bytes(converge, round);
    converge->expected_downtime_ns = expect(converge, rest, round->fixed_ns);
    if (converge->expected_downtime_ns <= options->downtime_limit_ns) {
        return is_as_good_as_it_gets(converge, rest) ? SNAP_CONVERGE_SWITCH : SNAP_CONVERGE_ITERATE;
    }
    converge->step_ns += round->round_ns;
    converge->step_dirty_bytes += round->dirty_bytes;
    bool give_up = converge->step_ns >= STEP_NS && judge(converge, options, rest);
    return give_up ? SNAP_CONVERGE_FAIL : SNAP_CONVERGE_ITERATE;
}
